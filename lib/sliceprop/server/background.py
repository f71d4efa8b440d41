"""Processes beside the server that train, score and work through batches, started in MONAI Label's place.

It writes the whole request on the command line, which every user of the machine can read, the id of a study in it,
perhaps a patient's name, and which does not take long options. Here the request goes through a pipe.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import psutil
from monailabel.interfaces.utils.app import run_main
from monailabel.utils.async_tasks import utils

from sliceprop.server.datastore import Studies

logger = logging.getLogger(__name__)

LINES = 20
"""Of what a process prints: the last ones are kept for clients."""


def install() -> None:
    """Have MONAI Label use `run_task`."""
    utils._task_func = run_task


def stop() -> None:
    """End all processes, and start none any more; a server that ends would wait for them."""
    for executor in utils.background_executors.values():
        executor.shutdown(wait=False, cancel_futures=True)
    for process in [one for running in utils.background_processes.values() for one in running.values()]:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()


def run_task(task: dict[str, Any], method: str, callback: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    """Run a task to its end in a process of its own; called by MONAI Label in a thread.

    Args:
        task: with `id` and `request`; gets `status`, `details` and `end_ts`.
        method: `train`, `scoring` or `batch_infer`.
        callback: called with the task when it has ended.
    """
    task["details"], running = deque(maxlen=LINES), utils.background_processes[method]
    try:
        with _process(method) as process:
            assert process.stdin and process.stdout
            running[task["id"]], task["status"] = process, "RUNNING"
            with suppress(OSError), process.stdin as request:  # it was stopped at once
                json.dump(task["request"], request)
            for line in process.stdout:
                logging.getLogger(f"task_{method}").info(line.rstrip())
                task["details"].append(line.rstrip())
        ended = "ERROR" if process.returncode else "DONE"
    except Exception:
        logger.exception("the process of a task could not be started, or not be followed")
        ended = "ERROR"
    running.pop(task["id"], None)
    task["end_ts"] = datetime.today().strftime("%Y-%m-%d %H:%M:%S")
    if task["status"] != "STOPPED":  # by a client, who kills the process
        task["status"] = ended
    if callback:
        callback(task)


def _process(method: str) -> subprocess.Popen[str]:
    """One that waits for its request.

    Raises:
        OSError: if it cannot be started.
    """
    settings = {"MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"} if method == "train" else {}
    return subprocess.Popen(
        [sys.executable, "-m", __name__, "-m", method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **settings},
    )


def main() -> None:
    """MONAI Label's command line, with the request from standard input."""
    Studies.may_begin = False
    sys.argv += ["-r", sys.stdin.read()]
    run_main()


if __name__ == "__main__":
    main()
