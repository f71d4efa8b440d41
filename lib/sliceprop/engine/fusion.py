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
from sliceprop.engine.losses import lncc

THICKNESS_SHARE = 0.25
"""`tau` as a share of the structure's inner radius."""

LEAST_TAU_PX = 0.5

ARCTAN_STEEPNESS = 4.0
"""How quickly the distance rule turns from the lower to the upper slice around the middle of the interval."""

LNCC_RADIUS_PX = 15
"""Window of 31 pixels, as in LabelProp."""


def softness(inner_radius: Tensor) -> Tensor:
    """`tau` in pixels for structures of the given inner radius (largest signed distance), same shape."""
    return (THICKNESS_SHARE * inner_radius).clamp_min(LEAST_TAU_PX)


def score(distance: Tensor, tau: Tensor) -> Tensor:
    """`tanh(distance / tau)`; distance `(K, H, W)`, tau `(K,)`, pixels."""
    return torch.tanh(distance / tau[:, None, None])


def position_weight(lower: int, upper: int, index: int, *, rule: Fusion) -> float:
    """Weight of the upper slice by position: linear for `sdf`, arctan for `distance`; 0 at `lower`, 1 at `upper`."""
    t = (index - lower) / (upper - lower)
    if rule == "distance":
        return 0.5 + math.atan(ARCTAN_STEEPNESS * (2 * t - 1)) / (2 * math.atan(ARCTAN_STEEPNESS))
    return t


def similarity_weight(fixed: Tensor, lower: Tensor, upper: Tensor, region: Tensor, *, rule: Fusion) -> Tensor:
    """Weight of the upper slice by local correlation of each warped source image with the slice.

    Args:
        fixed: `(1, 1, H, W)`, the slice.
        lower: the image of the lower annotated slice, warped onto it.
        upper: the same of the upper one.
        region: `(K, H, W)` bool, where either side sees the label: what `lncc-mask` averages over.
        rule: `lncc-pixel`, `lncc-slice` or `lncc-mask`.

    Returns:
        broadcastable to `(K, H, W)`, in [0, 1]; the weight of the lower slice is the rest to 1.
    """
    below, above = (lncc(image, fixed, radius=LNCC_RADIUS_PX)[0].clamp_min(1e-3) for image in (lower, upper))
    if rule == "lncc-slice":
        below, above = below.mean(dim=(1, 2), keepdim=True), above.mean(dim=(1, 2), keepdim=True)
    elif rule == "lncc-mask":
        area = region.sum(dim=(1, 2), keepdim=True).clamp_min(1)
        below, above = ((sim * region).sum(dim=(1, 2), keepdim=True) / area + 1e-3 for sim in (below, above))
    return above / (below + above)


def fuse(lower: Tensor, upper: Tensor, weight: Tensor | float, one_sided: Tensor) -> Tensor:
    """`(1 - weight) lower + weight upper`; a label that only one of the two slices holds is taken from that one.

    Fading such a label would shrink it everywhere; `extent.supported_slices` decides where it ends.

    Args:
        lower: scores `(K, H, W)`.
        upper: the same.
        weight: of `upper`, broadcastable.
        one_sided: `(K,)` bool, label held by exactly one of the two annotated slices.
    """
    return torch.where(one_sided[:, None, None], torch.maximum(lower, upper), (1 - weight) * lower + weight * upper)
