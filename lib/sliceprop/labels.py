"""What the user drew: labels on some slices, scribbles anywhere, and what counts as known.

Unknown is not background: a voxel without a label says something only on a slice that counts as annotated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.errors import InputError, ShapeError

LabelArray = NDArray[np.int32]

SCRIBBLED_BACKGROUND = -1


@dataclass(frozen=True)
class SparseLabels:
    """Annotation of a study in the canonical frame.

    Attributes:
        labels: `(S, H, W)` int32, 0 where nothing is painted and on every slice that is not annotated.
        values: the `K` label values of annotation and scribbles, ascending.
        known: `(K, S)`, whether label `values[k]` is annotated completely on slice `s`; its absence there is a fact.
        annotated_slices: slices that the user annotated, ascending, also those listed as pure background.
        scribbles: `(S, H, W)` int32, 0 nothing, `SCRIBBLED_BACKGROUND`, else a label value; None without any.
    """

    labels: LabelArray
    values: tuple[int, ...]
    known: NDArray[np.bool_]
    annotated_slices: tuple[int, ...]
    scribbles: LabelArray | None = None

    def known_slices(self, k: int) -> tuple[int, ...]:
        """Slices on which label `values[k]` is known, ascending."""
        return tuple(int(s) for s in np.flatnonzero(self.known[k]))

    def cropped(self, index: tuple[slice, slice, slice]) -> SparseLabels:
        """The part of the annotation inside `index` of `(S, H, W)`."""
        scribbles = None if self.scribbles is None else self.scribbles[index]
        return replace(self, labels=self.labels[index], scribbles=scribbles)

    def without(self, index: int) -> SparseLabels:
        """The same annotation with slice `index` unknown: for holding a slice out."""
        labels, known = self.labels.copy(), self.known.copy()
        labels[index], known[:, index] = 0, False
        return replace(
            self, labels=labels, known=known, annotated_slices=tuple(s for s in self.annotated_slices if s != index)
        )


def check_labels(array: NDArray[Any], shape: tuple[int, ...], name: str = "labels") -> NDArray[np.int32]:
    """Label values as int32 on the image's grid.

    Raises:
        ShapeError: if the shape differs from the image's.
        InputError: values that are not integers, negative, or above 65,535.
    """
    if array.shape != tuple(shape):
        raise ShapeError(
            f"{name}: shape {array.shape} differs from the image's {tuple(shape)}; both need the same grid"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or (array != np.round(array)).any():
            raise InputError(f"{name}: values must be whole numbers; this looks like an image or a probability map")
    elif not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name}: values must be whole numbers, found {array.dtype}")
    low, high = array.min(initial=0), array.max(initial=0)
    if low < 0 or high > MAX_LABEL:
        raise InputError(f"{name}: label values must lie in 0..{MAX_LABEL}, found {low:g}..{high:g}")
    return array.astype(np.int32)


def sparse_labels(
    labels: LabelArray,
    *,
    scribbles: LabelArray | None = None,
    annotated_slices: Iterable[int] | None = None,
    partial: bool = False,
    background_scribble: int = BACKGROUND_SCRIBBLE,
) -> SparseLabels:
    """Decide what is known from what was painted.

    A slice counts as annotated completely when it holds any label (default); with `partial` only for the labels on it;
    with `annotated_slices` exactly those count, also empty ones, and labels elsewhere are ignored.

    Args:
        labels: `(S, H, W)` canonical label values.
        scribbles: `(S, H, W)` canonical, label values and `background_scribble`.
        annotated_slices: 0-based slice indices, or None.
        partial: see above; not together with `annotated_slices`.
        background_scribble: the scribble value that means background.

    Raises:
        InputError: a slice index out of range, annotation in more than one plane, both ways of saying what is known,
            or a label that has the value of the background scribble.
    """
    n_slices = labels.shape[0]
    if annotated_slices is not None:
        if partial:
            raise InputError("give either partial or annotated slices, not both")
        annotated = tuple(sorted({int(s) for s in annotated_slices}))
        outside = [s for s in annotated if not 0 <= s < n_slices]
        if outside:
            raise InputError(f"annotated slices {outside} are out of range, this axis has slices 0 to {n_slices - 1}")
        unlisted = np.setdiff1d(np.arange(n_slices), annotated)
        labels = labels.copy()
        labels[unlisted] = 0
    else:
        _check_one_plane(labels)
        annotated = tuple(int(s) for s in np.flatnonzero(labels.any(axis=(1, 2))))
    marks = None if scribbles is None else _signed_scribbles(scribbles, labels, background_scribble)
    present = present_values(labels) | (set() if marks is None else present_values(np.maximum(marks, 0)))
    values = tuple(sorted(present))
    known = np.zeros((len(values), n_slices), dtype=bool)
    if partial:
        for k, value in enumerate(values):
            known[k] = (labels == value).any(axis=(1, 2))
    else:
        known[:, list(annotated)] = True
    return SparseLabels(labels, values, known, annotated, marks)


def present_values(labels: LabelArray) -> set[int]:
    """The label values other than 0; counting is much faster than the sorting of `np.unique`."""
    return {int(value) for value in np.flatnonzero(np.bincount(labels.ravel()))} - {0}


def _signed_scribbles(scribbles: LabelArray, labels: LabelArray, background: int) -> LabelArray | None:
    if not scribbles.any():
        return None
    if (labels == background).any():
        raise InputError(
            f"label value {background} is also the background scribble; choose another background scribble value"
        )
    return np.where(scribbles == background, SCRIBBLED_BACKGROUND, scribbles).astype(np.int32)


def _check_one_plane(labels: LabelArray) -> None:
    """Refuse a painting across the slices: several slices crossed in the same line beside truly painted ones.

    Raises:
        InputError: telling the way out.
    """
    painted, lines = 0, {1: list[int](), 2: list[int]()}
    for index in np.flatnonzero(labels.any(axis=(1, 2))):
        rows, columns = np.nonzero(labels[index])
        flat = np.unique(rows).size == 1, np.unique(columns).size == 1
        if flat[0] and not flat[1]:
            lines[1].append(int(rows[0]))
        elif flat[1] and not flat[0]:
            lines[2].append(int(columns[0]))
        else:
            painted += 1
    crossing = [axis for axis, where in lines.items() if len(where) >= 3 and len(where) > 2 * len(set(where))]
    if painted and crossing:
        raise InputError(
            "annotation lies in more than one plane; annotate slices of one axis and give the rest as scribbles"
        )
