"""Use cases on one study: open, train, propagate, suggest. Every front end calls these and holds no algorithm."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.config import (
    BACKGROUND_SCRIBBLE,
    LEARNED_METHODS,
    PREDICTORS,
    PropagateConfig,
    SuggestConfig,
    TrainConfig,
)
from sliceprop.engine.anchors import make_anchors
from sliceprop.engine.appearance import Appearance
from sliceprop.engine.evidence import hold_out, motion_weights
from sliceprop.engine.extent import possible_slices, supported_slices
from sliceprop.engine.filling import Filled, apply_scribbles, disagreement, fill
from sliceprop.engine.interpolation import INTERPOLATIONS, interpolate, keep_known
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.predictors import predict
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.quality import Quality, estimate_quality
from sliceprop.engine.refinement import Refiner
from sliceprop.engine.registration import Model, SliceTransforms, crop, network_fields, register, widened_fields
from sliceprop.engine.threads import one_thread
from sliceprop.engine.training import Fields, Learner, Progress, half_size
from sliceprop.errors import CheckpointError, InputError, NoAnnotationError
from sliceprop.labels import SparseLabels, check_labels, sparse_labels
from sliceprop.memory import BYTES_PER_WORKED_VOXEL, check_memory
from sliceprop.pretrained import load_refinement
from sliceprop.roi import Roi, region_of_interest
from sliceprop.suggestion import Suggestion, make_suggestions, plan_suggestions
from sliceprop.volume import (
    Volume,
    check_affine,
    check_image,
    normalise_intensity,
    resolve_slice_axis,
    voxel_spacing,
)

SECONDS_BETWEEN_SAVES = 3.0

__all__ = [
    "Progress",
    "Propagation",
    "Study",
    "Suggestion",
    "open_study",
    "propagate",
    "suggest",
    "train",
]

Source = str | Path | io.Image | NDArray[Any]

Overfit = Callable[[SparseLabels, torch.Tensor, PropagateConfig], tuple[Filled, str]]
"""Fills a region of interest with a network, and names the network."""


@dataclass(frozen=True)
class Propagation:
    """The volume that came out, everything on the original grid `(i, j, k)`, in whatever order in memory.

    Attributes:
        labels: fused labels, int32; annotated slices are bit-identical to the input.
        from_lower: labels carried from the annotated slice below only.
        from_upper: labels carried from the annotated slice above only.
        uncertainty: float32 in [0, 1], 0 on annotated slices.
        report: plain values for JSON: `slice_axis`, `annotated_slices`, `method` as asked for, `trained`, `methods`
            (what decided about each label), `intervals` (and where, see `Filling.intervals`), `quality` (estimated
            Dice and border distance), `suggestion`; `network` where one was overfitted.
    """

    labels: NDArray[np.int32]
    from_lower: NDArray[np.int32]
    from_upper: NDArray[np.int32]
    uncertainty: NDArray[np.float32]
    report: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One scan with its sparse annotation; made by `open_study`."""

    volume: Volume
    annotation: SparseLabels

    @cached_property
    def study_hash(self) -> str:
        """SHA-256 over the normalised voxels, slice axis and affine: ties a checkpoint to its scan."""
        digest = hashlib.sha256(np.ascontiguousarray(self.volume.slices).tobytes())
        digest.update(np.round(self.volume.affine, 4).tobytes() + bytes([self.volume.slice_axis]))
        return digest.hexdigest()

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """Voxels that the user decided about, `(i, j, k)` of the file; all others of a result are propagated."""
        return self.volume.to_original(self.annotation.drawn)


def open_study(
    image: Source,
    labels: Source | None = None,
    *,
    affine: NDArray[Any] | None = None,
    scribbles: Source | None = None,
    slice_axis: str | int = "auto",
    annotated_slices: Iterable[int] | None = None,
    partial: bool = False,
    background_scribble: int = BACKGROUND_SCRIBBLE,
) -> Study:
    """Check and bring together a scan and what was drawn on it.

    Args:
        image: file, DICOM folder, `io.Image`, or array `(i, j, k)`.
        labels: the same kinds on the same grid, integers up to 65,535; None or all zero for no annotation yet.
        affine: for arrays, `(4, 4)` voxel index to RAS mm; 1 mm voxels without it.
        scribbles: partial marks in any plane: label values, and `background_scribble` for background.
        slice_axis: `auto`, 0, 1 or 2 in the image's axis order.
        annotated_slices: explicit 0-based list of completely annotated slices; may name slices without any label.
        partial: a slice counts as annotated only for the labels painted on it.
        background_scribble: the scribble value that means background.

    Raises:
        InputError: or a subclass, for anything that cannot be used; the message says what to do.
    """
    scan = load_image(image, affine)
    check_image(scan.array)
    painted = np.zeros(scan.array.shape, np.int32) if labels is None else load_labels(scan, labels, "labels")
    marks = None if scribbles is None else load_labels(scan, scribbles, "scribbles")
    marked = painted > 0 if painted.any() else None
    axis = resolve_slice_axis(slice_axis, scan.array.shape, scan.affine, marked)
    volume = Volume(normalise_intensity(np.moveaxis(scan.array, axis, 0)), axis, scan.affine)
    annotation = sparse_labels(
        np.ascontiguousarray(volume.to_canonical(painted)),
        scribbles=None if marks is None else np.ascontiguousarray(volume.to_canonical(marks)),
        annotated_slices=annotated_slices,
        partial=partial,
        background_scribble=background_scribble,
    )
    return Study(volume, annotation)


def load_image(source: Source, affine: NDArray[Any] | None = None) -> io.Image:
    """A file, folder or array as an image; `affine` is for arrays, 1 mm voxels without it."""
    if isinstance(source, io.Image):
        return source
    if isinstance(source, np.ndarray):
        return io.Image(source, check_affine(np.eye(4) if affine is None else affine))
    return io.read_image(source)


def load_labels(scan: io.Image, source: Source, name: str) -> NDArray[np.int32]:
    """Label values `(i, j, k)` after checking that they lie on the scan's grid; `name` is for the message."""
    other = load_image(source, scan.affine)
    values = check_labels(other.array, scan.array.shape, name)
    io.check_same_grid(scan, other, name)
    return values


def train(
    study: Study,
    config: TrainConfig | None = None,
    *,
    init: Model | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    save: Callable[[Model], None] | None = None,
) -> Model:
    """Learn how each slice of the study deforms into the next.

    Args:
        study: annotation is optional; what there is joins the loss and says which part of the slices matters.
        config: defaults of `TrainConfig`.
        init: warm start from an earlier checkpoint of this study or from one of another study.
        device: `auto` (CUDA if present), `cpu`, `cuda`, `cuda:1`...
        progress: called after every epoch.
        cancelled: asked after every step; True ends learning and keeps the best so far.
        save: called with the best model so far after the first epoch and then every few seconds, before `progress`,
            so that a process that is killed loses little and never has shown an epoch that it cannot keep.

    Raises:
        InputError: an unknown or absent device.

    Returns:
        the best model found within `config.budget_s`.
    """
    config = config or TrainConfig()
    target = resolve_device(device)
    roi = region_of_interest(study.annotation)
    known = None if init is None else init.fields_of(study.study_hash)
    if known is not None:
        roi = roi.united(known[0])
    annotation, images = _region(study, roi)
    start = None
    if init is not None and known is not None:
        start = widened_fields(init, images, known[0], roi, known[1]).image_velocity
    grid = half_size(*images.shape[-2:])
    anchors = make_anchors(annotation, *grid, device=target) if config.mask_weight > 0 else []
    network = init.network() if init is not None else _seeded_network(config.seed)
    last_saved = -math.inf

    def result(learner: Learner) -> Model:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return Model(weights, config, study.study_hash, roi, learner.best(), learner.metric)

    def report(event: Progress) -> None:
        nonlocal last_saved
        if save is not None and time.monotonic() - last_saved > SECONDS_BETWEEN_SAVES:
            save(result(learner))
            last_saved = time.monotonic()
        if progress is not None:
            progress(event)

    learner = Learner(
        images.to(target),
        network,
        config,
        anchors=anchors,
        gap=int(np.diff(annotation.annotated_slices).max(initial=0)),
        start=start,
        progress=report,
        cancelled=cancelled or (lambda: False),
    )
    learner.run()
    return result(learner)


def propagate(
    study: Study,
    model: Model | None = None,
    config: PropagateConfig | None = None,
    *,
    target: float = SuggestConfig.target,
    names: Mapping[int, str] | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Propagation:
    """Fill the volume from the annotated slices.

    Args:
        study: with at least one annotated slice or scribble.
        model: from `train` or a checkpoint; without one `auto` interpolates and `registration` registers directly.
        config: defaults of `PropagateConfig`.
        target: estimated Dice above which a slice needs no annotation, for the suggestion in the report.
        names: label value to name, for the suggestion's reason.
        device: where an overfitted network (`config.PREDICTORS`) learns; see `train`.
        progress: of that learning.
        cancelled: of that learning; True ends it and keeps the best so far.

    Raises:
        NoAnnotationError: if nothing is annotated.
        CheckpointError: if the model was trained on another study.
        InputError: an unknown or absent device, an encoder or weights that the network cannot take, or a target outside
            (0, 1].
    """
    config, advice = config or PropagateConfig(), SuggestConfig(target=target)
    _check_model(study, model)
    overfit = partial(predict, device=str(resolve_device(device)), progress=progress, cancelled=cancelled)
    filling = fill_study(study, model, config, overfit)
    quality = filling.quality(study.annotation)
    suggestion = make_suggestions(study.volume, study.annotation, quality, advice, names=names)[0]
    report = {
        "slice_axis": study.volume.slice_axis,
        "annotated_slices": list(study.annotation.annotated_slices),
        "method": config.method,
        "trained": model is not None and config.method in LEARNED_METHODS,
        "methods": {str(v): name for v, name in zip(study.annotation.values, filling.methods, strict=True)},
        "intervals": {str(v): filling.intervals(study.annotation, k) for k, v in enumerate(study.annotation.values)},
        **({"network": filling.network} if filling.network else {}),
        "quality": _quality_report(study, quality),
        "suggestion": asdict(suggestion),
    }
    original = study.volume.to_original
    return Propagation(
        original(filling.filled.labels),
        original(filling.filled.from_lower),
        original(filling.filled.from_upper),
        original(filling.filled.uncertainty),
        report,
    )


def suggest(
    study: Study,
    model: Model | None = None,
    config: SuggestConfig | None = None,
    *,
    names: Mapping[int, str] | None = None,
) -> list[Suggestion]:
    """The slices to annotate next; never an annotated one. Works without annotation and without model.

    `next_slice` names them best first. A plan for the whole scan names them ascending, less those that are annotated.

    Args:
        study: annotation may be empty.
        model: sharpens the estimate; its network judges likeness for the plan `perceptual`.
        config: how many, the target, the plan; defaults of `SuggestConfig`.
        names: label value to name, for the reason; without a name a label is called "label 3".

    Returns:
        fewer than asked for when fewer slices are left; with none left one suggestion with `slice` None and `stop`.

    Raises:
        CheckpointError: if the model was trained on another study.
        FileError: if the weights for the plan `perceptual` cannot be read.
    """
    config = config or SuggestConfig()
    _check_model(study, model)
    if config.plan != "next_slice":
        return plan_suggestions(study.volume, study.annotation, config, None if model is None else model.network())
    quality = None
    if study.annotation.values:
        quality = fill_study(study, model, PropagateConfig()).quality(study.annotation)
    return make_suggestions(study.volume, study.annotation, quality, config, names=names)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: a name that torch does not know or a device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and (chosen.index or 0) >= count):
        raise InputError(f"device {device!r} is not on this machine; use cpu, or one of {count} CUDA devices")
    return chosen


def _check_model(study: Study, model: Model | None) -> None:
    if model is not None and model.study_hash not in (None, study.study_hash):
        raise CheckpointError(
            "the checkpoint was trained on another study (other voxels, affine or slice axis); "
            "train on this one, with the checkpoint as a start"
        )


@dataclass(frozen=True)
class Filling:
    """A filled study in the canonical frame `(S, H, W)`, before it is put into words.

    Attributes:
        filled: labels, both sides, uncertainty.
        methods: what decided, per label.
        network: the overfitted network, if there is one.
    """

    filled: Filled
    methods: list[str]
    network: str = ""

    def quality(self, annotation: SparseLabels) -> Quality:
        """Expected agreement with the truth."""
        return estimate_quality(annotation, self.filled)

    def intervals(self, annotation: SparseLabels, k: int) -> list[dict[str, Any]]:
        """What decided about label `k` in each run of slices between two known ones, or beyond the outermost one.

        Returns:
            `slices` (first and last of the run), `between` (the known slices below and above, None for none), `method`,
            and `refined`, the pixels that refinement changed as a share of those that were the label's before it or
            after it, in [0, 1], None for none.
        """
        known = annotation.known_slices(k)
        bounds = [None, *known, None]
        area = (self.filled.labels == annotation.values[k]).sum(axis=(1, 2))
        found = []
        for below, above in pairwise(bounds):
            run = slice(0 if below is None else below + 1, len(area) if above is None else above)
            if area[run].any():
                slices = run.start + np.flatnonzero(area[run])
                where = {"slices": [int(slices[0]), int(slices[-1])], "between": [below, above]}
                found.append({**where, "method": self.methods[k], "refined": self._refined(k, run)})
        return found

    def _refined(self, k: int, run: slice) -> float | None:
        if self.filled.refined_px is None or self.filled.claimed_px is None:
            return None
        claimed = max(self.filled.claimed_px[k, run].sum(), 1)  # none where the label is scribbled alone
        return round(float(self.filled.refined_px[k, run].sum() / claimed), 4)


def fill_study(study: Study, model: Model | None, config: PropagateConfig, overfit: Overfit = predict) -> Filling:
    """What `propagate` reports on; for those who measure it.

    Args:
        study: with at least one annotated slice or scribble.
        model: as in `propagate`.
        config: as in `propagate`.
        overfit: fits and asks a network, for the methods of `config.PREDICTORS`.

    Raises:
        NoAnnotationError: if nothing is annotated.
    """
    annotation = study.annotation
    if not annotation.values:
        raise NoAnnotationError("nothing is annotated yet; paint at least one slice")
    roi = region_of_interest(annotation)
    known = None if model is None else model.fields_of(study.study_hash)
    if known is not None:
        roi = roi.united(known[0])
    inside, images = _region(study, roi)
    still, network = Carrier(inside, images, None), ""
    if config.method in PREDICTORS:
        filled, network = overfit(inside, images, config)
        methods: list[str] = [config.method] * len(annotation.values)
    elif config.method in INTERPOLATIONS:
        filled, methods = _interpolated(still, config)
    else:
        fields = None if model is None and config.method == "auto" else _fields(model, known, roi, images)
        with one_thread() as threads:
            filled, methods = _carried(still, fields, config, threads)
    whole = _uncropped(filled, roi, annotation.labels.shape)
    apply_scribbles(whole.labels, annotation)
    for part in (whole.labels, whole.from_lower, whole.from_upper):
        keep_known(part, annotation)
    return Filling(whole, methods, network)


def _region(study: Study, roi: Roi) -> tuple[SparseLabels, torch.Tensor]:
    """Annotation and images of the region of interest.

    Raises:
        TooLargeError: if working on it would need more memory than is free.
    """
    shape = (study.volume.shape[0], roi.bottom - roi.top, roi.right - roi.left)
    check_memory(shape, "region around the annotation", BYTES_PER_WORKED_VOXEL)
    return study.annotation.cropped(roi.window), crop(study.volume.slices, roi)


def _interpolated(still: Carrier, config: PropagateConfig) -> tuple[Filled, list[str]]:
    """A classical interpolator, clipped to where each label may be."""
    annotation = still.annotation
    result = interpolate(annotation, config.method)  # type: ignore[arg-type]
    supported = supported_slices(still, annotation.known, config.extrapolate) | annotation.known
    for k, value in enumerate(annotation.values):
        for labels in (result.labels, result.from_lower, result.from_upper):
            for s in np.flatnonzero(~supported[k]):
                labels[s][labels[s] == value] = 0
    uncertainty = disagreement(result.from_lower, result.from_upper, annotation)
    filled = Filled(result.labels, result.from_lower, result.from_upper, uncertainty)
    return filled, [config.method] * len(annotation.values)


def _carried(still: Carrier, fields: Fields | None, config: PropagateConfig, threads: int) -> tuple[Filled, list[str]]:
    """Registration, for `auto` weighed against carrying straight through, which is all there is without fields."""
    annotation, images = still.annotation, still.images
    ones, size = np.ones(len(annotation.values)), images.shape[-2:]
    if fields is None:
        supported = supported_slices(still, annotation.known, config.extrapolate)
        return fill([(still, ones)], supported, config.fusion, threads=threads), ["shape"] * len(ones)
    moving = Carrier(annotation, images, SliceTransforms(fields.velocity, *size))
    supported = supported_slices(moving, annotation.known, config.extrapolate)
    if config.method == "registration":
        return fill([(moving, ones)], supported, config.fusion, threads=threads), ["registration"] * len(ones)
    judge = moving
    if not torch.equal(fields.image_velocity, fields.velocity):
        judge = Carrier(annotation, images, SliceTransforms(fields.image_velocity, *size))
    weights = motion_weights(hold_out(judge, config.fusion), hold_out(still, config.fusion), len(ones))
    refiner, possible = None, None
    if config.refinement != "none" and annotation.labels.any():
        refiner = Refiner(moving, still, Appearance(moving, threads=threads), load_refinement(config.refinement))
        possible = possible_slices(moving, annotation.known, supported, config.extrapolate)
    candidates = [(moving, weights), (still, 1 - weights)]
    filled = fill(candidates, supported, config.fusion, refiner=refiner, possible=possible, threads=threads)
    refined = "" if refiner is None else ", refined"
    return filled, [("registration" if weight > 0.5 else "shape") + refined for weight in weights]


def _fields(model: Model | None, known: tuple[Roi, Fields] | None, roi: Roi, images: torch.Tensor) -> Fields:
    """Fields of a region; `known` are the model's own of this study, and what they cover."""
    if model is None:
        return register(images)
    return network_fields(model, images) if known is None else widened_fields(model, images, known[0], roi, known[1])


def _uncropped(filled: Filled, roi: Roi, shape: tuple[int, ...]) -> Filled:
    def whole(part: NDArray[Any]) -> NDArray[Any]:
        array = np.zeros(shape, part.dtype)
        array[roi.window] = part
        return array

    return replace(
        filled,
        labels=whole(filled.labels),
        from_lower=whole(filled.from_lower),
        from_upper=whole(filled.from_upper),
        uncertainty=whole(filled.uncertainty),
    )


def _seeded_network(seed: int) -> RegistrationNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RegistrationNet()


def _quality_report(study: Study, quality: Quality) -> dict[str, Any]:
    """Per label `dice` and `surface_mm` over the volume, and of each slice in `slices` and `slices_surface_mm`."""
    in_plane = np.delete(np.array(voxel_spacing(study.volume.affine)), study.volume.slice_axis)
    pixel_mm = float(in_plane.mean())
    return {
        str(value): {
            "dice": _rounded(quality.label_dice(k)),
            "surface_mm": _rounded(pixel_mm * quality.label_surface_px(k)),
            "slices": _by_slice(quality.dice[k]),
            "slices_surface_mm": _by_slice(pixel_mm * quality.surface_px[k]),
        }
        for k, value in enumerate(study.annotation.values)
    }


def _by_slice(values: NDArray[np.float64]) -> dict[str, float]:
    return {str(s): round(float(value), 4) for s, value in enumerate(values) if math.isfinite(value)}


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
