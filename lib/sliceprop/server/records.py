"""What the server remembers of a study: the annotation in force and what it answered last, as atomic files."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.server.files import copy_file, read_json, write_file, write_json
from sliceprop.server.provenance import Annotation, Sent
from sliceprop.study import Propagation

logger = logging.getLogger(__name__)

Estimate = dict[str, Any]
"""`expected_dice`, `stop`, the `target` it goes by, and the versions of the `labels` it was made from."""

KINDS = ("labels", "from_lower", "from_upper", "uncertainty")
RESULT, BEFORE = "result", "result_before"
"""The last propagation, and the one before it; more would fill the disk with large scans."""

MAX_HISTORY = 50
"""Replaced label files kept per study; sparse labels compress to a few kilobytes each."""


@dataclass(frozen=True)
class StudyRecord:
    """The files of one study.

    Attributes:
        folder: made when the first file is written.
    """

    folder: Path

    def annotation(self) -> Annotation | None:
        """The annotation in force, if one was stored."""
        data = self._load("annotation")
        if data is None:
            return None
        labels, slices = data["labels"].astype(np.int32), _integers(data["annotated_slices"])
        return Annotation(labels, int(data["slice_axis"]), slices, bool(data["partial"]), str(data["source"]))

    def save_annotation(self, annotation: Annotation) -> None:
        """Replace the annotation in force."""
        self._save(
            "annotation",
            labels=io.compact_labels(annotation.labels),
            slice_axis=np.array(annotation.slice_axis),
            annotated_slices=np.array(annotation.annotated_slices, dtype=np.int64),
            partial=np.array(annotation.partial),
            source=np.array(annotation.source),
        )

    def sent(self) -> Sent | None:
        """The last result that a client got."""
        data = self._load("sent")
        if data is None:
            return None
        labels, drawn = data["labels"].astype(np.int32), data["drawn"].astype(np.int32)
        return Sent(labels, drawn, int(data["slice_axis"]), _integers(data["annotated_slices"]))

    def save_sent(self, sent: Sent) -> None:
        """Remember what a client was given."""
        self._save(
            "sent",
            labels=io.compact_labels(sent.labels),
            drawn=io.compact_labels(sent.drawn),
            slice_axis=np.array(sent.slice_axis),
            annotated_slices=np.array(sent.annotated_slices, dtype=np.int64),
        )

    def result(self, kind: str) -> NDArray[Any] | None:
        """One array of the last propagation, `(i, j, k)`; None if there was none."""
        data = self._load(RESULT, kind)
        return None if data is None else data[kind].astype(np.float32 if kind == "uncertainty" else np.int32)

    def report(self) -> dict[str, Any] | None:
        """The report of the last propagation, and the versions of its `source` and `scribbles`."""
        data = self._load(RESULT, "report")
        return None if data is None else dict(json.loads(str(data["report"])))

    def version(self) -> str:
        """What tells whether there was another propagation since; empty before the first one."""
        file = self._file(RESULT)
        return str(file.stat().st_mtime_ns) if file.is_file() else ""

    def save_result(self, result: Propagation, source: str, scribbles: str = "") -> None:
        """Remember a propagation and what it was made from, and the one before.

        Args:
            result: the propagation.
            source: version of the annotation.
            scribbles: version of the scribbles.
        """
        first = not self._file(RESULT).is_file()
        with suppress(OSError):  # then there is nothing to go back to; what matters is the new one
            self._file(RESULT).replace(self._file(BEFORE))
        self._save(
            RESULT,
            labels=io.compact_labels(result.labels),
            from_lower=io.compact_labels(result.from_lower),
            from_upper=io.compact_labels(result.from_upper),
            uncertainty=result.uncertainty.astype(np.float16),
            first=np.array(first),
            report=np.array(json.dumps({**result.report, "source": source, "scribbles": scribbles})),
        )

    def can_undo(self) -> bool:
        """Whether it is remembered what was there before the last propagation."""
        return self._file(BEFORE).is_file() or self._is_first()

    def undo(self) -> None:
        """Go back to the propagation before the last one, or to none before the first; ask `can_undo` before."""
        if self._file(BEFORE).is_file():
            self._file(BEFORE).replace(self._file(RESULT))
        else:
            self._file(RESULT).unlink()

    def _is_first(self) -> bool:
        data = self._load(RESULT, "first")
        return data is not None and bool(data["first"])

    def estimate(self) -> Estimate:
        """How good the study was last estimated to be; empty before the first time."""
        return dict(read_json(self.folder / "estimate.json") or {})

    def save_estimate(self, estimate: Estimate) -> None:
        """Remember how good the study is estimated to be."""
        write_json(self.folder / "estimate.json", estimate)

    def holds(self, index: int) -> bool:
        """Whether a voxel has this label index in anything that is remembered."""
        loaded = (self._load(name, "labels") for name in ("annotation", "sent", RESULT, BEFORE))
        return any(data is not None and (data["labels"] == index).any() for data in loaded)

    def keep(self, file: Path, tag: str) -> None:
        """Copy a label file that is about to be replaced into the history."""
        history = self.folder / "history"
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}-{tag}{''.join(file.suffixes[-2:])}"
        copy_file(file, history / name)
        for old in sorted(history.iterdir())[:-MAX_HISTORY]:
            old.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _load(self, name: str, *keys: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of a file, or those asked for; None if it is missing or damaged."""
        file = self._file(name)
        try:
            with np.load(file, allow_pickle=False) as data:
                return {key: data[key] for key in keys or data.files}
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, BadZipFile):
            logger.exception("%s is damaged and is ignored", file)
            return None

    def _save(self, name: str, **arrays: NDArray[Any]) -> None:
        write_file(self._file(name), lambda file: np.savez(file, **arrays))


def _integers(array: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in array)
