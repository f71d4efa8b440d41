"""The side tools on arrays: pick slices by text, remove small objects, Dice per label."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.engine.metrics import dice
from sliceprop.errors import InputError
from sliceprop.labels import LabelArray, present_values

_PART = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def parse_slices(text: str) -> set[int]:
    """`3, 5-9` to the slices 3 and 5 to 9.

    Raises:
        InputError: for anything else.
    """
    found: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            raise InputError(f"{part!r} is not a slice; write for instance 3, 5-9")
        first, last = int(match[1]), int(match[2] or match[1])
        found |= set(range(first, last + 1))
    if not found:
        raise InputError("name the slices, for instance 3, 5-9")
    return found


def remove_small_objects(
    labels: LabelArray, least_voxels: int, *, slice_axis: int | None = None, corners: bool = False
) -> tuple[LabelArray, int]:
    """Labels without the objects that are too small; an object is what touches within one label.

    Args:
        labels: any axis order.
        least_voxels: smaller objects go.
        slice_axis: objects are those of each slice by itself; None for objects in 3D.
        corners: whether voxels that share only an edge or a corner touch.

    Returns:
        the labels that are left, and how many objects went.
    """
    touching = ndimage.generate_binary_structure(3, 3 if corners else 1)
    if slice_axis is not None:
        through = np.moveaxis(touching, slice_axis, 0)
        through[[0, 2]] = False
    kept, removed = labels.copy(), 0
    for value in present_values(labels):
        objects, count = ndimage.label(labels == value, touching)
        small = np.bincount(objects.ravel(), minlength=count + 1) < least_voxels
        small[0] = False
        kept[small[objects]] = 0
        removed += int(small.sum())
    return kept, removed


def dice_per_label(prediction: LabelArray, reference: LabelArray, counted: NDArray[np.bool_]) -> dict[int, float]:
    """Dice of each label that is in either.

    Args:
        prediction: any axis order.
        reference: the same grid.
        counted: voxels to look at.
    """
    found, truth = np.where(counted, prediction, 0), np.where(counted, reference, 0)
    return {value: dice(found, truth, value) for value in sorted(present_values(found) | present_values(truth))}
