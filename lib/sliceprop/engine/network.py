"""The 2D registration network: two slices in, a stationary velocity field out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RegistrationNet(nn.Module):
    """U-Net that maps a slice pair to the velocity field that deforms one into the other.

    The field is antisymmetric by construction, `v(a, b) = (g(a, b) - g(b, a)) / 2`, so that swapping the slices gives
    the exact inverse transform and identical slices give exactly zero. Any image size is accepted.

    References:
        Balakrishnan et al. 2019 (VoxelMorph), doi:10.1109/TMI.2019.2897538.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 32, 32)) -> None:
        """Args: channels: width of each resolution level, finest first."""
        super().__init__()
        self.channels = channels
        widths = (2, *channels)
        self.down = nn.ModuleList(
            _block(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(len(channels))
        )
        self.up = nn.ModuleList(
            _block(channels[i] + channels[i + 1], channels[i], stride=1) for i in reversed(range(len(channels) - 1))
        )
        self.head = nn.Conv2d(channels[0], 2, kernel_size=3, padding=1, bias=False)
        nn.init.normal_(self.head.weight, std=1e-3)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Velocity whose integration maps the fixed grid into the moving slice.

        Args:
            moving: `(B, 1, H, W)`, intensities in [0, 1].
            fixed: `(B, 1, H, W)`.

        Returns:
            `(B, 2, H, W)`, pixels, (row, col).
        """
        both = torch.cat([torch.cat([moving, fixed], dim=1), torch.cat([fixed, moving], dim=1)])
        there, back = self._features(both).chunk(2)
        return (there - back) / 2

    def _features(self, pair: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            pair = block(pair)
            skips.append(pair)
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = block(torch.cat([x, skip], dim=1))
        velocity: Tensor = self.head(x)
        return velocity


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
    )
