"""Threshold, then keep the islands that are wanted: the largest, those that were marked, or all."""

from __future__ import annotations

from collections.abc import Mapping
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
        InputError: a range that is open at both ends or selects nothing, or a seed that lies in no island.
        NoAnnotationError: `selected` without a seed of the label.
    """
    if keep not in KEEPS:
        raise InputError(f"keep must be one of {', '.join(KEEPS)}, not {keep!r}")
    if keep == "selected" and seeds is None:
        raise NoAnnotationError("mark the islands to keep, one voxel is enough, or keep the largest one")
    marks = None if seeds is None or keep != "selected" else check_seeds(seeds, image)
    claims, cut = dict[int, Mask](), np.zeros(image.shape, dtype=bool)
    for label in sorted(ranges):
        if not ranges[label].bounded:
            raise InputError(f"label {label}: give a lower threshold, an upper one, or a preset ({', '.join(PRESETS)})")
        selected = ranges[label].select(image)
        if marks is None:
            claims[label] = selected if keep == "all" else _islands(selected)
        else:
            claims[label], leaky = _marked_islands(selected, marks, label)
            cut |= leaky
    if marks is None:
        return _lowest(claims)
    return _nearest({BACKGROUND: cut, **claims}, marks, spacing)


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


def _lowest(claims: Mapping[int, Mask]) -> LabelArray:
    result = np.zeros(next(iter(claims.values())).shape, np.int32)
    for label in sorted(claims, reverse=True):
        result[claims[label]] = label
    return result


def _nearest(claims: Mapping[int, Mask], marks: LabelArray, spacing: tuple[float, float, float]) -> LabelArray:
    """Each voxel to that of its claimants whose marks are nearest."""
    disputed = np.sum([claim.astype(np.uint8) for claim in claims.values()], axis=0) > 1
    result = _lowest({max(kind, 0): claim & ~disputed for kind, claim in claims.items()})
    least = np.full(marks.shape, np.inf, np.float32)
    for kind, claim in claims.items():
        distance = _distances(marks == kind, claim & disputed, spacing)
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
