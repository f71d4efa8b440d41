"""A synthetic thigh as a thick-slice T1-weighted MR scan would show it, with its true muscles: data free for all.

The anatomy is drawn, not measured. Muscles are the cells of a power diagram (each point belongs to the seed of the
smallest squared distance minus weight) whose seeds move, grow and fade along the leg. The scan is simulated as MR takes
it: thick slices average the tissue along the leg, k-space is cut off in plane, noise is complex.

Frame of the drawing: `x` towards the inside of the leg and `y` towards its front in mm around the middle of the field
of view, `t` from 0 at the knee's end to 1 at the hip's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sliceprop.io import Image, make_folder, write_image, write_json

FloatArray = NDArray[np.float32]

LABEL_NAMES = (
    "rectus_femoris",
    "vastus_lateralis",
    "vastus_medialis",
    "sartorius",
    "biceps_femoris",
    "adductor_longus",
)
"""Name of label `index + 1`. Up the leg the rectus swells, the medial vastus ends, the sartorius crosses from inside to
front, the two heads of the biceps unite, and the adductor starts and ends."""

FIELD_OF_VIEW_MM = 192.0
LENGTH_MM = 120.0
IN_PLANE, THROUGH_PLANE = 2, 4
"""Points per voxel at which the anatomy is drawn."""


@dataclass(frozen=True)
class Phantom:
    """The scan and its truth; every array `(i, j, k)` with slices along `k`.

    Attributes:
        image: int16 magnitude image.
        reference: uint8, label `n` is `LABEL_NAMES[n - 1]`: the muscle that fills most of the voxel.
        annotated_slices: slices given as annotation in the sample data.
        affine: `(4, 4)`, voxel index to RAS mm, oblique.
    """

    image: NDArray[np.int16]
    reference: NDArray[np.uint8]
    annotated_slices: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def sparse(self) -> NDArray[np.uint8]:
        """The reference on the annotated slices, 0 elsewhere."""
        sparse = np.zeros_like(self.reference)
        chosen = list(self.annotated_slices)
        sparse[..., chosen] = self.reference[..., chosen]
        return sparse


@dataclass(frozen=True)
class _Seed:
    """One cell of the power diagram; each value is given at the knee's end, the middle and the hip's end.

    Attributes:
        label: 0 for what is not labelled.
        group: cells of one group have no septum of fat between them.
        x: mm.
        y: mm.
        radius: mm, its square is the cell's weight; below 0 the cell loses to its neighbours.
        fat: whether the cell is a pad of fat instead of muscle.
    """

    label: int
    group: int
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    radius: tuple[float, float, float]
    fat: bool = False

    def at(self, t: float) -> tuple[float, float, float]:
        """`x`, `y` and weight at `t`, on the parabola through the three given values."""
        basis = np.array([(1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1)])
        x, y, radius = (float(basis @ np.array(values)) for values in (self.x, self.y, self.radius))
        return x, y, radius * abs(radius)


_RECTUS, _LATERALIS, _MEDIALIS, _SARTORIUS, _BICEPS, _LONGUS = range(1, 7)
_SEEDS = (
    _Seed(_RECTUS, 1, (-4, -2, 2), (50, 48, 46), (-3, 17, 21)),
    _Seed(_LATERALIS, 2, (-44, -44, -40), (22, 26, 32), (20, 22, 20)),
    _Seed(_LATERALIS, 2, (-46, -48, -46), (-4, 0, 6), (20, 23, 23)),
    _Seed(_MEDIALIS, 3, (30, 26, 20), (28, 32, 34), (28, 20, -24)),
    _Seed(_MEDIALIS, 3, (44, 38, 28), (8, 12, 20), (26, 15, -32)),
    _Seed(0, 4, (-4, -4, -6), (30, 28, 26), (18, 18, 18)),
    _Seed(0, 4, (-26, -26, -26), (18, 16, 16), (15, 15, 17)),
    _Seed(0, 4, (16, 17, 18), (20, 18, 20), (12, 12, 14)),
    _Seed(_SARTORIUS, 5, (54, 50, 26), (-26, 16, 50), (14, 13, 14)),
    _Seed(_BICEPS, 6, (-28, -24, -16), (-46, -48, -46), (17, 17, 17)),
    _Seed(_BICEPS, 6, (-38, -30, -24), (-14, -22, -34), (17, 16, 9)),
    _Seed(0, 12, (-33, -27, -20), (-30, -35, -40), (11.5, 8, -10), fat=True),
    _Seed(0, 13, (-16, -10, -2), (-24, -22, -18), (19, 4, -20), fat=True),
    _Seed(_LONGUS, 7, (26, 30, 32), (-8, 0, 10), (-20, 22, -55)),
    _Seed(0, 8, (14, 22, 26), (-22, -18, -12), (10, 23, 28)),
    _Seed(0, 9, (50, 54, 56), (-32, -22, -10), (7, 12, 15)),
    _Seed(0, 10, (24, 24, 20), (-46, -48, -50), (26, 20, 12)),
    _Seed(0, 11, (4, 2, 2), (-50, -54, -56), (12, 17, 21)),
)
_FAT, _MUSCLE, _SKIN, _FASCIA, _MARROW, _CORTEX, _NERVE, _ARTERY, _VEIN = 880, 320, 340, 210, 830, 45, 430, 60, 110


def make_phantom(size: int = 192, n_slices: int = 24, *, seed: int = 0) -> Phantom:
    """Draw and scan the thigh; the same arguments give the same voxels.

    Args:
        size: voxels along both in-plane axes, for a field of view of 192 mm.
        n_slices: slices, for a length of 120 mm.
        seed: of everything random: the outlines' irregularities, texture and noise.
    """
    rng = np.random.default_rng(seed)
    points = size * IN_PLANE
    noise = _Noise.draw((n_slices * THROUGH_PLANE, points // 2, points // 2), rng)
    axis = ((np.arange(points, dtype=np.float32) + 0.5) / points - 0.5) * FIELD_OF_VIEW_MM
    x, y = np.meshgrid(axis, -axis, indexing="ij")
    image = np.empty((size, size, n_slices), np.float32)
    reference = np.empty((size, size, n_slices), np.uint8)
    for k in range(n_slices):
        layers = range(k * THROUGH_PLANE, (k + 1) * THROUGH_PLANE)
        drawn = [_draw(x, y, (n + 0.5) / (n_slices * THROUGH_PLANE), noise.layer(n)) for n in layers]
        image[..., k] = _scan(np.mean([signal for signal, _ in drawn], axis=0), size, rng)
        reference[..., k] = _majority([labels for _, labels in drawn])
    bins = np.arange(3) * 2 + 1
    return Phantom(
        np.round(image).astype(np.int16),
        reference,
        tuple(int(s) for s in bins * n_slices // 6),
        _oblique_affine(size, n_slices),
    )


@dataclass(frozen=True)
class _Noise:
    """Smooth random fields `(layers, points / 2, points / 2)` of unit variance: two bend shapes, two are texture."""

    bend: tuple[FloatArray, FloatArray]
    streaks: FloatArray
    lobules: FloatArray

    @classmethod
    def draw(cls, shape: tuple[int, int, int], rng: np.random.Generator) -> _Noise:
        voxel = np.array([LENGTH_MM, FIELD_OF_VIEW_MM, FIELD_OF_VIEW_MM]) / shape

        def field(*sigma_mm: float) -> FloatArray:
            smooth = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_mm / voxel, mode="wrap")
            return np.asarray(smooth / smooth.std(), np.float32)

        return cls((field(30, 9, 9), field(30, 9, 9)), field(8, 0.9, 0.9), field(4, 1.8, 1.8))

    def layer(self, n: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The four fields of layer `n` at full in-plane resolution."""
        bend_x, bend_y, streaks, lobules = (
            field[n].repeat(2, 0).repeat(2, 1) for field in (*self.bend, self.streaks, self.lobules)
        )
        return bend_x, bend_y, streaks, lobules


def _draw(
    x: FloatArray, y: FloatArray, t: float, noise: tuple[FloatArray, FloatArray, FloatArray, FloatArray]
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Signal and label of every point of one thin layer."""
    bend_x, bend_y, streaks, lobules = noise
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    fascia = (66 + 5 * t) * (1 - 0.05 * np.cos(2 * angle) + 0.025 * np.sin(3 * angle + 0.6)) + 0.6 * bend_x
    skin = fascia + (10 + 3 * t) * (1 + 0.4 * np.sin(angle - 2.4) + 0.3 * np.cos(angle)) + 0.4 * bend_y
    cell, gap = _cells(x + 2.2 * bend_x, y + 2.2 * bend_y, t)
    labels = np.array([seed.label for seed in _SEEDS], np.uint8)[cell]
    muscular = np.array([not seed.fat for seed in _SEEDS])[cell]
    muscular &= (radius < fascia - 0.8) & (gap > 0.8 + 0.5 * lobules)

    tone = np.array([1 + 0.05 * np.sin(5.0 * seed.group) for seed in _SEEDS], np.float32)[cell]
    muscle = _MUSCLE * tone * (1 + 0.10 * streaks) + 260 * np.clip(streaks + 0.5 * lobules - 2.0, 0, 1)
    fat = _FAT * (1 + 0.06 * lobules) - 300 * np.clip(streaks - 1.5, 0, 1)
    signal = np.where(muscular, muscle, fat)
    signal[np.abs(radius - fascia) < 0.8] = _FASCIA
    signal[radius > skin - 1.6] = _SKIN
    for centre, size, value in _inclusions(t):
        disc = np.hypot(x - centre[0], y - centre[1]) + 0.5 * bend_x < size
        signal[disc] = value * (1 + 0.04 * lobules[disc])
        muscular &= ~disc
    signal[radius > skin] = 0
    return signal.astype(np.float32), np.where(muscular, labels, 0).astype(np.uint8)


def _cells(x: FloatArray, y: FloatArray, t: float) -> tuple[NDArray[np.intp], FloatArray]:
    """Index of the seed that owns each point, and the distance in mm to the next cell of another group."""
    places = [seed.at(t) for seed in _SEEDS]
    score = np.stack([(x - px) ** 2 + (y - py) ** 2 - weight for px, py, weight in places])
    cell = score.argmin(0)
    group = np.array([seed.group for seed in _SEEDS])
    gap = np.full(x.shape, np.inf, np.float32)
    for n, (px, py, _) in enumerate(places):
        owner = np.array([np.hypot(px - qx, py - qy) for qx, qy, _ in places], np.float32)[cell]
        # Between two seeds the score's difference grows by twice their distance per mm.
        distance = (score[n] - score.min(0)) / np.maximum(2 * owner, 1e-3)
        gap = np.where(group[cell] != group[n], np.minimum(gap, distance), gap)
    return cell, gap


def _inclusions(t: float) -> Sequence[tuple[tuple[float, float], float, float]]:
    """Discs drawn over the muscles, outer ones first: centre in mm, radius in mm, signal."""
    femur, sartorius = (-9.0 + 2 * t, 8.0), next(seed for seed in _SEEDS if seed.label == _SARTORIUS).at(t)
    canal = 0.62 * sartorius[0] - 4, 0.62 * sartorius[1] + 4
    artery, vein = (canal[0] - 2.2, canal[1] + 1.5), (canal[0] + 2.6, canal[1] - 1.8)
    nerve = -8.0 + 2 * t, -30.0
    return (
        (femur, 14.5 - t, _FAT),
        (femur, 13.5 - t, _CORTEX),
        (femur, 8.0 + 0.5 * t, _MARROW),
        (canal, 7.0, _FAT),
        (artery, 3.0, _ARTERY),
        (vein, 3.6, _VEIN),
        (nerve, 6.0, _FAT),
        (nerve, 3.4, _NERVE),
        ((64.0 + 4 * t, -36 + 24 * t), 2.0, _VEIN),
    )


def _scan(signal: FloatArray, size: int, rng: np.random.Generator) -> FloatArray:
    """Magnitude image `(size, size)` of a drawn layer: k-space cut to `size`, coil shading, Rician noise."""
    points = signal.shape[0]
    kspace = np.fft.fftshift(np.fft.fft2(signal))
    middle = slice((points - size) // 2, (points + size) // 2)
    # Voxels lie half a fine point beyond the fine grid's origin.
    frequency = np.arange(-(size // 2), size - size // 2) / points
    shift = np.exp(1j * np.pi * frequency * (points / size - 1))
    window = np.minimum(1, 2.4 * np.cos(np.pi * np.arange(-(size // 2), size - size // 2) / size) ** 2)
    filtered = kspace[middle, middle] * np.outer(shift * window, shift * window)
    image = np.fft.ifft2(np.fft.ifftshift(filtered)) * (size / points) ** 2
    u, v = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    shading = 1.08 - 0.2 * v - 0.14 * u - 0.2 * (u**2 + v**2) - 0.1 * u * v
    noise = rng.standard_normal((2, size, size)) * 14
    return np.asarray(np.abs(image * shading + noise[0] + 1j * noise[1]), np.float32)


def _majority(layers: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The label that fills most of each voxel."""
    values = range(len(LABEL_NAMES) + 1)
    share = [_pool(np.mean([layer == value for layer in layers], axis=0, dtype=np.float32)) for value in values]
    return np.asarray(np.argmax(share, axis=0), np.uint8)


def _pool(points: FloatArray) -> FloatArray:
    """Mean over the points of each voxel."""
    size = points.shape[0] // IN_PLANE
    return np.asarray(points.reshape(size, IN_PLANE, size, IN_PLANE).mean((1, 3)), np.float32)


def _oblique_affine(size: int, n_slices: int) -> NDArray[np.float64]:
    """Voxel index to RAS mm of a right thigh: `i` to the left, `j` backwards, `k` upwards, tilted 8 and 4 degrees."""
    tilt, turn = np.deg2rad(8), np.deg2rad(4)
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    spacing = -FIELD_OF_VIEW_MM / size, -FIELD_OF_VIEW_MM / size, LENGTH_MM / n_slices
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = np.array([95.0, -10.0, -420.0]) - affine[:3, :3] @ ((np.array([size, size, n_slices]) - 1) / 2)
    return affine


def write_sample_data(folder: Path, phantom: Phantom) -> None:
    """Write a studies folder for the server: `phantom.nii.gz`, `labels/sparse/`, `reference/` and `labels.json`.

    Raises:
        FileError: if the folder cannot be written.
    """
    image = Image(phantom.image, phantom.affine)
    names = {name: value for value, name in enumerate(LABEL_NAMES, start=1)}
    for place in ("labels/sparse", "reference"):
        make_folder(folder / place)
    write_image(folder / "phantom.nii.gz", phantom.image, image)
    write_image(folder / "labels/sparse/phantom.nii.gz", phantom.sparse, image)
    write_image(folder / "reference/phantom.nii.gz", phantom.reference, image)
    write_json(folder / "labels.json", names)
