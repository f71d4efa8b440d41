"""What the server remembers of a study: the annotation in force and what it answered last, as atomic files."""

from __future__ import annotations

import json
import logging
import time
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
        data = self._load("result")
        return None if data is None else data[kind].astype(np.float32 if kind == "uncertainty" else np.int32)

    def report(self) -> dict[str, Any] | None:
        """The report of the last propagation, with the annotation it was made from as `source`."""
        data = self._load("result")
        return None if data is None else dict(json.loads(str(data["report"])))

    def save_result(self, result: Propagation, source: str) -> None:
        """Remember a propagation made from the annotation `source`."""
        self._save(
            "result",
            labels=io.compact_labels(result.labels),
            from_lower=io.compact_labels(result.from_lower),
            from_upper=io.compact_labels(result.from_upper),
            uncertainty=result.uncertainty.astype(np.float16),
            report=np.array(json.dumps({**result.report, "source": source})),
        )

    def estimate(self) -> Estimate:
        """How good the study was last estimated to be; empty before the first time."""
        return dict(read_json(self.folder / "estimate.json") or {})

    def save_estimate(self, estimate: Estimate) -> None:
        """Remember how good the study is estimated to be."""
        write_json(self.folder / "estimate.json", estimate)

    def keep(self, file: Path, tag: str) -> None:
        """Copy a label file that is about to be replaced into the history."""
        history = self.folder / "history"
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}-{tag}{''.join(file.suffixes[-2:])}"
        copy_file(file, history / name)
        for old in sorted(history.iterdir())[:-MAX_HISTORY]:
            old.unlink(missing_ok=True)

    def _load(self, name: str) -> dict[str, NDArray[Any]] | None:
        file = self.folder / f"{name}.npz"
        try:
            with np.load(file, allow_pickle=False) as data:
                return dict(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, BadZipFile):
            logger.exception("%s is damaged and is ignored", file)
            return None

    def _save(self, name: str, **arrays: NDArray[Any]) -> None:
        write_file(self.folder / f"{name}.npz", lambda file: np.savez(file, **arrays))


def _integers(array: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in array)
