"""Messages between this process and its child; how they are written is in `sliceprop.pipes`."""

from __future__ import annotations

from dataclasses import asdict
from typing import IO

from sliceprop import pipes
from sliceprop.config import PredictorConfig
from sliceprop.engine.predictors.job import Answer, Failure, Job
from sliceprop.engine.training import Progress

Message = Job | Answer | Failure | Progress

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Job, Answer, Failure, Progress)}


def write(stream: IO[bytes], message: Message) -> None:
    """Write one message."""
    plain, arrays = pipes.parts_of(message)
    if isinstance(message, Job):
        plain["config"] = asdict(message.config)
    pipes.write(stream, {"kind": type(message).__name__, **plain}, arrays)


def read(stream: IO[bytes]) -> Message:
    """Read one message.

    Raises:
        EOFError: where the stream ends.
    """
    known = pipes.read(stream).fields
    kind = _KINDS[known.pop("kind")]
    if kind is Job:
        known["config"] = PredictorConfig(**known["config"])
    return kind(**known)
