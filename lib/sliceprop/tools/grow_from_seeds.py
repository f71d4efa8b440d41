"""Grow from seeds: every voxel goes to the seed that reaches it over the smallest steps of intensity.

References:
    Vezhnevets, Konouchine: GrowCut - interactive multi-label N-D image segmentation by cellular automata, 2005.
    Zhu, Kolesov, Gao, Kikinis, Tannenbaum: An effective interactive medical image segmentation method using Fast
    GrowCut, MICCAI workshop on interactive medical image computing, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import block_reduce

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray
from sliceprop.tools.seeds import ANY, BACKGROUND, Range, box_around, check_right_angles, check_seeds, spread_of
from sliceprop.volume import voxel_spacing

MOST_KINDS = 254
"""Of seeds: what Fast GrowCut holds in a byte, less one for voxels that may not be grown into."""

LEVELS = 1000
"""Grey levels that Fast GrowCut sees; on integers it takes half the time that it takes on floats."""

FINE_VOXELS = 1_500_000
"""Larger boxes are divided on a grid of half the resolution first, then only near the borders found there."""

MOST_SMOOTHING = 2.0
"""Voxels; scans of small things must not be smeared."""

UNSEEN = 4
"""Voxels around a seed that the coarse grid did not see within which everything is divided anew."""


@dataclass(frozen=True)
class GrowConfig:
    """How seeds grow.

    Attributes:
        within: intensities that may be grown into; seeds elsewhere stay.
        margin: of the box around all seeds in which they grow, as a share of its size on each side.
        locality_per_mm: cost of a millimetre as a share of the image's range of intensities; above 0 near seeds count
            more than far ones.
        smoothing_mm: standard deviation of the Gaussian that takes noise away first, at most `MOST_SMOOTHING` voxels.
    """

    within: Range = ANY
    margin: float = 0.1
    locality_per_mm: float = 0.0
    smoothing_mm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < float("inf"):
            raise InputError(f"the margin must be a share of at least 0, not {self.margin}")
        if not 0 <= self.locality_per_mm < float("inf"):
            raise InputError(f"the locality must be at least 0 per mm, not {self.locality_per_mm}")
        if not 0 <= self.smoothing_mm < float("inf"):
            raise InputError(f"the smoothing must be at least 0 mm, not {self.smoothing_mm}")


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
    i, j, k = (1 + round(min(config.margin * size, max(image.shape))) for size in extent)
    box = box_around(marked, (i, j, k))
    numbers = np.where(marked[box], np.searchsorted(kinds, seeds[box]) + 1, 0).astype(np.uint8)
    closed = ~config.within.select(image)[box] & ~marked[box]
    mm = voxel_spacing(affine)
    levels = _levels(image[box], [min(config.smoothing_mm / size, MOST_SMOOTHING) for size in mm])
    grown = _divide(levels, numbers, closed, mm, config.locality_per_mm)
    result = np.zeros(image.shape, np.int32)
    result[box] = np.array([0, *np.maximum(kinds, 0)], np.int32)[grown]
    return np.where(marked, np.maximum(seeds, 0), result)


def _name(kind: int) -> str:
    return "the background" if kind == BACKGROUND else f"label {kind}"


def _levels(image: NDArray[Any], sigma: Sequence[float]) -> NDArray[np.int16]:
    low, high = spread_of(image)
    shares = np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    levels: NDArray[np.int16] = np.round(ndimage.gaussian_filter(shares, sigma) * LEVELS).astype(np.int16)
    return levels


def _divide(
    levels: NDArray[np.int16],
    numbers: NDArray[np.uint8],
    closed: NDArray[np.bool_],
    mm: tuple[float, float, float],
    locality_per_mm: float,
) -> NDArray[np.uint8]:
    """The number of a seed for every voxel, 0 where it is `closed`; large volumes from coarse to fine."""
    if levels.size <= FINE_VOXELS:
        return _fast_grow_cut(levels, numbers, closed, mm, locality_per_mm)
    i, j, k = (2 if size < 2 * min(mm) else 1 for size in mm)
    blocks, coarse_mm = (i, j, k), (mm[0] * i, mm[1] * j, mm[2] * k)
    coarse = _divide(
        block_reduce(levels, blocks, np.mean).astype(np.int16),
        block_reduce(numbers, blocks, np.max),
        block_reduce(closed, blocks, np.min),
        coarse_mm,
        locality_per_mm,
    )
    inside = tuple(slice(size) for size in levels.shape)
    near, known = (np.kron(part, np.ones(blocks, part.dtype))[inside] for part in (_beside_others(coarse), coarse))
    near |= ndimage.binary_dilation((numbers > 0) & (numbers != known), iterations=UNSEEN)
    rim = ndimage.binary_dilation(near) & ~near
    fixed = np.where(rim & (numbers == 0), known, numbers)
    grown = _fast_grow_cut(levels, fixed, closed | ~(near | rim), mm, locality_per_mm)
    return np.where(closed, 0, np.where(near, grown, known)).astype(np.uint8)


def _beside_others(numbers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels with a neighbour of another number."""
    cross = ndimage.generate_binary_structure(3, 1)
    high, low = (find(numbers, footprint=cross) for find in (ndimage.maximum_filter, ndimage.minimum_filter))
    beside: NDArray[np.bool_] = high != low
    return beside


def _fast_grow_cut(
    levels: NDArray[np.int16],
    numbers: NDArray[np.uint8],
    closed: NDArray[np.bool_],
    mm: tuple[float, float, float],
    locality_per_mm: float,
) -> NDArray[np.uint8]:
    import itk

    volumes = (levels, np.where(closed, 0, numbers).astype(np.uint8), closed.astype(np.uint8))
    grey, marks, mask = (itk.image_from_array(np.ascontiguousarray(volume)) for volume in volumes)
    for picture in (grey, marks, mask):
        picture.SetSpacing([float(size) for size in reversed(mm)])
    grow = itk.FastGrowCut[type(grey), type(marks)].New()
    grow.SetInput(grey)
    grow.SetSeedImage(marks)
    grow.SetMaskImage(mask)
    grow.SetDistancePenalty(locality_per_mm * LEVELS)
    grow.Update()
    return np.asarray(itk.array_from_image(grow.GetOutput()))
