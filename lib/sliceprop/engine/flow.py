"""Dense 2D transforms: warping, composition, integration of velocity fields.

A displacement `disp` is `(B, 2, H, W)`, in pixels, (row, col), on the fixed grid: `x_moving = x_fixed + disp(x_fixed)`.
Pixel centres lie on integers. Outside the grid the border value is held.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def identity_grid(height: int, width: int, *, like: Tensor) -> Tensor:
    """Pixel coordinates `(1, 2, H, W)`, (row, col), on the device and in the type of `like`."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    cols = torch.arange(width, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"))[None]


def warp(image: Tensor, disp: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Resample the moving image on the fixed grid: `warped(x) = image(x + disp(x))`.

    Args:
        image: `(B, C, H, W)`.
        disp: `(B, 2, H', W')` pixels of `image`; the output has its height and width.
        mode: `bilinear` or `nearest`.

    Returns:
        `(B, C, H', W')`.
    """
    rows, columns = (_sampled(disp[:, dim], dim, size) for dim, size in enumerate(image.shape[-2:]))
    xy = torch.stack([columns, rows], dim=1).permute(0, 2, 3, 1)
    return functional.grid_sample(image, xy, mode=mode, padding_mode="border", align_corners=True)


def _sampled(disp: Tensor, dim: int, size: int) -> Tensor:
    """Where the pixels of a displacement's component `(B, H, W)` sample `size` pixels along a dimension, in [-1, 1]."""
    step = 2 / max(size - 1, 1)
    place = step * torch.arange(disp.shape[1 + dim], device=disp.device, dtype=disp.dtype) - 1
    return torch.add(place[:, None] if dim == 0 else place, disp, alpha=step)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """`(second o first)(x) = first(x) + second(x + first(x))`: walk `first`, then `second` from where it led.

    To carry labels from slice `a` to slice `c` over `b`: `first` maps `c` to `b`, `second` maps `b` to `a`.
    """
    return first + warp(second, first)


def compose_steps(steps: Tensor, hop: int) -> Tensor:
    """Displacements over `hop` steps in a row, of every run of steps.

    Args:
        steps: `(N, 2, H, W)`, in the order in which they are walked.
        hop: steps in a run.

    Returns:
        `(N - hop + 1, 2, H, W)`, entry `i` walks steps `i` to `i + hop - 1`.
    """
    n_runs = len(steps) - hop + 1
    disp = steps[:n_runs]
    for i in range(1, hop):
        disp = compose(disp, steps[i : i + n_runs])
    return disp


def integrate_velocity(velocity: Tensor, steps: int = 6) -> Tensor:
    """Displacement of a stationary velocity field, `disp = exp(velocity)`, by scaling and squaring.

    Args:
        velocity: `(B, 2, H, W)`, pixels.
        steps: squarings; the first step is `velocity / 2**steps`, which should stay well below half a pixel.

    References:
        Arsigny et al. 2006, doi:10.1007/11866565_113.
    """
    disp = velocity / float(2**steps)
    for _ in range(steps):
        disp = compose(disp, disp)
    return disp


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resample a velocity or displacement `(B, 2, h, w)` onto another grid and rescale its pixels."""
    if flow.shape[-2:] == (height, width):
        return flow
    h, w = flow.shape[-2:]
    resized = functional.interpolate(flow, size=(height, width), mode="bilinear", align_corners=True)
    scale = flow.new_tensor([max(height - 1, 1) / max(h - 1, 1), max(width - 1, 1) / max(w - 1, 1)])
    return resized * scale.view(1, 2, 1, 1)


def jacobian_determinant(disp: Tensor) -> Tensor:
    """Determinant of the Jacobian of `x + disp(x)` by forward differences, `(B, H - 1, W - 1)`."""
    d_row = disp[..., 1:, :-1] - disp[..., :-1, :-1]
    d_col = disp[..., :-1, 1:] - disp[..., :-1, :-1]
    return (1 + d_row[:, 0]) * (1 + d_col[:, 1]) - d_row[:, 1] * d_col[:, 0]


def folding_fraction(disp: Tensor) -> float:
    """Share of pixels where the transform folds, determinant <= 0."""
    return float((jacobian_determinant(disp) <= 0).float().mean())
