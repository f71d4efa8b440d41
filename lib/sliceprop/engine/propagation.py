"""Carrying every label from its annotated slices to any other slice, in the region of interest.

Labels are carried as signed distance maps; displacements are composed first, so that each map is resampled once. Each
label is worked on in a window of its own, around all places where it was drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine import fusion
from sliceprop.engine.flow import warp
from sliceprop.engine.interpolation import FAR_PX, Box, bounding_box, signed_distance
from sliceprop.engine.losses import box_mean, lncc
from sliceprop.engine.registration import SliceTransforms
from sliceprop.labels import SparseLabels

RESEMBLANCE_RADIUS_PX = 3
RESEMBLANCE_MARGIN_PX = 3.0
"""Width of the rim outside a label that counts when images are compared: the border must match, not only the inside."""

WINDOW_MARGIN = 0.25
"""Share of its size by which a label's window grows on each side: labels move between annotated slices."""

LEAST_WINDOW_MARGIN_PX = 12

DIFFERENCE_RADIUS_PX = 2


class LabelScores(NamedTuple):
    """How much a label claims the pixels of its window on one slice: `(h, w)` in [-1, 1], > 0 is inside.

    Attributes:
        lower: carried from the slice below, -1 where there is none.
        upper: from above.
        fused: both together.
    """

    lower: Tensor
    upper: Tensor
    fused: Tensor


class _Target(threading.local):
    """What was carried to the slice that a thread works on: slices are worked on one after the other.

    Attributes:
        carried: label and source to signed distance.
        images: source to image.
        differences: source to difference of the images.
    """

    def __init__(self) -> None:
        self._index = -1
        self.carried: dict[tuple[int, int], Tensor] = {}
        self.images: dict[int, Tensor] = {}
        self.differences: dict[int, Tensor] = {}

    def looked_at(self, index: int) -> _Target:
        """Itself, after forgetting what was carried to another slice."""
        if index != self._index:
            self._index, self.carried, self.images, self.differences = index, {}, {}, {}
        return self


class Carrier:
    """Carries labels and images of the annotated slices to any other slice, with or without motion.

    Several threads may ask at once, each about slices of its own.
    """

    def __init__(
        self, annotation: SparseLabels, images: Tensor, transforms: SliceTransforms | None, *, kept: int | None = None
    ) -> None:
        """Prepare to carry.

        Args:
            annotation: `(S, H, W)` in the region of interest.
            images: `(S, 1, H, W)` of the same region.
            transforms: of the same region; None carries labels straight through, without motion.
            kept: signed distances that are remembered, those asked for last; None for all.
        """
        self.annotation, self.images, self.transforms = annotation, images, transforms
        self.windows = [_window(annotation, value) for value in annotation.values]
        self._distance = _distances(annotation, self.windows, kept)
        self._similarities: dict[tuple[int, int, int], Tensor] = {}
        self._target = _Target()

    def distance(self, k: int, source: int) -> Tensor:
        """Signed distance of label `k` on an annotated slice, in its window, pixels."""
        return self._distance(k, source)

    def carried(self, k: int, source: int, target: int) -> Tensor:
        """Signed distance of label `k` of slice `source`, as it lies on slice `target`; remembered for one target."""
        distance = self.distance(k, source)
        if self.transforms is None or source == target or distance.max() <= -FAR_PX:
            return distance
        carried = self._target.looked_at(target).carried
        if (k, source) not in carried:
            disp = self.transforms.between(source, target)[:, :, *self.windows[k]]
            carried[k, source] = warp(distance[None, None], disp)[0, 0]
        return carried[k, source]

    def similarity(self, source: int, target: int, radius_px: int) -> Tensor:
        """Squared local correlation of slice `source`, carried to `target`, with that slice, `(H, W)`."""
        key = source, target, radius_px
        if key not in self._similarities:
            image = self._carried_image(source, target)
            self._similarities[key] = lncc(image, self.images[target : target + 1], radius=radius_px)[0, 0]
        return self._similarities[key]

    def difference(self, source: int, target: int) -> Tensor:
        """Absolute difference of slice `source`, carried to `target`, from that slice, `(H, W)`, mean of 5x5 pixels."""
        differences = self._target.looked_at(target).differences
        if source not in differences:
            difference = (self._carried_image(source, target) - self.images[target : target + 1]).abs()
            differences[source] = box_mean(difference, DIFFERENCE_RADIUS_PX)[0, 0]
        return differences[source]

    def _carried_image(self, source: int, target: int) -> Tensor:
        image = self.images[source : source + 1]
        if self.transforms is None:
            return image
        images = self._target.looked_at(target).images
        if source not in images:
            images[source] = warp(image, self.transforms.between(source, target))
        return images[source]

    def resemblance(self, k: int, source: int, around: int, target: int) -> float:
        """How well slice `source`, carried to `target`, looks like it near a label: mean squared local correlation.

        Args:
            k: index of the label.
            source: annotated slice whose image is compared.
            around: annotated slice that says where the label lies on `target`.
            target: the slice in question.
        """
        near = self.carried(k, around, target) > -RESEMBLANCE_MARGIN_PX
        similarity = self.similarity(source, target, RESEMBLANCE_RADIUS_PX)[self.windows[k]]
        return float(similarity[near].mean()) if near.any() else 0.0

    def scores(self, k: int, index: int, low: int, up: int, rule: Fusion) -> LabelScores:
        """Scores of label `k` on slice `index`.

        Args:
            k: index of the label.
            index: the slice.
            low: slice below, or the slice itself, on which the label is known; -1 for none.
            up: the same above.
            rule: how both sides are merged.
        """
        known, nothing = [s for s in (low, up) if s >= 0], self._nothing(k)
        radii = [self.distance(k, s).max() for s in known]
        if not known or max(radii) <= 0:
            return LabelScores(nothing, nothing, nothing)
        tau = fusion.softness(max(radii))
        sides = [fusion.score(self.carried(k, s, index), tau) for s in known]
        if len(sides) == 1 or low == up:
            return LabelScores(sides[0] if low >= 0 else nothing, sides[0] if up >= 0 else nothing, sides[0])
        lower, upper = sides
        if min(radii) <= 0:
            return LabelScores(lower, upper, torch.maximum(lower, upper))
        weight = self._upper_weight(k, index, low, up, (lower > 0) | (upper > 0), rule)
        return LabelScores(lower, upper, (1 - weight) * lower + weight * upper)

    def _nothing(self, k: int) -> Tensor:
        rows, columns = self.windows[k]
        return torch.full((rows.stop - rows.start, columns.stop - columns.start), -1.0)

    def _upper_weight(self, k: int, index: int, low: int, up: int, region: Tensor, rule: Fusion) -> Tensor | float:
        if not rule.startswith("lncc"):
            return fusion.position_weight(low, up, index, rule=rule)
        below, above = (self.similarity(s, index, fusion.LNCC_RADIUS_PX) for s in (low, up))
        return fusion.similarity_weight(below, above, self.windows[k], region, rule=rule)


def _distances(annotation: SparseLabels, windows: list[Box], kept: int | None) -> Callable[[int, int], Tensor]:
    """Finds the signed distance of label `k` on an entry of `annotation.labels`, and remembers the last `kept`."""

    @lru_cache(maxsize=kept)
    def distance(k: int, source: int) -> Tensor:
        mask = annotation.labels[source][windows[k]] == annotation.values[k]
        return torch.from_numpy(signed_distance(mask))

    return distance


def _window(annotation: SparseLabels, value: int) -> Box:
    """Rows and columns around all marks of a label, grown by a margin and cut at the border."""
    marks = (annotation.labels == value).any(axis=0)
    if annotation.scribbles is not None:
        marks |= (annotation.scribbles == value).any(axis=0)
    tight = bounding_box(marks, margin_px=0)
    grown = (_grown(side, size) for side, size in zip(tight, marks.shape, strict=True))
    rows, columns = grown
    return rows, columns


def _grown(side: slice, size: int) -> slice:
    margin = max(LEAST_WINDOW_MARGIN_PX, round(WINDOW_MARGIN * (side.stop - side.start)))
    return slice(max(0, side.start - margin), min(size, side.stop + margin))
