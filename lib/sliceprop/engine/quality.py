"""How good the result is, without a reference: expected Dice and surface distance per label and slice.

Refined scores are probabilities and promise a Dice of their own; it is corrected by what else tells the error. Between
two annotated slices that is the two sides' disagreement: where both say the same, it is likely right. Beyond the
outermost annotated slice the error grows with distance. Small structures lose more Dice by the same border error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sliceprop.engine.filling import Filled
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

REFINED_BETWEEN = (-0.090, 1.151, 0.090, 0.140)
"""Expected error of a refined label between two annotated slices: constant, per promised error, per disagreement, per
1 / radius. Least absolute error over 6,591 label slices of ten volumes of MRI and CT (`benchmarks/quality.py`); leaving
one volume out at a time, mean absolute error 0.08 and rank correlation 0.83 per label and slice."""

REFINED_BEYOND = (-0.177, 1.480, -0.064, 1.047)
"""The same beyond the outermost annotated slice: constant, per promised error, per reach, per 1 / radius; from 791
label slices: mean absolute error 0.19, rank correlation 0.71."""

SURFACE = 0.63
"""Border distance over expected error and radius: two discs of radius r that overlap with a Dice of D have borders
about r (1 - D) apart. Median over the same label slices."""


class Signs(NamedTuple):
    """What can be seen without a reference, all `(K, S)`.

    Attributes:
        promised_error: 1 - Dice that refined scores promise, NaN where nothing was refined.
        disagreement: 1 - Dice of the two sides.
        inverse_radius: of a disc of the label's expected size, 1/pixel.
        reach: square root of the distance to the nearest known slice over that radius.
        two_sided: whether the slice lies between two slices on which the label is known.
        size: pixels the label is expected to cover.
    """

    promised_error: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    inverse_radius: NDArray[np.float64]
    reach: NDArray[np.float64]
    two_sided: NDArray[np.bool_]
    size: Areas


@dataclass(frozen=True)
class Quality:
    """Expected agreement with the truth.

    Attributes:
        dice: `(K, S)`; 1 on slices where the label is known, NaN where neither side sees it.
        surface_px: `(K, S)`, expected mean distance between the borders, pixels; 0 and NaN likewise.
        size: `(K, S)`, pixels the label is expected to cover.
    """

    dice: NDArray[np.float64]
    surface_px: NDArray[np.float64]
    size: Areas

    def label_dice(self, k: int) -> float:
        """Expected Dice of label `k` over the whole volume, its slices weighed by size; NaN for a label nowhere."""
        return self._mean(self.dice, k)

    def label_surface_px(self, k: int) -> float:
        """Expected border distance of label `k` over the whole volume in pixels; NaN for a label nowhere."""
        return self._mean(self.surface_px, k)

    def _mean(self, values: NDArray[np.float64], k: int) -> float:
        seen = np.isfinite(values[k]) & (self.size[k] > 0)
        return float(np.average(values[k, seen], weights=self.size[k, seen])) if seen.any() else float("nan")


def estimate_quality(annotation: SparseLabels, filled: Filled) -> Quality:
    """Expected Dice and border distance per label and slice.

    Args:
        annotation: what is known.
        filled: the result, `(S, H, W)`.
    """
    signs = read_signs(annotation, filled)
    promised, disagreement, inverse_radius, reach, two_sided, _ = signs
    between = _linear(BETWEEN, disagreement, inverse_radius)
    beyond = _linear(BEYOND, reach, inverse_radius)
    refined_between = _linear(REFINED_BETWEEN, promised, disagreement, inverse_radius)
    refined_beyond = _linear(REFINED_BEYOND, promised, reach, inverse_radius)
    refined = np.where(two_sided, refined_between, refined_beyond)
    error = np.clip(np.where(np.isfinite(promised), refined, np.where(two_sided, between, beyond)), 0, 1)
    seen = signs.size > 0
    dice = np.where(annotation.known, 1.0, np.where(seen, 1 - error, np.nan))
    surface = SURFACE * error / signs.inverse_radius
    return Quality(dice, np.where(annotation.known, 0.0, np.where(seen, surface, np.nan)), signs.size)


def read_signs(annotation: SparseLabels, filled: Filled) -> Signs:
    """What the estimate is made from."""
    values, lower, upper = annotation.values, filled.from_lower, filled.from_upper
    below, above, fused = (_areas(part, values) for part in (lower, upper, filled.labels))
    both = _areas(np.where(lower == upper, lower, 0), values)
    low, up = sources(annotation.known)
    two_sided = (low >= 0) & (up >= 0)
    size = np.maximum(fused, np.where(two_sided, (below + above) / 2, np.maximum(below, above)))
    radius = np.sqrt(np.maximum(size, 1) / np.pi)
    index = np.arange(len(lower))
    distance = np.maximum(np.where(low < 0, up - index, index - low), 0)
    promised = np.full(size.shape, np.nan) if filled.expected_dice is None else 1 - filled.expected_dice
    disagreement = 1 - 2 * both / np.maximum(below + above, 1)
    return Signs(promised, disagreement, 1 / radius, np.sqrt(distance / radius), two_sided, size)


def _linear(weights: tuple[float, ...], *signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """A constant and one weight per sign."""
    total = np.full(signs[0].shape, weights[0])
    for weight, sign in zip(weights[1:], signs, strict=True):
        total += weight * sign
    return total


def _areas(labels: LabelArray, values: tuple[int, ...]) -> Areas:
    """Pixels of each label on each slice."""
    lookup = np.array(values)
    areas = np.zeros((len(values), len(labels)))
    for s, plane in enumerate(labels):
        found, counts = np.unique(plane[plane > 0], return_counts=True)
        areas[np.searchsorted(lookup, found), s] = counts
    return areas
