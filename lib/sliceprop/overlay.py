"""A picture of labels over a scan, for a quick look and for documentation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sliceprop.io import Image, write_atomically
from sliceprop.volume import normalise_intensity, voxel_spacing

TILE_INCHES = 2.2
"""Width of one slice in a picture."""

_TOP = "SA"
"""Anatomical directions that belong at the top of a picture, the more important one first."""
_LEFT = "RA"
"""And at its left: the patient's right, as radiologists look at it, else the front."""


def write_overlay(
    path: str | Path,
    image: Image,
    labels: NDArray[Any],
    *,
    slice_axis: int,
    annotated_slices: Iterable[int] = (),
    reference: NDArray[Any] | None = None,
    columns: int = 6,
) -> None:
    """Write a PNG: the scan above, the labels over it below, on slices spread evenly over the labelled range.

    Args:
        path: file to write.
        image: scan `(i, j, k)`.
        labels: same grid; each value gets a colour.
        slice_axis: axis that counts slices.
        annotated_slices: their titles say so.
        reference: drawn as yellow outlines when given.
        columns: number of slices.

    Raises:
        FileError: if the file cannot be written.
    """
    scan = normalise_intensity(image.array)
    values = np.unique(labels[labels > 0])
    shown = _spread(np.moveaxis(labels, slice_axis, 0), columns)
    plane, aspect = _upright(scan, image.affine, slice_axis, shown[0])
    height = TILE_INCHES * plane.shape[0] * aspect / plane.shape[1]
    figure = Figure(figsize=(TILE_INCHES * len(shown), 2 * height + 0.4), layout="constrained", facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown), squeeze=False)
    annotated = set(annotated_slices)
    for column, index in enumerate(shown):
        plain, coloured = axes[:, column]
        plain.set_title(f"slice {index}{', annotated' if index in annotated else ''}", color="white", fontsize=9)
        for axis in (plain, coloured):
            aspect = _show(axis, scan, image.affine, slice_axis, index)
        numbers, _ = _upright(labels, image.affine, slice_axis, index)
        colours = np.zeros((*numbers.shape, 4))
        for rank, value in enumerate(values):
            colours[numbers == value] = (*colormaps["tab10"](rank % 10)[:3], 0.5)
        coloured.imshow(colours, interpolation="nearest", aspect=aspect)
        if reference is not None:
            truth, _ = _upright(reference, image.affine, slice_axis, index)
            for value in np.unique(truth[truth > 0]):
                coloured.contour(truth == value, [0.5], colors="yellow", linewidths=0.7)
    write_atomically(path, lambda file: canvas.print_png(str(file)))


def _spread(labels: NDArray[Any], n: int) -> list[int]:
    """Up to `n` slices, evenly over those that hold a label, or over all when none does."""
    held = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = (held[0], held[-1]) if held.size else (0, labels.shape[0] - 1)
    return sorted({int(s) for s in np.round(np.linspace(first, last, n))})


def _show(axis: Axes, scan: NDArray[np.float32], affine: NDArray[np.float64], slice_axis: int, index: int) -> float:
    plane, aspect = _upright(scan, affine, slice_axis, index)
    axis.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=aspect)
    axis.set_axis_off()
    return aspect


def _upright(
    array: NDArray[Any], affine: NDArray[np.float64], slice_axis: int, index: int
) -> tuple[NDArray[Any], float]:
    """One slice as rows and columns the way radiologists hang it, and the height of a voxel over its width."""
    codes, spacing = nib.aff2axcodes(affine), voxel_spacing(affine)
    across, down = (axis for axis in range(3) if axis != slice_axis)
    plane = np.take(array, index, axis=slice_axis).T
    if codes[across] in "SI" or codes[down] in "RL":
        plane, across, down = plane.T, down, across
    plane = plane[::-1] if codes[down] in _TOP else plane
    plane = plane[:, ::-1] if codes[across] in _LEFT else plane
    return plane, spacing[down] / spacing[across]
