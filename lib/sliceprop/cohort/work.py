"""One study of a cohort, as a worker does it: open, learn, propagate, write; the report last, as the mark of the end.

What a worker gets and gives are plain values and paths, since both travel between machines.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sliceprop import __version__
from sliceprop.cohort.finding import Entry, Failure
from sliceprop.cohort.pages import write_study_page
from sliceprop.cohort.workers import keep_freed_memory
from sliceprop.config import LEARNED_METHODS, PropagateConfig, SuggestConfig, TrainConfig
from sliceprop.errors import FileError, SlicePropError
from sliceprop.hashing import known_digest
from sliceprop.io import Image, check_not_inputs, make_folder, read_image, write_image, write_json
from sliceprop.warm_start import SHIPPED

if TYPE_CHECKING:
    from sliceprop.engine.registration import Model
    from sliceprop.study import Propagation, Study

logger = logging.getLogger(__name__)

LABELS, UNCERTAINTY, DRAWN, PICTURE = "labels.nii.gz", "uncertainty.nii.gz", "drawn.nii.gz", "overlay.png"
REPORT, PAGE, MODEL = "report.json", "report.html", "model.safetensors"

UNCERTAINTY_STEPS = 100
"""Uncertainty is written in hundredths: the estimate is no finer, and the files shrink."""

LEARNING_S = 600.0
"""Bound for learning one study. Nobody waits for a single one here, so that learning ends by its steps, not by the
clock: results are then the same however busy the machine is."""

LEARNING_EPOCHS = 2
"""Of the network, which starts from a pretrained one: from there eight took longer and brought nothing more
(`benchmarks/EXPERIMENTS.md`)."""


@dataclass(frozen=True)
class CohortConfig:
    """What is done with every study.

    Attributes:
        train: learning.
        propagate: carrying the labels.
        target: estimated Dice above which a slice needs no annotation.
        device: `auto`, `cpu`, `cuda`; the worker's.
        model: checkpoint to use where it was learnt on the study, else to start learning from; the list's comes first.
        shipped: start the others from the network that comes with the package on the worker's machine.
        keep_models: write what was learnt as `model.safetensors`.
        pictures: write `overlay.png`.
        names: label value to name.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(budget_s=LEARNING_S, max_epochs=LEARNING_EPOCHS))
    propagate: PropagateConfig = field(default_factory=PropagateConfig)
    target: float = SuggestConfig.target
    device: str = "auto"
    model: Path | None = None
    shipped: bool = True
    keep_models: bool = False
    pictures: bool = True
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A study and where its results go.

    Attributes:
        entry: its files.
        folder: for the results.
        config: what to do.
    """

    entry: Entry
    folder: Path
    config: CohortConfig

    @property
    def signature(self) -> str:
        """Changes with the settings, and with name, size and time of every file that the result depends on."""
        stats = [(file.name, *size_and_time(file)) for file in self.entry.files]
        options = self.entry.slice_axis, self.entry.annotated_slices, self.entry.partial
        text = json.dumps([asdict(self.config), options, stats], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Used:
    """What a study is propagated with.

    Attributes:
        model: None where nothing is learnt.
        given: path and SHA-256 of the checkpoint that was used as it is, since it was learnt on this study.
        init: of the one that learning started from.
        learned: whether the model was learnt now.
    """

    model: Model | None = None
    given: Mapping[str, str] | None = None
    init: Mapping[str, str] | None = None
    learned: bool = False


def finished(task: Task) -> dict[str, Any] | None:
    """The report of an earlier run with the same files and settings; None where there is none.

    Where the files lie elsewhere now, it is written anew with their places.
    """
    try:
        report: dict[str, Any] = json.loads((task.folder / REPORT).read_text(encoding="utf-8"))
        done = report["signature"] == task.signature and (task.folder / LABELS).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not done:
        return None
    found = report | _places(task.entry)
    if found != report:
        with suppress(FileError):  # what is done stays done
            write_json(task.folder / REPORT, found)
    return found


def _places(entry: Entry) -> dict[str, str | None]:
    """Where the files of a study lie, for its report."""
    return {"image": str(entry.image), "labels": None if entry.labels is None else str(entry.labels)}


def run_study(task: Task) -> dict[str, Any] | Failure:
    """Do one study unless it is done.

    Returns:
        its report, or why there is none; errors that a user can mend do not leave this function, so that a study that
        fails stops no other one.
    """
    keep_freed_memory()
    try:
        return finished(task) or _run(task)
    except (SlicePropError, MemoryError) as error:
        with suppress(OSError):  # where it holds anything, or is not there
            task.folder.rmdir()
        name, reason = str(task.entry.image), " ".join(str(error).split())
        return Failure(
            name, reason.removeprefix(f"{name}: ") or "the memory is full; crop or downsample", task.entry.id
        )


def _run(task: Task) -> dict[str, Any]:
    from sliceprop import study as use_cases
    from sliceprop.checkpoint import save_checkpoint

    began, signature, config = time.monotonic(), task.signature, task.config
    make_folder(task.folder)
    check_not_inputs([task.folder / name for name in (LABELS, UNCERTAINTY, DRAWN)], task.entry.files)
    (task.folder / REPORT).unlink(missing_ok=True)
    scan, study = _open(task)
    opened = time.monotonic()
    used = _model(task, study)
    trained = time.monotonic()
    result = use_cases.propagate(
        study, used.model, config.propagate, target=config.target, names=config.names, device=config.device
    )
    propagated = time.monotonic()
    _write_arrays(task, scan, study, result)
    if config.keep_models and used.learned and used.model is not None:
        save_checkpoint(task.folder / MODEL, used.model)
    report = {
        "id": task.entry.id,
        **_places(task.entry),
        "signature": signature,
        "study_hash": study.study_hash,
        "annotation_hash": _annotation_hash(study),
        "version": __version__,
        "shape": list(scan.array.shape),
        "label_names": {str(v): config.names.get(v, f"label {v}") for v in study.annotation.values},
        **result.report,
        "model": used.given,
        "init": used.init,
        "learned": used.learned,
        "seconds": {
            "open": round(opened - began, 2),
            "learn": round(trained - opened, 2),
            "propagate": round(propagated - trained, 2),
            "write": round(time.monotonic() - propagated, 2),
        },
    }
    write_study_page(task.folder / PAGE, report, PICTURE if config.pictures else None)
    write_json(task.folder / REPORT, report)
    return report


def _open(task: Task) -> tuple[Image, Study]:
    from sliceprop.study import open_study

    entry = task.entry
    if entry.labels is None and entry.scribbles is None:
        raise FileError("no labels; paint some slices and save them where the list or the folder has them")
    scan = read_image(entry.image)
    return scan, open_study(
        scan,
        entry.labels,
        scribbles=entry.scribbles,
        slice_axis=entry.slice_axis,
        annotated_slices=entry.annotated_slices,
        partial=entry.partial,
    )


def _model(task: Task, study: Study) -> Used:
    """The model to propagate with, and where it comes from."""
    from sliceprop import study as use_cases
    from sliceprop.checkpoint import load_checkpoint

    config = task.config
    file = task.entry.model or config.model or (SHIPPED if config.shipped else None)
    if config.propagate.method not in LEARNED_METHODS or not study.annotation.values:
        return Used()
    given = load_checkpoint(file) if file else None
    described = {"path": str(file), "sha256": known_digest(file)} if file else None
    if given is not None and given.study_hash == study.study_hash:
        return Used(given, given=described)
    model = use_cases.train(study, config.train, init=given, device=config.device)
    return Used(model, init=described, learned=True)


def _write_arrays(task: Task, scan: Image, study: Study, result: Propagation) -> None:
    coarse = np.round(result.uncertainty * UNCERTAINTY_STEPS) / np.float32(UNCERTAINTY_STEPS)
    write_image(task.folder / UNCERTAINTY, coarse.astype(np.float32), scan)
    write_image(task.folder / DRAWN, study.drawn.astype(np.uint8), scan)
    write_image(task.folder / LABELS, result.labels, scan)
    if task.config.pictures:
        from sliceprop.overlay import write_overlay

        axis, slices = study.volume.slice_axis, study.annotation.annotated_slices
        write_overlay(task.folder / PICTURE, scan, result.labels, slice_axis=axis, annotated_slices=slices)


def _annotation_hash(study: Study) -> str:
    """SHA-256 over what was drawn, to find copies."""
    drawn = study.annotation
    digest = hashlib.sha256(drawn.labels.tobytes() + drawn.known.tobytes())
    digest.update(b"" if drawn.scribbles is None else drawn.scribbles.tobytes())
    return digest.hexdigest()


def size_and_time(file: Path) -> tuple[int, int]:
    """Size and time of change in ns, of a folder those of its files together; zeros where it is missing."""
    try:
        if file.is_dir():
            stats = [each.stat() for each in sorted(file.iterdir())]
            return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
