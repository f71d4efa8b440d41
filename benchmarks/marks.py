"""A simulated user who looks for the worst mistakes of a result and draws a scribble through each.

All volumes are `(S, H, W)`. A *mistake* is the largest connected region of one plane whose voxels are wrong and have
one true label; the scribble is a short line along its middle, drawn with that label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import graph, measure, morphology

from sliceprop.config import BACKGROUND_SCRIBBLE

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

LONGEST_PX = 30
BRUSH_PX = 2

PLANES_APART = 3
"""Between two scribbles in parallel planes: who has marked a mistake does not mark it again on the next slice."""

PLANES: dict[str, tuple[int, ...]] = {"slices": (0,), "cross": (1, 2)}
"""Axes across the planes that are looked at: the slices that are annotated, or the planes that cross them."""


@dataclass(frozen=True)
class Mistake:
    """The largest wrong region of one plane.

    Attributes:
        axis: across the plane.
        index: of the plane.
        region: where it is, of the plane's shape.
    """

    axis: int
    index: int
    region: Mask


def find_mistakes(predicted: Labels, reference: Labels, axes: Iterable[int], count: int) -> list[Mistake]:
    """The worst mistake of each plane, the `count` largest of them, in parallel planes `PLANES_APART`."""
    found = [mistake for axis in axes for mistake in _along(axis, predicted, reference)]
    chosen: list[Mistake] = []
    for mistake in sorted(found, key=lambda mistake: -int(mistake.region.sum())):
        if len(chosen) < count and not any(_close(mistake, other) for other in chosen):
            chosen.append(mistake)
    return chosen


def draw(mistakes: Sequence[Mistake], reference: Labels) -> tuple[NDArray[np.int32], Mask]:
    """Scribbles with the true labels, `BACKGROUND_SCRIBBLE` for background, and the regions that they run through."""
    scribbles, regions = np.zeros(reference.shape, np.int32), np.zeros(reference.shape, bool)
    for mistake in mistakes:
        drawn, region, true = (_plane(volume, mistake) for volume in (scribbles, regions, reference))
        line = centre_line(mistake.region)
        drawn[line] = np.where(true[line] > 0, true[line], BACKGROUND_SCRIBBLE)
        region |= mistake.region
    return scribbles, regions


def centre_line(region: Mask) -> Mask:
    """The middle of the longest way along a region's skeleton, `LONGEST_PX` of it, `BRUSH_PX` thick, in the region."""
    way = _longest_way(morphology.skeletonize(region))
    first = max(0, len(way) - LONGEST_PX) // 2
    line = np.zeros_like(region)
    line[tuple(np.transpose(way[first : first + LONGEST_PX]))] = True
    return ndimage.binary_dilation(line, np.ones((BRUSH_PX, BRUSH_PX))) & region


def _along(axis: int, predicted: Labels, reference: Labels) -> Iterable[Mistake]:
    planes = zip(np.moveaxis(predicted, axis, 0), np.moveaxis(reference, axis, 0), strict=True)
    for index, (given, true) in enumerate(planes):
        parts = measure.label(np.where(given != true, true + 1, 0), connectivity=1)
        if parts.any():
            yield Mistake(axis, index, parts == 1 + np.bincount(parts[parts > 0])[1:].argmax())


def _close(one: Mistake, other: Mistake) -> bool:
    return one.axis == other.axis and abs(one.index - other.index) < PLANES_APART


def _plane(volume: NDArray[Any], mistake: Mistake) -> NDArray[Any]:
    """A view."""
    return np.moveaxis(volume, mistake.axis, 0)[mistake.index]


def _longest_way(skeleton: Mask) -> list[tuple[int, ...]]:
    """From the pixel that is farthest from any to the one that is farthest from that, along the skeleton."""
    start = _farthest(skeleton, tuple(np.argwhere(skeleton)[0]))[-1]
    return _farthest(skeleton, start)


def _farthest(skeleton: Mask, start: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The way along the skeleton to the pixel that is farthest from `start`."""
    ways = graph.MCP_Geometric(np.where(skeleton, 1.0, -1.0))  # negative costs cannot be passed
    costs, _ = ways.find_costs([start])
    return ways.traceback(np.unravel_index(np.where(np.isfinite(costs), costs, -1).argmax(), costs.shape))
