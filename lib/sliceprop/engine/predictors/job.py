"""What goes to the child process and what comes back, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.config import Predictor, PredictorConfig
from sliceprop.labels import SCRIBBLED_BACKGROUND, SparseLabels

OPEN = -1
"""Target of a pixel that is background or any label that is unknown on its slice."""


@dataclass(frozen=True)
class Job:
    """A network to overfit. Class 0 is background, class `k + 1` the label `values[k]`.

    Attributes:
        method: which network.
        config: how it learns.
        device: torch's name of it.
        images: `(S, H, W)` float32 in [0, 1].
        slices: `(N,)`, those of the images that have targets.
        targets: `(N, H, W)` int32 classes, `OPEN` where several are possible.
        unknown: `(N, K + 1)`, classes that `OPEN` may hide on each of these slices beside background.
        steps: to repeat from an earlier run; None to go by the clock.
    """

    method: Predictor
    config: PredictorConfig
    device: str
    images: NDArray[np.float32]
    slices: NDArray[np.intp]
    targets: NDArray[np.int32]
    unknown: NDArray[np.bool_]
    steps: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the network says about every slice.

    Attributes:
        classes: `(S, H, W)` int32, the most probable class.
        doubt: `(S, H, W)` float32, 1 minus the lead of the largest probability over the second largest.
        network: what ran, for the report.
        steps: how many were taken.
    """

    classes: NDArray[np.int32]
    doubt: NDArray[np.float32]
    network: str
    steps: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    Attributes:
        reason: one sentence.
        mendable: whether the user gave something that cannot be used.
    """

    reason: str
    mendable: bool


def make_job(
    annotation: SparseLabels,
    images: NDArray[np.float32],
    method: Predictor,
    config: PredictorConfig,
    device: str,
) -> Job:
    """The targets that the annotation holds: annotated slices, and scribbles where nothing else is known.

    Args:
        annotation: with at least one label.
        images: `(S, H, W)` in [0, 1].
        method: which network.
        config: how it learns.
        device: torch's name of it.
    """
    marks = annotation.scribbles
    supervised = annotation.known.any(axis=0)
    if marks is not None:
        supervised |= marks.any(axis=(1, 2))
    slices = np.flatnonzero(supervised)
    known, painted = annotation.known[:, slices], annotation.labels[slices]
    unpainted = np.where(known.all(axis=0), 0, OPEN)[:, None, None]
    if marks is not None:
        scribbled = np.where(marks[slices] == SCRIBBLED_BACKGROUND, 0, _classes(marks[slices], annotation.values))
        unpainted = np.where((unpainted == OPEN) & (marks[slices] != 0), scribbled, unpainted)
    targets = np.where(painted > 0, _classes(painted, annotation.values), unpainted).astype(np.int32)
    unknown = np.concatenate([np.zeros((len(slices), 1), bool), ~known.T], axis=1)
    return Job(method, config, device, images, slices, targets, unknown)


def _classes(labels: NDArray[Any], values: tuple[int, ...]) -> NDArray[np.intp]:
    """Class of each label value; meaningless where there is none."""
    return np.searchsorted(np.array(values), labels) + 1
