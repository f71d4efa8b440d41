"""From carried labels to a filled volume: candidates weighed, scribbles kept, ends respected, slice by slice."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.corrections import Corrections
from sliceprop.engine.interpolation import sources
from sliceprop.engine.propagation import Carrier, LabelScores
from sliceprop.engine.refinement import Question, Refiner
from sliceprop.labels import SCRIBBLED_BACKGROUND, LabelArray, SparseLabels

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
        refined_px: `(K, S)`, pixels that refinement gave to each label or took from it; None without refinement.
        claimed_px: `(K, S)`, pixels that were each label's before refinement or after it; None without refinement.
    """

    labels: LabelArray
    from_lower: LabelArray
    from_upper: LabelArray
    uncertainty: NDArray[np.float32]
    expected_dice: NDArray[np.float64] | None = None
    refined_px: NDArray[np.int64] | None = None
    claimed_px: NDArray[np.int64] | None = None


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
    threads: int = 1,
) -> Filled:
    """Fill every slice of the region of interest; what is known comes back unchanged.

    Args:
        candidates: carriers of the same annotation, each with its weight per label, `(K,)`; weights sum to 1.
        supported: `(K, S)`, slices on which each label may appear.
        rule: how the lower and the upper side are merged.
        refiner: refines what propagation says, if there is one.
        possible: `(K, S)`, slices on which the refiner may find a label; `supported` without it.
        threads: that share the slices; the result does not depend on their number.
    """
    filler = _Filler(candidates, supported, rule, refiner, possible)
    runs = np.array_split(np.arange(len(filler.labels)), threads)
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(filler.fill_slices, runs), maxlen=0)
    return filler.filled()


class _Filler:
    """The volume on its way, one slice after the other."""

    def __init__(
        self,
        candidates: list[tuple[Carrier, NDArray[np.float64]]],
        supported: NDArray[np.bool_],
        rule: Fusion,
        refiner: Refiner | None,
        possible: NDArray[np.bool_] | None,
    ) -> None:
        self._candidates, self._supported, self._rule, self._refiner = candidates, supported, rule, refiner
        carrier = candidates[0][0]
        self._annotation, self._windows = carrier.annotation, carrier.windows
        known, shape = self._annotation.known, self._annotation.labels.shape
        self._possible = supported & ~known if possible is None else possible
        self._below_source, self._above_source = (side.tolist() for side in sources(known))
        self._corrections = Corrections(carrier)
        self.labels, self._below, self._above = (np.zeros(shape, np.int32) for _ in range(3))
        self._uncertainty = np.zeros(shape, np.float32)
        self._expected = np.full(known.shape, np.nan)
        self._refined_px, self._claimed_px = (np.zeros(known.shape, np.int64) for _ in range(2))

    def fill_slices(self, run: NDArray[np.intp]) -> None:
        for s in run.tolist():
            self._fill_slice(s)

    def _fill_slice(self, s: int) -> None:
        questions = [self._question(k, s) for k in range(len(self._annotation.values))]
        claims = self._claims(s, questions)
        fused = self._contest(claims)
        self.labels[s] = fused.winner()
        self._fill_sides(s, questions)
        if not self._annotation.known[:, s].all():
            self._uncertainty[s] = self._doubt(fused, questions).numpy()
        if self._refiner is not None:
            self._judge_refinement(s, questions, claims)

    def filled(self) -> Filled:
        parts = self.labels, self._below, self._above, self._uncertainty
        if self._refiner is None:
            return Filled(*parts)
        return Filled(*parts, self._expected, self._refined_px, self._claimed_px)

    def _question(self, k: int, s: int) -> Question:
        low, up = self._below_source[k][s], self._above_source[k][s]
        scores = _mixed(self._candidates, k, s, low, up, self._rule)
        return Question(k, low, up, bool(self._supported[k, s]), scores)

    def _claims(self, s: int, questions: list[Question]) -> list[Tensor]:
        """How much each label claims the pixels of its window."""
        claims = [_carried_claim(question) for question in questions]
        if self._refiner is not None:
            open_questions = [question for question in questions if self._possible[question.k, s]]
            for question, refined in zip(open_questions, self._refiner.refine(s, open_questions), strict=True):
                claims[question.k] = refined
        return self._corrections.correct(s, claims)

    def _contest(self, claims: list[Tensor]) -> _Claims:
        contest = _Claims(*self.labels.shape[1:])
        for claim, window, value in zip(claims, self._windows, self._annotation.values, strict=True):
            contest.add(claim, window, value)
        return contest

    def _fill_sides(self, s: int, questions: list[Question]) -> None:
        nothing = [torch.full_like(q.scores.fused, -1.0) for q in questions]
        lower = [q.scores.lower if q.supported else none for q, none in zip(questions, nothing, strict=True)]
        upper = [q.scores.upper if q.supported else none for q, none in zip(questions, nothing, strict=True)]
        self._below[s], self._above[s] = self._contest(lower).winner(), self._contest(upper).winner()

    def _doubt(self, fused: _Claims, questions: list[Question]) -> Tensor:
        """Of the result, and at least half where a label was carried to but judged to have ended."""
        ended = self._contest(
            [torch.full_like(q.scores.fused, -1.0) if q.supported else q.scores.fused for q in questions]
        )
        doubt, lost = fused.doubt(), (ended.best > 0) & (fused.best <= 0)
        return torch.where(lost, doubt.clamp_min(ENDED_UNCERTAINTY), doubt)

    def _judge_refinement(self, s: int, questions: list[Question], claims: list[Tensor]) -> None:
        carried = self._contest([_carried_claim(question) for question in questions]).winner()
        for k in np.flatnonzero(self._possible[:, s]):
            window, value = self._windows[k], self._annotation.values[k]
            won, before = self.labels[s][window] == value, carried[window] == value
            self._expected[k, s] = _expected_dice(claims[k], torch.from_numpy(won))
            self._refined_px[k, s] = np.count_nonzero(won != before)
            self._claimed_px[k, s] = np.count_nonzero(won | before)


def _carried_claim(question: Question) -> Tensor:
    """What propagation claims."""
    fused = question.scores.fused
    return fused if question.supported else torch.full_like(fused, -1.0)


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
