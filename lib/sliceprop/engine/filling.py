"""From carried labels to a filled volume: candidates weighed, scribbles kept, ends respected, slice by slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.interpolation import sources
from sliceprop.engine.propagation import Carrier, LabelScores
from sliceprop.engine.refinement import Question, Refiner
from sliceprop.labels import SCRIBBLED_BACKGROUND, LabelArray, SparseLabels

SCRIBBLE_SIGMA_PX = 4.0
"""Reach of a scribble in its own plane."""

SCRIBBLE_SLICE_DECAY = 0.5
"""What is left of a scribble's influence one slice further, over at most two slices."""

ENDED_UNCERTAINTY = 0.5
"""Uncertainty where a label was carried to but judged to have ended."""

NEGLIGIBLE_WEIGHT = 0.02

LEAST_EXPECTED_PIXELS = 0.5
"""Less of a label is none."""


@dataclass(frozen=True)
class Filled:
    """A filled region of interest, all `(S, H, W)`; label maps hold label values.

    Attributes:
        labels: all evidence together.
        from_lower: from the annotated slices below only.
        from_upper: from the annotated slices above only.
        uncertainty: float32 in [0, 1].
        expected_dice: `(K, S)`, overlap that refined scores promise, NaN where nothing was refined; None if nowhere.
    """

    labels: LabelArray
    from_lower: LabelArray
    from_upper: LabelArray
    uncertainty: NDArray[np.float32]
    expected_dice: NDArray[np.float64] | None = None


class _Claims:
    """The labels' claims on one slice: highest score so far, the runner-up, and whose the highest is."""

    def __init__(self, height: int, width: int) -> None:
        self.best = torch.full((height, width), -1.0)
        self.second = torch.full((height, width), -1.0)
        self.label = torch.zeros((height, width), dtype=torch.int32)

    def add(self, score: Tensor, window: tuple[slice, slice], value: int) -> None:
        best = self.best[window]
        wins = score > best
        self.second[window] = torch.maximum(self.second[window], torch.minimum(score, best))
        self.label[window] = torch.where(wins, value, self.label[window])
        self.best[window] = torch.maximum(score, best)

    def winner(self) -> LabelArray:
        """Label of the highest score above 0, else 0."""
        labels: LabelArray = torch.where(self.best > 0, self.label, 0).numpy()
        return labels

    def doubt(self) -> Tensor:
        """1 at a tie between two labels or a label and background, 0 where one wins clearly."""
        margin = torch.where(self.best > 0, torch.minimum(self.best, self.best - self.second), -self.best)
        return (1 - margin).clamp(0, 1)


def fill(
    candidates: list[tuple[Carrier, NDArray[np.float64]]],
    supported: NDArray[np.bool_],
    rule: Fusion,
    *,
    refiner: Refiner | None = None,
    possible: NDArray[np.bool_] | None = None,
) -> Filled:
    """Fill every slice of the region of interest; what is known comes back unchanged.

    Args:
        candidates: carriers of the same annotation, each with its weight per label, `(K,)`; weights sum to 1.
        supported: `(K, S)`, slices on which each label may appear.
        rule: how the lower and the upper side are merged.
        refiner: refines what propagation says, if there is one.
        possible: `(K, S)`, slices on which the refiner may find a label; `supported` without it.
    """
    carrier = candidates[0][0]
    annotation, windows = carrier.annotation, carrier.windows
    possible = supported & ~annotation.known if possible is None else possible
    shape = annotation.labels.shape
    labels, below, above = (np.zeros(shape, np.int32) for _ in range(3))
    uncertainty = np.zeros(shape, np.float32)
    expected = np.full(annotation.known.shape, np.nan)
    below_source, above_source = (side.tolist() for side in sources(annotation.known))
    scribbles = _scribble_influence(carrier)
    for s in range(shape[0]):
        questions = [
            Question(k, low[s], up[s], bool(supported[k, s]), _mixed(candidates, k, s, low[s], up[s], rule))
            for k, (low, up) in enumerate(zip(below_source, above_source, strict=True))
        ]
        claims = _claims(s, questions, possible, refiner)
        lower, upper, fused, ended = (_Claims(*shape[1:]) for _ in range(4))
        for k, value in enumerate(annotation.values):
            scores = questions[k].scores
            if (k, s) in scribbles:
                claims[k] = (claims[k] + scribbles[k, s]).clamp(-1, 1)
            fused.add(claims[k], windows[k], value)
            if supported[k, s]:
                lower.add(scores.lower, windows[k], value)
                upper.add(scores.upper, windows[k], value)
            else:
                ended.add(scores.fused, windows[k], value)
        labels[s], below[s], above[s] = fused.winner(), lower.winner(), upper.winner()
        if not annotation.known[:, s].all():
            doubt = fused.doubt()
            lost = (ended.best > 0) & (fused.best <= 0)
            uncertainty[s] = torch.where(lost, doubt.clamp_min(ENDED_UNCERTAINTY), doubt).numpy()
        for k in np.flatnonzero(possible[:, s]) if refiner is not None else ():
            won = torch.from_numpy(labels[s][windows[k]] == annotation.values[k])
            expected[k, s] = _expected_dice(claims[k], won)
    return Filled(labels, below, above, uncertainty, None if refiner is None else expected)


def _claims(
    index: int, questions: list[Question], possible: NDArray[np.bool_], refiner: Refiner | None
) -> list[Tensor]:
    """How much each label claims the pixels of its window on slice `index`."""
    claims = [q.scores.fused if q.supported else torch.full_like(q.scores.fused, -1.0) for q in questions]
    if refiner is not None:
        open_questions = [question for question in questions if possible[question.k, index]]
        for question, refined in zip(open_questions, refiner.refine(index, open_questions), strict=True):
            claims[question.k] = refined
    return claims


def _expected_dice(score: Tensor, won: Tensor) -> float:
    """`2 sum(p where won) / (|won| + sum(p))` with probabilities `p = (1 + score) / 2`; NaN where both are nothing."""
    probability = (1 + score) / 2
    total = float(won.sum() + probability.sum())
    return 2 * float(probability[won].sum()) / total if total > LEAST_EXPECTED_PIXELS else math.nan


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


def _mixed(
    candidates: list[tuple[Carrier, NDArray[np.float64]]], k: int, index: int, low: int, up: int, rule: Fusion
) -> LabelScores:
    weighed = [(carrier, float(weights[k])) for carrier, weights in candidates if weights[k] > NEGLIGIBLE_WEIGHT]
    if len(weighed) == 1:
        return weighed[0][0].scores(k, index, low, up, rule)
    scores = [(weight, carrier.scores(k, index, low, up, rule)) for carrier, weight in weighed]
    mixed = (sum(weight * side[i] for weight, side in scores) for i in range(3))
    return LabelScores(*(torch.as_tensor(side) for side in mixed))


def _scribble_influence(carrier: Carrier) -> dict[tuple[int, int], Tensor]:
    """What scribbles add to the score of label `k` on slice `s`: up to 2 for their label, down to -2 for all others."""
    marks = carrier.annotation.scribbles
    if marks is None:
        return {}
    influence: dict[tuple[int, int], Tensor] = {}
    for s in np.flatnonzero(marks.any(axis=(1, 2))):
        for k, value in enumerate(carrier.annotation.values):
            drawn = marks[s][carrier.windows[k]]
            push = torch.from_numpy(2 * (_nearness(drawn == value) - _nearness((drawn != 0) & (drawn != value))))
            for t in range(max(0, s - 2), min(len(marks), s + 3)):
                weaker = SCRIBBLE_SLICE_DECAY ** abs(t - s) * push
                influence[k, t] = influence[k, t] + weaker if (k, t) in influence else weaker
    return influence


def _nearness(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`exp(-d^2 / 2 sigma^2)` of the distance `d` to the mask, 0 without a mask."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance = ndimage.distance_transform_edt(~mask)
    nearness: NDArray[np.float32] = np.exp(-0.5 * (distance / SCRIBBLE_SIGMA_PX) ** 2).astype(np.float32)
    return nearness
