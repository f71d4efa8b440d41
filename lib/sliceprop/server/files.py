"""Small files of the server, each written whole or not at all, its folder made on the way."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sliceprop import io

logger = logging.getLogger(__name__)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`io.write_atomically` that also makes the folder.

    Raises:
        FileError: if the folder cannot be made, is read-only or full.
    """
    io.make_folder(path.parent)
    io.write_atomically(path, write)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file.

    Raises:
        FileError: if the target's folder is read-only or full.
    """
    write_file(target, lambda temporary: shutil.copyfile(source, temporary))


def write_json(path: Path, value: Any) -> None:
    """`io.write_json` that also makes the folder.

    Raises:
        FileError: if the folder cannot be made, is read-only or full.
    """
    io.make_folder(path.parent)
    io.write_json(path, value)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.exception("%s is damaged and is ignored", path)
        return None
