"""Arrays by name in one file that carries its format and a checksum of each; damaged files are noticed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.hashing import array_digest

logger = logging.getLogger(__name__)

FORMAT = 1
"""Files of format 0 had no checksums and are still read."""

_CHECKSUMS = "checksums"


def save_arrays(file: Path, **arrays: NDArray[Any]) -> None:
    """Write a file as a whole; its folder is made on the way.

    Raises:
        FileError: if the folder cannot be made, is read-only or full.
    """
    known = {"format": FORMAT, **{key: array_digest(array) for key, array in arrays.items()}}
    checksums = {_CHECKSUMS: np.array(json.dumps(known))}
    io.make_folder(file.parent)
    io.write_atomically(file, lambda temporary: np.savez(temporary, **arrays, **checksums))


def load_arrays(file: Path, *keys: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, or those asked for; None if it or one of them is missing or damaged, which is logged."""
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {key: data[key] for key in keys or set(data.files) - {_CHECKSUMS}}
            known = json.loads(str(data[_CHECKSUMS])) if _CHECKSUMS in data.files else {"format": 0}
    except FileNotFoundError:
        return None
    except KeyError as error:
        logger.warning("%s is of another release: %s", file, error.args[0])
        return None
    except (OSError, ValueError, EOFError, BadZipFile, NotImplementedError):
        logger.exception("%s is damaged and is ignored", file)
        return None
    if not _matches(arrays, known):
        logger.error("%s does not match its checksums, or is of a later release, and is ignored", file)
        return None
    return arrays


def _matches(arrays: dict[str, NDArray[Any]], known: dict[str, Any]) -> bool:
    form = known.get("format")
    return form == 0 or (form == FORMAT and all(array_digest(array) == known.get(key) for key, array in arrays.items()))
