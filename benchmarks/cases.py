"""A scan with its dense reference, as it is measured: slice axis, renumbered labels, broken concordance."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from layouts import Source
from sliceprop import io
from sliceprop.errors import InputError
from sliceprop.study import Study, open_study
from sliceprop.volume import resolve_slice_axis, voxel_spacing

_WORLD_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Of right, anterior, superior: the one across the slices."""


@dataclass(frozen=True)
class Case:
    """A scan with its dense reference: labels renumbered 1..K, everything else background.

    Attributes:
        name: of the volume.
        image: the scan.
        reference: `(i, j, k)` int32.
        slice_axis: axis that counts slices.
    """

    name: str
    image: io.Image
    reference: NDArray[np.int32]
    slice_axis: int

    @property
    def labelled_range(self) -> tuple[int, int]:
        """First and last slice that holds a label."""
        labelled = np.flatnonzero(self.slices(self.reference).any(axis=(1, 2)))
        return int(labelled[0]), int(labelled[-1])

    @property
    def n_labels(self) -> int:
        """K."""
        return int(self.reference.max())

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along `(S, H, W)`."""
        first, second, third = self.slices_first(voxel_spacing(self.image.affine))
        return first, second, third

    def study(self, annotated: Sequence[int], reference: NDArray[np.int32] | None = None) -> Study:
        """The scan with these slices annotated completely."""
        labels = self.reference if reference is None else reference
        return open_study(self.image, labels, slice_axis=self.slice_axis, annotated_slices=annotated)

    def slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """`(i, j, k)` as `(S, H, W)`, a view."""
        return np.moveaxis(array, self.slice_axis, 0)

    def slices_first(self, values: Sequence[float]) -> list[float]:
        """One value per axis `(i, j, k)` in the order `(S, H, W)`."""
        others = [value for axis, value in enumerate(values) if axis != self.slice_axis]
        return [values[self.slice_axis], *others]


def load(source: Source, axis: str = "auto", pad_px: int = 0, seed: int = 0) -> Case:
    """Read a scan and its reference.

    Args:
        source: its files.
        axis: one of `layouts.AXES`; `auto` is the data set's own axis, else the one across the thickest slices.
        pad_px: above 0 the concordance of neighbouring slices is broken by `pad_and_crop`.
        seed: of the crops.

    Raises:
        InputError: files that cannot be used, or a reference without labels.
    """
    image, labels = io.read_image(source.image), io.read_image(source.reference)
    io.check_same_grid(image, labels, str(source.reference))
    reference = _renumbered(np.round(labels.array).astype(np.int32), source.values)
    if not reference.any():
        raise InputError(f"{source.reference}: holds no label to score")
    case = Case(source.name, image, reference, _slice_axis(image, axis, source.slice_axis))
    return pad_and_crop(case, pad_px, seed) if pad_px else case


def pad_and_crop(case: Case, pad_px: int, seed: int) -> Case:
    """Each slice padded by `pad_px` on all sides and cropped back to its size at a random place of its own.

    Scan and reference move together; what is padded is the scan's minimum and background. The crops depend on the
    seed and the name of the volume only.
    """
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    image, reference, least = case.image.array.copy(), case.reference.copy(), case.image.array.min()
    for scan, labels in zip(case.slices(image), case.slices(reference), strict=True):
        row, column = rng.integers(0, 2 * pad_px + 1, size=2)
        height, width = labels.shape
        window = slice(row, row + height), slice(column, column + width)
        scan[:] = np.pad(scan, pad_px, constant_values=least)[window]
        labels[:] = np.pad(labels, pad_px)[window]
    return replace(case, image=replace(case.image, array=image), reference=reference)


def _renumbered(labels: NDArray[np.int32], values: Sequence[int]) -> NDArray[np.int32]:
    reference = np.zeros_like(labels)
    for number, value in enumerate(values or np.unique(labels[labels > 0]), start=1):
        reference[labels == value] = number
    return reference


def _slice_axis(image: io.Image, axis: str, own: int | None) -> int:
    if axis in _WORLD_AXIS:
        world = nib.orientations.io_orientation(image.affine)[:, 0]
        return int(np.flatnonzero(world == _WORLD_AXIS[axis])[0])
    if axis == "auto" and own is not None:
        return own
    return resolve_slice_axis(axis, image.array.shape, image.affine, None)
