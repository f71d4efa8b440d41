"""Fast marching: a front leaves the seeds, runs where the scan looks as it does under them, and stops at a volume.

References:
    Sethian: A fast marching level set method for monotonically advancing fronts, PNAS 93(4), 1996,
    doi:10.1073/pnas.93.4.1591.
    Pichon, Tannenbaum, Kikinis: A statistically based flow for image segmentation, Medical Image Analysis 8(3), 2004,
    doi:10.1016/j.media.2004.06.006 (speed from the statistics under the seeds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray, present_values
from sliceprop.memory import check_memory
from sliceprop.tools.grow_from_seeds import MOST_KINDS
from sliceprop.tools.seeds import ANY, Range, box_around, check_right_angles, check_seeds, spread_of
from sliceprop.volume import voxel_spacing

SHARE_OF_SCAN = 0.1
"""Largest volume of a structure where none is given, as a share of the scan."""

LEAST_SPREAD = 0.01
"""Smallest standard deviation under the seeds, as a share of the scan's range of intensities."""

SURPLUS = 1.15
"""By which a front runs longer than one whose volume grows with the square of the time would need."""

BYTES_PER_REACHED_VOXEL = 50
"""Peak memory per voxel of the box in which a front runs; measured."""

_UNREACHED = 1e30


@dataclass(frozen=True)
class MarchConfig:
    """How far fronts go.

    Attributes:
        max_volume_ml: of each structure, or per label value; None for a tenth of the scan.
        within: intensities that a front may enter.
        tolerance: standard deviations of the intensities under the seeds beyond which a front does not enter.
    """

    max_volume_ml: float | Mapping[int, float] | None = None
    within: Range = ANY
    tolerance: float = 3.0

    def __post_init__(self) -> None:
        given = self.max_volume_ml
        volumes = [] if given is None else given.values() if isinstance(given, Mapping) else [given]
        if not all(0 < volume < math.inf for volume in volumes):
            raise InputError(f"the largest volume must be above 0 ml, not {given}")
        if not 0 < self.tolerance < math.inf:
            raise InputError(f"the tolerance must be above 0 standard deviations, not {self.tolerance}")

    def volume_ml(self, label: int, scan_ml: float) -> float:
        """Largest volume of a label in a scan of `scan_ml`."""
        given = self.max_volume_ml
        if isinstance(given, Mapping):
            return given.get(label, SHARE_OF_SCAN * scan_ml)
        return SHARE_OF_SCAN * scan_ml if given is None else given


def fast_marching(
    image: NDArray[Any], seeds: NDArray[Any], *, affine: NDArray[np.float64], config: MarchConfig | None = None
) -> LabelArray:
    """Let each structure's front run from its seeds until its largest volume is reached.

    The speed is `exp(-z^2 / 2)`, `z` being the distance from the mean under the seeds in standard deviations, and 0
    beyond `config.tolerance` and on the seeds of others; a voxel goes to the front that arrives first.

    Args:
        image: `(i, j, k)`.
        seeds: same grid; label values, `BACKGROUND` for what no front may enter, 0 for unknown.
        affine: `(4, 4)` voxel index to RAS mm, with axes at right angles.
        config: defaults of `MarchConfig`.

    Returns:
        `(i, j, k)` labels; seeds keep theirs.

    Raises:
        NoAnnotationError: without a seed of any structure.
        InputError: or another subclass, for arrays or affines that cannot be used.
    """
    config, seeds = config or MarchConfig(), check_seeds(seeds, image)
    check_right_angles(affine)
    values = sorted(present_values(np.maximum(seeds, 0)))
    if not values:
        raise NoAnnotationError("all seeds are of the background; mark the structures themselves")
    if len(values) >= MOST_KINDS:
        raise InputError(f"there are seeds of {len(values)} structures; give those of {MOST_KINDS - 1} at most")
    free = config.within.select(image)
    grey = image.astype(np.float32)
    low, high = spread_of(image)
    voxel_ml = math.prod(voxel_spacing(affine)) / 1000
    first, result = np.full(image.shape, _UNREACHED, np.float32), np.zeros(image.shape, np.int32)
    for value in values:
        own = seeds == value
        speed = _speed(grey, own, LEAST_SPREAD * (high - low), config.tolerance)
        speed[~free | (seeds != 0)] = 0
        speed[own] = 1
        wanted = config.volume_ml(value, image.size * voxel_ml) / voxel_ml
        n_voxels = max(1, int(min(wanted, image.size)))
        arrival = _nearest_in_time(speed, own, n_voxels, affine)
        wins = arrival < first
        result[wins] = value
        np.copyto(first, arrival, where=wins)
    return np.where(seeds != 0, np.maximum(seeds, 0), result)


def _speed(
    grey: NDArray[np.float32], own: NDArray[np.bool_], least_spread: float, tolerance: float
) -> NDArray[np.float32]:
    """Between 0 and 1 mm per unit of time.

    Few seeds understate the standard deviation `s`: its upper bound `s + 2 s / sqrt(2 (n - 1))` is taken.
    """
    under = grey[own].astype(np.float64)
    doubt = 1 + 2 / np.sqrt(2 * max(len(under) - 1, 1))
    spread = max(float(under.std()) * doubt, least_spread)
    z = (grey - np.float32(under.mean())) / np.float32(spread)
    speed: NDArray[np.float32] = np.where(np.abs(z) > tolerance, np.float32(0), np.exp(-np.square(z) / 2))
    return speed


def _nearest_in_time(
    speed: NDArray[np.float32], own: NDArray[np.bool_], n_voxels: int, affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Arrival times of the `n_voxels` that are reached first, `_UNREACHED` elsewhere.

    The front runs until the time in which at full speed a ball of that volume forms, then longer and longer until
    enough is reached, or nothing more is in twice the time.
    """
    mm = voxel_spacing(affine)
    stop = (3 * (n_voxels + int(own.sum())) * math.prod(mm) / (4 * math.pi)) ** (1 / 3)
    longer, reached_before = 2.0, 0
    while True:
        arrival = _arrival(speed, own, stop, mm)
        reached = int(np.count_nonzero(arrival <= stop))
        if reached >= n_voxels or (reached == reached_before and longer == 2):
            break
        longer = 2 if reached == reached_before else min(2, SURPLUS * (n_voxels / reached) ** 0.5)
        stop, reached_before = longer * stop, reached
    arrival[arrival > stop] = _UNREACHED
    if reached > n_voxels:
        arrival[arrival > np.partition(arrival, n_voxels - 1, axis=None)[n_voxels - 1]] = _UNREACHED
    return arrival


def _arrival(
    speed: NDArray[np.float32], own: NDArray[np.bool_], stop: float, mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Arrival times up to `stop` at least; at 1 mm per unit of time no front gets farther than `stop` mm."""
    i, j, k = (math.ceil(stop / size) + 1 for size in mm)
    box = box_around(own, (i, j, k))
    check_memory(own[box].shape, "what the front may reach", BYTES_PER_REACHED_VOXEL)
    arrival = np.full(own.shape, _UNREACHED, np.float32)
    arrival[box] = _march(speed[box], own[box], stop, mm)
    return arrival


def _march(
    speed: NDArray[np.float32], own: NDArray[np.bool_], stop: float, mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    picture = sitk.GetImageFromArray(speed)
    picture.SetSpacing(mm[::-1])
    rim = np.argwhere(own & ~ndimage.binary_erosion(own))
    march = sitk.FastMarchingImageFilter()
    march.SetTrialPoints(rim[:, ::-1].tolist())
    march.SetStoppingValue(stop)
    times = sitk.GetArrayFromImage(march.Execute(picture))
    arrival: NDArray[np.float32] = np.minimum(times, _UNREACHED).astype(np.float32)
    arrival[own] = 0
    return arrival
