"""Losses of registration; lower is better, all are means, so that weights do not depend on image or batch size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Mean over the `(2 radius + 1)^2` window around each pixel of `(B, C, H, W)`; the window is cut at the border."""
    pixels = torch.ones_like(image[:1, :1])
    total: Tensor = _BoxSum.apply(image, radius)  # type: ignore[no-untyped-call]
    return total / _box_sum(pixels, radius)


class _BoxSum(torch.autograd.Function):
    """Sum over the window around each pixel, which is its own adjoint."""

    @staticmethod
    def forward(context: Any, image: Tensor, radius: int) -> Tensor:
        context.radius = radius
        return _box_sum(image, radius)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _box_sum(gradient, context.radius), None


def _box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums of shifted images: several times faster on a CPU than average pooling, whose windows do not vectorise."""
    for dim, pad in (-2, (0, 0, radius, radius)), (-1, (radius, radius, 0, 0)):
        padded, length = functional.pad(image, pad), image.shape[dim]
        image = padded.narrow(dim, 0, length).clone()
        for shift in range(1, 2 * radius + 1):
            image += padded.narrow(dim, shift, length)
    return image


def lncc(first: Tensor, second: Tensor, *, radius: int = 3, epsilon: float = 1e-4) -> Tensor:
    """Squared local normalised cross-correlation per pixel, `(B, 1, H, W)`, in [0, 1], higher is better.

    `cov(a, b)^2 / (var(a) var(b) + epsilon^2)` over square windows. For intensities in [0, 1] a standard deviation of
    `sqrt(epsilon)`, 1 %, separates noise from structure: flat regions say nothing and score 0.
    """
    mean_1, square_1, product = box_mean(torch.cat([first, first * first, first * second], dim=1), radius).chunk(3, 1)
    mean_2, square_2 = box_mean(torch.cat([second, second * second], dim=1), radius).chunk(2, 1)
    cov = product - mean_1 * mean_2
    var_1 = (square_1 - mean_1 * mean_1).clamp_min(0)
    var_2 = (square_2 - mean_2 * mean_2).clamp_min(0)
    return cov * cov / (var_1 * var_2 + epsilon * epsilon)


def lncc_loss(warped: Tensor, fixed: Tensor, *, radius: int = 3) -> Tensor:
    """`1 - mean(lncc)`, squared correlation."""
    return 1 - lncc(warped, fixed, radius=radius).mean()


def mse_loss(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean squared difference."""
    return functional.mse_loss(warped, fixed)


def diffusion_loss(velocity: Tensor) -> Tensor:
    """Mean squared first derivative, per pixel step: the price of local stretching."""
    rows = velocity[..., 1:, :] - velocity[..., :-1, :]
    cols = velocity[..., :, 1:] - velocity[..., :, :-1]
    return rows.square().mean() + cols.square().mean()


def soft_dice_loss(warped: Tensor, fixed: Tensor) -> Tensor:
    """`1 - 2 |a b| / (|a|^2 + |b|^2)`, mean over the channels present in `fixed`; masks `(B, K, H, W)` in [0, 1]."""
    overlap = (warped * fixed).sum(dim=(-2, -1))
    total = warped.square().sum(dim=(-2, -1)) + fixed.square().sum(dim=(-2, -1))
    present = fixed.flatten(-2).any(dim=-1)
    dice = 1 - 2 * overlap / total.clamp_min(1e-6)
    return (dice * present).sum() / present.sum().clamp_min(1)
