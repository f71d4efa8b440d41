"""The Python interface: what the command line does, on arrays or files, in one call each.

Common to all functions: a scan or label map is a file, a folder with one DICOM series, or an array `(i, j, k)`; label
values are integers up to 65,535, 0 is not painted. Slices count from 0 along `slice_axis`. Every error that the caller
can mend is an `sliceprop.errors.InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from sliceprop import study
from sliceprop.config import LEARNED_METHODS, PropagateConfig, SuggestConfig, TrainConfig
from sliceprop.errors import InputError
from sliceprop.labels import check_labels
from sliceprop.study import Progress, Propagation, Source, Study, Suggestion, open_study
from sliceprop.volume import resolve_slice_axis, voxel_spacing
from sliceprop.warm_start import AUTO, WarmStart

if TYPE_CHECKING:
    from sliceprop.engine.registration import Model

__all__ = ["evaluate", "open_study", "propagate", "suggest", "train"]


class StudyOptions(TypedDict, total=False):
    """Further arguments of `open_study`, which every function takes beside a scan and its labels."""

    affine: NDArray[Any] | None
    scribbles: Source | None
    slice_axis: str | int
    annotated_slices: Iterable[int] | None
    partial: bool
    background_scribble: int


def train(
    image: Source | Study,
    labels: Source | None = None,
    *,
    config: TrainConfig | None = None,
    init: Model | str | Path | None = AUTO,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Unpack[StudyOptions],
) -> Model:
    """Learn how each slice of a scan deforms into the next.

    Args:
        image: scan, or a `Study` from `open_study`, which then brings labels and options with it.
        labels: painted slices on the scan's grid, None for none.
        config: budget in seconds and the rest; see `TrainConfig`.
        init: model, checkpoint file or folder of pretrained models to start from; None for nothing, `auto` for what the
            variable `SLICEPROP_PRETRAINED` names, else the network that comes with the package.
        device: `auto`, `cpu`, `cuda`, `cuda:1`...
        progress: called after every epoch.
        cancelled: asked after every step; True ends learning and keeps the best so far.
        **options: see `open_study`.

    Returns:
        the model, to be given to `propagate` and `suggest`.
    """
    start = _model(WarmStart(str(init)).checkpoint() if isinstance(init, str | Path) else init)
    return study.train(
        _study(image, labels, options), config, init=start, device=device, progress=progress, cancelled=cancelled
    )


def propagate(
    image: Source | Study,
    labels: Source | None = None,
    *,
    model: Model | str | Path | None = None,
    config: PropagateConfig | None = None,
    training: TrainConfig | None = None,
    device: str = "auto",
    **options: Unpack[StudyOptions],
) -> Propagation:
    """Fill the volume from the annotated slices, which come back unchanged.

    Args:
        image: scan, or a `Study` from `open_study`, which then brings labels and options with it.
        labels: painted slices on the scan's grid.
        model: from `train`, or a checkpoint file; without one the study is learned first where the method needs it.
        config: method, fusion, extrapolation; see `PropagateConfig`.
        training: how to learn when no model is given; see `TrainConfig`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`...
        **options: see `open_study`.

    Returns:
        `labels`, `from_lower`, `from_upper` (int32) and `uncertainty` (float32 in [0, 1]), all `(i, j, k)` on the
        scan's grid, and a `report`.
    """
    opened, loaded = _study(image, labels, options), _model(model)
    if loaded is None and worth_learning(opened, config or PropagateConfig()):
        loaded = study.train(opened, training, init=_model(WarmStart().checkpoint()), device=device)
    return study.propagate(opened, loaded, config, device=device)


def worth_learning(opened: Study, config: PropagateConfig) -> bool:
    """Whether the method uses a model and there is something to propagate; if not, `propagate` says so at once."""
    return config.method in LEARNED_METHODS and bool(opened.annotation.values)


def suggest(
    image: Source | Study,
    labels: Source | None = None,
    *,
    model: Model | str | Path | None = None,
    config: SuggestConfig | None = None,
    **options: Unpack[StudyOptions],
) -> list[Suggestion]:
    """The slices to annotate next, best first, or the slices of a plan for the whole scan; never an annotated one.

    Args:
        image: scan, or a `Study` from `open_study`, which then brings labels and options with it.
        labels: painted slices on the scan's grid, None for none.
        model: from `train`, or a checkpoint file; sharpens the estimate.
        config: how many, the target, the plan; see `SuggestConfig`.
        **options: see `open_study`.
    """
    return study.suggest(_study(image, labels, options), _model(model), config)


def evaluate(
    prediction: Source,
    reference: Source,
    *,
    labels: Source | None = None,
    slice_axis: str | int = "auto",
    affine: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Dice, average Hausdorff distance and 95th percentile of the surface distances, per label and on average.

    Args:
        prediction: label map.
        reference: label map on the same grid.
        labels: what was annotated; with it everything is measured a second time without the annotated slices.
        slice_axis: `auto`, 0, 1 or 2; which axis the annotated slices count along.
        affine: for arrays, `(4, 4)` voxel index to RAS mm; 1 mm voxels without it.

    Returns:
        `{"whole": {"labels": {"3": {"dice", "average_hausdorff_mm", "hausdorff95_mm"}}, "mean": {...}}}`, with `labels`
        also `"without_annotated"`; distances in mm, None where a measure has no meaning.
    """
    from sliceprop.engine import metrics

    truth = study.load_image(reference, affine)
    true = check_labels(truth.array, truth.array.shape, "reference")
    predicted = study.load_labels(truth, prediction, "prediction")
    spacing = voxel_spacing(truth.affine)
    if labels is None:
        return metrics.evaluate(predicted, true, spacing)
    painted = study.load_labels(truth, labels, "labels") > 0
    axis = resolve_slice_axis(slice_axis, truth.array.shape, truth.affine, painted)
    annotated = np.flatnonzero(np.moveaxis(painted, axis, 0).any(axis=(1, 2)))
    return metrics.evaluate(predicted, true, spacing, slice_axis=axis, annotated_slices=annotated)


def _study(image: Source | Study, labels: Source | None, options: StudyOptions) -> Study:
    if not isinstance(image, Study):
        return open_study(image, labels, **options)
    if labels is not None or options:
        raise InputError("an opened study brings its labels and options with it; give them to open_study")
    return image


def _model(source: Model | str | Path | None) -> Model | None:
    if isinstance(source, str | Path):
        from sliceprop.checkpoint import load_checkpoint

        return load_checkpoint(Path(source))
    return source
