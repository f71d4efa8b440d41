"""What the study itself says about the methods: each annotated slice held out and predicted from the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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
    """Predict every annotated slice that lies between two others, for each label known on it."""
    annotation, results = carrier.annotation, []
    for s in annotation.annotated_slices:
        known = annotation.known.copy()
        known[:, s] = False
        scores = carrier.scores(s, known, rule)
        for k in np.flatnonzero(annotation.known[:, s] & known[:, :s].any(axis=1) & known[:, s:].any(axis=1)):
            truth = torch.from_numpy(annotation.labels[s] == annotation.values[k])
            results.append(HeldOut(int(k), overlap(scores.fused[k] > 0, truth)))
    return results


def overlap(first: Tensor, second: Tensor) -> float:
    """Dice of two masks, 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 1.0 if total == 0 else 2 * int((first & second).sum()) / total


def motion_weights(moving: list[HeldOut], still: list[HeldOut], n_labels: int) -> Tensor:
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
    lead = torch.tensor([float(np.mean(label)) if label else 0.0 for label in gains])
    return torch.sigmoid((lead + PRIOR_LEAD) / DECISION_WIDTH)
