"""The slice to annotate next, in words and millimetres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sliceprop.engine.quality import Quality
from sliceprop.engine.selection import Choice, choose_slices, first_slices
from sliceprop.labels import SparseLabels
from sliceprop.volume import Volume

TIP_SHARE = 0.05
"""A label smaller than this share of its largest slice is a tip, which no annotator would draw a slice for."""


@dataclass(frozen=True)
class Suggestion:
    """A slice to annotate next.

    Attributes:
        slice: 0-based index, None when every slice is annotated.
        slice_axis: axis of the image file that counts slices.
        position_ras: centre of the slice in RAS mm, None without a slice.
        reason: one sentence for a clinician.
        expected_gain: expected rise of the mean Dice over the volume, in [0, 1].
        stop: whether nothing worth annotating is left.
    """

    slice: int | None
    slice_axis: int
    position_ras: tuple[float, float, float] | None
    reason: str
    expected_gain: float
    stop: bool


def make_suggestions(
    volume: Volume,
    annotation: SparseLabels,
    quality: Quality | None,
    *,
    n: int = 1,
    target: float,
    names: Mapping[int, str] | None = None,
) -> list[Suggestion]:
    """The `n` slices to annotate next, best first; never an annotated one.

    Args:
        volume: the scan.
        annotation: what is annotated.
        quality: of the propagation; None before any label is annotated.
        n: how many; with no slice left one suggestion with `slice` None.
        target: estimated Dice above which a slice needs no annotation.
        names: label value to name, for the reason.
    """
    axis, n_slices, annotated = volume.slice_axis, volume.shape[0], set(annotation.annotated_slices)
    if len(annotated) == n_slices:
        return [Suggestion(None, axis, None, "Every slice is annotated; nothing is left to suggest.", 0.0, True)]
    if quality is None:
        reason = "Nothing is annotated yet; a central slice tells more about its neighbours than an end slice."
        plan = [s for s in first_slices(volume.slices, n + len(annotated)) if s not in annotated]
        return [
            Suggestion(s, axis, volume.slice_centre_ras(s), reason, round(1 / n_slices, 4), False) for s in plan[:n]
        ]
    stop = _good_enough(quality, annotation, target)
    done = f"All remaining slices are expected above a Dice of {target:.2f}; this one would still gain most."
    return [
        Suggestion(
            choice.index,
            axis,
            volume.slice_centre_ras(choice.index),
            done if stop else _reason(annotation, choice, names or {}),
            round(choice.gain, 4),
            stop,
        )
        for choice in choose_slices(quality, annotated, n)
    ]


def _good_enough(quality: Quality, annotation: SparseLabels, target: float) -> bool:
    """Whether every label is expected above the target on every slice that is not annotated and not only its tip.

    A label that is known on one slice alone is never good enough: nothing shows where it ends.
    """
    tips = TIP_SHARE * quality.size.max(axis=1, keepdims=True)
    judged = ~annotation.known & np.isfinite(quality.dice) & (quality.size > tips)
    return bool((quality.dice[judged] >= target).all() and (annotation.known.sum(axis=1) > 1).all())


def _reason(annotation: SparseLabels, choice: Choice, names: Mapping[int, str]) -> str:
    if choice.label is None:
        return "No label is expected to gain; this slice is the furthest from the annotated ones."
    value = annotation.values[choice.label]
    label = names.get(value, f"label {value}")
    below = [s for s in annotation.known_slices(choice.label) if s < choice.index]
    above = [s for s in annotation.known_slices(choice.label) if s > choice.index]
    if below and above:
        where = f"It lies between the annotated slices {below[-1]} and {above[0]}"
    elif below or above:
        where = f"It lies beyond the outermost annotated slice {below[-1] if below else above[0]}"
    else:
        where = "It is near scribbles only"
    return f"{where}, where {label} is least certain (expected Dice {choice.dice:.2f} on this slice)."
