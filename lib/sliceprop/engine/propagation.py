"""Carrying every label from its annotated slices through the volume, in the region of interest.

Labels are carried as signed distance maps; displacements are composed first, so that each map is resampled once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine import fusion
from sliceprop.engine.flow import warp
from sliceprop.engine.interpolation import FAR_PX, bounding_box, signed_distance, sources
from sliceprop.engine.losses import lncc
from sliceprop.engine.registration import SliceTransforms
from sliceprop.labels import SparseLabels

RESEMBLANCE_MARGIN_PX = 3.0
"""Width of the rim outside a label that counts when images are compared: the border must match, not only the inside."""


@dataclass(frozen=True)
class SliceScores:
    """What one slice looks like from below, from above, and together; `(K, H, W)` scores in [-1, 1], > 0 is inside."""

    lower: Tensor
    upper: Tensor
    fused: Tensor


class Carrier:
    """Carries the labels of the annotated slices to any other slice, with or without motion."""

    def __init__(self, annotation: SparseLabels, images: Tensor, transforms: SliceTransforms | None) -> None:
        """Prepare to carry.

        Args:
            annotation: `(S, H, W)` in the region of interest.
            images: `(S, 1, H, W)` of the same region.
            transforms: of the same region; None carries labels straight through, without motion.
        """
        self.annotation, self.images, self.transforms = annotation, images, transforms
        self._distances: dict[int, Tensor] = {}
        self._similarity: dict[tuple[int, int], Tensor] = {}

    def distances(self, source: int) -> Tensor:
        """Signed distances of all labels on an annotated slice, `(K, H, W)` pixels."""
        if source not in self._distances:
            painted = self.annotation.labels[source]
            maps = [_windowed_distance(painted == value) for value in self.annotation.values]
            self._distances[source] = torch.from_numpy(np.stack(maps))
        return self._distances[source]

    def carried(self, source: int, target: int, labels: Tensor) -> Tensor:
        """Signed distances of some labels of slice `source`, as they lie on slice `target`, `(len(labels), H, W)`."""
        distances = self.distances(source)[labels]
        if self.transforms is None or source == target:
            return distances
        return warp(distances[None], self.transforms.between(source, target))[0]

    def warped_image(self, source: int, target: int) -> Tensor:
        """Image of slice `source` on slice `target`, `(1, 1, H, W)`."""
        image = self.images[source : source + 1]
        return image if self.transforms is None else warp(image, self.transforms.between(source, target))

    def resemblance(self, source: int, around: int, target: int, k: int) -> float:
        """How well slice `source`, carried to `target`, looks like it near a label: mean squared local correlation.

        Args:
            source: annotated slice whose image is compared.
            around: annotated slice that says where label `k` lies on `target`.
            target: the slice in question.
            k: index of the label.
        """
        key = source, target
        if key not in self._similarity:
            self._similarity[key] = lncc(self.warped_image(source, target), self.images[target : target + 1])[0, 0]
        near = self.carried(around, target, torch.tensor([k]))[0] > -RESEMBLANCE_MARGIN_PX
        return float(self._similarity[key][near].mean()) if near.any() else 0.0

    def scores(self, index: int, known: NDArray[np.bool_], rule: Fusion) -> SliceScores:
        """Scores of all labels on slice `index`, each from the nearest slices on which it is known.

        Args:
            index: the slice.
            known: `(K, S)`; a held-out slice is marked unknown here.
            rule: how both sides are merged.
        """
        lower_source, upper_source = (side[:, index] for side in sources(known))
        shape = (len(known), *self.annotation.labels.shape[1:])
        lower, upper, fused = (torch.full(shape, -1.0) for _ in range(3))
        for low, up in {(int(a), int(b)) for a, b in zip(lower_source, upper_source, strict=True)}:
            if low < 0 and up < 0:
                continue
            labels = torch.from_numpy(np.flatnonzero((lower_source == low) & (upper_source == up)))
            lower[labels], upper[labels], fused[labels] = self._merged(index, low, up, labels, rule)
        return SliceScores(lower, upper, fused)

    def _merged(self, index: int, low: int, up: int, labels: Tensor, rule: Fusion) -> tuple[Tensor, Tensor, Tensor]:
        sides = [self.carried(s, index, labels) for s in (low, up) if s >= 0]
        radii = [self.distances(s)[labels].amax(dim=(1, 2)) for s in (low, up) if s >= 0]
        tau = fusion.softness(torch.stack(radii).amax(dim=0))
        scores = [fusion.score(side, tau) for side in sides]
        if len(scores) == 1 or low == up:
            nothing = torch.full_like(scores[0], -1.0)
            return (scores[0] if low >= 0 else nothing), (scores[0] if up >= 0 else nothing), scores[0]
        lower, upper = scores
        weight: Tensor | float = fusion.position_weight(low, up, index, rule=rule)
        if rule.startswith("lncc"):
            fixed, region = self.images[index : index + 1], (lower > 0) | (upper > 0)
            images = self.warped_image(low, index), self.warped_image(up, index)
            weight = fusion.similarity_weight(fixed, *images, region, rule=rule)
        one_sided = (radii[0] > 0) != (radii[1] > 0)
        return lower, upper, fusion.fuse(lower, upper, weight, one_sided)


def _windowed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Signed distance where it matters for a score: within a margin around the mask, constant further out."""
    if not mask.any():
        return np.full(mask.shape, -FAR_PX, np.float32)
    box = bounding_box(mask)
    margin = max(8, min(box[0].stop - box[0].start, box[1].stop - box[1].start) // 2)
    box = bounding_box(mask, margin)
    distance = np.full(mask.shape, -margin, np.float32)
    distance[box] = signed_distance(mask[box])
    return distance
