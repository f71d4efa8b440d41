"""How much memory work may take: what the machine, or the container, has free, less what is promised to other work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock

import numpy as np
import psutil

from sliceprop.errors import MemoryTakenError, TooLargeError

BYTES_PER_VOXEL = 30
"""Peak memory per voxel of the study: image, labels, three results, uncertainty."""

BYTES_PER_WORKED_VOXEL = 110
"""Further peak memory per voxel of the region of interest: velocity fields, displacements, scores; measured."""

MAX_SIDE = 8192
"""Voxels along an axis: four times the longest series of slices, and the widest picture, that scanners make."""

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where Linux tells what a container or service may take (version 2 of control groups)."""

_Share = dict[int, float]
"""Bytes promised to one piece of work, the most that it asked for with so many bytes per voxel: it reads one scan, and
works on one region, at a time."""

_own: ContextVar[_Share | None] = ContextVar("_own", default=None)
_shares: list[_Share] = []
_held_at_rest = 0
_lock = Lock()


@contextmanager
def share() -> Iterator[None]:
    """What `check_memory` lets the work inside have, no other work of this process gets until it has ended."""
    global _held_at_rest
    own: _Share = {}
    with _lock:
        if not _shares:
            _held_at_rest = psutil.Process().memory_info().rss
        _shares.append(own)
    _own.set(own)
    try:
        yield
    finally:
        with _lock:
            _shares[:] = [other for other in _shares if other is not own]


def check_memory(shape: tuple[int, ...], name: str = "image", bytes_per_voxel: int = BYTES_PER_VOXEL) -> None:
    """Refuse a shape that would need more memory than is free, or that no scanner makes.

    Args:
        shape: of what is to be read or worked on.
        name: what it is, for the message.
        bytes_per_voxel: peak of the work.

    Raises:
        TooLargeError: with the estimate and what there is, or the longest axis.
        MemoryTakenError: it would fit if other work did not go on, of this process or another.
    """
    needed, (free, total) = float(np.prod(shape, dtype=np.float64)) * bytes_per_voxel, free_and_total_bytes()
    estimate = f"{name}: shape {shape} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if needed > total:
        raise TooLargeError(f"{estimate}; crop or downsample the scan")
    if max(shape, default=0) > MAX_SIDE:
        raise TooLargeError(f"{name}: an axis of shape {shape} is longer than {MAX_SIDE}; crop or downsample the scan")
    if needed > free:
        raise MemoryTakenError(f"{estimate}; try again when other programs have ended, or crop or downsample the scan")
    own = _own.get()
    if own is None:
        return
    with _lock:
        asked = own | {bytes_per_voxel: max(needed, own.get(bytes_per_voxel, 0.0))}
        others = sum(sum(other.values()) for other in _shares if other is not own)
        taken = max(0, psutil.Process().memory_info().rss - _held_at_rest)
        if others and sum(asked.values()) + others > free + taken:
            raise MemoryTakenError(f"{estimate}, but promised to work on other scans; try again when it has ended")
        own.update(asked)


def free_and_total_bytes(control_groups: Path = CONTROL_GROUPS) -> tuple[int, int]:
    """What may still be taken, and what there is: of the machine, and of each group of processes around this one."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return free, total
    group = control_groups / next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(control_groups):
            break
        left, limit = _left_in(folder) or (free, total)
        free, total = min(free, left), min(total, limit)
    return max(0, free), total


def _left_in(group: Path) -> tuple[int, int] | None:
    """What a group may still take, and in all; pages of files that nobody has read lately are given up when needed."""
    try:
        limit = int((group / "memory.max").read_text())  # or "max"
        used = int((group / "memory.current").read_text())
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit - used + int(kinds.get("inactive_file", 0)), limit
