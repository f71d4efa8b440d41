"""Merging what the lower and the upper annotated slice say about a slice in between.

Each label is carried as a signed distance map (pixels, positive inside) and squashed to a *score* in [-1, 1] by
`tanh(distance / tau)`. With a large tau a weighted mean of two scores blends shapes (right for muscles that change
slowly), with a small one it follows the nearer side (right for thin vessels, where blending two slightly misplaced
shapes erases both). `tau` grows with the structure's thickness, so each gets what suits it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.interpolation import Box

THICKNESS_SHARE = 0.25
"""`tau` as a share of the structure's inner radius."""

LEAST_TAU_PX = 0.5

ARCTAN_STEEPNESS = 4.0
"""How quickly the distance rule turns from the lower to the upper slice around the middle of the interval."""

LNCC_RADIUS_PX = 15
"""Window of 31 pixels, as in LabelProp."""

EPSILON = 1e-3
"""Two slices that say nothing count the same."""


def softness(inner_radius: Tensor) -> Tensor:
    """`tau` in pixels for a structure of the given inner radius (largest signed distance)."""
    return (THICKNESS_SHARE * inner_radius).clamp_min(LEAST_TAU_PX)


def score(distance: Tensor, tau: Tensor) -> Tensor:
    """`tanh(distance / tau)`, both in pixels."""
    return torch.tanh(distance / tau)


def position_weight(lower: int, upper: int, index: int, *, rule: Fusion) -> float:
    """Weight of the upper slice by position: linear for `sdf`, arctan for `distance`; 0 at `lower`, 1 at `upper`."""
    t = (index - lower) / (upper - lower)
    if rule == "distance":
        return 0.5 + math.atan(ARCTAN_STEEPNESS * (2 * t - 1)) / (2 * math.atan(ARCTAN_STEEPNESS))
    return t


def similarity_weight(below: Tensor, above: Tensor, window: Box, region: Tensor, *, rule: Fusion) -> Tensor:
    """Weight of the upper slice by local correlation of each carried annotated slice with the slice in between.

    Args:
        below: `(H, W)`, correlation of the lower annotated slice, carried there.
        above: the same of the upper one.
        window: the label's part of the slice.
        region: bool in the window, where either side sees the label: what `lncc-mask` averages over.
        rule: `lncc-pixel`, `lncc-slice` or `lncc-mask`.

    Returns:
        a value or a map of the window, in [0, 1]; the weight of the lower slice is the rest to 1.
    """
    if rule == "lncc-slice":
        lower, upper = below.mean(), above.mean()
    elif rule == "lncc-mask" and region.any():
        lower, upper = below[window][region].mean(), above[window][region].mean()
    else:
        lower, upper = below[window], above[window]
    return (upper + EPSILON) / (lower + upper + 2 * EPSILON)
