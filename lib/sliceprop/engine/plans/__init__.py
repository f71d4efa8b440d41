"""Where to annotate before anything is annotated: plans that look at the scan alone.

`centres`, `keep_n` and `random` look at nothing. The others describe every slice, group the descriptions into clusters
and draw the same number of slices from each cluster: a slice stands for those that look like it.

References:
    Payer et al., Journal of Medical Imaging 10(4):044007, 2023, doi:10.1117/1.JMI.10.4.044007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sliceprop.config import MAX_SEED, PLANS
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans.clustering import CLUSTERS, cluster, draw_evenly
from sliceprop.engine.plans.perceptual import alexnet_levels, filter_levels, network_levels, perceptual_distances
from sliceprop.engine.plans.ssim import ssim_matrix
from sliceprop.engine.plans.weights import read_alexnet, read_linear
from sliceprop.errors import InputError, ShapeError
from sliceprop.volume import FloatArray

__all__ = ["BLIND_PLANS", "PLANS", "plan_slices"]

HISTOGRAM_BINS = 255


@dataclass(frozen=True)
class Perception:
    """What judges how alike two slices look, see `plan_slices`.

    Attributes:
        network: registration network of the study, or None.
        weights: file with AlexNet's weights, or None.
        linear: file with LPIPS' weights of AlexNet's channels, or None.
    """

    network: RegistrationNet | None = None
    weights: Path | None = None
    linear: Path | None = None

    def distances(self, slices: FloatArray) -> NDArray[np.float64]:
        """Perceptual distance of every slice to every other, `(S, S)`."""
        images = torch.from_numpy(slices)[:, None]
        if self.weights is not None:
            linear = None if self.linear is None else read_linear(self.linear)
            return perceptual_distances(alexnet_levels(images, read_alexnet(self.weights), linear))
        if self.linear is not None:
            raise InputError("weights of LPIPS' linear layers need AlexNet's own weights as well; give both files")
        levels = filter_levels(images) if self.network is None else network_levels(images, self.network)
        return perceptual_distances(levels)


def plan_slices(
    slices: FloatArray,
    n: int,
    plan: str,
    *,
    seed: int = 0,
    first: int = 0,
    last: int | None = None,
    network: RegistrationNet | None = None,
    perceptual_weights: Path | None = None,
    linear_weights: Path | None = None,
) -> list[int]:
    """The `n` slices to annotate of a scan without any annotation, ascending; all where there are no more than `n`.

    | plan | |
    | --- | --- |
    | `centres` | middles of `n` equal bins |
    | `keep_n` | every k-th slice from the first on, with the largest k that gives `n` |
    | `random` | drawn without replacement |
    | `kmeans` | clusters of flattened slices |
    | `histogram` | clusters of histograms of 255 bins |
    | `ssim` | clusters of the slice-to-slice matrix of structural similarity |
    | `perceptual` | clusters of the slice-to-slice matrix of perceptual distance |

    There are 15 clusters, or `n` where that is less, so that each gives at least one slice; see `draw_evenly`. A row of
    a slice-to-slice matrix describes one slice, by how alike it is to every other, and rows are clustered as flattened
    slices are.

    Perceptual distance is that of LPIPS over AlexNet with the weights that the user gives; without them over the
    features of the study's own registration network; without a network over fixed derivative filters, since a network
    that has learnt nothing would say nothing.

    Args:
        slices: `(S, H, W)` in [0, 1].
        n: how many.
        plan: one of `PLANS`.
        seed: of draws and clusters.
        first: first slice that may be chosen.
        last: last slice that may be chosen, the last of all without it.
        network: trained on this study, for `perceptual`.
        perceptual_weights: torchvision's state dict of AlexNet, `.pth` or `.safetensors`, for `perceptual`.
        linear_weights: LPIPS' linear layers for AlexNet (`alex.pth`), for `perceptual`; channels count equally without.

    Raises:
        ShapeError: no `(S, H, W)`, or nothing in it.
        InputError: an unknown plan, fewer than one slice, a range or seed that does not exist, unusable weights.
    """
    last = len(slices) - 1 if last is None else last
    _check(slices, n, plan, seed, first, last)
    length = last - first + 1
    if n >= length:
        return list(range(first, last + 1))
    if plan in _BLIND:
        return sorted(int(s) for s in _BLIND[plan](first, length, n, seed))
    perception = Perception(network, perceptual_weights, linear_weights)
    profiles = _PROFILES[plan](np.ascontiguousarray(slices[first : last + 1], np.float32), perception)
    rng = np.random.default_rng(seed)
    clusters = cluster(profiles, min(CLUSTERS, n), rng)
    return sorted(first + s for s in draw_evenly(clusters, n, rng))


def _check(slices: FloatArray, n: int, plan: str, seed: int, first: int, last: int) -> None:
    if slices.ndim != 3 or slices.size == 0:
        raise ShapeError(f"slices must be (S, H, W) and not empty, not {slices.shape}")
    if plan not in PLANS:
        raise InputError(f"unknown plan {plan!r}, choose from {', '.join(PLANS)}")
    if n < 1:
        raise InputError(f"the number of slices to annotate must be at least 1, not {n}")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed must lie in 0..{MAX_SEED}, not {seed}")
    if not 0 <= first <= last < len(slices):
        raise InputError(f"slices {first} to {last} do not all lie in 0..{len(slices) - 1}; give a range that does")


def _centres(first: int, length: int, n: int, _: int) -> NDArray[np.float64]:
    middles: NDArray[np.float64] = np.round(first - 0.5 + (np.arange(n) + 0.5) * length / n)
    return middles


def _keep_n(first: int, length: int, n: int, _: int) -> NDArray[np.int64]:
    return first + np.arange(n) * (length // n)


def _random(first: int, length: int, n: int, seed: int) -> NDArray[np.int64]:
    return first + np.random.default_rng(seed).permutation(length)[:n]


_BLIND: dict[str, Callable[[int, int, int, int], NDArray[np.float64] | NDArray[np.int64]]] = {
    "centres": _centres,
    "keep_n": _keep_n,
    "random": _random,
}
"""From the first slice, the number of slices to choose from, how many, and the seed."""


def _flattened(slices: FloatArray, _: Perception) -> FloatArray:
    return slices.reshape(len(slices), -1)


def _histograms(slices: FloatArray, _: Perception) -> NDArray[np.float64]:
    """Share of the pixels in each of the bins of [0, 1], `(S, 255)`."""
    counts = [np.histogram(plane, HISTOGRAM_BINS, (0.0, 1.0))[0] for plane in np.clip(slices, 0, 1)]
    shares: NDArray[np.float64] = np.array(counts) / slices[0].size
    return shares


def _ssim(slices: FloatArray, _: Perception) -> NDArray[np.float64]:
    return ssim_matrix(slices)


def _perceptual(slices: FloatArray, perception: Perception) -> NDArray[np.float64]:
    return perception.distances(slices)


_PROFILES: dict[str, Callable[[FloatArray, Perception], FloatArray | NDArray[np.float64]]] = {
    "kmeans": _flattened,
    "histogram": _histograms,
    "ssim": _ssim,
    "perceptual": _perceptual,
}
"""What describes a slice in each plan that looks at the scan: one row per slice."""

BLIND_PLANS: tuple[str, ...] = tuple(_BLIND)
"""Plans that do not look at the scan."""
