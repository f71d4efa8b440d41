"""Results as clients want them: values by name, and files in the format, type and compression asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.errors import InputError
from sliceprop.server.requests import Options, flag
from sliceprop.study import Suggestion

DTYPES = ("uint8", "uint16", "int16", "int32", "float32")


def named(report: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """The engine's report with names where it has label indices."""
    by_label = {key: report[key] for key in ("methods", "intervals", "quality") if key in report}
    told: dict[str, Any] = {
        key: {_name(int(i), names): value for i, value in part.items()} for key, part in by_label.items()
    }
    if "suggestion" in report:
        told["suggestion"] = _with_names(report["suggestion"], names)
    return {**report, **told}


def named_suggestion(suggestion: Suggestion, names: Mapping[int, str]) -> dict[str, Any]:
    """A suggestion's fields, its labels by name."""
    return _with_names(asdict(suggestion), names)


def _with_names(suggestion: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    return {**suggestion, "labels": [_name(i, names) for i in suggestion.get("labels", ())]}


def _name(index: int, names: Mapping[int, str]) -> str:
    """Of a label; scribbles that were put into the folder by hand may have values without a name."""
    return names.get(index, f"label_{index}")


@dataclass(frozen=True)
class ResultFormat:
    """How a client wants its result; asked for before anything is computed, so that nothing is in vain.

    Attributes:
        suffix: of the file.
        dtype: one of `DTYPES`, None for the smallest.
        compress: whether the file is compressed.
    """

    suffix: str
    dtype: str | None
    compress: bool


def result_format(options: Options) -> ResultFormat:
    """`result_extension` (default `.nii.gz`), `result_dtype` (default the smallest) and `result_compress`.

    Raises:
        InputError: for an unknown format or type.
    """
    suffix = "." + str(options.get("result_extension") or ".nii.gz").removeprefix(".")
    if suffix not in io.OUTPUT_SUFFIXES:
        raise InputError(f"result_extension must be one of {', '.join(io.OUTPUT_SUFFIXES)}, not {suffix!r}")
    name = options.get("result_dtype")
    if name is not None and name not in DTYPES:
        raise InputError(f"result_dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    return ResultFormat(suffix, name, flag(options, "result_compress", True))


def write_result(array: NDArray[Any], scan: io.Image, options: Options) -> Path:
    """Write a result into a new temporary file.

    Args:
        array: `(i, j, k)`.
        scan: gives the grid.
        options: see `result_format`.

    Raises:
        InputError: for an unknown format or type, or a type too small for the labels.
    """
    wanted = result_format(options)
    if (name := wanted.dtype) and np.dtype(name).kind in "iu" and array.max(initial=0) > np.iinfo(name).max:
        raise InputError(f"label {array.max()} does not fit into {name}; ask for result_dtype uint16")
    with tempfile.NamedTemporaryFile(suffix=wanted.suffix, delete=False) as file:
        path = Path(file.name)
    with removed_if_refused(path):
        io.write_image(path, array, scan, dtype=wanted.dtype, compress=wanted.compress)
    return path


@contextmanager
def removed_if_refused(file: Path) -> Iterator[None]:
    """A file of a result that nobody gets if this fails."""
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise
