"""What the tools share: seeds, ranges of intensity, boxes around seeds, axes at right angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.config import MAX_LABEL
from sliceprop.errors import GeometryError, InputError, NoAnnotationError, ShapeError
from sliceprop.labels import SCRIBBLED_BACKGROUND, LabelArray
from sliceprop.volume import voxel_spacing

BACKGROUND = SCRIBBLED_BACKGROUND
"""Seed value of what belongs to no structure."""

SKEW_DEG = 0.5
"""Axes are at right angles up to here: over 200 mm, distances are then off by less than 2 mm."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Range:
    """Intensities from `lower` to `upper`, both included; None for an open end."""

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.lower, self.upper) if end is not None]
        if any(math.isnan(end) for end in ends):
            raise InputError("a threshold must be a number, not NaN")
        if len(ends) == 2 and ends[0] > ends[1]:
            raise InputError(f"the lower threshold {ends[0]:g} lies above the upper one, {ends[1]:g}; swap them")

    @property
    def bounded(self) -> bool:
        """Whether it leaves anything out."""
        return self.lower is not None or self.upper is not None

    def select(self, image: NDArray[Any]) -> NDArray[np.bool_]:
        """Voxels of `image` within the range.

        Raises:
            InputError: if there are none.
        """
        selected = np.ones(image.shape, dtype=bool)
        if self.lower is not None:
            selected &= image >= self.lower
        if self.upper is not None:
            selected &= image <= self.upper
        if not selected.any():
            raise InputError(f"no voxel lies {self}; the scan's values are {image.min():g} to {image.max():g}")
        return selected

    def __str__(self) -> str:
        lower = "" if self.lower is None else f"at or above {self.lower:g}"
        upper = "" if self.upper is None else f"at or below {self.upper:g}"
        return " and ".join(filter(None, (lower, upper))) or "in any range"


ANY = Range()


def check_seeds(seeds: NDArray[Any], image: NDArray[Any]) -> LabelArray:
    """Seeds `(i, j, k)` as int32 after checking that they lie on the image's grid.

    Raises:
        ShapeError: another shape.
        InputError: values that are neither labels, 0 nor `BACKGROUND`.
        NoAnnotationError: if nothing is marked.
    """
    if seeds.shape != image.shape:
        raise ShapeError(f"seeds: shape {seeds.shape} differs from the image's {image.shape}; both need the same grid")
    if not np.issubdtype(seeds.dtype, np.integer) or seeds.min() < BACKGROUND or seeds.max() > MAX_LABEL:
        raise InputError(f"seeds: values must be whole numbers, {BACKGROUND} for background or 0 to {MAX_LABEL}")
    if not seeds.any():
        raise NoAnnotationError("there are no seeds; mark each structure, and what belongs to none as background")
    return seeds.astype(np.int32)


def check_right_angles(affine: NDArray[np.float64]) -> None:
    """Refuse a sheared grid, where steps along the axes do not add up to distances; an oblique one is fine.

    Raises:
        GeometryError: telling by how much.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = float(np.degrees(np.arcsin(min(1.0, np.abs(axes.T @ axes - np.eye(3)).max()))))
    if skew > SKEW_DEG:
        raise GeometryError(
            f"image: its axes are up to {skew:.1f} degrees off a right angle (a sheared affine, such as a tilted CT "
            "gantry leaves); resample it onto a grid with right angles first"
        )


def box_around(marked: NDArray[np.bool_], margin: tuple[int, int, int]) -> Box:
    """Smallest box around what is marked, widened by `margin` voxels per axis where the volume allows it."""
    box = []
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        hit = np.flatnonzero(marked.any(axis=others))
        box.append(slice(max(int(hit[0]) - margin[axis], 0), int(hit[-1]) + margin[axis] + 1))
    return box[0], box[1], box[2]


def margin_voxels(margin_mm: float, affine: NDArray[np.float64]) -> tuple[int, int, int]:
    """At least `margin_mm` along each axis, in voxels."""
    i, j, k = (math.ceil(margin_mm / mm) for mm in voxel_spacing(affine))
    return i, j, k


def spread_of(image: NDArray[Any]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles, which single bright or dark voxels do not move; never equal."""
    low, high = np.percentile(image.ravel()[:: max(1, image.size // 1_000_000)], (0.5, 99.5))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return float(low), float(high if high > low else low + 1)
