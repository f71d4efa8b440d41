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
        behind: whether the label file is that of an older version, after a crash or a restore.
    """

    newest: Version | None
    foreign: Path | None = None
    behind: bool = False

    @property
    def name(self) -> str:
        """What tells whether there is another label since; empty without any."""
        if self.foreign is not None and self.foreign.is_file():
            return f"{self.foreign.parent.name}:{self.foreign.stat().st_mtime_ns}"
        return self.newest.name if self.newest is not None and self.newest.labels_file else ""


def look(store: Studies, image_id: str, versions: Versions, tag: str) -> Shown:
    """Compare the label file of a tag with the versions; changes nothing."""
    newest, file = versions.newest(tag), store.label_file(image_id, tag)
    if file is None:
        return Shown(newest, behind=newest is not None and newest.labels_file is not None)
    found = known_digest(file)
    if newest is not None and found == newest.digest:
        return Shown(newest)
    if newest is not None and file.stat().st_mtime <= datetime.fromisoformat(newest.time).timestamp():
        older = (version.digest for version in versions.newest_first(tag) if version.number < newest.number)
        if found in older:
            return Shown(newest, behind=True)
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
