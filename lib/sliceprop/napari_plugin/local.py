"""This computer: the library in a process of its own, so that the viewer never waits for it.

Learning holds Python's interpreter too often for a thread beside the viewer. The process is started once, loads torch
while the user looks at the scan, serves all panels, and ends with the viewer, keeping what it has learned so far. If it
ends by itself, as when memory runs out, the next request starts another one.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from sliceprop.errors import SlicePropError
from sliceprop.napari_plugin import messages
from sliceprop.napari_plugin.backend import Cancelled, Job, Progress, Report, Result
from sliceprop.napari_plugin.messages import Answer, Cancel, Request

WORKER = "sliceprop.napari_plugin.worker_process"

LOOK_S = 0.1
"""How often a request that waits asks whether it was cancelled."""


class ComputingError(SlicePropError):
    """The process that computes ended, or failed in a way that is no fault of the user's."""


class LocalBackend:
    """The library on this computer.

    Args:
        folder: where models are kept, one per scan; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, job: Job, progress: Report, cancelled: Cancelled) -> None:
        """See `Backend`."""
        self._ask("train", job, progress, cancelled)

    def propagate(self, job: Job, progress: Report, cancelled: Cancelled) -> Result:
        """See `Backend`."""
        result: Result = self._ask("propagate", job, progress, cancelled)
        return result

    def suggest(self, job: Job) -> Mapping[str, Any]:
        """See `Backend`."""
        suggestion: Mapping[str, Any] = self._ask("suggest", job)
        return suggestion

    def save_model(self, file: Path, job: Job) -> None:
        """See `Backend`."""
        self._ask("save_model", job, file=file)

    def _ask(self, what: str, job: Job, *calls: Any, **paths: Path) -> Any:
        return computer().ask(Request(what, job.loaded(), {"folder": self.folder, **paths}), *calls)


def preview(job: Job) -> Result:
    """Shape-based interpolation between the annotated slices, always on this computer, in well under a second."""
    result: Result = computer().ask(Request("preview", job.loaded()))
    return result


@cache
def computer() -> Computer:
    """The one of this viewer."""
    return Computer()


class _Waiting(NamedTuple):
    """Who waits for answers, and from which process."""

    process: subprocess.Popen[bytes]
    answers: queue.SimpleQueue[Answer]


class Computer:
    """A process that computes what is asked of it, several things at once."""

    def __init__(self) -> None:
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: dict[int, _Waiting] = {}

    def start(self) -> None:
        """Have the process ready by the time it is needed."""
        with self._lock:
            self._running()

    @property
    def pid(self) -> int:
        """Of the process, for those who watch it; it is started if there is none."""
        with self._lock:
            return self._running().pid

    def ask(self, request: Request, progress: Report = lambda _: None, cancelled: Cancelled = lambda: False) -> Any:
        """Have something computed, and wait for it; not for the viewer's thread.

        Args:
            request: what to compute.
            progress: called in this thread.
            cancelled: True ends learning early, with the best so far as the answer.

        Raises:
            InputError: or a subclass, from the library.
            ComputingError: if the process ended or failed.
        """
        number, answers = next(self._numbers), queue.SimpleQueue[Answer]()
        with self._lock:
            process = self._running()
            self._waiting[number] = _Waiting(process, answers)
        self._send(process, number, request)
        told = False
        while True:
            if cancelled() and not told:
                told = True
                self._send(process, number, Cancel())
            with contextlib.suppress(queue.Empty):
                answer = answers.get(timeout=LOOK_S)
                if isinstance(answer.value, Progress):
                    progress(answer.value)
                elif answer.error is not None:
                    raise answer.error
                else:
                    return answer.value

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", "-m", WORKER]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self._process

    def _send(self, process: subprocess.Popen[bytes], number: int, message: Request | Cancel) -> None:
        """Takes as long as the process is busy starting; one that has ended is noticed by the one who listens."""
        assert process.stdin is not None
        with self._sending, contextlib.suppress(BrokenPipeError):
            messages.write_request(process.stdin, number, message)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Hand answers out until the process ends; then those who wait learn of it."""
        assert process.stdout is not None
        with contextlib.suppress(EOFError, ValueError):
            while True:
                number, answer = messages.read_answer(process.stdout)
                last = not isinstance(answer.value, Progress)
                waiting = self._waiting.pop(number) if last else self._waiting[number]
                waiting.answers.put(answer)
        process.kill()  # one that is still there talks nonsense
        status = process.wait()
        ended = ComputingError(
            f"the process that computes ended by itself (exit status {status}), perhaps for lack of memory; "
            "what was learned until then is kept, try again"
        )
        with self._lock:
            left = [number for number, waiting in self._waiting.items() if waiting.process is process]
            for number in left:
                self._waiting.pop(number).answers.put(Answer(error=ended))
