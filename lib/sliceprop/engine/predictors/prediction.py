"""From the annotation of a study to a filled one by an overfitted network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sliceprop.config import Predictor, PredictorConfig, PropagateConfig
from sliceprop.engine.filling import Filled
from sliceprop.engine.interpolation import carry, sources
from sliceprop.engine.predictors.job import make_job
from sliceprop.engine.predictors.process import run
from sliceprop.engine.replay import next_stage
from sliceprop.engine.training import Progress
from sliceprop.errors import FileError
from sliceprop.labels import LabelArray, SparseLabels


def predict(
    annotation: SparseLabels,
    images: Tensor,
    config: PropagateConfig,
    *,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Filled, str]:
    """Overfit a network to the annotated slices and let it label every slice.

    The network says nothing about sides, so the candidates are the labels of the nearest annotated slices.

    Args:
        annotation: with at least one label.
        images: `(S, 1, H, W)` in [0, 1].
        config: `method` is one of `PREDICTORS`; `extrapolate` is `none`, a number of slices, or `auto`: beyond the
            outermost annotated slice the network decides.
        device: torch's name of it.
        progress: called while the network learns.
        cancelled: asked after every step; True ends learning and keeps the best so far.

    Returns:
        the filled volume, in which what is known is not put back yet, and the network that ran.

    Raises:
        FileError: encoder weights that are no file.
        InputError: an encoder or weights that the network cannot take.
        PredictorError: if the child process fails.
    """
    _check_weights_file(config.predictor)
    job = make_job(annotation, images[:, 0].cpu().numpy(), cast(Predictor, config.method), config.predictor, device)
    stage = next_stage()
    job = replace(job, steps=stage.limit)
    answer = run(job, progress=progress or (lambda _: None), cancelled=cancelled or (lambda: False))
    stage.steps = answer.steps
    labels = np.array([0, *annotation.values], np.int32)[answer.classes]
    lower, upper = (carry(annotation, side) for side in sources(annotation.known))
    filled = Filled(labels, lower, upper, answer.doubt)
    _remove_unsupported(filled, annotation, config)
    filled.uncertainty[annotation.known.all(axis=0)] = 0
    return filled, answer.network


def _check_weights_file(config: PredictorConfig) -> None:
    file = config.encoder_weights
    if file not in ("none", "imagenet") and not Path(file).is_file():
        raise FileError(f"{file}: there is no such file of encoder weights; give a file, none or imagenet")


def _remove_unsupported(filled: Filled, annotation: SparseLabels, config: PropagateConfig) -> None:
    """Clear each label on slices too far beyond the outermost ones on which it is known, in place."""
    supported = _supported(filled.labels, annotation, config)
    for k, value in enumerate(annotation.values):
        for labels in (filled.labels, filled.from_lower, filled.from_upper):
            for s in np.flatnonzero(~supported[k]):
                labels[s][labels[s] == value] = 0


def _supported(labels: LabelArray, annotation: SparseLabels, config: PropagateConfig) -> NDArray[np.bool_]:
    """Slices on which each label may be, `(K, S)`: beyond the outermost known ones where the network finds it."""
    lower, upper = sources(annotation.known)
    index = np.arange(len(labels))
    beyond = np.where(lower < 0, upper - index, np.where(upper < 0, index - lower, 0))
    beyond[~annotation.known.any(axis=1)] = 0
    reach = {"auto": math.inf, "none": 0}.get(str(config.extrapolate), config.extrapolate)
    found = np.array([(labels == value).any(axis=(1, 2)) for value in annotation.values])
    supported: NDArray[np.bool_] = (beyond == 0) | (found & (beyond <= float(reach)))
    return supported
