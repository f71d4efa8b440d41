"""What the server remembers of a study: every version of what was drawn, and what it answered last.

Arrays lie in files that carry their format and the checksum of each array; a file that does not match counts as absent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.arrays import load_arrays, save_arrays
from sliceprop.errors import FileError
from sliceprop.files import read_table, write_table
from sliceprop.hashing import array_digest
from sliceprop.server.errors import ConflictError
from sliceprop.server.provenance import Annotation, Outline, Sent, outlined
from sliceprop.study import Propagation
from sliceprop.versions import RESULT, Version, Versions, packed_mask, result_mask, study_versions

logger = logging.getLogger(__name__)

Estimate = dict[str, Any]
"""`expected_dice`, `stop`, the `target` it goes by, and the versions of the `labels` it was made from."""

KINDS = ("labels", "from_lower", "from_upper", "uncertainty", "drawn")
SENT = ("sent", "sent_2", "sent_3", "sent_4")
"""The last results that clients got, the newest first: as many clients can work on one study before one is taken for
another; an earlier release had the first file only."""

DRAFTS = ("draft", "draft_2", "draft_3", "draft_4")
"""The same of tools and scans alone, which are asked for again and again, and often not kept by the client."""

BEFORE = "result_before"
"""The last propagation, and the one before it; more would fill the disk with large scans."""


@dataclass(frozen=True)
class StudyRecord:
    """The files of one study.

    Attributes:
        folder: made when the first file is written.
    """

    folder: Path

    @property
    def versions(self) -> Versions:
        """Every version of what was drawn; those that an earlier release kept are taken over first."""
        return study_versions(self.folder)

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

    def outlines(self) -> list[Outline]:
        """Of the last results that clients got, the newest first."""
        there = [name for name in (*SENT, *DRAFTS) if self._file(name).is_file()]
        there.sort(key=lambda name: self._file(name).stat().st_mtime_ns, reverse=True)
        return [outline for outline in map(self._outline, there) if outline is not None]

    def _outline(self, name: str) -> Outline | None:
        about = self._load(name, "outline")
        if about is None:  # of an earlier release, or damaged
            sent = self.sent(name)
            return None if sent is None else outlined(sent, name)
        told = json.loads(str(about["outline"]))
        return Outline(name, told["slice_axis"], tuple(told["digests"]), frozenset(told["filled"]))

    def sent(self, name: str) -> Sent | None:
        """The result that a client got with the outline of this name; None if it is damaged."""
        data = self._load(name, "labels", "drawn", "slice_axis", "annotated_slices")
        if data is None:
            return None
        labels, drawn = data["labels"].astype(np.int32), data["drawn"].astype(np.int32)
        return Sent(labels, drawn, int(data["slice_axis"]), _integers(data["annotated_slices"]))

    def save_sent(self, sent: Sent, names: Sequence[str] = SENT) -> None:
        """Remember what a client was given, in place of the oldest that is remembered under these names."""
        for newer, older in reversed(list(pairwise(names))):
            with suppress(OSError):  # then one less is remembered
                self._file(newer).replace(self._file(older))
        outline = outlined(sent)
        told = {"slice_axis": sent.slice_axis, "digests": outline.digests, "filled": sorted(outline.filled)}
        self._save(
            names[0],
            outline=np.array(json.dumps(told)),
            labels=io.compact_labels(sent.labels),
            drawn=io.compact_labels(sent.drawn),
            slice_axis=np.array(sent.slice_axis),
            annotated_slices=np.array(sent.annotated_slices, dtype=np.int64),
        )

    def result(self, kind: str) -> NDArray[Any] | None:
        """One array of the last propagation, `(i, j, k)`; None if there was none, or it was not kept.

        `drawn` is 1 where the user decided about the label and 0 where it was propagated.
        """
        if kind == "drawn":
            drawn = result_mask(self.folder)
            return None if drawn is None else drawn.astype(np.int32)
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

    def save_result(
        self, result: Propagation, source: str, scribbles: str = "", drawn: NDArray[np.bool_] | None = None
    ) -> None:
        """Remember a propagation and what it was made from, and the one before.

        Args:
            result: the propagation.
            source: version of the annotation.
            scribbles: version of the scribbles.
            drawn: `(i, j, k)`, voxels that the user decided about; None if unknown.
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
            **({} if drawn is None else packed_mask(drawn)),
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

    def notice_scan(self, scan: Mapping[str, Any]) -> None:
        """Forget all propagations if they are of another scan of this name; what was drawn stays, in its versions.

        Args:
            scan: what tells it from others, as plain values.
        """
        file = self.folder / "scan.json"
        known = read_table(file)
        if known == scan:
            return
        with suppress(FileError, OSError):  # a folder that cannot be written is still read
            if known is not None:
                logger.warning("the scan of a study is another one now; its results are forgotten")
                self.forget_results()
            write_table(file, dict(scan))

    def take_up(self, image_id: str, scan: io.Image) -> None:
        """Make ready for a scan whose name one had that is gone: nothing that was drawn on another may count.

        Raises:
            ConflictError: if labels of another scan are still kept under this name.
        """
        known = read_table(self.folder / "scan.json") or {}
        same = known.get("voxels") == array_digest(scan.array)
        shown = dict[str, Version]()  # the newest of each tag: what was removed counts no more
        for version in self.versions.newest_first():
            if version.entry.event != "conflict":
                shown.setdefault(version.entry.tag, version)
        if not same and any(version.labels_file for version in shown.values()):
            raise ConflictError(
                f"labels of another scan called {image_id!r} are still kept; choose another name, "
                "or let the operator erase that study first (sliceprop erase STUDY)"
            )
        self.forget_results()

    def set_aside(self, tag: str) -> list[Path]:
        """Label files of a tag that could not be used, as they were."""
        return sorted((self.folder / "set_aside").glob(f"{tag}.*"))

    def forget_results(self) -> None:
        """Forget all propagations, and what clients were given: they were of another scan of this name."""
        for name in (RESULT, BEFORE, *SENT, *DRAFTS, "annotation"):
            self._file(name).unlink(missing_ok=True)

    def _is_first(self) -> bool:
        data = self._load(RESULT, "first")
        return data is not None and bool(data["first"])

    def estimate(self) -> Estimate:
        """How good the study was last estimated to be; empty before the first time."""
        return dict(read_table(self.folder / "estimate.json") or {})

    def save_estimate(self, estimate: Estimate) -> None:
        """Remember how good the study is estimated to be."""
        write_table(self.folder / "estimate.json", estimate)

    def holds(self, index: int) -> bool:
        """Whether a voxel has this label index in anything that is remembered."""
        loaded = (self._load(name, "labels") for name in ("annotation", *SENT, *DRAFTS, RESULT, BEFORE))
        return any(data is not None and (data["labels"] == index).any() for data in loaded)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _load(self, name: str, *keys: str) -> dict[str, NDArray[Any]] | None:
        return load_arrays(self._file(name), *keys)

    def _save(self, name: str, **arrays: NDArray[Any]) -> None:
        save_arrays(self._file(name), **arrays)


def _integers(array: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in array)
