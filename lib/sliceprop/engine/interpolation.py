"""Interpolation between annotated slices without looking at the image: the instant preview and the yardstick.

Everything is in the canonical frame `(S, H, W)`. A label is interpolated between the slices on which *it* is known, so
labels may be annotated on different slices. From a slice that holds a label towards one that is known not to, it is
held until half-way, except that `contour` then draws nothing. Beyond the outermost slices on which a label is known,
the outermost one is held. Scribbles are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.engine.contour import interpolate_contours
from sliceprop.errors import InputError
from sliceprop.labels import LabelArray, SparseLabels

Interpolation = Literal["nearest", "shape", "contour"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

FAR_PX = 1e4
"""Magnitude of the signed distance where a mask has no border at all: finite, so that distances can be blended."""

_BORDER_PX = 1e-3
"""A border through a pixel's centre leaves the pixel to the label, lest labels that touch come apart there."""

Sources = NDArray[np.intp]
"""`(K, S)`: the known slice that each label of each slice is taken from, -1 for none."""

Box = tuple[slice, slice]
"""Rows and columns of a part of a slice."""


@dataclass(frozen=True)
class Interpolated:
    """A volume filled from its annotated slices; all `(S, H, W)` int32.

    Attributes:
        labels: both sides together; what is known comes back bit-identical.
        from_lower: each label as on the nearest slice below on which it is known, 0 where there is none.
        from_upper: the same from above.
    """

    labels: LabelArray
    from_lower: LabelArray
    from_upper: LabelArray


def interpolate(annotation: SparseLabels, method: Interpolation) -> Interpolated:
    """Fill the volume from the annotated slices by a classical method.

    Args:
        annotation: what is known; without any annotated slice the result is empty.
        method: `nearest` (nearest slice, ties to the lower one), `shape` (signed distances blended linearly) or
            `contour` (morphological contour interpolation).

    Raises:
        InputError: an unknown method.
        ContourError: if the contour interpolator crashes or hangs.
    """
    if method not in _METHODS:
        raise InputError(f"unknown interpolation {method!r}, choose from {', '.join(INTERPOLATIONS)}")
    lower, upper = sources(annotation.known)
    return Interpolated(
        keep_known(_METHODS[method](annotation, lower, upper), annotation),
        carry(annotation, lower),
        carry(annotation, upper),
    )


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance to the mask's border, positive inside; the border runs between the pixels.

    `d_in - 0.5` inside and `-(d_out - 0.5)` outside, where `d_in` and `d_out` are Euclidean distances to the centre of
    the nearest pixel of the other kind: `signed_distance(mask) > 0` is the mask.

    Args:
        mask: `(H, W)`.

    Returns:
        `(H, W)` float32, pixels; `-FAR_PX` everywhere for an empty mask and `FAR_PX` for a full one.
    """
    if mask.all() or not mask.any():
        return np.where(mask, np.float32(FAR_PX), np.float32(-FAR_PX))
    inside: NDArray[np.float64] = ndimage.distance_transform_edt(mask)
    outside: NDArray[np.float64] = ndimage.distance_transform_edt(~mask)
    distance: NDArray[np.float32] = (np.maximum(inside - 0.5, 0) - np.maximum(outside - 0.5, 0)).astype(np.float32)
    return distance


def bounding_box(mask: NDArray[np.bool_], margin_px: int = 1) -> Box:
    """Smallest box around a mask `(H, W)` that is not empty, widened by a margin where the slice allows it.

    With a margin of at least 1 the signed distances inside the box are the same as without cropping.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return _span(rows, margin_px), _span(columns, margin_px)


def _span(hit: NDArray[np.intp], margin_px: int) -> slice:
    return slice(max(int(hit[0]) - margin_px, 0), int(hit[-1]) + margin_px + 1)


def sources(known: NDArray[np.bool_]) -> tuple[Sources, Sources]:
    """Nearest known slice at or below, and at or above, for each label and slice.

    Args:
        known: `(K, S)`.
    """
    index, last = np.arange(known.shape[1]), known.shape[1]
    lower = np.maximum.accumulate(np.where(known, index, -1), axis=1)
    upper = np.minimum.accumulate(np.where(known, index, last)[:, ::-1], axis=1)[:, ::-1]
    return lower, np.where(upper == last, -1, upper)


def carry(annotation: SparseLabels, source: Sources) -> LabelArray:
    """Each label copied from its source slice; where two labels meet, the one from the nearer slice wins."""
    carried = np.zeros_like(annotation.labels)
    values = np.array(annotation.values, dtype=np.int32)
    for s, plane in enumerate(carried):
        origins = np.unique(source[:, s][source[:, s] >= 0])
        for origin in sorted(origins, key=lambda o: -abs(o - s)):
            painted = annotation.labels[origin]
            here = np.isin(painted, values[source[:, s] == origin])
            plane[here] = painted[here]
    return carried


def keep_known(labels: LabelArray, annotation: SparseLabels) -> LabelArray:
    """`labels` with everything that is known put back, in place."""
    values = np.array(annotation.values, dtype=np.int32)
    for s in np.flatnonzero(annotation.known.any(axis=0)):
        labels[s][np.isin(labels[s], values[annotation.known[:, s]])] = 0
        np.copyto(labels[s], annotation.labels[s], where=annotation.labels[s] > 0)
    return labels


def _nearest(annotation: SparseLabels, lower: Sources, upper: Sources) -> LabelArray:
    index = np.arange(annotation.labels.shape[0])
    take_lower = (upper < 0) | ((lower >= 0) & (index - lower <= upper - index))
    return carry(annotation, np.where(take_lower, lower, upper))


def _shape(annotation: SparseLabels, lower: Sources, upper: Sources) -> LabelArray:
    """Largest of the labels' blended signed distances and of 0 for background.

    References:
        Herman, Zheng, Bucholtz: Shape-based interpolation, IEEE CG&A 12(3), 1992, doi:10.1109/38.135915.
    """
    labels, best = np.zeros_like(annotation.labels), np.full(annotation.labels.shape, -_BORDER_PX, np.float32)
    for k, value in enumerate(annotation.values):
        slices = annotation.known_slices(k)
        masks = annotation.labels[list(slices)] == value
        if not masks.any():
            continue
        box = bounding_box(masks.any(axis=0))
        distances = {s: signed_distance(mask) for s, mask in zip(slices, masks[:, *box], strict=True)}
        for s, (low, up) in enumerate(zip(lower[k], upper[k], strict=True)):
            score = _between(distances, int(low), int(up), s)
            wins = score > best[s][box]
            labels[s][box][wins] = value
            np.copyto(best[s][box], score, where=wins)
    return labels


def _between(distances: dict[int, NDArray[np.float32]], lower: int, upper: int, index: int) -> NDArray[np.float32]:
    """Linear blend; a label missing on one side is not faded, which would shrink it, but held until half-way."""
    if lower < 0 or upper < 0 or lower == upper:
        return distances[max(lower, upper)]
    below, above, weight = distances[lower], distances[upper], (index - lower) / (upper - lower)
    if (below.max() > 0) != (above.max() > 0):
        return below if weight <= 0.5 else above
    return (1 - weight) * below + weight * above


def _contour(annotation: SparseLabels, lower: Sources, upper: Sources) -> LabelArray:
    """Contours between two slices that hold the label, nothing where one of them is known not to, held outside."""
    outside = (lower < 0) | (upper < 0)
    labels = carry(annotation, np.where(outside, np.maximum(lower, upper), -1))
    if not annotation.labels.any():
        return labels
    box = bounding_box(annotation.labels.any(axis=0), margin_px=2)
    between = interpolate_contours(annotation.labels[:, *box])
    cropped = labels[:, *box]
    for k, value in enumerate(annotation.values):
        holds = (annotation.labels == value).any(axis=(1, 2))
        bridged = ~outside[k] & holds[lower[k]] & holds[upper[k]]
        cropped[(between == value) & bridged[:, None, None] & (cropped == 0)] = value
    return labels


_METHODS: dict[str, Callable[[SparseLabels, Sources, Sources], LabelArray]] = {
    "nearest": _nearest,
    "shape": _shape,
    "contour": _contour,
}
