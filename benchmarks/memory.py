"""Peak resident memory of a stretch of work, child processes included."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import psutil

KIB_PER_MIB = 1024
RESET = "5"
"""Written to `clear_refs`, makes the kernel forget the peak of the process so far (Linux, `man 5 proc`)."""

INTERVAL_S = 0.2


class PeakMemory:
    """A context in which the peak is measured; `mib` afterwards, for this process, and `children_mib`.

    The kernel's own high-water marks are read (`VmHWM`), so nothing is missed between two looks; only a child that
    lives for less than `INTERVAL_S` can be. Children that start meanwhile count with the sum of their peaks, those that
    were there before do not. `ru_maxrss` is not used: a new process inherits the mark of the one that started it.
    """

    def __enter__(self) -> PeakMemory:
        self._children: dict[int, float] = {}
        self._there_before = {child.pid for child in psutil.Process().children(recursive=True)}
        self._over = threading.Event()
        with suppress(OSError):  # without the right to reset it, the peak since the start of the process is given
            Path("/proc/self/clear_refs").write_text(RESET)
        self._watch = threading.Thread(target=self._look_after_children, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._over.set()
        self._watch.join()
        self.mib = peak_mib()
        self.children_mib = sum(self._children.values())

    def _look_after_children(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        for child in psutil.Process().children(recursive=True):
            if child.pid not in self._there_before:
                with suppress(OSError, StopIteration):  # it has ended meanwhile
                    self._children[child.pid] = peak_mib(child.pid)


def peak_mib(pid: int | str = "self") -> float:
    """High-water mark of the resident memory of a process, MiB.

    Raises:
        OSError: if there is no such process.
    """
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / KIB_PER_MIB
