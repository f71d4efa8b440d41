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

_Share = dict[tuple[tuple[int, ...], int], float]
"""Bytes promised to one piece of work, by shape and bytes per voxel: who asks for the same again means the same."""

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
        TooLargeError: with the estimate and what is free, or the longest axis.
        MemoryTakenError: it would fit if other work did not go on, see `share`.
    """
    needed, free = float(np.prod(shape, dtype=np.float64)) * bytes_per_voxel, free_bytes()
    if needed > free:
        raise TooLargeError(
            f"{name}: shape {shape} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
            "crop or downsample the scan"
        )
    if max(shape, default=0) > MAX_SIDE:
        raise TooLargeError(f"{name}: an axis of shape {shape} is longer than {MAX_SIDE}; crop or downsample the scan")
    own = _own.get()
    if own is None:
        return
    with _lock:
        asked = own | {(tuple(sorted(shape)), bytes_per_voxel): needed}
        others = sum(sum(other.values()) for other in _shares if other is not own)
        taken = max(0, psutil.Process().memory_info().rss - _held_at_rest)
        if others and sum(asked.values()) + others > free + taken:
            raise MemoryTakenError(
                f"{name}: shape {shape} needs about {needed / 2**30:.1f} GiB, "
                f"of which work on other scans leaves too little; try again when it has ended"
            )
        own.update(asked)


def free_bytes(control_groups: Path = CONTROL_GROUPS) -> int:
    """What may still be taken: of the machine, and of each group of processes around this one that has a limit."""
    free: int = psutil.virtual_memory().available
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return free
    group = control_groups / next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(control_groups):
            break
        free = min(free, _left_in(folder, free))
    return max(0, free)


def _left_in(group: Path, otherwise: int) -> int:
    """What a group has left; pages of files that nobody has read lately are given up when memory is asked for."""
    try:
        limit = int((group / "memory.max").read_text())  # or "max"
        used = int((group / "memory.current").read_text())
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return otherwise
    return limit - used + int(kinds.get("inactive_file", 0))
