"""Segment from boundary points: six or more points on a structure's outermost places become seeds.

Inside are the paths of least intensity change between opposite points, outside is what lies beyond the points; Grow
from seeds decides the rest.

References:
    Maninis, Caelles, Pont-Tuset, Van Gool: Deep Extreme Cut, CVPR 2018 (six points instead of a box).
    Roth, Yang, Xu, Wang, Xu: Going to extremes: weakly supervised medical image segmentation, Machine Learning and
    Knowledge Extraction 3(2), 2021, doi:10.3390/make3020026 (seeds along geodesics between them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.graph import MCP_Geometric

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray
from sliceprop.memory import check_memory
from sliceprop.tools.grow_from_seeds import MOST_KINDS, GrowConfig, grow_from_seeds
from sliceprop.tools.seeds import BACKGROUND, Box, box_around, check_right_angles, margin_voxels, spread_of
from sliceprop.volume import voxel_spacing

N_POINTS = 6

STEP_COST = 0.05
"""Of a millimetre without any change, as a share of the range of intensities in the box: keeps paths short."""

BYTES_PER_SEARCHED_VOXEL = 150
"""Peak memory of the search for paths per voxel of the box around the points; measured."""

MOST_SEARCHED = 4
"""Times the voxels of the image that the boxes of all structures may hold together; a million takes ten seconds."""

Points = NDArray[np.float64]
"""`(n, 3)`, voxel indices from 0."""


@dataclass(frozen=True)
class PointsConfig:
    """How points become a segmentation.

    Attributes:
        margin_mm: how far the structure may reach beyond the points.
        ring_mm: thickness of the layer around all that is certainly outside.
        grow: of the seeds.
    """

    margin_mm: float = 1.0
    ring_mm: float = 5.0
    grow: GrowConfig = field(default_factory=GrowConfig)

    def __post_init__(self) -> None:
        if not (0 <= self.margin_mm < float("inf") and 0 < self.ring_mm < float("inf")):
            raise InputError(f"margin and ring must be millimetres, not {self.margin_mm} and {self.ring_mm}")


def boundary_points(
    image: NDArray[Any],
    points: Mapping[int, Points],
    *,
    affine: NDArray[np.float64],
    config: PointsConfig | None = None,
) -> LabelArray:
    """Segment structures from the points where each one begins and ends along the scan's axes.

    Args:
        image: `(i, j, k)`.
        points: per label value six points or more, among them the outermost along each axis of the image.
        affine: `(4, 4)` voxel index to RAS mm, with axes at right angles.
        config: defaults of `PointsConfig`.

    Returns:
        `(i, j, k)` labels, nowhere farther than `config.margin_mm` beyond the points.

    Raises:
        NoAnnotationError: no points, or fewer than six for a structure.
        InputError: points outside the image, or all in one plane, or of too many or too large structures.
    """
    config = config or PointsConfig()
    check_right_angles(affine)
    if not points:
        raise NoAnnotationError("there are no points; mark the six outermost places of each structure")
    if len(points) >= MOST_KINDS:
        raise InputError(f"there are points of {len(points)} structures; give those of {MOST_KINDS - 1} at most")
    voxels = {label: _voxels(label, given, image.shape) for label, given in points.items()}
    boxes = {label: _box(found, image.shape, affine, config.margin_mm) for label, found in voxels.items()}
    outside, n_searched = np.ones(image.shape, dtype=bool), 0
    for box in boxes.values():
        outside[box] = False
        n_searched += image[box].size
        check_memory(image[box].shape, "the box around the points", BYTES_PER_SEARCHED_VOXEL)
    if n_searched > MOST_SEARCHED * image.size:
        raise InputError(f"the boxes around the points hold more than {MOST_SEARCHED} times the image; give fewer")
    ring = margin_voxels(config.ring_mm, affine)
    work = box_around(~outside, ring)
    seeds = np.where(outside, BACKGROUND, 0).astype(np.int32)
    for label, found in voxels.items():
        box = boxes[label]
        for path in _paths(_cost(image[box]), found - [part.start for part in box], voxel_spacing(affine)):
            seeds[box][tuple(path.T)] = label
    result = np.zeros(image.shape, np.int32)
    result[work] = grow_from_seeds(image[work], seeds[work], affine=affine, config=config.grow)
    for label, box in boxes.items():
        beyond = result == label
        beyond[box] = False
        result[beyond] = 0
    return result


def points_of_marks(marks: LabelArray) -> dict[int, Points]:
    """The marked voxels of each label as points: six dots, or lines along the border."""
    return {int(label): np.argwhere(marks == label).astype(np.float64) for label in np.unique(marks[marks > 0])}


def _voxels(label: int, given: Points, shape: tuple[int, ...]) -> NDArray[np.intp]:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise InputError(f"label {label}: points are lists of three voxel indices")
    if len(array) < N_POINTS:
        raise NoAnnotationError(f"label {label}: {len(array)} points; mark the {N_POINTS} outermost places")
    rounded = np.round(array)
    outside = ((rounded < 0) | (rounded >= shape)).any(axis=1)
    if outside.any():
        where = ", ".join(f"{index:g}" for index in rounded[outside][0])
        raise InputError(f"label {label}: point ({where}) lies outside the image of shape {tuple(shape)}")
    found = rounded.astype(np.intp)
    if (np.ptp(found, axis=0) == 0).any():
        raise InputError(f"label {label}: all points lie in one plane; mark where the structure ends along every axis")
    return found


def _box(found: NDArray[np.intp], shape: tuple[int, ...], affine: NDArray[np.float64], margin_mm: float) -> Box:
    margin = margin_voxels(margin_mm, affine)
    first, last = found.min(axis=0) - margin, found.max(axis=0) + margin
    i, j, k = (slice(max(int(a), 0), min(int(b) + 1, n)) for a, b, n in zip(first, last, shape, strict=True))
    return i, j, k


def _cost(image: NDArray[Any]) -> NDArray[np.float32]:
    low, high = spread_of(image)
    scaled = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1)
    edges: NDArray[np.float32] = ndimage.gaussian_gradient_magnitude(scaled, 1.0)
    return edges + np.float32(STEP_COST)


def _paths(
    cost: NDArray[np.float32], found: NDArray[np.intp], mm: tuple[float, float, float]
) -> list[NDArray[np.intp]]:
    """From the first to the last point of each axis."""
    paths = []
    for axis in range(3):
        start, end = found[found[:, axis].argmin()], found[found[:, axis].argmax()]
        search = MCP_Geometric(cost, sampling=mm)
        search.find_costs([start.tolist()], [end.tolist()])
        paths.append(np.array(search.traceback(end.tolist()), dtype=np.intp))
    return paths
