"""Peers: other people's programs, each in a process and a Python of its own, given what our methods are given."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods import PEERS_FOLDER, Method

CANNOT_RUN = "cannot run: "
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that would lead a peer to our packages."""


class CannotRun(Exception):
    """A peer that is not installed or needs what this machine lacks."""


def run_peer(
    method: Method,
    python: str | None,
    scan: NDArray[Any],
    labels: NDArray[np.int32],
    annotated: Sequence[int],
    spacing: Sequence[float],
) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Let a peer fill a volume.

    Args:
        method: the peer and its settings.
        python: interpreter of an environment that has the peer.
        scan: `(S, H, W)`.
        labels: `(S, H, W)`, 0 on every slice that is not annotated.
        annotated: these slices.
        spacing: mm along `(S, H, W)`.

    Returns:
        labels `(S, H, W)`; `train_s`, `propagate_s`, `device`, `settings`, `versions`.

    Raises:
        CannotRun: without an interpreter, or if the peer says so.
        RuntimeError: if it fails.
    """
    if python is None:
        raise CannotRun(f"no Python for it; give --peer-python {method.kind}=PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        source, target, log = (Path(folder) / name for name in ("in.npz", "out.npz", "log"))
        np.savez(source, scan=scan.astype(np.float32), labels=labels, annotated=annotated, spacing=spacing)
        driver, peer = PEERS_FOLDER / "driver.py", PEERS_FOLDER / method.kind
        command = [python, driver, peer, source, target, json.dumps(method.peer)]
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        try:
            with log.open("wb") as output:
                done = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
        except OSError as error:
            raise CannotRun(f"{python}: {error.strerror}") from error
        if done.returncode:
            _refuse(done.returncode, log.read_text(errors="replace"))
        with np.load(target) as filled:
            result = filled["labels"].astype(np.int32), json.loads(str(filled["measured"]))
    if result[0].shape != labels.shape:
        raise RuntimeError(f"gave labels of shape {result[0].shape}, not {labels.shape}")
    return result


def _refuse(status: int, output: str) -> None:
    last = (output.strip().splitlines() or [""])[-1]
    if last.startswith(CANNOT_RUN):
        raise CannotRun(last.removeprefix(CANNOT_RUN))
    raise RuntimeError(f"exit status {status}, {last}")
