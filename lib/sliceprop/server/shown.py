"""The label files in MONAI Label's folder: they show the newest versions, and others may put files there too."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sliceprop.errors import SlicePropError
from sliceprop.hashing import known_digest
from sliceprop.server.datastore import Studies
from sliceprop.versions import Version, Versions

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What clients of MONAI Label see under a tag of a study, beside what they should.

    Attributes:
        newest: the version that counts; None before the first one.
        foreign: a label file that is no version yet.
        damaged: a label file that nobody wrote since it showed a version, and that holds something else now.
        behind: whether the label file is that of an older version, after a crash or a restore.
    """

    newest: Version | None
    foreign: Path | None = None
    damaged: Path | None = None
    behind: bool = False

    @property
    def settled(self) -> bool:
        """Whether clients see the version that counts."""
        return self.foreign is None and self.damaged is None and not self.behind

    @property
    def name(self) -> str:
        """What tells whether there is another label since; empty without any."""
        if self.foreign is not None and self.foreign.is_file():
            return f"{self.foreign.parent.name}:{self.foreign.stat().st_mtime_ns}"
        return self.newest.name if self.newest is not None and self.newest.labels_file else ""


def look(store: Studies, image_id: str, versions: Versions, tag: str) -> Shown:
    """Compare the label file of a tag with the versions; changes nothing."""
    file = store.label_file(image_id, tag)
    found = "" if file is None else known_digest(file)
    newest = versions.newest(tag)  # after the file: what another process shows is a version before it is shown
    if file is None:
        return Shown(newest, behind=newest is not None and newest.labels_file is not None)
    if newest is None:
        return Shown(None, foreign=file)
    if found == newest.digest:
        return Shown(newest)
    noted, changed = store.get_label_info(image_id, tag), file.stat()
    ours = noted.get("sha256") == found  # whatever the clock or a copy made of the file's time
    if ours or changed.st_mtime <= datetime.fromisoformat(newest.time).timestamp():
        older = (version.digest for version in versions.newest_first(tag) if version.number < newest.number)
        if found in older:
            return Shown(newest, behind=True)
    if not ours and "sha256" in noted and noted.get("mtime_ns") == changed.st_mtime_ns:
        return Shown(newest, damaged=file)
    return Shown(newest, foreign=file)


def publish(store: Studies, image_id: str, version: Version) -> None:
    """Let MONAI Label's clients see a version; if that fails it is tried again when the study is used next."""
    entry = version.entry
    try:
        if version.labels_file is None:
            store.drop_label(image_id, entry.tag)
        else:
            store.save_label(image_id, str(version.labels_file), entry.tag, _info(version))
    except (SlicePropError, OSError):
        logger.exception("version %d of %s is kept, but MONAI Label does not show it yet", version.number, image_id)


def note_found(store: Studies, image_id: str, version: Version, mtime_ns: int) -> None:
    """Remember that a label file is a version though somebody else put it there; without that it is still found."""
    try:
        known = {"version": version.number, "sha256": version.digest, "mtime_ns": mtime_ns}
        store.note_label(image_id, version.entry.tag, known)
    except (SlicePropError, OSError):
        logger.exception("it is not noted that a label file of %s is version %d", image_id, version.number)


def _info(version: Version) -> dict[str, object]:
    """What is stored beside a label file; the names are listed in the order of the values in the file."""
    entry = version.entry
    labels = [dict(one) for one in entry.label_info]
    info: dict[str, object] = {"version": version.number, "sha256": version.digest, "label_info": labels}
    if entry.slice_axis is not None:
        info |= {"slice_axis": entry.slice_axis, "partial": entry.partial}
    if entry.annotated_slices is not None and not entry.partial:
        info |= {"annotated_slices": list(entry.annotated_slices)}
    return info
