"""The scan of a study in its canonical frame: slices first.

Frames: *original* is the axis order of the image file, `(i, j, k)`; *canonical* moves `slice_axis` to the front, giving
`(S, H, W)`. Nothing is flipped or resampled, so the way back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sliceprop.errors import GeometryError, InputError, ShapeError
from sliceprop.memory import check_memory

FloatArray = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)

LOOSE = 0.75
"""Neighbours are few where their share stays below this part of the shares along both other axes: two adjacent painted
slices touch in half of their voxels, while a solid structure's shares differ little."""

CUBIC = 0.99
"""Spacings are equal where the smaller is at least this share of the larger."""


@dataclass(frozen=True)
class Volume:
    """One 3D scan.

    Attributes:
        slices: `(S, H, W)` float32, canonical, intensities mapped to [0, 1] by `normalise_intensity`.
        slice_axis: axis of the original array that became axis 0.
        affine: `(4, 4)`, original voxel index to RAS millimetres.
    """

    slices: FloatArray
    slice_axis: int
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(S, H, W)`."""
        s, h, w = self.slices.shape
        return s, h, w

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the canonical axes `(S, H, W)`."""
        spacing = list(voxel_spacing(self.affine))
        first = spacing.pop(self.slice_axis)
        return first, spacing[0], spacing[1]

    def to_canonical(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`(i, j, k)` to `(S, H, W)`, a view."""
        return np.moveaxis(array, self.slice_axis, 0)

    def to_original(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """`(S, H, W)` back to `(i, j, k)`, a view."""
        return np.moveaxis(array, 0, self.slice_axis)

    def slice_centre_ras(self, index: int) -> tuple[float, float, float]:
        """Centre of slice `index` in RAS millimetres."""
        _, h, w = self.shape
        voxel = [(h - 1) / 2, (w - 1) / 2]
        voxel.insert(self.slice_axis, float(index))
        x, y, z = (self.affine @ np.array([*voxel, 1.0]))[:3]
        return float(x), float(y), float(z)


def voxel_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size in mm along each original axis: the column norms of the affine."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return float(i), float(j), float(k)


def check_affine(affine: NDArray[Any], name: str = "image") -> NDArray[np.float64]:
    """The affine as float64, after checking that it maps voxels to distinct points.

    Raises:
        GeometryError: if it is not `(4, 4)`, not finite or singular.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise GeometryError(f"{name}: affine must be (4, 4), not {matrix.shape}")
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise GeometryError(f"{name}: the affine is singular or not finite, so voxels have no place in space")
    return matrix


def check_image(array: NDArray[Any], name: str = "image") -> None:
    """Refuse what is not a 3D scan with contrast.

    Raises:
        ShapeError: not 3D.
        InputError: empty, not numeric, NaN, infinite or constant.
        TooLargeError: if the study would not fit into the memory that is free.
    """
    if array.ndim != 3:
        raise ShapeError(f"{name}: needs 3 axes, found {array.ndim} (shape {array.shape}); give one 3D volume")
    if array.size == 0:
        raise InputError(f"{name}: is empty (shape {array.shape})")
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise InputError(f"{name}: needs numbers (int or float), found {array.dtype}")
    check_memory(array.shape, name)
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"{name}: holds NaN or infinite values; replace them first")
    if array.min() == array.max():
        raise InputError(f"{name}: is constant ({array.flat[0]}), there is nothing to register")


def normalise_intensity(array: NDArray[Any]) -> FloatArray:
    """Map intensities to [0, 1]: the 0.5 and 99.5 percentiles of the non-minimum voxels become 0 and 1, then clipped.

    Leaving out the minimum keeps the air around a body, often more than half of all voxels, from setting the scale.
    The range is brought to [0, 1] in double precision first, since single precision may not hold the values or tell
    them apart.
    """
    least, most = float(array.min()), float(array.max())
    data = np.subtract(array, least, dtype=np.float64)
    data /= most - least
    data = data.astype(np.float32)
    body = data[data > 0]
    low, high = np.percentile(body[:: max(1, body.size // 1_000_000)], (0.5, 99.5))
    if high <= low:
        low, high = 0.0, 1.0
    scaled: FloatArray = np.clip((data - np.float32(low)) / np.float32(high - low), 0, 1)
    return scaled


def resolve_slice_axis(
    slice_axis: str | int,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    marked: NDArray[np.bool_] | None,
    before: int | None = None,
) -> int:
    """Which original axis counts slices.

    A given axis wins; else the axis across the painted planes, along which marked voxels have far fewer marked
    neighbours than within the planes; else the one of before; else, for cubic voxels, an axis with half as many marked
    slices as any other (a few adjacent slices); else the axis of the largest spacing; else the last one.

    Args:
        slice_axis: `auto`, 0, 1 or 2.
        shape: of the original array.
        affine: original voxel index to RAS mm.
        marked: annotated voxels on the original grid, or None.
        before: axis along which the study is annotated already, or None.

    Raises:
        InputError: if `slice_axis` is none of the allowed values.
        ShapeError: if there is one slice only along the axis.
    """
    if str(slice_axis) not in ("auto", "0", "1", "2"):
        raise InputError(f"slice axis must be auto, 0, 1 or 2, not {slice_axis!r}")
    if slice_axis != "auto":
        axis = int(slice_axis)
    else:
        spacing = np.array(voxel_spacing(affine))
        found = None if marked is None else _annotated_axis(marked)
        found = before if found is None else found
        if found is None and marked is not None and spacing.min() > CUBIC * spacing.max():
            found = _fewest_slices_axis(marked)
        axis = _thickest_axis(spacing) if found is None else found
    if shape[axis] < 2:
        raise ShapeError(f"shape {tuple(shape)} has one slice along axis {axis}; at least 2 slices are needed")
    return axis


def _thickest_axis(spacing: NDArray[np.float64]) -> int:
    return int(np.flatnonzero(spacing >= CUBIC * spacing.max())[-1])


def _annotated_axis(marked: NDArray[np.bool_]) -> int | None:
    """The axis across which marked voxels seldom touch, None where no axis stands out or two do (painted lines)."""
    touching = [_share_with_neighbour(np.moveaxis(marked, axis, 0)) for axis in range(3)]
    loosest, second, _ = sorted(range(3), key=touching.__getitem__)
    return loosest if touching[loosest] < LOOSE * touching[second] else None


def _fewest_slices_axis(marked: NDArray[np.bool_]) -> int | None:
    """The axis with at most half as many marked slices as the others, None where there is no such axis."""
    occupied = [np.count_nonzero(marked.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    fewest, second, _ = sorted(range(3), key=occupied.__getitem__)
    return fewest if 2 * occupied[fewest] <= occupied[second] else None


def _share_with_neighbour(marked: NDArray[np.bool_]) -> float:
    """Share of the marked voxels whose next voxel along the first axis is marked too."""
    return np.count_nonzero(marked[:-1] & marked[1:]) / max(np.count_nonzero(marked), 1)
