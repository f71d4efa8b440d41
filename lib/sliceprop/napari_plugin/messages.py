"""Requests to the process that computes and its answers; how they are written is in `sliceprop.pipes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from sliceprop import errors, pipes
from sliceprop.config import PredictorConfig, PropagateConfig, TrainConfig
from sliceprop.errors import SlicePropError
from sliceprop.napari_plugin.backend import Job, Progress, Result
from sliceprop.napari_plugin.settings import Settings

Value = Progress | Result | Mapping[str, Any] | None
"""How far learning is, a propagation, a suggestion, or that something is done."""

_ERRORS: dict[str, type[SlicePropError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SlicePropError)
}


@dataclass(frozen=True)
class Request:
    """Something to compute.

    Attributes:
        what: name of a function of `worker_process`.
        job: the study, with the image in memory.
        paths: further arguments of the function.
    """

    what: str
    job: Job
    paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancel:
    """End a request early, with the best so far."""


@dataclass(frozen=True)
class Answer:
    """To one request: any number with `Progress`, then one with another value or an error."""

    value: Value = None
    error: SlicePropError | None = None


def write_request(stream: IO[bytes], number: int, message: Request | Cancel) -> None:
    """Write a request, or that it is not wanted any more, with its number."""
    if isinstance(message, Cancel):
        pipes.write(stream, {"number": number, "what": None}, {})
        return
    plain, arrays = pipes.parts_of(message.job)
    plain |= {"names": list(message.job.names.items()), "settings": _plain_settings(message.job.settings)}
    paths = {name: str(path) for name, path in message.paths.items()}
    pipes.write(stream, {"number": number, "what": message.what, "paths": paths, "job": plain}, arrays)


def read_request(stream: IO[bytes]) -> tuple[int, Request | Cancel]:
    """Read what `write_request` wrote.

    Raises:
        EOFError: where the stream ends.
        ValueError: if something else comes.
    """
    plain, arrays = pipes.read(stream)
    if plain["what"] is None:
        return plain["number"], Cancel()
    paths = {name: Path(path) for name, path in plain["paths"].items()}
    return plain["number"], Request(plain["what"], _job(**pipes.Parts(plain["job"], arrays).fields), paths)


def write_answer(stream: IO[bytes], number: int, answer: Answer) -> None:
    """Write an answer to the request of that number."""
    kind, (plain, arrays) = _parts_of_value(answer.value) if answer.error is None else _parts_of_error(answer.error)
    pipes.write(stream, {"number": number, "kind": kind, "content": plain}, arrays)


def read_answer(stream: IO[bytes]) -> tuple[int, Answer]:
    """Read what `write_answer` wrote.

    Raises:
        EOFError: where the stream ends.
        ValueError: if something else comes.
    """
    told, arrays = pipes.read(stream)
    kind, content = told["kind"], told["content"]
    if kind in _ERRORS:
        return told["number"], Answer(error=_ERRORS[kind](content["text"]))
    return told["number"], Answer(_value(kind, pipes.Parts(content, arrays).fields))


def _job(annotated_slices: list[int] | None, names: list[Any], settings: dict[str, Any], **others: Any) -> Job:
    slices = None if annotated_slices is None else tuple(annotated_slices)
    return Job(**others, annotated_slices=slices, names=dict(names), settings=_settings(**settings))


def _plain_settings(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "start": _text(settings.start), "save_to": _text(settings.save_to)}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _settings(
    propagate: dict[str, Any], train: dict[str, Any], start: str | None, save_to: str | None, **others: Any
) -> Settings:
    return Settings(
        **others,
        propagate=PropagateConfig(**propagate | {"predictor": PredictorConfig(**propagate["predictor"])}),
        train=TrainConfig(**train),
        start=None if start is None else Path(start),
        save_to=None if save_to is None else Path(save_to),
    )


def _parts_of_error(error: SlicePropError) -> tuple[str, pipes.Parts]:
    """An error as the nearest of its kinds that is known on the other side, and its sentence."""
    kind = next(one for one in type(error).__mro__ if _ERRORS.get(one.__name__) is one)
    return kind.__name__, pipes.Parts({"text": str(error)}, {})


def _parts_of_value(value: Value) -> tuple[str, pipes.Parts]:
    match value:
        case Progress() | Result():
            return type(value).__name__, pipes.parts_of(value)
        case None:
            return "done", pipes.Parts({}, {})
        case _:
            return "suggestion", pipes.Parts(dict(value), {})


def _value(kind: str, known: dict[str, Any]) -> Value:
    match kind:
        case Progress.__name__:
            return Progress(**known)
        case Result.__name__:
            return Result(**known)
        case "suggestion":
            return known
        case _:
            return None
