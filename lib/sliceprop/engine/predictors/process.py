"""Runs a job in a child process: torchvision stays out of this one, and a crash ends only the child."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO

from sliceprop.engine.predictors import messages
from sliceprop.engine.predictors.job import Answer, Failure, Job
from sliceprop.engine.training import Progress
from sliceprop.errors import InputError, SlicePropError

SILENCE_S = 600.0
"""A child that says nothing for so long hangs: it speaks after every step and every batch of slices."""

WORKER = "sliceprop.engine.predictors.worker"


class PredictorError(SlicePropError):
    """The overfitted network failed for a reason that is not the user's; another method works."""


def run(job: Job, *, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Answer:
    """Overfit a network in a child process, which never outlives this call nor this process.

    Args:
        job: what to learn.
        progress: called after every step.
        cancelled: asked as often; True ends learning and keeps the best so far.

    Raises:
        InputError: an encoder or weights that the network cannot take.
        PredictorError: if the child crashes, hangs or runs out of memory.
    """
    command = [sys.executable, "-P", "-W", "ignore", "-m", WORKER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        _send(process, lambda stream: messages.write(stream, job))
        for message in _messages(process):
            if isinstance(message, Progress):
                progress(message)
                if cancelled():
                    _send(process, lambda stream: stream.write(b"s"))
            elif isinstance(message, Failure):
                raise InputError(message.reason) if message.mendable else _error(job, message.reason)
            else:
                assert isinstance(message, Answer)
                return message
        raise _error(job, f"its process ended with exit status {process.wait()}")
    finally:
        process.kill()
        process.communicate()  # closes the pipes


def _error(job: Job, reason: str) -> PredictorError:
    return PredictorError(f"{job.method} failed: {reason}; choose another method, encoder or device")


def _send(process: subprocess.Popen[bytes], write: Callable[[IO[bytes]], object]) -> None:
    """Write to the child; what went wrong in a child that is gone is told by what it said before."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        write(process.stdin)
        process.stdin.flush()


def _messages(process: subprocess.Popen[bytes]) -> Iterator[messages.Message]:
    """What the child says, until it ends."""
    assert process.stdout is not None
    while True:
        watchdog = threading.Timer(SILENCE_S, process.kill)
        watchdog.start()
        try:
            message = messages.read(process.stdout)
        except EOFError:
            return
        finally:
            watchdog.cancel()
        yield message
