"""Small files of the server, each written whole or not at all, its folder made on the way."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sliceprop import io
from sliceprop.errors import FileError

logger = logging.getLogger(__name__)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`io.write_atomically` that also makes the folder.

    Raises:
        FileError: if the folder cannot be made, is read-only or full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path.parent}: cannot be made ({error.strerror})") from error
    io.write_atomically(path, write)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file.

    Raises:
        FileError: if the target's folder is read-only or full.
    """
    write_file(target, lambda temporary: shutil.copyfile(source, temporary))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file.

    Raises:
        FileError: if the folder is read-only or full.
    """
    text = json.dumps(value, ensure_ascii=False)
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.exception("%s is damaged and is ignored", path)
        return None
