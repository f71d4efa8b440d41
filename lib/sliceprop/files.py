"""Small files that a study needs beside its images, each written whole or not at all, its folder made on the way."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sliceprop import io
from sliceprop.errors import FileError, InputError
from sliceprop.hashing import checksum

logger = logging.getLogger(__name__)

TABLE_FORMAT = 1


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


def is_abandoned(path: Path, silent_s: float) -> bool:
    """Whether nobody has written a file, or anything in a folder, for so long: a killed writer left it there."""
    try:
        newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:  # it goes at this moment
        return False
    return newest < time.time() - silent_s


def abandoned(folder: Path, silent_s: float = 3600.0) -> Iterator[Path]:
    """What killed writers left half written in a folder, by name; what is younger may be written right now."""
    yield from (left for left in folder.glob(f"{io.UNFINISHED}*") if is_abandoned(left, silent_s))


def remove_abandoned(folder: Path) -> None:
    """Delete what killed writers left half written in a folder an hour ago or earlier."""
    for left in abandoned(folder):
        with suppress(OSError):  # it goes at this moment, or the folder is read-only
            remove(left)


@contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock, by a file, against other processes; without waiting.

    Raises:
        InputError: `refusal`, if another process holds it.
        FileError: if nothing can be written there.
    """
    one = FileLock(lock)
    try:
        one.acquire(timeout=0)
    except Timeout as error:
        raise InputError(refusal) from error
    except OSError as error:
        raise FileError(f"{lock.parent}: cannot write there ({error.strerror})") from error
    try:
        yield
    finally:
        one.release()


def remove(path: Path) -> None:
    """A file, a folder with all that is in it, or a link, whose target stays."""
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        logger.exception("%s is damaged and is ignored", path)
        return None


def write_table(path: Path, value: Any) -> None:
    """Write plain values with their checksum, twice, since much depends on them: what each label value means.

    Raises:
        FileError: if the folder cannot be made, is read-only or full.
    """
    content = {"format": TABLE_FORMAT, "value": value}
    content["sha256"] = checksum(content)
    write_json(path, content)
    write_json(_second(path), content)


def read_table(path: Path) -> Any:
    """What `write_table`, or a release before it, wrote; None if both files are missing or damaged.

    If one is, it is made anew from the other.

    Raises:
        FileError: if it is of a later release, whose meaning must not be guessed.
    """
    for file in (path, _second(path)):
        content = read_json(file)
        if isinstance(content, list) or (isinstance(content, dict) and not {"value", "sha256"} & content.keys()):
            return content
        if isinstance(content, dict) and content.get("sha256") == checksum(content):
            if content.get("format") != TABLE_FORMAT:
                raise FileError(f"{file}: has format {content.get('format')}, this program reads {TABLE_FORMAT}")
            if file != path:
                with suppress(FileError):  # a folder that cannot be written is still read
                    write_json(path, content)
            return content["value"]
        if content is not None:
            logger.error("%s does not match its checksum and is ignored", file)
    return None


def _second(path: Path) -> Path:
    return path.with_name(f"{path.stem}.copy{path.suffix}")
