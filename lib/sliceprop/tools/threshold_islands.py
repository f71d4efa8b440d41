"""Threshold, then keep the islands that are wanted: the largest, those that were marked, or all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray
from sliceprop.tools.presets import KEEPS, PRESETS, Keep
from sliceprop.tools.seeds import Range, check_seeds


def threshold_islands(
    image: NDArray[Any],
    ranges: Mapping[int, Range],
    *,
    keep: Keep = "largest",
    seeds: NDArray[Any] | None = None,
) -> LabelArray:
    """Label what lies in a range of intensities, island by island; an island's voxels touch by their faces.

    Args:
        image: `(i, j, k)`.
        ranges: per label value; a voxel in two ranges goes to the lower label.
        keep: the `largest` island, those with a seed of the label (`selected`), or `all`.
        seeds: same grid; needed for `selected`. Seeds of other labels and of background do not matter.

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
    result = np.zeros(image.shape, np.int32)
    for label in sorted(ranges):
        if not ranges[label].bounded:
            raise InputError(f"label {label}: give a lower threshold, an upper one, or a preset ({', '.join(PRESETS)})")
        chosen = _islands(ranges[label].select(image), keep, label, None if marks is None else marks == label)
        result[chosen & (result == 0)] = label
    return result


def _islands(
    selected: NDArray[np.bool_], keep: Keep, label: int, marked: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    if keep == "all":
        return selected
    numbers, _ = ndimage.label(selected)
    if marked is None:
        kept = np.array([1 + np.bincount(numbers.ravel())[1:].argmax()])
    else:
        if not marked.any():
            raise NoAnnotationError(f"label {label}: no voxel is marked; mark the islands to keep")
        kept = np.flatnonzero(np.bincount(numbers[marked])[1:]) + 1
        if not len(kept):
            raise InputError(f"label {label}: no mark lies within the thresholds; move the mark or the thresholds")
    table = np.zeros(int(numbers.max()) + 1, dtype=bool)
    table[kept] = True
    chosen: NDArray[np.bool_] = table[numbers]
    return chosen
