"""What the study itself says about the methods: each annotated slice held out and predicted from the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.propagation import Carrier

PRIOR_LEAD = 0.1
"""Lead in Dice that registration starts with: on ten volumes of MRI and CT it was never worse than standing still."""

DECISION_WIDTH = 0.03
"""Difference in Dice at which a method gets e times the weight of the other."""


@dataclass(frozen=True)
class HeldOut:
    """One label of one annotated slice, predicted from the annotated slices next to it.

    Attributes:
        k: index of the label.
        dice: overlap of the prediction with what the user drew, 1 where neither holds the label.
    """

    k: int
    dice: float


def hold_out(carrier: Carrier, rule: Fusion) -> list[HeldOut]:
    """Predict each label on every slice where it is known that lies between two others."""
    results = []
    for k in range(len(carrier.annotation.values)):
        slices = carrier.annotation.known_slices(k)
        for low, held_out, up in zip(slices, slices[1:], slices[2:], strict=False):
            predicted = carrier.scores(k, held_out, low, up, rule).fused > 0
            results.append(HeldOut(k, overlap(predicted, carrier.distance(k, held_out) > 0)))
    return results


def overlap(first: Tensor, second: Tensor) -> float:
    """Dice of two masks, 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def motion_weights(moving: list[HeldOut], still: list[HeldOut], n_labels: int) -> NDArray[np.float64]:
    """Weight of registration against carrying straight through, per label, `(K,)` in [0, 1].

    `1 / (1 + exp(-(dice_moving - dice_still + PRIOR_LEAD) / DECISION_WIDTH))`, with mean Dice over held-out slices.

    Args:
        moving: held-out slices predicted with registration.
        still: the same slices predicted without.
        n_labels: `K`.
    """
    gains: list[list[float]] = [[] for _ in range(n_labels)]
    for with_motion, without in zip(moving, still, strict=True):
        gains[with_motion.k].append(with_motion.dice - without.dice)
    lead = np.array([np.mean(label) if label else 0.0 for label in gains])
    weights: NDArray[np.float64] = 1 / (1 + np.exp(-(lead + PRIOR_LEAD) / DECISION_WIDTH))
    return weights
