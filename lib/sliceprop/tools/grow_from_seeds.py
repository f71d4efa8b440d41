"""Grow from seeds: every voxel goes to the seed that reaches it over the smallest steps of intensity.

References:
    Vezhnevets, Konouchine: GrowCut - interactive multi-label N-D image segmentation by cellular automata, 2005.
    Zhu, Kolesov, Gao, Kikinis, Tannenbaum: An effective interactive medical image segmentation method using Fast
    GrowCut, MICCAI workshop on interactive medical image computing, 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray
from sliceprop.tools.seeds import ANY, BACKGROUND, Range, box_around, check_right_angles, check_seeds, spread_of
from sliceprop.volume import voxel_spacing

MOST_KINDS = 254
"""Of seeds: what Fast GrowCut holds in a byte, less one for voxels that may not be grown into."""

LEVELS = 1000
"""Grey levels that Fast GrowCut sees; on integers it takes half the time that it takes on floats."""


@dataclass(frozen=True)
class GrowConfig:
    """How seeds grow.

    Attributes:
        within: intensities that may be grown into; seeds elsewhere stay.
        margin: of the box around all seeds in which they grow, as a share of its size on each side.
        locality_per_mm: cost of a millimetre as a share of the image's range of intensities; above 0 near seeds count
            more than far ones.
    """

    within: Range = ANY
    margin: float = 0.1
    locality_per_mm: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < float("inf"):
            raise InputError(f"the margin must be a share of at least 0, not {self.margin}")
        if not 0 <= self.locality_per_mm < float("inf"):
            raise InputError(f"the locality must be at least 0 per mm, not {self.locality_per_mm}")


def grow_from_seeds(
    image: NDArray[Any], seeds: NDArray[Any], *, affine: NDArray[np.float64], config: GrowConfig | None = None
) -> LabelArray:
    """Divide the surroundings of the seeds among their labels.

    Args:
        image: `(i, j, k)`.
        seeds: same grid; label values, `BACKGROUND`, 0 for unknown. Two kinds at least.
        affine: `(4, 4)` voxel index to RAS mm, with axes at right angles.
        config: defaults of `GrowConfig`.

    Returns:
        `(i, j, k)` labels; seeds keep theirs, 0 on background and outside the box around all seeds.

    Raises:
        NoAnnotationError: seeds of one kind only.
        InputError: or another subclass, for arrays or affines that cannot be used.
    """
    config, seeds = config or GrowConfig(), check_seeds(seeds, image)
    check_right_angles(affine)
    kinds = np.unique(seeds[seeds != 0])
    if len(kinds) < 2:
        raise NoAnnotationError(
            f"all seeds are of {_name(kinds[0])}; mark what lies beside it too, as another structure or as background"
        )
    if len(kinds) > MOST_KINDS:
        raise InputError(f"there are seeds of {len(kinds)} structures; grow at most {MOST_KINDS} at a time")
    marked = seeds != 0
    extent = [part.stop - part.start for part in box_around(marked, (0, 0, 0))]
    i, j, k = (1 + round(config.margin * size) for size in extent)
    box = box_around(marked, (i, j, k))
    numbers = np.where(marked[box], np.searchsorted(kinds, seeds[box]) + 1, 0).astype(np.uint8)
    free = config.within.select(image)[box] if config.within.bounded else None
    grown = _fast_grow_cut(_levels(image[box]), numbers, free, affine, config.locality_per_mm)
    result = np.zeros(image.shape, np.int32)
    result[box] = np.array([0, *np.maximum(kinds, 0), 0], np.int32)[grown]
    return np.where(marked, np.maximum(seeds, 0), result)


def _name(kind: int) -> str:
    return "the background" if kind == BACKGROUND else f"label {kind}"


def _levels(image: NDArray[Any]) -> NDArray[np.int16]:
    low, high = spread_of(image)
    shares = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    levels: NDArray[np.int16] = np.round(shares * LEVELS).astype(np.int16)
    return levels


def _fast_grow_cut(
    levels: NDArray[np.int16],
    numbers: NDArray[np.uint8],
    free: NDArray[np.bool_] | None,
    affine: NDArray[np.float64],
    locality_per_mm: float,
) -> NDArray[np.uint8]:
    """Every voxel gets the number of a seed; those that are not `free` are a wall, which gets a number of its own."""
    import itk

    wall = int(numbers.max()) + 1
    if free is not None:
        numbers = np.where((numbers == 0) & ~free, wall, numbers).astype(np.uint8)
    grey, marks = itk.image_from_array(np.ascontiguousarray(levels)), itk.image_from_array(numbers)
    spacing = [float(mm) for mm in reversed(voxel_spacing(affine))]
    grey.SetSpacing(spacing)
    marks.SetSpacing(spacing)
    grow = itk.FastGrowCut[type(grey), type(marks)].New()
    grow.SetInput(grey)
    grow.SetSeedImage(marks)
    grow.SetDistancePenalty(locality_per_mm * LEVELS)
    grow.Update()
    return np.asarray(itk.array_from_image(grow.GetOutput()))
