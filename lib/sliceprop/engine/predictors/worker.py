"""The child process: reads one job from standard input, writes progress and the answer to standard output.

Whatever comes after the job asks it to stop learning; when the input ends, its parent is gone and so is it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import IO, Any

import torch

from sliceprop.engine.predictors import messages
from sliceprop.engine.predictors.job import Answer, Failure, Job
from sliceprop.errors import InputError


def main() -> None:
    """Answer one job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then asks to stop
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    job, stop = messages.read(requests), threading.Event()
    assert isinstance(job, Job)
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()

    def say(message: messages.Message) -> None:
        messages.write(answers, message)

    say(_answer(job, say, stop))
    os._exit(0)  # without waiting for the thread, which still listens


def _listen(requests: IO[bytes], stop: threading.Event) -> None:
    while requests.read(1):
        stop.set()
    os._exit(1)


def _answer(job: Job, say: Any, stop: threading.Event) -> Answer | Failure:
    torch.manual_seed(job.config.seed)
    try:
        from sliceprop.engine.predictors.overfitting import overfit  # takes seconds, in which the parent may go

        return overfit(job, progress=say, cancelled=stop.is_set)
    except InputError as error:
        return Failure(str(error), mendable=True)
    except Exception as error:
        return Failure(" ".join(str(error).split()) or type(error).__name__, mendable=False)


if __name__ == "__main__":
    main()
