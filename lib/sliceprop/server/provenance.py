"""Who drew what: telling the user's slices in a label file from those that the server had answered."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from sliceprop.hashing import array_digest
from sliceprop.labels import LabelArray


@dataclass(frozen=True)
class Annotation:
    """The hand-made part of a label file.

    Attributes:
        labels: `(i, j, k)` int32 label indices; 0 where nothing was drawn and where the server's own result came back.
        slice_axis: axis of the image file that counts slices.
        annotated_slices: the hand-made slices, ascending; with `partial` those that hold a hand-made label.
        partial: a slice counts only for the labels on it.
        source: which version of which label file this was taken from.
    """

    labels: LabelArray
    slice_axis: int
    annotated_slices: tuple[int, ...]
    partial: bool = False
    source: str = ""


@dataclass(frozen=True)
class Sent:
    """A result that a client got for a study; without any label, if the client shows the scan alone.

    Attributes:
        labels: `(i, j, k)` label indices as the client has them now.
        drawn: the hand-made ones, on the same grid; the client may have been shown only one label of them, or none.
        slice_axis: axis of the image file that counts slices.
        annotated_slices: the slices that were hand-made.
    """

    labels: LabelArray
    drawn: LabelArray
    slice_axis: int
    annotated_slices: tuple[int, ...]


@dataclass(frozen=True)
class Outline:
    """What tells a result that a client got from others, without its voxels, which are many.

    Attributes:
        name: where it is remembered.
        slice_axis: axis of the image file that counts slices.
        digests: `slice_digests`.
        filled: `filled_slices`.
    """

    name: str
    slice_axis: int
    digests: tuple[str, ...]
    filled: frozenset[int]


def hand_made(
    labels: LabelArray,
    *,
    slice_axis: int,
    sent: Sent | None = None,
    known: Annotation | None = None,
    listed: tuple[int, ...] | None = None,
    reviewed: tuple[int, ...] = (),
    partial: bool = False,
) -> Annotation:
    """Tell what the user drew from what the server had answered.

    If the file is our own result come back (`is_our_result`), hand-made are the slices that differ from it, those that
    were hand-made already, and those the client lists (with a list none that is empty and not listed). Any other file
    is the user's own: the listed slices are hand-made, without a list every slice that holds a label. Slices that were
    annotated before the client was given the scan alone (`given_bare`) stay where the file holds nothing, and so does
    what was drawn beside the one label of a tool's answer.

    Args:
        labels: `(i, j, k)` label indices as submitted.
        slice_axis: axis that counts slices.
        sent: the result that the client got, see `likeliest`.
        known: the annotation in force.
        listed: slices that the client calls annotated, or None.
        reviewed: slices that the client approves as they are.
        partial: a slice counts only for the labels on it; what we had added to it is taken away. So it is with our
            result of an annotation that is partial, unless the client calls all of its slices annotated; of the slices
            that it does, all labels count.
    """
    ours, complete = is_our_result(labels, slice_axis, sent), {*(listed or ()), *reviewed}
    partial = partial or (ours and known is not None and known.partial and not set(known.annotated_slices) <= complete)
    if sent is None or not ours:
        slices = marked_slices(labels != 0, slice_axis) if listed is None else set(listed)
        if known is not None and listed is None and not partial:
            unseen = _unseen(sent, known, slice_axis) - slices
            labels = labels + only_slices(known.labels, slice_axis, unseen)
            slices |= unseen
    elif partial:
        told = only_slices(labels, slice_axis, complete)
        labels = np.where(told > 0, told, _hand_made_labels(labels, slice_axis, sent, known))
        return Annotation(labels, slice_axis, tuple(sorted(marked_slices(labels != 0, slice_axis))), partial)
    else:
        slices = marked_slices(labels != sent.labels, slice_axis) | set(sent.annotated_slices) | set(listed or ())
        if known is not None and known.slice_axis == slice_axis:
            slices |= set(known.annotated_slices) - marked_slices(labels != known.labels, slice_axis)
        if listed is not None:  # an empty slice that is not listed was taken back
            slices &= marked_slices(labels != 0, slice_axis) | set(listed)
        labels = _with_unshown(labels, sent)
    slices |= set(reviewed)
    return Annotation(only_slices(labels, slice_axis, slices), slice_axis, tuple(sorted(slices)), partial)


def given_bare(annotation: Annotation) -> Sent:
    """What a client has that is given a study without its annotation, as 3D Slicer is by *Next Sample*."""
    nothing = np.zeros_like(annotation.labels)
    return Sent(nothing, annotation.labels, annotation.slice_axis, annotation.annotated_slices)


def as_shown(known: Annotation, labels: LabelArray, sent: Sent | None) -> Annotation:
    """The annotation in force as a client has it, which may have corrected it; what it was never shown stays as drawn.

    Args:
        known: the annotation in force.
        labels: `(i, j, k)` label indices that the client shows.
        sent: the result that the client got; if it shows another one, it was not shown the slices that it shows empty.
    """
    axis, slices = known.slice_axis, set(known.annotated_slices)
    if sent is not None and is_our_result(labels, sent.slice_axis, sent):
        labels = _with_unshown(labels, sent)
    else:
        labels = labels + only_slices(known.labels, axis, slices - marked_slices(labels != 0, axis))
    if not known.partial:
        return replace(known, labels=only_slices(labels, axis, slices))
    kept = np.zeros_like(labels)
    for value in np.unique(known.labels[known.labels > 0]):
        kept += only_slices(labels * (labels == value), axis, marked_slices(known.labels == value, axis))
    return replace(known, labels=kept)


def beneath(labels: LabelArray, hidden: NDArray[np.bool_], sent: Sent | None, known: Annotation | None) -> LabelArray:
    """`labels` with what a client has under the scribbles in its file: what it was given, or what is annotated.

    Args:
        labels: `(i, j, k)` label indices in the file.
        hidden: the scribbled voxels, `(i, j, k)`.
        sent: the result that the client got.
        known: the annotation in force.
    """
    if sent is not None and is_our_result(labels, sent.slice_axis, sent):
        return np.where(hidden, sent.labels, labels)
    if known is None or known.labels.shape != labels.shape:
        return labels
    axis = known.slice_axis
    return np.where(hidden, only_slices(known.labels, axis, marked_slices(labels != 0, axis)), labels)


def _with_unshown(labels: LabelArray, sent: Sent) -> LabelArray:
    """`labels` with what was drawn on annotated slices wherever the client has just what it was given."""
    axis, slices = sent.slice_axis, set(sent.annotated_slices)
    drawn = np.where(labels == sent.labels, sent.drawn, labels)
    return labels + only_slices(drawn - labels, axis, slices)


def _unseen(sent: Sent | None, known: Annotation, slice_axis: int) -> set[int]:
    """Annotated slices that the client was never shown."""
    if sent is None or known.partial or sent.labels.any() or {sent.slice_axis, known.slice_axis} != {slice_axis}:
        return set()
    return set(sent.annotated_slices) & set(known.annotated_slices)


def likeliest(labels: LabelArray, given: Sequence[Outline]) -> list[Outline]:
    """The results that labels may come back from, the one that they differ from on fewest slices first, then the rest.

    Args:
        labels: `(i, j, k)` label indices as a client has them.
        given: of the last results that clients of the study got, the newest first, which stays first among equals.
    """
    digests = {axis: slice_digests(labels, axis) for axis in {outline.slice_axis for outline in given}}
    marked = {axis: marked_slices(labels != 0, axis) for axis in digests}

    def differing(outline: Outline) -> float:
        axis = outline.slice_axis
        changed = _differing(digests[axis], outline.digests)
        return len(changed) if _comes_back(outline.filled, changed, marked[axis]) else np.inf

    return sorted(given, key=differing)


def outlined(sent: Sent, name: str = "") -> Outline:
    """What tells a result from others."""
    return Outline(name, sent.slice_axis, slice_digests(sent.labels, sent.slice_axis), frozenset(filled_slices(sent)))


def slice_digests(labels: LabelArray, slice_axis: int) -> tuple[str, ...]:
    """One per slice, of its shape and label indices."""
    return tuple(array_digest(one.astype(np.uint16)) for one in np.moveaxis(labels, slice_axis, 0))


def _differing(digests: Sequence[str], others: Sequence[str]) -> set[int]:
    return {index for index, (one, other) in enumerate(zip_longest(digests, others)) if one != other}


def is_our_result(labels: LabelArray, slice_axis: int, sent: Sent | None) -> bool:
    """Whether `labels` is the last result come back, corrected or not, rather than a label of the user's own.

    So it is if of the slices that we had filled one is unchanged, and more are still filled than are empty: in a sparse
    label most are empty, though one may happen to look, or have been taken over, just as we had filled it.
    """
    if sent is None or sent.slice_axis != slice_axis or sent.labels.shape != labels.shape:
        return False
    changed = marked_slices(labels != sent.labels, slice_axis)
    return _comes_back(filled_slices(sent), changed, marked_slices(labels != 0, slice_axis))


def _comes_back(filled: Set[int], changed: Set[int], marked: Set[int]) -> bool:
    return bool(filled - changed) and 2 * len(filled & marked) > len(filled)


def filled_slices(sent: Sent) -> set[int]:
    """The slices on which a client got more than was drawn."""
    return marked_slices((sent.labels != sent.drawn) & (sent.labels != 0), sent.slice_axis)


def drawn_by_hand(annotation: Annotation) -> NDArray[np.bool_]:
    """Which voxels the user decided about, `(i, j, k)`: whole slices, or with `partial` what was painted on them."""
    if annotation.partial:
        return annotation.labels > 0
    drawn = np.zeros(annotation.labels.shape, bool)
    inside = [index for index in annotation.annotated_slices if index < drawn.shape[annotation.slice_axis]]
    np.moveaxis(drawn, annotation.slice_axis, 0)[inside] = True
    return drawn


def lay_over(labels: LabelArray, annotation: Annotation) -> LabelArray:
    """`labels` with the annotated slices as the user drew them; with `partial` only the labels drawn on each slice."""
    result, drawn, axis = labels.copy(), annotation.labels, annotation.slice_axis
    if not annotation.partial:
        for index in annotation.annotated_slices:
            np.moveaxis(result, axis, 0)[index] = np.moveaxis(drawn, axis, 0)[index]
        return result
    for value in np.unique(drawn[drawn > 0]):
        slices = marked_slices(drawn == value, axis)
        result[only_slices(result, axis, slices) == value] = 0
    return np.where(drawn > 0, drawn, result)


def _hand_made_labels(labels: LabelArray, slice_axis: int, sent: Sent, known: Annotation | None) -> LabelArray:
    """Per slice, the labels whose shape differs from what we sent, or that were drawn before."""
    kept = np.zeros_like(labels)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        slices = marked_slices(mask != (sent.labels == value), slice_axis) | marked_slices(
            sent.drawn == value, slice_axis
        )
        if known is not None and known.slice_axis == slice_axis:
            drawn = known.labels == value
            slices |= marked_slices(drawn, slice_axis) - marked_slices(drawn != mask, slice_axis)
        kept += only_slices(labels * mask, slice_axis, slices)
    return kept


def marked_slices(marked: NDArray[np.bool_], slice_axis: int) -> set[int]:
    """Indices of the slices on which anything is marked."""
    others = tuple(axis for axis in range(3) if axis != slice_axis)
    return {int(index) for index in np.flatnonzero(marked.any(axis=others))}


def only_slices(labels: LabelArray, slice_axis: int, slices: set[int]) -> LabelArray:
    """The labels on `slices`, 0 elsewhere."""
    inside = [index for index in slices if 0 <= index < labels.shape[slice_axis]]
    kept = np.zeros_like(labels)
    np.moveaxis(kept, slice_axis, 0)[inside] = np.moveaxis(labels, slice_axis, 0)[inside]
    return kept
