"""One training, in whatever process it runs: learns, saves the best model on the way, and says in a file how far it is.

Nothing here or in `training_work` imports MONAI Label, so that Dask workers do without it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import psutil

from sliceprop.config import TrainConfig
from sliceprop.engine.registration import Model
from sliceprop.files import read_json
from sliceprop.io import write_json
from sliceprop.study import Progress, Study, train

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5

OPEN = ("SUBMITTED", "RUNNING")
"""States of a training that is not over; MONAI Label's words for tasks, as are `DONE`, `ERROR` and `STOPPED`."""

NOTHING: dict[str, Any] = {"status": "NONE", **asdict(Progress(0, 0, 0.0, 0.0, 0.0))}
"""What is told before the first training."""


class StateFile:
    """How far a training is, as a file that whoever trains writes and the server reads.

    Args:
        file: JSON, replaced as a whole; its folder must exist when it is written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, image_id: str, status: str, progress: Progress, **more: Any) -> None:
        """Say how far the training of `image_id` is.

        Raises:
            FileError: if the folder is missing, read-only or full.
        """
        process = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        write_json(self._file, {"image": image_id, "status": status, **asdict(progress), **more, "process": process})

    def read(self) -> dict[str, Any]:
        """What was written last; `NOTHING` before the first training."""
        return {key: value for key, value in self._content().items() if key != "process"}

    def end(self, **told: Any) -> None:
        """Write the last state with other fields, such as a `status` that says that it is over.

        Raises:
            FileError: if the folder is missing, read-only or full.
        """
        write_json(self._file, {**self._content(), "seconds_left": 0.0, **told})

    def _content(self) -> dict[str, Any]:
        return dict(read_json(self._file) or NOTHING)


class Report:
    """Keeps a `StateFile` up to date while a training runs, and says how it ended.

    No epoch is reported before there is a checkpoint: a client that sees one can stop and keeps what was learnt.

    Args:
        state: to write.
        image_id: of the study.
        config: of the training.
        note: for the user, such as why the study's own checkpoint is not used.

    Attributes:
        saved: whether there is a checkpoint.
        ended: what to call the end if there is no error.
    """

    def __init__(self, state: StateFile, image_id: str, config: TrainConfig, note: str = "") -> None:
        self._state, self._image_id, self.note = state, image_id, note
        self._last = Progress(0, config.max_epochs + config.refine_steps, 0.0, config.budget_s, 0.0)
        self._written, self.saved, self.ended = 0.0, False, "DONE"

    def __enter__(self) -> Self:
        self.write("RUNNING")
        return self

    def __call__(self, progress: Progress) -> None:
        """Take one event of `study.train`."""
        self._last, now = progress, time.monotonic()
        if self.saved and now - self._written >= SECONDS_BETWEEN_REPORTS:
            self._written = now
            self.write("RUNNING")
            logger.info("epoch %d of %d, best metric %.4f", progress.epoch, progress.total_epochs, progress.best_metric)

    def write(self, status: str, **more: Any) -> None:
        """Write the last event under a status."""
        noted = {"note": self.note} if self.note else {}
        self._state.write(self._image_id, status, self._last, **noted, **more)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._last = replace(self._last, seconds_left=0.0)
        if error is None:
            self.write(self.ended)
        else:
            self.write("ERROR", error=str(error))


def as_stats(state: Mapping[str, Any]) -> dict[str, Any]:
    """What clients are told of a training, all fields of `study.Progress` with `image` and `status` among it.

    `seconds` is the time since it began, `total_time` the same once it is over: MONAI Label's clients take that for
    the sign of the end.
    """
    over = state["status"] not in OPEN
    return {**state, "seconds": state["total_time"], "total_time": state["total_time"] if over else 0.0}


def learn(
    study: Study,
    config: TrainConfig,
    report: Report,
    *,
    init: Model | None,
    before: Model | None,
    write: Callable[[Model], None],
    cancelled: Callable[[], bool],
) -> None:
    """Learn on a study and keep the best model.

    Args:
        study: scan and annotation.
        config: of the training.
        report: told how far it is.
        init: what to start from.
        before: what an earlier training of the study left; it stays until this one is better, or done.
        write: keeps a model.
        cancelled: asked after every step; True ends learning.
    """

    def save(model: Model, *, done: bool = False) -> None:
        if done or not _is_better(before, model):
            write(model)
        report.saved = True

    best = train(study, config, init=init, progress=report, cancelled=cancelled, save=save)
    save(best, done=not cancelled())


def _is_better(before: Model | None, model: Model) -> bool:
    """Whether an earlier training came further on the same part of the same study, which a stop must not lose."""
    if before is None or (before.study_hash, before.roi) != (model.study_hash, model.roi):
        return False
    return before.config.similarity == model.config.similarity and before.metric > model.metric
