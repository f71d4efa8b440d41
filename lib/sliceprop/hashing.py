"""SHA-256 of files, folders, arrays and plain values: what tells whether anything is still as it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECOND_NS = 1_000_000_000
STEP_NS, LONG_STEP_NS = SECOND_NS // 50, 2 * SECOND_NS
"""Longer than a step of a file system's clock: of most, and of those that count whole seconds, or two."""


def digest(path: Path) -> str:
    """Of a file, or of the names and contents of the files in a folder.

    Raises:
        OSError: if it cannot be read.
    """
    if path.is_dir():
        return checksum({file.name: digest(file) for file in sorted(path.iterdir()) if file.is_file()})
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def known_digest(file: Path) -> str:
    """`digest` of a file, read anew only when its times or size have changed, or it is just being changed.

    Raises:
        OSError: if it cannot be read.
    """
    state = file_state(file)
    return digest(file) if file.is_dir() or _is_fresh(state) else _known_digest(file, state)


def file_state(file: Path) -> tuple[int, ...]:
    """Times, size and inode, one of which changes with the content of a file.

    Raises:
        OSError: if it cannot be looked at.
    """
    state = file.stat()
    return state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino


def _is_fresh(state: tuple[int, ...]) -> bool:
    """Whether a file changed within one step of its file system's clock: another change may have the same times."""
    changed = state[1]
    return time.time_ns() - changed < (LONG_STEP_NS if changed % SECOND_NS == 0 else STEP_NS)


@lru_cache(maxsize=1024)
def _known_digest(file: Path, state: tuple[int, int, int]) -> str:
    return digest(file)


def array_digest(array: NDArray[Any]) -> str:
    """Of type, shape and values; the order in memory makes no difference."""
    described = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    described.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return described.hexdigest()


def checksum(values: Mapping[str, Any]) -> str:
    """Of plain values; those under the key `sha256` are left out."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
