"""How alike two slices look to a network: LPIPS, with AlexNet, the study's own network, or fixed filters.

Features of each level are brought to unit length at every pixel; the distance of two slices is the squared difference
of those features, weighted by channel, mean over the pixels, summed over the levels.

References:
    Zhang et al., CVPR 2018 (LPIPS), doi:10.1109/CVPR.2018.00068.
    Krizhevsky, "One weird trick", 2014 (this AlexNet), arXiv:1404.5997.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans.sizes import within
from sliceprop.engine.training import halved

SIDE_PX = (64, 256)
"""Sides of the slices at least and at most: LPIPS was made on patches of 64 pixels, and larger ones only cost."""

LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation per colour of photographs in [-1, 1], which AlexNet has learnt on."""

ALEXNET_LAYERS = {0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)}
"""Stride, padding, and whether a maximum over 3 x 3 pixels comes first, by number in torchvision's `features`."""

FILTER_FLOOR = 0.02
"""Length of the derivatives of an intensity in [0, 1] below which they are noise and not brought to unit length."""

FILTER_LEVELS = 4


def perceptual_distances(levels: Iterable[Tensor]) -> NDArray[np.float64]:
    """Distance of every slice to every other, `(S, S)`, 0 on the diagonal: `sum over levels of |a - b|^2`.

    Args:
        levels: `(S, C, h, w)` each, as the functions of this module yield them.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    distances = [euclidean_distances(level.flatten(1).cpu().numpy(), squared=True) for level in levels]
    total: NDArray[np.float64] = np.sum(distances, axis=0, dtype=np.float64)
    return total


@torch.no_grad()
def alexnet_levels(
    images: Tensor, weights: Mapping[str, Tensor], linear: Sequence[Tensor] | None = None
) -> Iterator[Tensor]:
    """The five convolutional layers of AlexNet, after their rectification.

    Args:
        images: `(S, 1, H, W)` in [0, 1]; a grey value is taken for all three colours.
        weights: of `ALEXNET_LAYERS`, see `read_alexnet`.
        linear: weight of each channel of each layer, `(C,)`; 1 for all without it.
    """
    shift, scale = (torch.tensor(values)[:, None, None] for values in (LPIPS_SHIFT, LPIPS_SCALE))
    x = (2 * within(images, *SIDE_PX) - 1 - shift) / scale
    for level, (layer, (stride, padding, pooled)) in enumerate(ALEXNET_LAYERS.items()):
        x = functional.max_pool2d(x, kernel_size=3, stride=2) if pooled else x
        kernel, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
        x = functional.conv2d(x, kernel, bias, stride, padding).relu_()
        yield _comparable(x, None if linear is None else linear[level])


@torch.no_grad()
def network_levels(images: Tensor, network: RegistrationNet) -> Iterator[Tensor]:
    """The encoder of the registration network, which sees a slice beside itself, at the resolution that it learnt at.

    Args:
        images: `(S, 1, H, W)` in [0, 1].
        network: trained on this study.
    """
    half = halved(within(images, *SIDE_PX)).to(next(network.parameters()).device)
    x = torch.cat([half, half], dim=1)
    for block in network.down:
        x = block(x)
        yield _comparable(x)


def filter_levels(images: Tensor) -> Iterator[Tensor]:
    """First and second derivatives of the intensity, at half the resolution, a quarter and so on.

    Args:
        images: `(S, 1, H, W)` in [0, 1].
    """
    smooth, slope, bend = torch.tensor([[1.0, 2, 1], [-1, 0, 1], [1, -2, 1]])
    pairs = (smooth, slope), (slope, smooth), (smooth, bend), (bend, smooth), (slope, slope)
    kernels = torch.stack([torch.outer(rows, columns) for rows, columns in pairs])
    kernels /= kernels.abs().sum(dim=(1, 2), keepdim=True)
    x = within(images, *SIDE_PX)
    for _ in range(FILTER_LEVELS):
        x = halved(x)
        yield _comparable(
            functional.conv2d(functional.pad(x, (1, 1, 1, 1), "replicate"), kernels[:, None]), floor=FILTER_FLOOR
        )


def _comparable(features: Tensor, weight: Tensor | None = None, *, floor: float = 1e-10) -> Tensor:
    """Features whose squared difference is the distance: of unit length per pixel, weighted, a mean over the pixels.

    Args:
        features: `(S, C, h, w)`.
        weight: `(C,)`, not negative.
        floor: length of what is nothing.
    """
    scale = 1 / (features.norm(dim=1, keepdim=True) + floor) / float(np.sqrt(features[0, 0].numel()))
    comparable: Tensor = features * (scale if weight is None else scale * weight.sqrt()[:, None, None])
    return comparable
