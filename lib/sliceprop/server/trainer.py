"""The trainer `labelprop`: learns one study's registration, in MONAI Label's training process or in the server."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import psutil
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks

from sliceprop.config import TrainConfig
from sliceprop.engine.registration import Model
from sliceprop.errors import InputError
from sliceprop.server.files import read_json, write_json
from sliceprop.server.requests import first_choices, label_options, train_config
from sliceprop.server.workspace import Workspace
from sliceprop.study import Progress, train

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5


class TrainingState:
    """How far the training is, as a file that the training process writes and the server reads.

    Args:
        file: JSON; replaced as a whole.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, image_id: str, status: str, progress: Progress, **more: Any) -> None:
        """Say how far the training of `image_id` is; `status` is one of MONAI Label's for tasks."""
        process = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        write_json(self._file, {"image": image_id, "status": status, **asdict(progress), **more, "process": process})

    def read(self) -> dict[str, Any]:
        """The last state; `STOPPED` if whoever wrote it is gone or gave up, `NONE` before the first training."""
        state: dict[str, Any] = read_json(self._file) or {"status": "NONE", **asdict(Progress(0, 0, 0.0, 0.0, 0.0))}
        process, status = state.pop("process", {}), state.get("status")
        waiting = any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("train"))
        if (status == "SUBMITTED" and not waiting) or (status == "RUNNING" and not _is_alive(**process)):
            state["status"] = "STOPPED"
        return state


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Report:
    """Keeps a `TrainingState` up to date while a training runs, and says how it ended.

    No epoch is reported before there is a checkpoint: a client that sees one can stop and keeps what was learnt.

    Args:
        state: to write.
        image_id: of the study.
        config: of the training.
    """

    def __init__(self, state: TrainingState, image_id: str, config: TrainConfig) -> None:
        self._state, self._image_id = state, image_id
        self._last = Progress(0, config.max_epochs + config.refine_steps, 0.0, config.budget_s, 0.0)
        self._written, self.saved, self.note = 0.0, False, ""

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
            self.write("DONE")
        else:
            self.write("ERROR", error=str(error))


class PropagateTrainer(TrainTask):  # type: ignore[misc]
    """Learns on the study of the request; the checkpoint gets the image's id.

    Stopping kills the process, so the best model so far is saved on the way. It ends by itself if the server is gone.

    Args:
        workspace: of the server.
        budget_s: seconds of learning where the request does not say.
    """

    def __init__(self, workspace: Workspace, budget_s: float) -> None:
        super().__init__("Learns how the slices of one study deform into each other")
        self._workspace, self._budget_s = workspace, budget_s
        self._state = TrainingState(workspace.folder / "training.json")

    def config(self) -> dict[str, Any]:
        """The options that clients may show."""
        return {"budget_s": self._budget_s, "slice_axis": ["auto", "0", "1", "2"], "init": ["auto", "none"]}

    def stats(self) -> dict[str, Any]:
        """The fields of `study.Progress` with `image` and `status` of the last training; zeros before the first.

        `seconds` is the time since it began, `total_time` the same once it is over: MONAI Label's clients take that for
        the sign of the end.
        """
        state = self._state.read()
        over = state["status"] not in ("SUBMITTED", "RUNNING")
        return {**state, "seconds": state["total_time"], "total_time": state["total_time"] if over else 0.0}

    def prepare(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The request for the training process, after checking everything that can be wrong with it.

        Args:
            params: the client's options: `image`, `slice_axis`, `budget_s`, `init`, `seed`.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(params)
        case = self._workspace.requested_case(options)
        if case is None:
            raise InputError("there is no image to train on")
        train_config(options, self._budget_s)
        study = self._workspace.open(case, label_options(options)).study
        self._workspace.model(case, study, options.get("init"))
        self._workspace.remember(case)
        known = ("slice_axis", "budget_s", "init", "seed")
        return {"image": case.image_id, **{key: options[key] for key in known if options.get(key) is not None}}

    def submitted(self, request: Mapping[str, Any]) -> None:
        """Show that a training waits for its process; that takes a few seconds."""
        Report(self._state, request["image"], train_config(request, self._budget_s)).write("SUBMITTED")

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Train; called by MONAI Label in the training process.

        While it runs, and if the server ends, an earlier checkpoint of the study stays unless this one is better.

        Args:
            request: from `prepare`.
            datastore: the workspace's.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options, checkpoints, server = first_choices(request), self._workspace.checkpoints, os.getppid()
        case, config = self._workspace.case(options["image"]), train_config(options, self._budget_s)

        with Report(self._state, case.image_id, config) as report:
            checkpoints.remove_leftovers()
            study = self._workspace.open(case, label_options(options)).study
            chosen = self._workspace.choose_model(case, study, options.get("init"))
            before, report.note = self._workspace.model(case, study), chosen.note

            def left_alone() -> bool:
                return os.getppid() != server

            def save(model: Model, *, done: bool = False) -> None:
                if done or not _is_better(before, model):
                    checkpoints.save(case.image_id, model)
                report.saved = True

            best = train(study, config, init=chosen.model, progress=report, cancelled=left_alone, save=save)
            save(best, done=not left_alone())
        return self.stats()


def _is_better(before: Model | None, model: Model) -> bool:
    """Whether an earlier training came further on the same part of the same study, which a stop must not lose."""
    if before is None or (before.study_hash, before.roi) != (model.study_hash, model.roi):
        return False
    return before.config.similarity == model.config.similarity and before.metric > model.metric
