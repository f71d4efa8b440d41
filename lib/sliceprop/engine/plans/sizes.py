"""Slices on a grid that a measure can work on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def within(images: Tensor, least: int, most: int) -> Tensor:
    """Images `(B, C, H, W)` with each side stretched to `least` or reduced to `most` pixels where it is beyond.

    All slices of a scan are stretched alike, so that this does not tell them apart.
    """
    size = [min(max(side, least), most) for side in images.shape[-2:]]
    if size == list(images.shape[-2:]):
        return images
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)
