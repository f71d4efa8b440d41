"""From carried labels to a filled volume: candidates weighed, scribbles kept, ends respected, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.propagation import Carrier, SliceScores
from sliceprop.labels import SCRIBBLED_BACKGROUND, LabelArray, SparseLabels

SCRIBBLE_SIGMA_PX = 4.0
"""Reach of a scribble in its own plane."""

SCRIBBLE_SLICE_DECAY = 0.5
"""What is left of a scribble's influence one slice further, over at most two slices."""

ENDED_UNCERTAINTY = 0.5
"""Uncertainty where a label was carried to but judged to have ended."""


@dataclass(frozen=True)
class Filled:
    """A filled region of interest, all `(S, H, W)`; label maps hold label values.

    Attributes:
        labels: all evidence together.
        from_lower: from the annotated slices below only.
        from_upper: from the annotated slices above only.
        uncertainty: float32 in [0, 1].
    """

    labels: LabelArray
    from_lower: LabelArray
    from_upper: LabelArray
    uncertainty: NDArray[np.float32]


def fill(carriers: list[Carrier], weights: list[Tensor], supported: NDArray[np.bool_], rule: Fusion) -> Filled:
    """Fill every slice of the region of interest; what is known comes back unchanged.

    Args:
        carriers: candidates that carry the same annotation.
        weights: per carrier `(K,)`, summing to 1 over carriers.
        supported: `(K, S)`, slices on which each label may appear.
        rule: how the lower and the upper side are merged.
    """
    annotation = carriers[0].annotation
    shape = annotation.labels.shape
    labels, below, above = (np.zeros(shape, np.int32) for _ in range(3))
    uncertainty = np.zeros(shape, np.float32)
    scribbles = _scribble_influence(annotation)
    for s in range(shape[0]):
        allowed = torch.from_numpy(supported[:, s])[:, None, None]
        scores = _mixed([c.scores(s, annotation.known, rule) for c in carriers], weights)
        fused = torch.where(allowed, scores.fused, -1.0)
        if s in scribbles:
            fused = (fused + scribbles[s]).clamp(-1, 1)
        labels[s] = _winner(fused, annotation.values)
        below[s] = _winner(torch.where(allowed, scores.lower, -1.0), annotation.values)
        above[s] = _winner(torch.where(allowed, scores.upper, -1.0), annotation.values)
        if not annotation.known[:, s].all():
            uncertainty[s] = _doubt(fused, scores.fused)
    return Filled(labels, below, above, uncertainty)


def disagreement(lower: LabelArray, upper: LabelArray, annotation: SparseLabels) -> NDArray[np.float32]:
    """Uncertainty of a method without scores: 1 where both sides disagree, fading over two pixels; 0 where known.

    Args:
        lower: labels carried from below only, `(S, H, W)`.
        upper: the same from above.
        annotation: what is known.
    """
    uncertainty = ndimage.gaussian_filter((lower != upper).astype(np.float32), sigma=(0, 1, 1), truncate=2)
    uncertainty[annotation.known.all(axis=0)] = 0
    clipped: NDArray[np.float32] = np.clip(uncertainty, 0, 1)
    return clipped


def apply_scribbles(labels: LabelArray, annotation: SparseLabels) -> LabelArray:
    """`labels` with every scribbled voxel as scribbled, in place."""
    if annotation.scribbles is not None:
        np.copyto(labels, annotation.scribbles, where=annotation.scribbles > 0)
        labels[annotation.scribbles == SCRIBBLED_BACKGROUND] = 0
    return labels


def _mixed(candidates: list[SliceScores], weights: list[Tensor]) -> SliceScores:
    if len(candidates) == 1:
        return candidates[0]
    share = [weight[:, None, None] for weight in weights]
    lower, upper, fused = (
        torch.stack([w * getattr(c, side) for c, w in zip(candidates, share, strict=True)]).sum(dim=0)
        for side in ("lower", "upper", "fused")
    )
    return SliceScores(lower, upper, fused)


def _winner(scores: Tensor, values: tuple[int, ...]) -> LabelArray:
    """Label value of the highest score above 0, else 0; `(K, H, W)` to `(H, W)`."""
    best, index = scores.max(dim=0)
    lookup = np.array([0, *values], dtype=np.int32)
    winner: LabelArray = lookup[torch.where(best > 0, index + 1, 0).numpy()]
    return winner


def _doubt(fused: Tensor, carried: Tensor) -> NDArray[np.float32]:
    """1 at a tie between two labels or a label and background, 0 where one wins clearly."""
    best = fused.topk(min(2, len(fused)), dim=0).values
    margin = best[0].abs()
    if len(fused) > 1:
        margin = torch.where(best[0] > 0, torch.minimum(margin, best[0] - best[1]), margin)
    ended = (carried.amax(dim=0) > 0) & (best[0] <= 0)
    doubt = torch.where(ended, (1 - margin).clamp_min(ENDED_UNCERTAINTY), 1 - margin)
    return doubt.clamp(0, 1).numpy().astype(np.float32)


def _scribble_influence(annotation: SparseLabels) -> dict[int, Tensor]:
    """Per slice what scribbles add to the scores, `(K, H, W)`: up to 2 for their label, down to -2 for all others."""
    marks = annotation.scribbles
    if marks is None:
        return {}
    influence: dict[int, Tensor] = {}
    for s in np.flatnonzero(marks.any(axis=(1, 2))):
        near = np.stack([_nearness(marks[s] == value) for value in annotation.values])
        other = np.stack([_nearness((marks[s] != 0) & (marks[s] != value)) for value in annotation.values])
        push = torch.from_numpy(2 * (near - other))
        for distance in range(3):
            for t in {s - distance, s + distance}:
                if 0 <= t < len(marks):
                    weaker = SCRIBBLE_SLICE_DECAY**distance * push
                    influence[t] = influence[t] + weaker if t in influence else weaker
    return influence


def _nearness(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`exp(-d^2 / 2 sigma^2)` of the distance `d` to the mask, 0 without a mask."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance = ndimage.distance_transform_edt(~mask)
    nearness: NDArray[np.float32] = np.exp(-0.5 * (distance / SCRIBBLE_SIGMA_PX) ** 2).astype(np.float32)
    return nearness
