"""A training as it is handed to a Dask worker, and what the worker does with it.

It travels as plain values and paths, which mean the same on all machines. A folder of its own holds what the worker
reads. The training is wanted as long as that folder is there, and the server touches it from time to time.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sliceprop.arrays import load_arrays, save_arrays
from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.cohort.workers import keep_freed_memory
from sliceprop.config import TrainConfig
from sliceprop.engine.registration import Model
from sliceprop.errors import FileError, SlicePropError
from sliceprop.io import compact_labels, make_folder, read_image
from sliceprop.labels import LabelArray
from sliceprop.server.learning import Report, StateFile, learn
from sliceprop.study import Study, open_study

SECONDS_BETWEEN_LOOKS = 0.5
"""At least, between asking whether a training is still wanted: the folder may lie on a shared disk."""

SILENCE_S = 180.0
"""After which a server that does not touch the folder is gone; shared disks tell the time of a change a minute late."""

DRAWN, INIT = "drawn.npz", "init.safetensors"

Outcome = dict[str, Any]
"""How a training ended: `status`, with an error `error`, a sentence, and for an unexpected one `trace`."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        image_id: of the study.
        image: file of the scan.
        folder: the training's own.
        options: arguments of `open_study` beside scan and drawing.
        config: of the training.
        checkpoint: of the study.
        state: the study's `StateFile`.
        note: for the user.
    """

    image_id: str
    image: Path
    folder: Path
    options: Mapping[str, Any]
    config: TrainConfig
    checkpoint: Path
    state: Path
    note: str = ""

    def pack(self, drawn: Mapping[str, LabelArray], init: Model | None) -> None:
        """Write what the worker reads.

        Args:
            drawn: `labels` and `scribbles`, `(i, j, k)`, as far as there are any.
            init: what to start from.

        Raises:
            FileError: if the disk is read-only or full.
        """
        make_folder(self.folder)
        save_arrays(self.folder / DRAWN, **{name: compact_labels(array) for name, array in drawn.items()})
        if init is not None:
            save_checkpoint(self.folder / INIT, init)

    def touch(self) -> None:
        """Say that it is still wanted."""
        with suppress(OSError):  # it has just ended
            os.utime(self.folder)

    def touched(self) -> int | None:
        """When that was said last, by any clock; None if it is not wanted any more."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return None

    def discard(self) -> None:
        """Stop it, or clear up after it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_job(job: Job) -> Outcome:
    """Train; called by a Dask worker, which gets no exception, since Dask would log it with the name of the scan.

    The best model so far is saved every few seconds. A stop keeps it, and so does a worker that dies.
    """
    if job.touched() is None:
        return {"status": "STOPPED"}
    keep_freed_memory()
    try:
        with Report(StateFile(job.state), job.image_id, job.config, job.note) as report:
            try:
                _run(job, report)
            except Exception:
                if job.touched() is not None:
                    raise
                report.ended = "STOPPED"  # with its folder, from under its feet
        return {"status": report.ended}
    except (SlicePropError, MemoryError) as error:
        return {"status": "ERROR", "error": str(error) or "the memory of the worker is full; crop or downsample"}
    except Exception as error:
        return {"status": "ERROR", "error": f"unexpected {type(error).__name__}", "trace": traceback.format_exc()}


def _run(job: Job, report: Report) -> None:
    study, init, unwanted = _study(job), job.folder / INIT, Unwanted(job)
    make_folder(job.checkpoint.parent)

    def write(model: Model) -> None:
        if job.state.parent.is_dir():  # else the study was erased meanwhile
            save_checkpoint(job.checkpoint, model)

    learn(
        study,
        job.config,
        report,
        init=load_checkpoint(init) if init.is_file() else None,
        before=_left_before(job.checkpoint),
        write=write,
        cancelled=unwanted,
    )
    if unwanted():
        report.ended = "STOPPED"


class Unwanted:
    """Whether a training was stopped, or its server is gone; looks at the disk now and then only.

    Args:
        job: the training.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._touched, self._answer = job, job.touched(), False
        self._looked = self._heard = time.monotonic()

    def __call__(self) -> bool:
        """The answer; once it is True it stays."""
        now = time.monotonic()
        if self._answer or now - self._looked < SECONDS_BETWEEN_LOOKS:
            return self._answer
        touched, self._looked = self._job.touched(), now
        if touched != self._touched:
            self._touched, self._heard = touched, now
        self._answer = touched is None or now - self._heard > SILENCE_S
        return self._answer


def _study(job: Job) -> Study:
    drawn = load_arrays(job.folder / DRAWN)
    if drawn is None:
        raise FileError("what was drawn did not reach the worker; all machines need the same folder of studies")
    scan = read_image(job.image)
    images = {name: replace(scan, array=array) for name, array in drawn.items()}
    return open_study(scan, images.get("labels"), scribbles=images.get("scribbles"), **job.options)


def _left_before(checkpoint: Path) -> Model | None:
    try:
        return load_checkpoint(checkpoint)
    except SlicePropError:
        return None
