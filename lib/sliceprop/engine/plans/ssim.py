"""Structural similarity of every slice to every other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sliceprop.engine.plans.sizes import within
from sliceprop.volume import FloatArray

WINDOW_PX = 7

STRIDE_PX = 4
"""Windows overlap by half: on the synthetic thigh their mean is within 0.01 of that over all windows, at a sixteenth
of the cost."""

SIDE_PX = 256
"""Longer sides are reduced to this first, about as the authors of the measure advise."""

LUMINANCE_FLOOR, CONTRAST_FLOOR = 0.01**2, 0.03**2
"""The constants of the measure for intensities in [0, 1]."""


def ssim_matrix(slices: FloatArray, *, stride_px: int = STRIDE_PX) -> NDArray[np.float64]:
    """Mean structural similarity of all pairs of slices, `(S, S)`, in [-1, 1], 1 on the diagonal.

    `(2 mu_a mu_b + c1) (2 cov_ab + c2) / ((mu_a^2 + mu_b^2 + c1) (var_a + var_b + c2))`, mean over square windows. In
    one window the covariances of all pairs are one matrix product.

    Args:
        slices: `(S, H, W)` in [0, 1].
        stride_px: from one window to the next, both ways.

    References:
        Wang et al., IEEE Transactions on Image Processing 13(4), 2004, doi:10.1109/TIP.2003.819861.
    """
    images = within(torch.from_numpy(slices)[:, None], 1, SIDE_PX)[:, 0]
    height, width = (min(WINDOW_PX, side) for side in images.shape[1:])
    windows = images.unfold(1, height, stride_px).unfold(2, width, stride_px)
    total = torch.zeros(len(images), len(images), dtype=torch.float64)
    for row in windows.unbind(1):
        pixels = row.flatten(2).transpose(0, 1)
        mean = pixels.mean(dim=2, keepdim=True)
        cov = (pixels - mean) @ (pixels - mean).mT / pixels.shape[2]
        var, square = cov.diagonal(dim1=1, dim2=2)[..., None], mean * mean
        luminance = (2 * mean * mean.mT + LUMINANCE_FLOOR) / (square + square.mT + LUMINANCE_FLOOR)
        structure = (2 * cov + CONTRAST_FLOOR) / (var + var.mT + CONTRAST_FLOOR)
        total += (luminance * structure).sum(dim=0)
    matrix: NDArray[np.float64] = (total / (windows.shape[1] * windows.shape[2])).numpy()
    return matrix
