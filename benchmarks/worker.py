"""Child process of `jobs`: one case under one or several methods. Reads a job, appends a row per method to a file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cases
import common
from jobs import Job
from methods import parse
from peering import CannotRun
from placements import annotated_slices
from runners import Runner
from scores import score, scored_slices
from table import OK, Row

MIN_SCORED = 3
PACKAGES = ("sliceprop", "torch", "monai", "numpy", "scipy")


def work(job: Job) -> Iterator[Row]:
    """A row for each method; what goes wrong with one of them is said in its row."""
    case = cases.load(job.source, job.axis, job.pad_px, job.seed)
    annotated = annotated_slices(
        case.slices(case.image.array), case.labelled_range, job.placement, job.amount, job.seed
    )
    runner = Runner(case, annotated, job.device, job.pythons)
    for name in job.methods:
        row = replace(job.row(name, OK), **_circumstances(case, annotated, name))
        if len(scored_slices(case, annotated)) < MIN_SCORED:
            yield replace(row, status=f"skipped: fewer than {MIN_SCORED} slices to score")
            continue
        try:
            labels, measured = runner(parse(name))
            row = replace(row, **measured, **score(case, labels, annotated))
            if job.keep is not None and name == "auto":
                runner.keep(parse(name), job.keep / f"{case.name}_{job.placement}_{job.amount}.npz")
            if row.dice is None:
                row = replace(row, status="skipped: no label on the slices to score")
        except CannotRun as error:
            row = replace(row, status=f"cannot run: {error}")
        except Exception as error:
            row = replace(row, status=f"failed: {type(error).__name__}: {_one_line(error)}")
        yield replace(row, date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"))


def _circumstances(case: cases.Case, annotated: list[int], name: str) -> dict[str, Any]:
    machine = common.machine()
    return {
        "shape": "x".join(map(str, case.slices(case.reference).shape)),
        "n_labels": case.n_labels,
        "annotated": " ".join(map(str, annotated)),
        "settings": json.dumps(parse(name).settings),
        "cores": machine["cores"],
        "cpu": machine["cpu"],
        "versions": f"python {platform.python_version()}, {versions(PACKAGES)}",
    }


def versions(packages: tuple[str, ...]) -> str:
    """Names and versions of installed packages."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _end_with_input() -> None:
    """End this process and its children as soon as nobody waits for the answer any more."""
    os.read(0, 1)  # not `sys.stdin`, whose lock would be held when the interpreter ends
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Read the job from standard input, append the rows to the file that is named."""
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    with Path(sys.argv[1]).open("ab") as answers:
        for row in work(job):
            pickle.dump(row, answers)
            answers.flush()


if __name__ == "__main__":
    main()
