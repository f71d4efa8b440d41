"""Which slice to annotate next: the one that lowers the expected remaining error most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sliceprop.engine.discovery import undiscovered
from sliceprop.engine.quality import Quality
from sliceprop.volume import FloatArray

TIP_SHARE = 0.05
"""A label smaller than this share of its largest slice is a tip, which no annotator would draw a slice for."""

MISSED, MISSED_REACH = 0.2, 0.3
"""A label may go on where the result shows it no more: error of the first such slice, as a share of the label's slices
on average, and how far it fades, as a share of the label's length."""

NEW_DICE = 0.5
"""Dice of a label over the volume once one slice of it is annotated."""

CONCERNED = 0.1
"""A slice concerns the labels that gain at least this share of what the first of them gains."""


@dataclass(frozen=True)
class Choice:
    """A slice worth annotating.

    Attributes:
        index: the slice.
        gain: expected rise of the mean Dice over the volume.
        label: index of the label that gains most there, None without any estimate.
        dice: expected Dice of that label on the slice as it is, None where the result does not show it.
        labels: indices of the labels that gain at least `CONCERNED` of what that label gains, most first.
        finds: labels that no annotated slice shows yet and that this one is expected to show.
    """

    index: int
    gain: float
    label: int | None
    dice: float | None
    labels: tuple[int, ...] = ()
    finds: float = 0.0

    @property
    def explores(self) -> bool:
        """Whether what it may find is worth more than what the labels gain."""
        return NEW_DICE * self.finds > self.gain


def choose_slices(quality: Quality, annotated: set[int], n: int) -> list[Choice]:
    """Greedy choice of up to `n` slices by expected gain, each knowing those chosen before.

    The expected error of a label on a slice is `(1 - dice) size / total size`, so that all errors sum to `1 - Dice`;
    beyond where the result shows it, something is added for what may be missed. Annotating slice `s` removes its own
    error, lowers that of the slices around it in proportion to how much nearer their next annotated slices come, and
    may show labels that are on no annotated slice.

    Args:
        quality: expected Dice and size per label and slice.
        annotated: slices that are never chosen.
        n: how many.
    """
    n_labels, n_slices = quality.size.shape
    total = np.maximum(quality.size.sum(axis=1, keepdims=True), 1)
    error = np.nan_to_num(1 - quality.dice) * quality.size / total + _missed_ends(quality)
    lengths = [int(length) for length in (~tips(quality)).sum(axis=1) if length]
    done, choices = set(annotated), list[Choice]()
    while len(choices) < n and len(done) < n_slices:
        finds = undiscovered(lengths, done, n_slices)
        gains = {s: _relief(error, done, s) for s in range(n_slices) if s not in done}
        worth = {s: gain.sum() + NEW_DICE * finds[s] for s, gain in gains.items()}
        apart = {s: min((abs(s - d) for d in done), default=0) for s in gains}
        best = max(gains, key=lambda s: (worth[s], apart[s], -abs(s - n_slices // 2)))
        per_label = gains[best].sum(axis=1) / max(n_labels, 1)
        label = int(per_label.argmax()) if per_label.any() else None
        seen = label is not None and np.isfinite(quality.dice[label, best])
        dice = float(quality.dice[label, best]) if seen else None
        found = float(finds[best]) / max(n_labels, 1)
        choices.append(Choice(best, float(per_label.sum()), label, dice, _concerned(per_label), found))
        error = error - gains[best]
        done.add(best)
    return choices


def tips(quality: Quality) -> NDArray[np.bool_]:
    """Where a label is absent or little more than its tip, `(K, S)`."""
    small: NDArray[np.bool_] = quality.size <= TIP_SHARE * quality.size.max(axis=1, keepdims=True)
    return small


def _missed_ends(quality: Quality) -> NDArray[np.float64]:
    """Error of labels that go on where the result shows them no more, up to a slice known to lack them, `(K, S)`."""
    missed = np.zeros(quality.size.shape)
    for k, (dice, size) in enumerate(zip(quality.dice, quality.size, strict=True)):
        shown = np.flatnonzero(size > 0)
        if not shown.size:
            continue
        for beyond in (np.arange(shown[-1] + 1, size.size), np.arange(shown[0] - 1, -1, -1)):
            open_ones = beyond[np.cumsum(dice[beyond] == 1) == 0]
            distance = np.arange(1, open_ones.size + 1)
            missed[k, open_ones] = MISSED / shown.size * np.exp(-distance / max(MISSED_REACH * shown.size, 0.5))
    return missed


def _concerned(per_label: NDArray[np.float64]) -> tuple[int, ...]:
    """Labels that gain something worth naming, most first."""
    order = np.argsort(-per_label, kind="stable")
    return tuple(int(k) for k in order if per_label[k] > 0 and per_label[k] >= CONCERNED * per_label.max())


def _relief(error: NDArray[np.float64], done: set[int], index: int) -> NDArray[np.float64]:
    """Error `(K, S)` that goes away when slice `index` joins those already annotated."""
    before = _exposure(done, error.shape[1])
    after = _exposure(done | {index}, error.shape[1])
    relief: NDArray[np.float64] = error * (1 - after / np.maximum(before, 1e-9))
    return relief


def _exposure(annotated: set[int], n_slices: int) -> NDArray[np.float64]:
    """How far each slice is from being determined: `d_low d_up / (d_low + d_up)`, one-sided just the distance."""
    index = np.arange(n_slices, dtype=np.float64)
    marks = np.array(sorted(annotated), dtype=np.float64)
    if marks.size == 0:
        return np.full(n_slices, float(n_slices))
    distance = index[:, None] - marks
    low = np.where(distance >= 0, distance, np.inf).min(axis=1)
    up = np.where(distance <= 0, -distance, np.inf).min(axis=1)
    with np.errstate(invalid="ignore"):
        both = low * up / np.maximum(low + up, 1e-9)
    exposure: NDArray[np.float64] = np.where(np.isinf(low), up, np.where(np.isinf(up), low, both))
    return exposure


def first_slices(slices: FloatArray, n: int) -> list[int]:
    """Where to begin without any annotation: middles of `n` equal shares of the scan's structure, most central first.

    An end slice shows a tiny cap of each structure; the middle of a bin stands for its neighbours on both sides.

    Args:
        slices: `(S, H, W)` in [0, 1].
        n: how many, at most `S`.
    """
    rows, columns = np.abs(np.diff(slices, axis=1)).mean(axis=(1, 2)), np.abs(np.diff(slices, axis=2)).mean(axis=(1, 2))
    share = np.cumsum(rows + columns + 1e-9)
    middles = [int(np.searchsorted(share / share[-1], (i + 0.5) / n)) for i in range(min(n, len(slices)))]
    free = [s for s in range(len(slices)) if s not in middles]
    unique = list(dict.fromkeys(middles)) + free[: len(middles) - len(set(middles))]
    return sorted(unique, key=lambda s: abs(s - len(slices) / 2))
