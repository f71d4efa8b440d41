"""How good the result is, without a reference: expected Dice per label and slice.

Between two annotated slices the two sides' disagreement tells the error: where both say the same, it is likely right.
Beyond the outermost annotated slice it grows with distance. Small structures lose more Dice by the same border error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sliceprop.engine.interpolation import sources
from sliceprop.labels import LabelArray, SparseLabels

Areas = NDArray[np.float64]
"""`(K, S)` pixels."""

BETWEEN = (-0.04, 0.40, 0.50)
"""Expected error 1 - Dice between two annotated slices: constant, per disagreement, and per 1 / radius in pixels (half
a pixel of border). Least squares over 6,285 label slices of ten volumes of MRI and CT; leaving one volume out at a
time, mean absolute error 0.12 and rank correlation 0.81 per label and slice."""

BEYOND = (0.12, 0.23, 0.55)
"""The same beyond the outermost annotated slice: constant, per square root of distance over radius, per 1 / radius;
from 676 label slices, where a structure's end makes it a guess: mean absolute error 0.29."""


@dataclass(frozen=True)
class Quality:
    """Expected overlap with the truth.

    Attributes:
        dice: `(K, S)`; 1 on slices where the label is known, NaN where neither side sees it.
        size: `(K, S)`, pixels the label is expected to cover.
    """

    dice: NDArray[np.float64]
    size: Areas

    def label_dice(self, k: int) -> float:
        """Expected Dice of label `k` over the whole volume, its slices weighed by size; NaN for a label nowhere."""
        seen = np.isfinite(self.dice[k]) & (self.size[k] > 0)
        return float(np.average(self.dice[k, seen], weights=self.size[k, seen])) if seen.any() else float("nan")


def estimate_quality(annotation: SparseLabels, labels: LabelArray, lower: LabelArray, upper: LabelArray) -> Quality:
    """Expected Dice per label and slice.

    Args:
        annotation: what is known.
        labels: the result, `(S, H, W)`.
        lower: carried from the annotated slices below only.
        upper: carried from above only.
    """
    values = annotation.values
    below, above, fused = (_areas(part, values) for part in (lower, upper, labels))
    both = _areas(np.where(lower == upper, lower, 0), values)
    low, up = sources(annotation.known)
    two_sided = (low >= 0) & (up >= 0)
    size = np.maximum(fused, np.where(two_sided, (below + above) / 2, np.maximum(below, above)))
    radius = np.sqrt(np.maximum(size, 1) / np.pi)
    disagreement = 1 - 2 * both / np.maximum(below + above, 1)
    index = np.arange(labels.shape[0])
    distance = np.where(low < 0, up - index, index - low)
    between = BETWEEN[0] + BETWEEN[1] * disagreement + BETWEEN[2] / radius
    beyond = BEYOND[0] + BEYOND[1] * np.sqrt(np.maximum(distance, 0) / radius) + BEYOND[2] / radius
    dice = 1 - np.clip(np.where(two_sided, between, beyond), 0, 1)
    return Quality(np.where(annotation.known, 1.0, np.where(size > 0, dice, np.nan)), size)


def _areas(labels: LabelArray, values: tuple[int, ...]) -> Areas:
    """Pixels of each label on each slice."""
    lookup = np.array(values)
    areas = np.zeros((len(values), len(labels)))
    for s, plane in enumerate(labels):
        found, counts = np.unique(plane[plane > 0], return_counts=True)
        areas[np.searchsorted(lookup, found), s] = counts
    return areas
