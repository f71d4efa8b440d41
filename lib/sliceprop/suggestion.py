"""The slice to annotate next, in words and millimetres."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sliceprop.config import SuggestConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans import plan_slices
from sliceprop.engine.quality import Quality
from sliceprop.engine.selection import Choice, choose_slices, first_slices, tips
from sliceprop.labels import SparseLabels
from sliceprop.volume import Volume

_PLAN_REASONS = {
    "centres": "Middle of its share of the scan, which is cut into {n} equal shares.",
    "keep_n": "One of {n} slices at equal distances, from the first one on.",
    "random": "One of {n} slices drawn at random.",
    "kmeans": "One of {n} slices that stand for groups of slices that look alike pixel by pixel.",
    "histogram": "One of {n} slices that stand for groups of slices of like brightness.",
    "ssim": "One of {n} slices that stand for groups of slices of like structure.",
    "perceptual": "One of {n} slices that stand for groups of slices of like edges and texture.",
}


@dataclass(frozen=True)
class Suggestion:
    """A slice to annotate next.

    Attributes:
        slice: 0-based index, None when nothing is left to suggest.
        slice_axis: axis of the image file that counts slices.
        position_ras: centre of the slice in RAS mm, None without a slice.
        reason: one sentence for a clinician.
        labels: values of the labels that gain by it, most first; none where nothing is known.
        expected_dice: mean over the labels of the Dice expected of the volume as it is, None where nothing is known.
        expected_dice_after: the same once this slice and those suggested before it are annotated.
        expected_gain: what this slice adds to it, in [0, 1], None where nothing is known.
        stop: whether nothing worth annotating is left.
    """

    slice: int | None
    slice_axis: int
    position_ras: tuple[float, float, float] | None
    reason: str
    labels: tuple[int, ...] = ()
    expected_dice: float | None = None
    expected_dice_after: float | None = None
    expected_gain: float | None = None
    stop: bool = False


def make_suggestions(
    volume: Volume,
    annotation: SparseLabels,
    quality: Quality | None,
    config: SuggestConfig,
    *,
    names: Mapping[int, str] | None = None,
) -> list[Suggestion]:
    """The `config.n` slices to annotate next, best first; never an annotated one.

    Args:
        volume: the scan.
        annotation: what is annotated.
        quality: of the propagation; None before any label is annotated.
        config: how many, and the target.
        names: label value to name, for the reason.

    Returns:
        fewer where fewer are left; with none left one suggestion with `slice` None.
    """
    annotated = set(annotation.annotated_slices)
    if len(annotated) == volume.shape[0]:
        return [_nothing_left(volume, "Every slice is annotated; nothing is left to suggest.", quality)]
    if quality is None:
        reason = "Nothing is annotated yet; a central slice tells more about its neighbours than an end slice."
        plan = [s for s in first_slices(volume.slices, config.n + len(annotated)) if s not in annotated]
        return [_at(volume, s, reason) for s in plan[: config.n]]
    stop, before = _good_enough(quality, annotation, config.target), _mean_dice(quality)
    done = f"All remaining slices are expected above a Dice of {config.target:.2f}; this one would still gain most."
    found, gained = list[Suggestion](), 0.0
    for choice in choose_slices(quality, annotated, config.n):
        gained += choice.gain
        suggestion = Suggestion(
            choice.index,
            volume.slice_axis,
            volume.slice_centre_ras(choice.index),
            done if stop else _reason(annotation, choice, names or {}),
            tuple(annotation.values[k] for k in choice.labels),
            _rounded(before),
            _rounded(min(before + gained, 1.0)),
            round(choice.gain, 4),
            stop,
        )
        found.append(suggestion)
    return found


def plan_suggestions(
    volume: Volume, annotation: SparseLabels, config: SuggestConfig, network: RegistrationNet | None = None
) -> list[Suggestion]:
    """The slices of a plan for the whole scan that are not annotated yet, ascending.

    The plan of `config.n` slices is the same whatever is annotated, so that a study can be worked off by it; once all
    of it is annotated, one suggestion with `slice` None comes back.

    Args:
        volume: the scan.
        annotation: what is annotated.
        config: the plan.
        network: trained on this study, for the plan `perceptual`.
    """
    if len(annotation.annotated_slices) == volume.shape[0]:
        return make_suggestions(volume, annotation, None, config)
    plan = plan_slices(
        volume.slices,
        config.n,
        config.plan,
        seed=config.seed,
        network=network,
        perceptual_weights=config.perceptual_weights,
        linear_weights=config.linear_weights,
    )
    left = [s for s in plan if s not in annotation.annotated_slices]
    if not left:
        return [_nothing_left(volume, "Every slice of this plan is annotated; a longer plan, or next_slice, has more.")]
    return [_at(volume, s, _PLAN_REASONS[config.plan].format(n=len(plan))) for s in left]


def _at(volume: Volume, index: int, reason: str) -> Suggestion:
    """A slice of which nothing is known yet."""
    return Suggestion(index, volume.slice_axis, volume.slice_centre_ras(index), reason)


def _nothing_left(volume: Volume, reason: str, quality: Quality | None = None) -> Suggestion:
    dice = None if quality is None else _rounded(_mean_dice(quality))
    return Suggestion(None, volume.slice_axis, None, reason, expected_dice=dice, expected_gain=0.0, stop=True)


def _mean_dice(quality: Quality) -> float:
    """Over the labels that are anywhere; NaN without any."""
    known = [dice for k in range(len(quality.dice)) if math.isfinite(dice := quality.label_dice(k))]
    return float(np.mean(known)) if known else math.nan


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _good_enough(quality: Quality, annotation: SparseLabels, target: float) -> bool:
    """Whether every label is expected above the target on every slice that is not annotated and not only its tip.

    A label that is known on one slice alone is never good enough: nothing shows where it ends.
    """
    judged = ~annotation.known & np.isfinite(quality.dice) & ~tips(quality)
    return bool((quality.dice[judged] >= target).all() and (annotation.known.sum(axis=1) > 1).all())


def _reason(annotation: SparseLabels, choice: Choice, names: Mapping[int, str]) -> str:
    if choice.explores:
        where = _where(choice.index, annotation.annotated_slices)
        return f"{where}, where structures may lie that no annotated slice shows yet."
    if choice.label is None:
        return "No label is expected to gain; this slice is the furthest from the annotated ones."
    value = annotation.values[choice.label]
    label = names.get(value, f"label {value}")
    where = _where(choice.index, annotation.known_slices(choice.label))
    if choice.dice is None:
        return f"{where}, where {label} may go on."
    return f"{where}, where {label} is least certain (expected Dice {choice.dice:.2f} on this slice)."


def _where(index: int, annotated: Sequence[int]) -> str:
    """A slice among the annotated ones."""
    below, above = [s for s in annotated if s < index], [s for s in annotated if s > index]
    if below and above:
        return f"It lies between the annotated slices {below[-1]} and {above[0]}"
    if below or above:
        return f"It lies beyond the outermost annotated slice {below[-1] if below else above[0]}"
    return "It is near scribbles only"
