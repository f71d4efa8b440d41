"""What the user drew: labels on some slices, scribbles anywhere, and what counts as known.

Unknown is not background: a voxel without a label says something only on a slice that counts as annotated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.errors import InputError, ShapeError

LabelArray = NDArray[np.int32]

SCRIBBLED_BACKGROUND = -1

THICK_SHARE = 0.25
"""Where lines cross in a slice, up to this share of their voxels has neighbours along both axes."""

PLANE_SHARE = 0.2
"""Share of all lines that lies in one place where they are a painted plane; those of a thin structure move about."""

WHOLE = 1e-3
"""Distance from a whole number that is rounding: NIfTI may store label values with a scale factor."""


@dataclass(frozen=True)
class SparseLabels:
    """Annotation of a study in the canonical frame.

    Attributes:
        labels: `(S, H, W)` int32, 0 where nothing is painted and on every slice that is not annotated.
        values: the `K` label values of annotation and scribbles, ascending.
        known: `(K, S)`, whether label `values[k]` is annotated completely on slice `s`; its absence there is a fact.
        annotated_slices: slices that the user annotated, ascending, also those listed as pure background.
        scribbles: `(S, H, W)` int32, 0 nothing, `SCRIBBLED_BACKGROUND`, else a label value; None without any.
    """

    labels: LabelArray
    values: tuple[int, ...]
    known: NDArray[np.bool_]
    annotated_slices: tuple[int, ...]
    scribbles: LabelArray | None = None

    def known_slices(self, k: int) -> tuple[int, ...]:
        """Slices on which label `values[k]` is known, ascending."""
        return tuple(int(s) for s in np.flatnonzero(self.known[k]))

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """Voxels that the user decided about, `(S, H, W)`: complete slices, what is painted on others, and scribbles.

        A scribble says nothing where its label is known completely, which the annotation decides.
        """
        values, complete = np.array(self.values, dtype=np.int32), self.known.all(axis=0)
        drawn: NDArray[np.bool_] = self.labels > 0
        drawn[complete if self.values else list(self.annotated_slices)] = True
        if self.scribbles is not None:
            for s in np.flatnonzero(self.scribbles.any(axis=(1, 2))):
                marks = self.scribbles[s]
                drawn[s] |= (marks != 0) & ~np.isin(marks, values[self.known[:, s]])
        return drawn

    def cropped(self, index: tuple[slice, slice, slice]) -> SparseLabels:
        """The part of the annotation inside `index` of `(S, H, W)`."""
        scribbles = None if self.scribbles is None else self.scribbles[index]
        return replace(self, labels=self.labels[index], scribbles=scribbles)


def check_labels(array: NDArray[Any], shape: tuple[int, ...], name: str = "labels") -> NDArray[np.int32]:
    """Label values as int32 on the image's grid.

    Raises:
        ShapeError: if the shape differs from the image's.
        InputError: values that are not integers, negative, or above 65,535.
    """
    if array.shape != tuple(shape):
        raise ShapeError(
            f"{name}: shape {array.shape} differs from the image's {tuple(shape)}; both need the same grid"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        rounded = np.round(array)
        if not np.isfinite(array).all() or (np.abs(array - rounded) > WHOLE).any():
            raise InputError(f"{name}: values must be whole numbers; this looks like an image or a probability map")
        array = rounded
    elif not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name}: values must be whole numbers, found {array.dtype}")
    low, high = array.min(initial=0), array.max(initial=0)
    if low < 0 or high > MAX_LABEL:
        raise InputError(f"{name}: label values must lie in 0..{MAX_LABEL}, found {low:g}..{high:g}")
    return array.astype(np.int32)


def sparse_labels(
    labels: LabelArray,
    *,
    scribbles: LabelArray | None = None,
    annotated_slices: Iterable[int] | None = None,
    partial: bool = False,
    background_scribble: int = BACKGROUND_SCRIBBLE,
) -> SparseLabels:
    """Decide what is known from what was painted.

    A slice counts as annotated completely when it holds any label (default); with `partial` only for the labels on it;
    with `annotated_slices` exactly those count, also empty ones, and labels elsewhere are ignored.

    Args:
        labels: `(S, H, W)` canonical label values.
        scribbles: `(S, H, W)` canonical, label values and `background_scribble`.
        annotated_slices: 0-based slice indices, or None.
        partial: see above; not together with `annotated_slices`.
        background_scribble: the scribble value that means background.

    Raises:
        InputError: a slice index out of range, annotation in more than one plane, both ways of saying what is known,
            a background scribble value out of range, or a label that has it.
    """
    n_slices = labels.shape[0]
    if not 0 < background_scribble <= MAX_LABEL:
        raise InputError(f"the background scribble value must lie in 1..{MAX_LABEL}, not {background_scribble}")
    if annotated_slices is not None:
        if partial:
            raise InputError("give either partial or annotated slices, not both")
        annotated = tuple(sorted({int(s) for s in annotated_slices}))
        outside = [s for s in annotated if not 0 <= s < n_slices]
        if outside:
            raise InputError(f"annotated slices {outside} are out of range, this axis has slices 0 to {n_slices - 1}")
        unlisted = np.setdiff1d(np.arange(n_slices), annotated)
        labels = labels.copy()
        labels[unlisted] = 0
    else:
        _check_one_plane(labels)
        annotated = tuple(int(s) for s in np.flatnonzero(labels.any(axis=(1, 2))))
    marks = None if scribbles is None else _signed_scribbles(scribbles, labels, background_scribble)
    present = present_values(labels) | (set() if marks is None else present_values(np.maximum(marks, 0)))
    values = tuple(sorted(present))
    known = np.zeros((len(values), n_slices), dtype=bool)
    if partial:
        for k, value in enumerate(values):
            known[k] = (labels == value).any(axis=(1, 2))
    else:
        known[:, list(annotated)] = True
    return SparseLabels(labels, values, known, annotated, marks)


def present_values(labels: LabelArray) -> set[int]:
    """The label values other than 0; counting is much faster than the sorting of `np.unique`."""
    return {int(value) for value in np.flatnonzero(np.bincount(labels.ravel()))} - {0}


def _signed_scribbles(scribbles: LabelArray, labels: LabelArray, background: int) -> LabelArray | None:
    if not scribbles.any():
        return None
    if (labels == background).any():
        raise InputError(
            f"label value {background} is also the background scribble; choose another background scribble value"
        )
    return np.where(scribbles == background, SCRIBBLED_BACKGROUND, scribbles).astype(np.int32)


def _check_one_plane(labels: LabelArray) -> None:
    """Refuse a painting across the slices: beside a painted slice, several that hold lines only, always in one place.

    The painted slice has to stand alone: where slices are painted one after the other, lines are a structure's tip.

    Raises:
        InputError: telling the way out.
    """
    marked = labels > 0
    sizes = marked.sum(axis=(1, 2))
    thick = marked & ~_alone(marked, 1) & ~_alone(marked, 2)
    crossed = (sizes > 0) & (thick.sum(axis=(1, 2)) <= THICK_SHARE * sizes)
    stands_alone = (thick & _alone(marked, 0)).sum(axis=(1, 2)) > sizes / 2
    if np.count_nonzero(crossed) < 3 or not stands_alone.any():
        return
    lines = marked & crossed[:, None, None]
    for axis in (1, 2):
        plane = _alone(lines, axis) & ~_alone(lines, 0)
        if plane.sum(axis=(0, 3 - axis)).max() > PLANE_SHARE * np.count_nonzero(lines):
            raise InputError(
                "annotation lies in more than one plane; annotate slices of one axis and give the rest as scribbles"
            )


def _alone(marked: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Marked voxels without a marked neighbour on either side along an axis."""
    alone = marked.copy()
    to, fro = np.moveaxis(alone, axis, 0), np.moveaxis(marked, axis, 0)
    to[1:] &= ~fro[:-1]
    to[:-1] &= ~fro[1:]
    return alone
