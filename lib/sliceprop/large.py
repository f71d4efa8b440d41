"""Propagation of a volume that does not fit into memory: learnt on a coarse grid, filled slice by slice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sliceprop import study as use_cases
from sliceprop.config import TrainConfig
from sliceprop.engine.evidence import hold_out, motion_weights
from sliceprop.engine.extent import supported_slices
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.registration import Model, SliceTransforms, crop
from sliceprop.engine.streaming import (
    BYTES_PER_WINDOW_PIXEL,
    ResizedTransforms,
    StreamedCarrier,
    annotated_only,
    stream,
)
from sliceprop.errors import InputError, NoAnnotationError, ShapeError
from sliceprop.io import check_not_inputs, check_same_grid
from sliceprop.labels import LabelArray, SparseLabels, check_labels
from sliceprop.memory import check_memory
from sliceprop.roi import Roi
from sliceprop.study import Progress, Study
from sliceprop.volume import Volume
from sliceprop.zarr_io import ZarrVolume, check_new, new_zarr, open_zarr

COARSE_VOXELS = 16_000_000
"""Of the grid for learning, which needs up to 110 bytes for each."""

SAMPLED_SLICES = 32
"""From which the range of intensities is taken."""

BYTES_PER_ANNOTATED_VOXEL = 8
"""Labels of the annotated slices, one by one and then together."""

KEPT_DISTANCES = 3
"""On the coarse grid, of the label in question: on a slice that is held out, and on the slices below and above."""

BODY = (0.5, 99.5)
"""Percentiles of the voxels above the minimum that become 0 and 1, as in `volume.normalise_intensity`."""


@dataclass(frozen=True)
class LargeConfig:
    """How a large volume is propagated.

    Attributes:
        train: learning, on the coarse grid.
        coarse_voxels: of that grid, at most; the slices stay as many as they are.
        device: where learning happens.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(budget_s=600))
    coarse_voxels: int = COARSE_VOXELS
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.coarse_voxels < 1:
            raise InputError(f"the coarse grid needs at least one voxel, not {self.coarse_voxels}")


def propagate_large(
    image: Path,
    labels: Path,
    output: Path,
    config: LargeConfig | None = None,
    *,
    uncertainty: Path | None = None,
    learning: Callable[[Progress], None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fill an OME-Zarr volume from its annotated slices, which count along its first axis.

    Args:
        image: OME-Zarr.
        labels: OME-Zarr on the same grid; a slice counts as annotated when it holds any label.
        output: OME-Zarr to write.
        config: see `LargeConfig`.
        uncertainty: OME-Zarr to write, percent.
        learning: called after every epoch of learning.
        progress: called with slices done and in all, once learning has ended.

    Returns:
        plain values for JSON: `annotated_slices`, `labels`, `coarse_shape`, `seconds` of learning and of filling.

    Raises:
        InputError: or a subclass, for anything that cannot be used.
    """
    config = config or LargeConfig()
    outputs = [file for file in (output, uncertainty) if file is not None]
    check_not_inputs(outputs, (image, labels))
    for file in outputs:
        check_new(file)
    scan, painted = open_zarr(image), open_zarr(labels)
    check_same_grid(scan.image, painted.image, "labels")
    began = time.monotonic()
    fine = _annotated(painted)
    _check_windows(fine)
    coarse = _coarse_study(scan, fine, config.coarse_voxels)
    model = use_cases.train(coarse, config.train, device=config.device, progress=learning)
    learned = time.monotonic()
    with ExitStack() as stack:
        dtype = "u1" if max(fine.values) <= 255 else "u2"
        made = stack.enter_context(new_zarr(output, scan, dtype, name="labels", label=True))
        doubts: Any = None
        if uncertainty is not None:
            doubts = stack.enter_context(new_zarr(uncertainty, scan, "u1", name="uncertainty in percent"))
        for s, (plane, doubt) in enumerate(_filled(coarse, model, fine, scan.shape)):
            made[s] = plane.astype(dtype)
            if doubts is not None:
                doubts[s] = np.round(100 * doubt).astype(np.uint8)
            progress(s + 1, scan.shape[0])
    return {
        "annotated_slices": list(fine.annotated_slices),
        "labels": list(fine.values),
        "coarse_shape": list(coarse.volume.shape),
        "seconds": {"learn": round(learned - began, 2), "fill": round(time.monotonic() - learned, 2)},
    }


def _annotated(painted: ZarrVolume) -> SparseLabels:
    """The annotated slices alone, in full resolution; every label is known on each of them."""
    places = [s for s in range(painted.shape[0]) if painted.slice(s).any()]
    if not places:
        raise NoAnnotationError("nothing is annotated yet; paint at least one slice")
    check_memory((len(places), *painted.shape[1:]), "annotated slices", BYTES_PER_ANNOTATED_VOXEL)
    found = {s: check_labels(painted.slice(s), painted.shape[1:]) for s in places}
    if painted.shape[0] < 2:
        raise ShapeError("one slice is there; at least 2 are needed")
    values = tuple(int(v) for v in np.unique(np.concatenate([np.unique(plane) for plane in found.values()])) if v)
    known = np.zeros((len(values), painted.shape[0]), dtype=bool)
    known[:, list(found)] = True
    return SparseLabels(np.stack(list(found.values())), values, known, tuple(found))


def _check_windows(fine: SparseLabels) -> None:
    """Refuse more and larger labels than can be carried in the memory that is free."""
    windows = StreamedCarrier(fine, None).windows
    pixels = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in windows)
    shape = fine.labels.shape[1:]
    check_memory(shape, f"{len(windows)} labels", math.ceil(BYTES_PER_WINDOW_PIXEL * pixels / math.prod(shape)))


def _coarse_study(scan: ZarrVolume, fine: SparseLabels, voxels: int) -> Study:
    """Image and labels with fewer pixels per slice, and as many slices."""
    n_slices, height, width = scan.shape
    factor = max(1.0, math.sqrt(n_slices * height * width / voxels))
    h, w = max(8, math.ceil(height / factor)), max(8, math.ceil(width / factor))
    check_memory((n_slices, h, w), "image on the coarse grid")
    slices = np.empty((n_slices, h, w), np.float32)
    for s in range(n_slices):
        plane = torch.from_numpy(scan.slice(s).astype(np.float32))
        slices[s] = functional.interpolate(plane[None, None], size=(h, w), mode="area")[0, 0].numpy()
        if not np.isfinite(slices[s]).all():
            raise InputError(f"image: slice {s} holds NaN or infinite values; replace them first")
    least, low, high = _range(scan)
    slices = np.clip((slices - least - low) / (high - low), 0, 1)
    labels = np.zeros(slices.shape, np.int32)
    for plane, s in zip(fine.labels, fine.annotated_slices, strict=True):
        labels[s] = _coarse_labels(plane, h, w)
    spacing = scan.spacing[0], scan.spacing[1] * height / h, scan.spacing[2] * width / w
    volume = Volume(slices, 0, np.diag([*spacing, 1.0]))
    return Study(volume, SparseLabels(labels, fine.values, fine.known, fine.annotated_slices))


def _range(scan: ZarrVolume) -> tuple[float, float, float]:
    """Minimum, and the range above it that is mapped to [0, 1], of finite values."""
    chosen = np.unique(np.linspace(0, scan.shape[0] - 1, SAMPLED_SLICES).round().astype(int))
    sample = np.concatenate([scan.slice(s).astype(np.float64).ravel()[::4] for s in chosen])
    least = float(sample.min())
    body = sample[sample > least] - least
    if body.size == 0:
        raise InputError(f"image: is constant ({least}), there is nothing to register")
    low, high = (float(value) for value in np.percentile(body, BODY))
    return (least, low, high) if high > low else (least, 0.0, float(body.max()))


def _coarse_labels(plane: LabelArray, height: int, width: int) -> LabelArray:
    """Nearest neighbours; a label too small for the grid gets the pixel at its centre."""
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * size / n, size - 1).astype(int)
        for n, size in zip((height, width), plane.shape, strict=True)
    )
    coarse: LabelArray = plane[np.ix_(rows, columns)]
    for value in np.setdiff1d(np.unique(plane), [*np.unique(coarse), 0]):
        row, column = (np.mean(np.nonzero(plane == value), axis=1) / plane.shape * (height, width)).astype(int)
        coarse[row, column] = value
    return coarse


def _filled(
    coarse: Study, model: Model, fine: SparseLabels, shape: tuple[int, int, int]
) -> Iterator[tuple[LabelArray, NDArray[np.float32]]]:
    """Labels and uncertainty of each slice in full resolution, `(H, W)`."""
    assert model.roi is not None and model.fields is not None
    inside, images = coarse.annotation.cropped(model.roi.window), crop(coarse.volume.slices, model.roi)
    transforms = _transforms(model.fields.velocity, images)
    supported = supported_slices(Carrier(inside, images, transforms, kept=KEPT_DISTANCES), inside.known, "auto")
    weights = _weights(inside, images, model.fields.image_velocity)
    roi = _scaled(model.roi, coarse.volume.shape[1:], shape[1:])
    window = roi.window[1:]
    streamed = annotated_only(fine, fine.labels[:, *window])
    resized = ResizedTransforms(transforms, roi.bottom - roi.top, roi.right - roi.left)
    carrier = StreamedCarrier(streamed, resized)
    candidates = [(carrier, weights), (carrier.without_motion(), 1 - weights)]
    drawn = dict(zip(fine.annotated_slices, fine.labels, strict=True))
    for s, (labels, doubt) in enumerate(stream(streamed, candidates, supported)):
        whole, doubts = np.zeros(shape[1:], np.int32), np.zeros(shape[1:], np.float32)
        whole[window], doubts[window] = labels, doubt
        yield drawn.get(s, whole), doubts


def _weights(inside: SparseLabels, images: Tensor, velocity: Tensor) -> NDArray[np.float64]:
    """Of registration against carrying straight through, per label, by the slices held out on the coarse grid."""
    judges = (Carrier(inside, images, each, kept=KEPT_DISTANCES) for each in (_transforms(velocity, images), None))
    moving, still = (hold_out(judge, "sdf") for judge in judges)
    return motion_weights(moving, still, n_labels=len(inside.values))


def _transforms(velocity: Tensor, images: Tensor) -> SliceTransforms:
    height, width = images.shape[-2:]
    return SliceTransforms(velocity, height, width)


def _scaled(roi: Roi, coarse: tuple[int, ...], fine: tuple[int, ...]) -> Roi:
    """The region on another grid."""
    rows, columns = (n / m for n, m in zip(fine, coarse, strict=True))
    top, bottom = round(roi.top * rows), round(roi.bottom * rows)
    return Roi(top, bottom, round(roi.left * columns), round(roi.right * columns))
