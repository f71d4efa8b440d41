"""Morphological contour interpolation in a child process: a crash or a hang of ITK ends that process, not ours.

References:
    Albu, Beugeling, Laurendeau: A morphology-based approach for interslice interpolation of anatomical slices from
    volumetric images, IEEE TBME 55(8), 2008, doi:10.1109/TBME.2008.921158.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np

from sliceprop.engine import contour_worker
from sliceprop.errors import ContourError
from sliceprop.labels import LabelArray

LIMIT_S = 60.0
"""For one volume, start included: 400x400x29 with 4 labels takes a tenth of a second once the child runs."""


class ContourWorker:
    """The child process: started on first use, again after a crash, and kept, since starting takes one to two seconds.

    It ends when this process ends, however that happens, because its input ends. Safe to call from several threads.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start the child unless it runs, without waiting for it: the first volume then finds it ready.

        Returns:
            its process id.
        """
        with self._lock:
            return self._running().pid

    def __call__(self, labels: LabelArray) -> LabelArray:
        """Fill between the slices that hold a label, for each label; slices that hold a label keep it.

        Args:
            labels: `(S, H, W)`, 0 unknown.

        Raises:
            ContourError: if the child crashes or takes longer than its limit.
        """
        with self._lock:
            process = self._running()
            watchdog = threading.Timer(self._limit_s, process.kill)
            watchdog.start()
            try:
                filled = self._ask(process, labels)
            finally:
                watchdog.cancel()
        return filled

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", contour_worker.__file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[bytes], labels: LabelArray) -> LabelArray:
        assert process.stdin is not None and process.stdout is not None
        try:
            contour_worker.send(process.stdin, np.ascontiguousarray(labels, dtype=np.uint16))
            filled = contour_worker.receive(process.stdout)
        except BrokenPipeError:
            filled = None
        if filled is None:
            status = process.wait()
            raise ContourError(f"contour interpolation failed (exit status {status}); choose another method")
        return filled.astype(np.int32).reshape(labels.shape)  # ITK transposes slices of a single pixel


interpolate_contours = ContourWorker()
"""The one of this process."""
