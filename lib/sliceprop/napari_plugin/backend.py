"""What computes: the same interface for this computer and for a server.

Arrays of a `Job` and of its results are in the layer's axis order, label values are the layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sliceprop import study
from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.config import PropagateConfig, SuggestConfig
from sliceprop.errors import InputError
from sliceprop.io import check_folder
from sliceprop.napari_plugin.settings import Settings
from sliceprop.study import Progress, Propagation, Study

if TYPE_CHECKING:
    from sliceprop.engine.registration import Model

Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Job:
    """The study as it was when the user pressed the button; painting goes on meanwhile.

    Attributes:
        image: `(k, j, i)`, the layer's own array.
        affine: `(4, 4)`, voxel index in that order to RAS mm.
        labels: a copy of what is painted.
        scribbles: a copy of the marks in any plane, 255 for background; None without any.
        annotated_slices: exactly these are annotated, also empty ones; None where every painted slice is.
        names: of the label values.
        settings: options.
        study: id on the server; empty for an image that is not there.
    """

    image: NDArray[Any]
    affine: NDArray[np.float64]
    labels: NDArray[Any]
    scribbles: NDArray[Any] | None = None
    annotated_slices: tuple[int, ...] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    study: str = ""


class Backend(Protocol):
    """Learns, propagates and suggests; every method may take long and is called in a worker.

    All of them raise `InputError` or a subclass for what the user can mend.
    """

    @property
    def has_model(self) -> bool:
        """Whether something was learned that `propagate` will use."""

    def train(self, job: Job, progress: Report, cancelled: Cancelled) -> None:
        """Learn on the study, and keep the best model; True from `cancelled` ends learning early."""

    def propagate(self, job: Job, progress: Report, cancelled: Cancelled) -> Propagation:
        """Fill the volume; `report["suggestion"]` names the next slice, labels in the report are values."""

    def suggest(self, job: Job) -> Mapping[str, Any]:
        """The slice to annotate next, with the keys of `Suggestion`; also without any annotation."""

    def save_model(self, file: Path, job: Job) -> None:
        """Write what was learned on the study as a checkpoint."""


def preview(job: Job) -> Propagation:
    """Shape-based interpolation between the annotated slices, always on this computer, in well under a second."""
    quick = PropagateConfig("shape", extrapolate="none")
    return study.propagate(open_job(job), None, quick, target=job.settings.target, names=job.names)


def open_job(job: Job) -> Study:
    """The study of the library."""
    return study.open_study(
        job.image,
        job.labels,
        affine=job.affine,
        scribbles=job.scribbles,
        slice_axis=job.settings.slice_axis,
        annotated_slices=None if job.settings.partial else job.annotated_slices,
        partial=job.settings.partial,
    )


class LocalBackend:
    """The library in this process."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._start: tuple[Path, float] | None = None

    @property
    def has_model(self) -> bool:
        """See `Backend`."""
        return self._model is not None

    def train(self, job: Job, progress: Report, cancelled: Cancelled) -> None:
        """See `Backend`."""
        settings, opened = job.settings, open_job(job)
        file = settings.save_to
        if file is not None:
            check_folder(file)
        model = study.train(
            opened,
            settings.train,
            init=self._init(settings.start, opened),
            device=settings.device,
            progress=progress,
            cancelled=cancelled,
            save=None if file is None else lambda best: save_checkpoint(file, best),
        )
        if file is not None:
            save_checkpoint(file, model)
        self._model = model

    def propagate(self, job: Job, progress: Report, cancelled: Cancelled) -> Propagation:
        """See `Backend`."""
        settings, opened = job.settings, open_job(job)
        return study.propagate(
            opened,
            self._model_for(settings.start, opened),
            settings.propagate,
            target=settings.target,
            names=job.names,
            device=settings.device,
            progress=progress,
            cancelled=cancelled,
        )

    def suggest(self, job: Job) -> Mapping[str, Any]:
        """See `Backend`."""
        opened = open_job(job)
        advice = SuggestConfig(target=job.settings.target)
        return vars(study.suggest(opened, self._model_for(job.settings.start, opened), advice, names=job.names)[0])

    def save_model(self, file: Path, job: Job) -> None:
        """See `Backend`."""
        if self._model is None:
            raise InputError("nothing was learned yet; press Learn first")
        check_folder(file)
        save_checkpoint(file, self._model)

    def _init(self, start: Path | None, opened: Study) -> Model | None:
        """What learning starts from: a file that the user chose since, else what was learned on this study."""
        chosen = self._take(start)
        if chosen is not None:
            return chosen
        known = self._model
        return known if known is not None and known.study_hash in (None, opened.study_hash) else None

    def _model_for(self, start: Path | None, opened: Study) -> Model | None:
        """What propagation uses: the same, but never the model of another scan unless the user chose it."""
        chosen = self._take(start)
        if chosen is not None:
            self._model = chosen
        return self._init(None, opened)

    def _take(self, start: Path | None) -> Model | None:
        """The checkpoint file, once; again if the file changed."""
        if start is None:
            self._start = None
            return None
        stamp = (start, start.stat().st_mtime if start.is_file() else 0.0)
        if stamp == self._start:
            return None
        model = load_checkpoint(start)
        self._start = stamp
        return model
