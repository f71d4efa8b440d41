"""Messages between this process and its child: plain values as JSON and arrays as `.npz`, never pickles."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict, fields
from typing import IO

import numpy as np

from sliceprop.config import PredictorConfig
from sliceprop.engine.predictors.job import Answer, Failure, Job
from sliceprop.engine.training import Progress

Message = Job | Answer | Failure | Progress

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Job, Answer, Failure, Progress)}
_LENGTHS = struct.Struct("<QQ")
"""Bytes of the JSON and of the arrays that follow."""


def write(stream: IO[bytes], message: Message) -> None:
    """Write one message."""
    known = {field.name: getattr(message, field.name) for field in fields(message)}
    arrays = {name: value for name, value in known.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in known.items() if name not in arrays}
    if isinstance(message, Job):
        plain["config"] = asdict(message.config)
    text = json.dumps({"kind": type(message).__name__, **plain}, default=np.generic.item).encode()
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    stream.write(_LENGTHS.pack(len(text), packed.tell()) + text + packed.getvalue())
    stream.flush()


def read(stream: IO[bytes]) -> Message:
    """Read one message.

    Raises:
        EOFError: where the stream ends.
    """
    text_length, packed_length = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    plain = json.loads(_exactly(stream, text_length))
    with np.load(io.BytesIO(_exactly(stream, packed_length)), allow_pickle=False) as packed:
        arrays = dict(packed)
    kind = _KINDS[plain.pop("kind")]
    if kind is Job:
        plain["config"] = PredictorConfig(**plain["config"])
    return kind(**plain, **arrays)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content
