"""Scans of any size with any number of labels, made from the synthetic thigh of `sample-data`: for measuring cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cases import Case
from sliceprop import io
from sliceprop.engine.interpolation import signed_distance
from sliceprop.errors import InputError

SAMPLE = Path(__file__).parents[1] / "sample-data"
FIELD_OF_VIEW_MM, LENGTH_MM = 192.0, 120.0

MUSCLES = (1, 2, 4, 5)
"""Of the labels of the sample, those that run from end to end."""

TURN, SHIFT = np.deg2rad(3), 0.02
"""Standard deviation over the slices of how far each one is turned, and shifted as a share of its size."""

NOISE = 14.0
"""Standard deviation, in units of an image in which fat is 880: blowing up smooths the noise of the sample away."""

FloatArray = NDArray[np.float32]


def thigh(shape: tuple[int, int, int], n_labels: int) -> Case:
    """The thigh on a grid `(S, H, W)`, see `thigh_slices`, slices along the first axis."""
    image, labels = (np.stack(planes) for planes in zip(*thigh_slices(shape, n_labels), strict=True))
    return Case("thigh", io.Image(image, np.diag([*spacing(shape), 1.0])), labels, slice_axis=0)


def thigh_slices(shape: tuple[int, int, int], n_labels: int) -> Iterator[tuple[NDArray[np.int16], NDArray[np.int32]]]:
    """Image and labels of the thigh's slices, `(H, W)`, each turned and shifted a little against the one before.

    Shapes between the sample's slices are blends of signed distances. The labels together cover the same four muscles,
    whose surroundings are most of the slice, however many they are.

    Args:
        shape: slices, rows, columns.
        n_labels: 1 for all four muscles, 4 for one each, a multiple of 4 for muscles cut into pieces.

    Raises:
        InputError: another number of labels.
    """
    if n_labels != 1 and n_labels % len(MUSCLES):
        raise InputError(f"the number of labels must be 1 or a multiple of {len(MUSCLES)}, not {n_labels}")
    scan, distances = _sample()
    rng = np.random.default_rng(0)
    poses, pieces = _smooth_path(shape[0], rng), max(1, n_labels // len(MUSCLES))
    for place, pose in zip(np.linspace(0, len(scan) - 1, shape[0]), poses, strict=True):
        image, *near = (_resampled(_blend(volume, place), shape[1:], pose) for volume in (scan, *distances))
        score = np.stack(near)
        muscles = np.where(score.max(axis=0) > 0, 1 + score.argmax(axis=0), 0)
        noisy = image + rng.normal(scale=NOISE, size=shape[1:])
        yield noisy.astype(np.int16), np.minimum(_bands(muscles, pieces), n_labels)


def spacing(shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Of the thigh on a grid, mm."""
    return LENGTH_MM / shape[0], FIELD_OF_VIEW_MM / shape[1], FIELD_OF_VIEW_MM / shape[2]


def split_labels(case: Case, pieces: int) -> NDArray[np.int32]:
    """Cut each label of each slice into `pieces` bands of equal size along the rows: many labels on one scan."""
    split = np.zeros_like(case.reference)
    for source, target in zip(case.slices(case.reference), case.slices(split), strict=True):
        target[:] = _bands(source, pieces)
    return split


def _bands(plane: NDArray[np.integer[Any]], pieces: int) -> NDArray[np.int32]:
    split = np.zeros(plane.shape, np.int32)
    for value in range(1, int(plane.max()) + 1):
        rows, columns = np.nonzero(plane == value)
        band = np.arange(rows.size) * pieces // max(rows.size, 1)
        split[rows, columns] = (value - 1) * pieces + band + 1
    return split


def _sample() -> tuple[FloatArray, list[FloatArray]]:
    """The scan of `sample-data` and the signed distances of its muscles, pixels, all `(S, H, W)`."""
    scan, reference = (
        np.moveaxis(io.read_image(SAMPLE / path).array, 2, 0) for path in ("phantom.nii.gz", "reference/phantom.nii.gz")
    )
    distances = [np.stack([signed_distance(plane == value) for plane in reference]) for value in MUSCLES]
    return scan.astype(np.float32), distances


def _smooth_path(n_slices: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Angle in radians and two shifts as shares of the size for each slice, `(S, 3)`."""
    path = ndimage.gaussian_filter1d(rng.standard_normal((n_slices, 3)), sigma=max(1, n_slices / 12), axis=0)
    return path / path.std(axis=0) * (TURN, SHIFT, SHIFT)


def _blend(volume: FloatArray, place: float) -> FloatArray:
    """The slice at a place between two slices."""
    below = min(int(place), len(volume) - 2)
    return volume[below] + np.float32(place - below) * (volume[below + 1] - volume[below])


def _resampled(plane: FloatArray, shape: tuple[int, ...], pose: NDArray[np.float64]) -> FloatArray:
    """A slice turned and shifted on a grid of another size."""
    turn, scale = pose[0], np.diag(np.divide(plane.shape, shape))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ scale
    middle = (np.array(plane.shape) - 1) / 2 + pose[1:] * plane.shape
    offset = middle - matrix @ ((np.array(shape) - 1) / 2)
    return np.asarray(ndimage.affine_transform(plane, matrix, offset, shape, order=1, mode="nearest"))
