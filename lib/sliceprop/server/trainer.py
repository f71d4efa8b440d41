"""The trainer `labelprop`: learns one study's registration, in MONAI Label's training process or in the server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import psutil
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks

from sliceprop.errors import InputError
from sliceprop.io import make_folder
from sliceprop.server.errors import BusyError
from sliceprop.server.learning import OPEN, Report, StateFile, as_stats, learn
from sliceprop.server.requests import first_choices, label_options, train_config
from sliceprop.server.training_work import Job
from sliceprop.server.workspace import Workspace
from sliceprop.study import Progress

PATIENCE_S = 0.1
"""How long a training that is handed to a worker waits for other work on its study; it is tried again later."""


class TrainingState(StateFile):
    """The same of the one training process that MONAI Label runs at a time."""

    def write(self, image_id: str, status: str, progress: Progress, **more: Any) -> None:
        """Say how far the training of `image_id` is; the folder is made on the way."""
        make_folder(self._file.parent)
        super().write(image_id, status, progress, **more)

    def read(self) -> dict[str, Any]:
        """The last state; `STOPPED` if whoever wrote it is gone or gave up, `NONE` before the first training."""
        state = self._content()
        process, status = state.pop("process", {}), state["status"]
        waiting = any(task["status"] in OPEN for task in tasks("train"))
        if (status == "SUBMITTED" and not waiting) or (status == "RUNNING" and not _is_alive(**process)):
            state["status"] = "STOPPED"
        return state


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _held(lock: RLock, image_id: str) -> Iterator[None]:
    """Holds the lock of a study, unless others hold it for long: a propagation may take minutes.

    Raises:
        BusyError: in that case.
    """
    if not lock.acquire(timeout=PATIENCE_S):
        raise BusyError(f"{image_id} is being worked on; try again later", 10)
    try:
        yield
    finally:
        lock.release()


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
        """`learning.as_stats` of the last training; zeros before the first."""
        return as_stats(self._state.read())

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
        self._workspace.models.choose(case, study, options.get("init"))
        self._workspace.remember(case)
        known = ("slice_axis", "budget_s", "init", "seed")
        return {"image": case.image_id, **{key: options[key] for key in known if options.get(key) is not None}}

    def submitted(self, request: Mapping[str, Any], state: StateFile | None = None) -> None:
        """Show that a training waits for its process, which takes a few seconds, or for a worker."""
        Report(state or self._state, request["image"], train_config(request, self._budget_s)).write("SUBMITTED")

    def job(self, request: Mapping[str, Any], folder: Path, state: Path) -> Job:
        """The same request for a Dask worker, with the annotation that is in force now.

        Args:
            request: from `prepare`.
            folder: for the training alone; filled here.
            state: file in which the worker says how far it is.

        Raises:
            BusyError: while something else works on the study.
            InputError: or a subclass, for anything that cannot be used any more.
        """
        options, checkpoints = first_choices(request), self._workspace.checkpoints
        case = self._workspace.case(options["image"])
        checkpoints.remove_leftovers()
        with _held(self._workspace.lock(case), case.image_id):
            opened = self._workspace.open(case, label_options(options))
            chosen = self._workspace.models.choose_start(case, opened.study, options.get("init"))
        job = Job(
            case.image_id,
            case.image.absolute(),
            folder,
            opened.drawing.options,
            train_config(options, self._budget_s),
            checkpoints.file(case.image_id),
            state,
            chosen.note,
        )
        job.pack(opened.drawing.arrays, chosen.model)
        return job

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
            chosen = self._workspace.models.choose_start(case, study, options.get("init"))
            before, report.note = self._workspace.models.choose(case, study).model, chosen.note
            learn(
                study,
                config,
                report,
                init=chosen.model,
                before=before,
                write=lambda model: checkpoints.save(case.image_id, model),
                cancelled=lambda: os.getppid() != server,
            )
        return self.stats()
