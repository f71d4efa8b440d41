"""Threshold, then keep the islands that are wanted: the largest, those that were marked, or all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import block_reduce

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray
from sliceprop.tools.presets import KEEPS, PRESETS, Keep
from sliceprop.tools.seeds import BACKGROUND, Range, check_seeds

Mask = NDArray[np.bool_]

Claims = NDArray[np.uint32]
"""Which kinds may have a voxel: a bit for each, so that many take no more memory than one."""

MOST_RANGES = 31
"""As many bits as there are beside that of the background; each range takes seconds in a large scan."""

MEASURED_VOXELS = 1_000_000
"""In larger scans the nearest mark is looked up for blocks of 2 voxels a side: where marks meet is not that exact."""


def threshold_islands(
    image: NDArray[Any],
    ranges: Mapping[int, Range],
    *,
    keep: Keep = "largest",
    seeds: NDArray[Any] | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> LabelArray:
    """Label what lies in a range of intensities, island by island; an island's voxels touch by their faces.

    Marks of several kinds in one island, as where one tissue runs into the next, divide it: each voxel goes to the
    nearest. Other voxels in two ranges go to the lower label.

    Args:
        image: `(i, j, k)`.
        ranges: per label value.
        keep: the `largest` island, those with a seed of the label (`selected`), or `all`.
        seeds: same grid; needed for `selected`. Those of the background cut away parts of the islands that they lie in.
        spacing: of the voxels, mm.

    Returns:
        `(i, j, k)` labels.

    Raises:
        InputError: a range that is open at both ends or selects nothing, a seed that lies in no island, or more ranges
            than `MOST_RANGES`.
        NoAnnotationError: `selected` without a seed of the label.
    """
    if keep not in KEEPS:
        raise InputError(f"keep must be one of {', '.join(KEEPS)}, not {keep!r}")
    if keep == "selected" and seeds is None:
        raise NoAnnotationError("mark the islands to keep, one voxel is enough, or keep the largest one")
    marks = None if seeds is None or keep != "selected" else check_seeds(seeds, image)
    if len(ranges) > MOST_RANGES:
        raise InputError(f"there are {len(ranges)} ranges of intensities; give at most {MOST_RANGES} at a time")
    kinds, claims = [BACKGROUND, *sorted(ranges)], np.zeros(image.shape, np.uint32)
    for bit, label in enumerate(kinds[1:], start=1):
        if not ranges[label].bounded:
            raise InputError(f"label {label}: give a lower threshold, an upper one, or a preset ({', '.join(PRESETS)})")
        selected = ranges[label].select(image)
        if marks is None:
            kept = selected if keep == "all" else _islands(selected)
        else:
            kept, leaky = _marked_islands(selected, marks, label)
            claims[leaky] |= _bit(0)
        claims[kept] |= _bit(bit)
    return _lowest(claims, kinds) if marks is None else _nearest(claims, kinds, marks, spacing)


def _bit(number: int) -> np.uint32:
    return np.uint32(1 << number)


def _islands(selected: Mask) -> Mask:
    """The largest island."""
    numbers, _ = ndimage.label(selected)
    largest: Mask = numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()
    return largest


def _marked_islands(selected: Mask, marks: LabelArray, label: int) -> tuple[Mask, Mask]:
    """The islands with a mark of the label, and those of them with a mark of the background too."""
    if not (marks == label).any():
        raise NoAnnotationError(f"label {label}: no voxel is marked; mark the islands to keep")
    numbers, n_islands = ndimage.label(selected)
    kept, leaky = np.zeros(n_islands + 1, dtype=bool), np.zeros(n_islands + 1, dtype=bool)
    kept[numbers[marks == label]] = leaky[numbers[marks == BACKGROUND]] = True
    kept[0] = False
    if not kept.any():
        raise InputError(f"label {label}: no mark lies within the thresholds; move the mark or the thresholds")
    return kept[numbers], (kept & leaky)[numbers]


def _lowest(claims: Claims, kinds: Sequence[int]) -> LabelArray:
    """Each voxel to the lowest of its claimants."""
    result = np.zeros(claims.shape, np.int32)
    for bit, kind in reversed(list(enumerate(kinds))):
        result[claims & _bit(bit) != 0] = max(kind, 0)
    return result


def _nearest(
    claims: Claims, kinds: Sequence[int], marks: LabelArray, spacing: tuple[float, float, float]
) -> LabelArray:
    """Each voxel to that of its claimants whose marks are nearest."""
    disputed = claims & (claims - _bit(0)) != 0
    result = _lowest(np.where(disputed, 0, claims), kinds)
    least = np.full(marks.shape, np.inf, np.float32)
    for bit, kind in enumerate(kinds):
        distance = _distances(marks == kind, (claims & _bit(bit) != 0) & disputed, spacing)
        nearer = distance < least
        result[nearer] = max(kind, 0)
        np.copyto(least, distance, where=nearer)
    return result


def _distances(points: Mask, wanted: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float32]:
    """From what is wanted to the nearest point, mm; infinite elsewhere."""
    side = 1 if wanted.size <= MEASURED_VOXELS else 2
    i, j, k = (side if size < 2 * min(spacing) else 1 for size in spacing)
    step = np.array((i, j, k))
    blocks = block_reduce(wanted, (i, j, k), np.max)
    table = np.full(blocks.shape, np.inf, np.float32)
    centres = np.argwhere(blocks) * step + (step - 1) / 2
    if len(centres):
        table[blocks] = cKDTree(np.argwhere(points) * np.array(spacing)).query(centres * np.array(spacing))[0]
    fine = np.kron(table, np.ones((i, j, k), np.float32))[tuple(slice(size) for size in wanted.shape)]
    return np.where(wanted, fine, np.float32(np.inf))
