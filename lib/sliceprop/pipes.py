"""What our processes tell each other through pipes: plain values as JSON, arrays as their bytes, never pickles.

A message is a mark, the length of a JSON text, that text, and the bytes of the arrays that it describes. Arrays are
neither packed nor copied on their way, whether they lie in C's or in Fortran's order.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MARK = b"SLP1"
"""Tells a message from whatever else a program may print."""

_HEAD = struct.Struct("<4sQ")

_KINDS_OF_NUMBERS = "biufc"


class Parts(NamedTuple):
    """A message.

    Attributes:
        plain: what JSON can hold.
        arrays: of numbers or truth values.
    """

    plain: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def fields(self) -> dict[str, Any]:
        """All of it by name, as a dataclass takes it."""
        return {**self.plain, **self.arrays}


def parts_of(instance: DataclassInstance) -> Parts:
    """The fields of a dataclass: those that are arrays, and the others as they are."""
    known = {field.name: getattr(instance, field.name) for field in fields(instance)}
    arrays = {name: value for name, value in known.items() if isinstance(value, np.ndarray)}
    return Parts({name: value for name, value in known.items() if name not in arrays}, arrays)


def write(stream: IO[bytes], plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write one message; nothing of it is written if it cannot be.

    Args:
        stream: buffered, and not written to by another thread meanwhile.
        plain: what JSON can hold, and numbers of numpy. Tuples arrive as lists, keys as text, floats as they were.
        arrays: of numbers or truth values, any shape and order in memory.

    Raises:
        TypeError: for anything else.
    """
    described = {name: _described(array) for name, array in arrays.items()}
    text = json.dumps([plain, described], default=np.generic.item).encode()
    stream.write(_HEAD.pack(_MARK, len(text)) + text)
    for array in arrays.values():
        stream.write(_bytes_of(array))
    stream.flush()


def read(stream: IO[bytes]) -> Parts:
    """Read one message.

    Raises:
        EOFError: where the stream ends.
        ValueError: if something else comes.
    """
    mark, length = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if mark != _MARK:
        raise ValueError(f"a message begins with {_MARK!r}, not with {mark!r}")
    plain, described = json.loads(_exactly(stream, length))
    return Parts(plain, {name: _read_array(stream, *one) for name, one in described.items()})


def _described(array: NDArray[Any]) -> tuple[str, tuple[int, ...], str]:
    """Type, shape and order in memory."""
    if array.dtype.kind not in _KINDS_OF_NUMBERS:
        raise TypeError(f"arrays of {array.dtype} are not sent, only those of numbers")
    return array.dtype.str, array.shape, "F" if array.flags.fnc else "C"


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of an array, without a copy unless there are gaps in it."""
    ordered = array.T if array.flags.fnc else np.ascontiguousarray(array)
    return ordered.reshape(-1).view(np.uint8).data


def _read_array(stream: IO[bytes], kind: str, shape: list[int], order: str) -> NDArray[Any]:
    array = np.empty(shape, kind, order="F" if order == "F" else "C")
    wanted = _bytes_of(array)
    if cast("io.BufferedIOBase", stream).readinto(wanted) < len(wanted):
        raise EOFError
    return array


def _exactly(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content
