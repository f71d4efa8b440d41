"""Refining carried labels: a small network weighs what both sides and the image say about each pixel near a border.

The network looks at one label at a time, in terms that mean the same for every label and scan: distances in units of
the structure's thickness, correlations, probabilities. So it learns once, over many studies, and needs no training set
of the anatomy at hand; what this study looks like comes in through `Appearance`. Its score `s` in [-1, 1] stands for a
probability of `(1 + s) / 2`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sliceprop.engine import fusion
from sliceprop.engine.appearance import Appearance
from sliceprop.engine.interpolation import Box
from sliceprop.engine.propagation import RESEMBLANCE_RADIUS_PX, Carrier, LabelScores

BAND_PX = 6.0
"""Pixels this near to a carried border are in question (further for thick structures); far from it nothing is."""

SURE = 0.98
"""Scores beyond this say the same."""

UNSUPPORTED_SCORE = -0.5
"""Most that propagation says where it takes a label to have ended."""

FULL_TRUST_DISAGREEMENT = 0.3
"""1 - Dice of both sides from which on the network is followed as far as it deserves."""

LEAST_TRUST = 0.3
"""Share of it that is left where all is the same: the image may still show something else."""

ALIKE, UNLIKE = 0.7, 0.5
"""Beyond the outermost annotated slice: mean squared local correlation around a label, between that slice carried there
and the slice itself, from which on it is followed the least, and down from which on as far as it deserves."""

SIDE_FEATURES, COMMON_FEATURES = 11, 8
FEATURES = 2 * SIDE_FEATURES + COMMON_FEATURES
BASE = 2 * SIDE_FEATURES + 1
"""Which of the features is the score of propagation."""


class RefinementNet(nn.Module):
    """How the log-odds of a label at a pixel differ from those of propagation, from the pixel's features."""

    def __init__(self, width: int = 48, trust: float = 1.0) -> None:
        """Args: width: of the two hidden layers. trust: how far to follow the answer on studies it has not seen."""
        super().__init__()
        self.width, self.trust = width, trust
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Args: features: `(n, FEATURES)`. Returns: `(n,)`."""
        correction: Tensor = self.layers(features)[:, 0]
        return correction


class Question(NamedTuple):
    """A label on a slice, to be refined.

    Attributes:
        k: index of the label.
        low: slice below on which the label is known, -1 for none.
        up: the same above.
        supported: whether propagation takes the label to exist there.
        scores: what propagation says, in the label's window.
    """

    k: int
    low: int
    up: int
    supported: bool
    scores: LabelScores


class Evidence(NamedTuple):
    """What is known about the pixels in question of one label on one slice.

    Attributes:
        band: `(h, w)`, the `n` pixels in question, in the label's window.
        features: `(n, FEATURES)`.
    """

    band: Tensor
    features: Tensor


class Refiner:
    """Refines one slice at a time, all its labels together, for they compete."""

    def __init__(self, carrier: Carrier, still: Carrier, appearance: Appearance, network: RefinementNet) -> None:
        """Args: carrier: with motion. still: without. appearance: of the same study. network: trained."""
        self._carrier, self._still, self._appearance, self._network = carrier, still, appearance, network

    @torch.no_grad()
    def refine(self, index: int, questions: list[Question]) -> list[Tensor]:
        """Refined score of each label in its window, in [-1, 1]; outside the band as propagation has it."""
        evidence = self.evidence(index, questions)
        pixels = torch.cat([one.features for one in evidence]) if evidence else torch.zeros(0, FEATURES)
        corrections = self._network(pixels).split([len(one.features) for one in evidence])
        refined = []
        for question, one, correction in zip(questions, evidence, corrections, strict=True):
            fused, trust = question.scores.fused, self._network.trust * self._share_of_trust(question, index)
            score = fused.clone() if question.supported else torch.full_like(fused, -1.0)
            score[one.band] = torch.tanh((log_odds(one.features[:, BASE]) + trust * correction) / 2)
            refined.append(score)
        return refined

    def _share_of_trust(self, question: Question, index: int) -> float:
        """1 where there is much to correct: where both sides disagree, or the only one carried looks different."""
        k, sides = question.k, [s for s in (question.low, question.up) if s >= 0]
        if len(sides) == 1:
            resemblance = self._carrier.resemblance(k, sides[0], sides[0], index)
            share = (ALIKE - resemblance) / (ALIKE - UNLIKE)
        else:
            lower, upper = question.scores.lower > 0, question.scores.upper > 0
            total = int(lower.sum() + upper.sum())
            share = (1 - 2 * int((lower & upper).sum()) / total) / FULL_TRUST_DISAGREEMENT if total else 1.0
        return min(1.0, max(LEAST_TRUST, share))

    def evidence(self, index: int, questions: list[Question]) -> list[Evidence]:
        """What is known about each label on slice `index`."""
        images = self._carrier.images
        bands = [self._band(question, index) for question in questions]
        anywhere, rivals = torch.zeros(images.shape[-2:], dtype=torch.bool), _Highest(images.shape[-2:])
        for question, band in zip(questions, bands, strict=True):
            window = self._carrier.windows[question.k]
            anywhere[window] |= band
            rivals.add(question.scores.fused, window)
        found = torch.from_numpy(self._appearance.probabilities(index, anywhere.numpy()))
        probability, likeliest = (torch.zeros(n, *images.shape[-2:]) for n in (len(found), 2))
        probability[:, anywhere], likeliest[:, anywhere] = found, found.topk(2, dim=0).values
        return [
            Evidence(band, self._features(question, index, band, probability[question.k + 1], likeliest, rivals))
            for question, band in zip(questions, bands, strict=True)
        ]

    def _band(self, question: Question, index: int) -> Tensor:
        """Pixels near the border of either side's carried label, and all between them."""
        k = question.k
        sides = [self._carrier.carried(k, s, index) for s in (question.low, question.up) if self._radius(k, s) > 0]
        if not sides:
            return torch.zeros_like(question.scores.fused, dtype=torch.bool)
        reach = max(BAND_PX, 2 * self._tau(question))
        carried = torch.stack(sides)
        return (carried.amax(0) > -reach) & (carried.amin(0) < reach)

    def _radius(self, k: int, source: int) -> float:
        """Inner radius of a label on a slice in pixels, at most 0 where it is missing."""
        return float(self._carrier.distance(k, source).max()) if source >= 0 else 0.0

    def _thickness(self, question: Question) -> float:
        return max(self._radius(question.k, question.low), self._radius(question.k, question.up), 0.5)

    def _tau(self, question: Question) -> float:
        return float(fusion.softness(torch.tensor(self._thickness(question))))

    def _features(
        self, question: Question, index: int, band: Tensor, own: Tensor, likeliest: Tensor, rivals: _Highest
    ) -> Tensor:
        """Features of a label's band, `(n, FEATURES)`: the nearer side, the further side, and what they share."""
        window = self._carrier.windows[question.k]
        score = question.scores.fused[band]
        lower, upper = (self._side(question, source, index, band) for source in (question.low, question.up))
        hops = [index - s if s < index else s - index for s in (question.low, question.up) if s >= 0]
        upper_is_nearer = question.low < 0 or (question.up >= 0 and question.up - index < index - question.low)
        sides = [upper, lower] if upper_is_nearer else [lower, upper]
        probability, first, second = (maps[window][band] for maps in (own, *likeliest))
        common: list[Tensor | float] = [
            min(hops) / sum(hops) if len(hops) == 2 else 0.0,
            score if question.supported else score.clamp_max(UNSUPPORTED_SCORE),
            self._still.scores(question.k, index, question.low, question.up, "sdf").fused[band],
            probability,
            probability - torch.where(probability >= first, second, first),
            rivals.without(question.scores.fused, window)[band],
            float(question.supported),
            math.log(self._thickness(question)) / 3,
        ]
        return torch.cat([*sides, _columns(common, score)], dim=1)

    def _side(self, question: Question, source: int, index: int, band: Tensor) -> Tensor:
        """What one side says about a label's band, `(n, SIDE_FEATURES)`."""
        like = question.scores.fused[band]
        if source < 0:
            return _columns([0.0, 1.0, *([0.0] * (SIDE_FEATURES - 2))], like)
        k, carrier, window = question.k, self._carrier, self._carrier.windows[question.k]
        radius, hops, tau = self._radius(k, source), abs(index - source), self._tau(question)
        holds = radius > 0
        distance = carrier.carried(k, source, index)[band] if holds else torch.full_like(like, -100.0)
        features: list[Tensor | float] = [
            float(holds),
            0.0,
            torch.tanh(distance / tau),
            torch.tanh(distance / (4 * tau)),
            (distance / BAND_PX).clamp(-2, 2),
            carrier.similarity(source, index, RESEMBLANCE_RADIUS_PX)[window][band],
            5 * carrier.difference(source, index)[window][band],
            math.log1p(hops) / 3,
            math.log(max(radius, 0.5)) / 3,
            math.log1p(hops / max(radius, 0.5)) / 2,
            carrier.resemblance(k, source, source, index) if holds else 0.0,
        ]
        return _columns(features, like)


class _Highest:
    """The highest and the second highest score at each pixel of a slice."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.best, self.second = torch.full(size, -1.0), torch.full(size, -1.0)

    def add(self, score: Tensor, window: Box) -> None:
        best = self.best[window]
        self.second[window] = torch.maximum(self.second[window], torch.minimum(score, best))
        self.best[window] = torch.maximum(score, best)

    def without(self, score: Tensor, window: Box) -> Tensor:
        """Highest score of all labels but the one that has `score`."""
        return torch.where(score >= self.best[window], self.second[window], self.best[window])


def log_odds(score: Tensor) -> Tensor:
    """`log(p / (1 - p))` of a score `s = 2 p - 1`, bounded."""
    return 2 * torch.atanh(score.clamp(-SURE, SURE))


def _columns(features: list[Tensor | float], like: Tensor) -> Tensor:
    """Features side by side, `(n, len(features))`; a number stands for all pixels."""
    return torch.stack([one if isinstance(one, Tensor) else torch.full_like(like, one) for one in features], dim=1)
