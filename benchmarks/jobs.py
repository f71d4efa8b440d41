"""Jobs in processes of their own: what is to be done, several at a time, and what came of each.

A process that crashes, hangs or is refused makes rows that say so; none takes another one down. The processes end
with this one, however it ends, since their input ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from layouts import Source
from table import Row

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Job:
    """One case under methods that share a process.

    Attributes:
        layout: of the data set.
        source: files of the scan and its reference.
        axis: across the slices, one of `layouts.AXES`.
        pad_px: padding before the random crops, 0 for whole volumes.
        seed: of crops and random placements.
        placement: rule for the annotated slices.
        amount: `5` or `20%`.
        methods: their names, with settings.
        device: for methods that can choose.
        jobs: how many processes run at the same time, at most; for the record.
        pythons: interpreter of each peer.
        keep: folder for what `auto` found, for `quality.py`; None for nothing.
    """

    layout: str
    source: Source
    axis: str
    pad_px: int
    seed: int
    placement: str
    amount: str
    methods: tuple[str, ...]
    device: str = "auto"
    jobs: int = 1
    pythons: Mapping[str, str] = field(default_factory=dict)
    keep: Path | None = None

    def row(self, method: str, status: str = "") -> Row:
        """An empty row of this case."""
        case = self.layout, self.source.name, self.axis, self.pad_px, self.seed, self.placement, self.amount
        return Row(*case, method, status=status, jobs=self.jobs)


def run_all(jobs: Iterable[Job], at_once: int, limit_s: float) -> Iterator[list[Row]]:
    """The rows of each job, as they end.

    Args:
        jobs: in the order of their start.
        at_once: processes at the same time.
        limit_s: seconds after which a process is ended.
    """
    waiting, running = deque(jobs), list[_Process]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Process(waiting.popleft(), at_once, limit_s))
            wait([process.ended for process in running], min(process.left_s for process in running))
            for process in [process for process in running if process.is_over]:
                running.remove(process)
                yield process.rows()
    finally:
        for process in running:
            process.end()


class _Process:
    """A job on its way, in a process group of its own."""

    def __init__(self, job: Job, at_once: int, limit_s: float) -> None:
        self._job, self._limit_s, self._deadline = job, limit_s, time.monotonic() + limit_s
        self._folder = tempfile.TemporaryDirectory()
        self._answers, self._log = Path(self._folder.name) / "rows", Path(self._folder.name) / "log"
        self._answers.touch()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, WORKER, self._answers],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment(at_once),
            )
        self.ended = os.pidfd_open(self._process.pid)
        assert self._process.stdin is not None
        pickle.dump(job, self._process.stdin)
        self._process.stdin.flush()  # and stays open: its end tells the worker that nobody waits any more

    @property
    def left_s(self) -> float:
        """Seconds until it is ended."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has ended or has to."""
        return self._process.poll() is not None or not self.left_s

    def rows(self) -> list[Row]:
        """What it answered, and a failed row for each method that has no answer."""
        late = self._process.poll() is None
        status = self.end()
        answered = _unpickle(self._answers)
        reason = f"took longer than {self._limit_s:g} s" if late else f"exit status {status}{_last_line(self._log)}"
        self._folder.cleanup()
        missing = set(self._job.methods) - {row.method for row in answered}
        return answered + [self._job.row(m, f"failed: {reason}") for m in self._job.methods if m in missing]

    def end(self) -> int:
        """Kill what is left of the group; the exit status."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self.ended)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait()


def environment(at_once: int) -> dict[str, str]:
    """The cores shared out, unless the caller has said how many threads to use."""
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | os.environ


def _unpickle(path: Path) -> list[Row]:
    """All complete rows."""
    rows = []
    with path.open("rb") as file:
        while True:
            try:
                rows.append(pickle.load(file))
            except (EOFError, pickle.UnpicklingError):
                return rows


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f", {lines[-1].strip()}" if lines else ""
