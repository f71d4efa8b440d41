"""Label files as clients and the datastore have them, brought onto the grid of their image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.errors import GeometryError, ShapeError
from sliceprop.labels import LabelArray, check_labels

RAW_SUFFIX = ".bin"
CROPPED_SUFFIX = ".seg.nrrd"


def read_labels(file: Path, scan: io.Image, *, cropped: bool = False) -> LabelArray:
    """The label values of a file on the grid of `scan`, `(i, j, k)`.

    Args:
        file: any format of `io.read_image`; `.bin` for raw uint8 or little-endian uint16, the first axis fastest;
            `.seg.nrrd` may hold a part of the image's grid only, as 3D Slicer saves segmentations.
        scan: the image it belongs to.
        cropped: accept a part of the grid from any format, as DICOM SEG comes back from an archive.

    Raises:
        ShapeError: if the shape differs from the image's.
        GeometryError: if it lies elsewhere.
        InputError: for values that are not whole numbers of 0..65,535.
    """
    if file.name.endswith(RAW_SUFFIX):
        return _raw_values(file, scan).reshape(scan.array.shape, order="F").astype(np.int32)
    image = io.read_image(file)
    if cropped or file.name.endswith(CROPPED_SUFFIX):
        image = io.Image(place_on_grid(image, scan), scan.affine)
    labels = check_labels(image.array, scan.array.shape)
    io.check_same_grid(scan, image, "labels")
    return labels


def replace_values(labels: LabelArray, new: Mapping[int, int], *, keep: bool = False) -> LabelArray:
    """Every value replaced by its entry in `new`; without an entry it becomes 0, or stays with `keep`."""
    top = max([int(labels.max(initial=0)), *new])
    table = np.arange(top + 1, dtype=np.int32) if keep else np.zeros(top + 1, dtype=np.int32)
    table[list(new.keys())] = list(new.values())
    return table[labels]


def _raw_values(file: Path, scan: io.Image) -> NDArray[np.unsignedinteger[Any]]:
    """Raw label values, one or two bytes per voxel of `scan`; the size of the file tells which.

    Raises:
        ShapeError: for another number of bytes.
    """
    size, voxels = file.stat().st_size, scan.array.size
    if size not in (voxels, 2 * voxels):
        raise ShapeError(
            f"labels: {size} bytes, but the image of shape {scan.array.shape} has {voxels} voxels; "
            "send one byte per voxel, or two"
        )
    return np.fromfile(file, np.uint8 if size == voxels else "<u2")


def place_on_grid(part: io.Image, scan: io.Image) -> NDArray[np.generic]:
    """The values of `part` in a volume of the shape of `scan`, 0 outside it.

    Voxels must coincide; axes may be swapped or reversed.

    Raises:
        GeometryError: if voxels lie between those of the image, or outside it.
    """
    to_scan = np.linalg.inv(scan.affine) @ part.affine
    axes, offset = np.round(to_scan[:3, :3]), np.round(to_scan[:3, 3])
    far_corner = np.abs(to_scan[:3, :3] - axes) @ (np.array(part.array.shape) - 1) + np.abs(to_scan[:3, 3] - offset)
    if far_corner.max() > 0.1 or (np.abs(axes).sum(axis=0) != 1).any() or (np.abs(axes).sum(axis=1) != 1).any():
        raise GeometryError("labels: voxels do not coincide with the image's; resample onto the image's grid first")
    order = np.abs(axes).argmax(axis=1)
    values = np.transpose(part.array, order)
    steps = axes[range(3), order].astype(int)
    first = offset.astype(int) + np.where(steps < 0, 1 - np.array(values.shape), 0)
    if (first < 0).any() or (first + values.shape > scan.array.shape).any():
        raise GeometryError("labels: lie partly outside the image; resample onto the image's grid first")
    placed = np.zeros(scan.array.shape, values.dtype)
    placed[tuple(slice(a, a + n) for a, n in zip(first, values.shape, strict=True))] = values[
        tuple(slice(None, None, step) for step in steps)
    ]
    return placed
