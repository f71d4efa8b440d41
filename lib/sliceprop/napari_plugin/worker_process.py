"""The process that computes: reads requests from standard input and writes answers to standard output.

Several requests are worked on at once, so that a preview does not wait for learning. When its input ends, because the
viewer was closed or crashed, learning is cancelled, what was learned is kept, and the process ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

from sliceprop.errors import InputError, SlicePropError
from sliceprop.napari_plugin import messages
from sliceprop.napari_plugin.backend import Job, Progress, Result
from sliceprop.napari_plugin.geometry import reversed_axes
from sliceprop.napari_plugin.messages import Answer, Cancel, Request

if TYPE_CHECKING:
    from sliceprop.engine.registration import Model
    from sliceprop.study import Propagation, Study

logger = logging.getLogger(__name__)

NICENESS = 5
"""Learning gives way to the viewer."""

KEPT = 20
"""Models of so many scans stay; the oldest goes."""

LABELS = ".labels.nii.gz"
"""Ending of what was painted when learning began, beside the model."""


class Task:
    """One request that is worked on.

    Args:
        number: of the request.
        send: writes an answer.
    """

    def __init__(self, number: int, send: Any) -> None:
        self.number, self._send = number, send
        self.cancelled = threading.Event()

    def run(self, request: Request) -> None:
        """Compute and answer."""
        try:
            answer = Answer(WORK[request.what](self, request.job, **request.paths))
        except SlicePropError as error:
            answer = Answer(error=error)
        except MemoryError:
            answer = Answer(error=InputError("memory is not enough for this study; close other programs, or crop it"))
        except Exception as error:
            logger.exception("%s failed", request.what)
            answer = Answer(error=SlicePropError(f"{request.what} failed ({type(error).__name__}: {error})"))
        self._send(self.number, answer)

    def report(self, event: Any) -> None:
        """Pass an event of learning on."""
        planned = event.total_time + event.seconds_left
        share = max(event.epoch / max(event.total_epochs, 1), event.total_time / planned if planned > 0 else 0)
        self._send(self.number, Answer(Progress(min(share, 1.0), event.seconds_left)))


# ---------------------------------------------------------------------- what can be asked for


def train(task: Task, job: Job, folder: Path) -> None:
    """Learn on the study; the best so far is kept all along."""
    from sliceprop import study
    from sliceprop.checkpoint import save_checkpoint
    from sliceprop.io import check_folder

    opened, models, settings = open_job(job), Models(folder), job.settings
    if settings.save_to is not None:
        check_folder(settings.save_to)
    models.keep_labels(opened, job)
    init = models.start_of(opened, settings.start, go_on=settings.go_on)
    if init is None and settings.go_on:
        init = pretrained(job.file)

    def keep(best: Model) -> None:
        models.keep(opened, best)
        if settings.save_to is not None:
            save_checkpoint(settings.save_to, best)

    keep(
        study.train(
            opened,
            settings.train,
            init=init,
            device=settings.device,
            progress=task.report,
            cancelled=task.cancelled.is_set,
            save=keep,
        )
    )
    models.started(opened, settings.start)


def propagate(task: Task, job: Job, folder: Path) -> Result:
    """Fill the volume with what was learned on the scan, if anything was."""
    from sliceprop import study

    opened, settings = open_job(job), job.settings
    result = study.propagate(
        opened,
        Models(folder).model_for(opened, settings.start),
        settings.propagate,
        target=settings.target,
        names=job.names,
        device=settings.device,
        progress=task.report,
        cancelled=task.cancelled.is_set,
    )
    return shown(result)


def suggest(_task: Task, job: Job, folder: Path) -> dict[str, Any]:
    """The slice to annotate next."""
    from sliceprop import study
    from sliceprop.config import SuggestConfig

    opened = open_job(job)
    model = Models(folder).model_for(opened, job.settings.start)
    return vars(study.suggest(opened, model, SuggestConfig(target=job.settings.target), names=job.names)[0])


def save_model(_task: Task, job: Job, folder: Path, file: Path) -> None:
    """Write what was learned on the study to a file."""
    from sliceprop.checkpoint import save_checkpoint
    from sliceprop.io import check_folder

    model = Models(folder).model_for(open_job(job), None)
    if model is None:
        raise InputError("nothing was learned on this scan yet; press Learn first")
    check_folder(file)
    save_checkpoint(file, model)


def preview(_task: Task, job: Job) -> Result:
    """Interpolate shapes between the annotated slices."""
    from sliceprop import study

    quick = replace(job.settings.propagate, method="shape")
    return shown(study.propagate(open_job(job), None, quick, target=job.settings.target, names=job.names))


WORK: dict[str, Any] = {function.__name__: function for function in (train, propagate, suggest, save_model, preview)}


def pretrained(image: str) -> Model | None:
    """The model that the first learning on a scan starts from, see `warm_start`; one that cannot be used is as none.

    Args:
        image: file of the scan, or folder of its series, which may tell modality and anatomy; may be empty.
    """
    from sliceprop.checkpoint import load_checkpoint
    from sliceprop.warm_start import WarmStart

    try:
        file = WarmStart().checkpoint(Path(image) if image else None)
        return None if file is None else load_checkpoint(file)
    except InputError as error:
        logger.warning("learning starts from nothing: %s", error)
        return None


def open_job(job: Job) -> Study:
    """The study of the library."""
    from sliceprop import study

    return study.open_study(
        job.image,
        job.labels,
        affine=job.affine,
        scribbles=job.scribbles,
        slice_axis=job.settings.slice_axis,
        annotated_slices=None if job.settings.partial else job.annotated_slices,
        partial=job.settings.partial,
    )


def shown(result: Propagation) -> Result:
    """A propagation as layers show it; contiguous, as it is sent."""
    labels, lower, upper = (
        np.ascontiguousarray(part, np.uint16) for part in (result.labels, result.from_lower, result.from_upper)
    )
    return Result(labels, lower, upper, np.ascontiguousarray(result.uncertainty), result.report)


class Models:
    """What was learned, one file per scan, so that a later session goes on with it.

    Args:
        folder: of the files; made when needed.
    """

    _starts: ClassVar[dict[str, tuple[Path, float]]] = {}
    """From which checkpoint, as of when, each scan was learned in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, opened: Study, model: Model) -> None:
        """Write the model of a scan, in place of an earlier one."""
        from sliceprop.checkpoint import save_checkpoint
        from sliceprop.io import make_folder

        make_folder(self._folder)
        save_checkpoint(self._file(opened), model)
        for old in sorted(self._folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            for file in (old, old.with_suffix(".json"), old.with_suffix(LABELS)):
                file.unlink(missing_ok=True)

    def keep_labels(self, opened: Study, job: Job) -> None:
        """Write what is painted beside the model: a viewer may be closed, or crash, before it is saved."""
        from sliceprop.io import Image, make_folder, write_image

        make_folder(self._folder)
        labels = job.labels.T
        write_image(self._file(opened).with_suffix(LABELS), labels, Image(labels, reversed_axes(job.affine)))

    def start_of(self, opened: Study, chosen: Path | None, *, go_on: bool) -> Model | None:
        """What learning starts from: a file that was chosen since, else what was learned on this scan."""
        from sliceprop.checkpoint import load_checkpoint

        taken = self._file(opened).is_file() and chosen is not None and self._starts.get(opened.study_hash)
        if chosen is not None and taken != _stamp(chosen):
            return load_checkpoint(chosen)
        return self._kept(opened) if go_on else None

    def started(self, opened: Study, chosen: Path | None) -> None:
        """Learning went on from a file, which need not be taken again."""
        if chosen is not None:
            self._starts[opened.study_hash] = _stamp(chosen)

    def model_for(self, opened: Study, chosen: Path | None) -> Model | None:
        """What propagation uses: the same, but never the model of another scan."""
        model = self.start_of(opened, chosen, go_on=True)
        return model if model is not None and model.study_hash in (None, opened.study_hash) else self._kept(opened)

    def _kept(self, opened: Study) -> Model | None:
        """The model of a scan; one that cannot be read any more is as good as none."""
        from sliceprop.checkpoint import load_checkpoint

        file = self._file(opened)
        if not file.is_file():
            return None
        try:
            return load_checkpoint(file)
        except InputError as error:
            logger.warning("%s", error)
            return None

    def _file(self, opened: Study) -> Path:
        return self._folder / f"{opened.study_hash[:32]}.safetensors"


def _stamp(file: Path) -> tuple[Path, float]:
    return file, file.stat().st_mtime if file.is_file() else 0.0


# ---------------------------------------------------------------------- messages


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the input ends, then end what is under way."""
    lock, tasks, threads = threading.Lock(), dict[int, Task](), list[threading.Thread]()

    def send(number: int, answer: Answer) -> None:
        with lock:
            try:
                messages.write_answer(answers, number, answer)
            except BrokenPipeError:  # nobody listens any more
                tasks[number].cancelled.set()

    def work(task: Task, request: Request) -> None:
        task.run(request)
        del tasks[task.number]

    while (message := _next(requests)) is not None:
        number, content = message
        if isinstance(content, Cancel):
            if (task := tasks.get(number)) is not None:
                task.cancelled.set()
            continue
        task = tasks[number] = Task(number, send)
        threads = [thread for thread in threads if thread.is_alive()]
        threads.append(threading.Thread(target=work, args=(task, content)))
        threads[-1].start()
    for task in list(tasks.values()):
        task.cancelled.set()
    for thread in threads:
        thread.join()


def _next(requests: IO[bytes]) -> tuple[int, Request | Cancel] | None:
    try:
        return messages.read_request(requests)
    except (EOFError, ValueError):
        return None


def main() -> None:
    """Load the library, then answer."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the viewer's; this process ends with its input
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    import sliceprop.study  # noqa: F401  takes seconds, best before the first request

    serve(requests, answers)


if __name__ == "__main__":
    main()
