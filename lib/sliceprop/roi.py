"""The part of each slice that learning and propagation look at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sliceprop.labels import SparseLabels


class Roi(NamedTuple):
    """A rectangle of every slice, pixels, stop exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """Index into `(S, H, W)`."""
        return slice(None), slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def rows(self) -> range:
        """Of the slice."""
        return range(self.top, self.bottom)

    @property
    def columns(self) -> range:
        """Of the slice."""
        return range(self.left, self.right)

    def united(self, other: Roi) -> Roi:
        """The smallest rectangle that holds both."""
        return Roi(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


def region_of_interest(annotation: SparseLabels, *, margin: float = 0.15, least_px: int = 16) -> Roi:
    """Bounding box of all marks over all slices, grown on each side; the whole slice without marks.

    A structure moves between the annotated slices, so the box grows by `margin` of its size and by at least `least_px`:
    wide enough for the shifts seen between annotated slices, and often several times less work than the whole slice.
    """
    _, height, width = annotation.labels.shape
    marks = annotation.labels.any(axis=0)
    if annotation.scribbles is not None:
        marks = marks | annotation.scribbles.any(axis=0)
    if not marks.any():
        return Roi(0, height, 0, width)
    top, bottom = _grown(np.flatnonzero(marks.any(axis=1)), height, margin, least_px)
    left, right = _grown(np.flatnonzero(marks.any(axis=0)), width, margin, least_px)
    return Roi(top, bottom, left, right)


def _grown(occupied: NDArray[np.intp], size: int, margin: float, least_px: int) -> tuple[int, int]:
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    by = max(least_px, round(margin * (last - first)))
    return max(0, first - by), min(size, last + by)
