"""The studies of one server: finds the scan of a request, and what the server remembers of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary

from sliceprop import io
from sliceprop.errors import FileError, InputError
from sliceprop.files import read_json, write_json
from sliceprop.hashing import array_digest, file_state
from sliceprop.io import FOLDER
from sliceprop.server.datastore import Studies
from sliceprop.server.errors import NotFoundError
from sliceprop.server.guard import inside, plain_name
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import Options
from sliceprop.versions import grid_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One study as a request names it.

    Attributes:
        image: file of the scan.
        record: what the server remembers of it; None for a scan that came with the request.
        image_id: in the datastore; empty for the scan of a session or of a request.
    """

    image: Path
    record: StudyRecord | None
    image_id: str = ""


class Cases:
    """The studies of one server.

    Args:
        store: scans and label files; what the server remembers of them lies beside, in `.labelprop`.
    """

    def __init__(self, store: Studies) -> None:
        self.store = store
        self.folder = Path(store._datastore_path) / FOLDER
        self._locks: WeakValueDictionary[str, Any] = WeakValueDictionary()  # of studies that are worked on
        self._choosing = Lock()

    def lock(self, case: Case) -> RLock:
        """Serialises the work on one study; different studies do not wait for each other."""
        with self._choosing:
            chosen: RLock = self._locks.setdefault(str(case.image), RLock())
            return chosen

    def case(self, image_id: Any) -> Case:
        """The study with this id.

        Raises:
            InputError: if the id is not a plain name.
            NotFoundError: if there is no such image.
            ArchiveError: if it must be fetched from an archive that does not answer.
            StorageError: if the folder of the studies is out of reach.
        """
        if not isinstance(image_id, str) or not image_id:
            raise InputError(f"image must be the id of an image, not {image_id!r}")
        plain_name(image_id, "image")
        self.store.check_reach()
        if not self.store.has_image(image_id):
            raise NotFoundError(f"unknown image {image_id!r}")
        return Case(Path(self.store.get_image_uri(image_id)), self.record(image_id), image_id)

    def record(self, image_id: str) -> StudyRecord:
        """What is remembered of a study that exists; unlike `case` it does not fetch the image from an archive.

        Raises:
            InputError: if its folder is a link to a place outside.
        """
        studies = self.folder / "studies"
        return StudyRecord(inside(studies, studies / image_id))

    def records(self) -> Iterator[StudyRecord]:
        """What is remembered of every study."""
        return (StudyRecord(folder) for folder in (self.folder / "studies").glob("*/"))

    def requested_case(self, options: Options) -> Case | None:
        """The study of a request: `image`, else the one used or annotated last, else the first; None if there is none.

        Raises:
            NotFoundError: if `image` does not exist.
        """
        if options.get("image"):
            return self.case(options["image"])
        images = sorted(self.store.list_images())
        last = read_json(self._last_used)
        return self.case(last if last in images else images[0]) if images else None

    def remember(self, case: Case) -> None:
        """Make this study the one that requests without `image` mean."""
        if case.image_id and read_json(self._last_used) != case.image_id:
            try:
                write_json(self._last_used, case.image_id)
            except FileError:
                logger.exception("the study used last is not remembered")

    @property
    def _last_used(self) -> Path:
        return self.folder / "last_used.json"

    def scan(self, case: Case) -> io.Image:
        """The image of a study; read anew only when the file has changed. Results of another image are forgotten.

        Raises:
            FileError: or another `InputError`, if it cannot be read; a `StorageError` if the folder is out of reach.
        """
        state = file_state(case.image) if case.image.exists() else ()
        if not state:
            self.store.check_reach()
        scan = _read_scan(case.image, state)
        if case.record is not None and case.record.folder.is_dir():
            case.record.notice_scan({"voxels": _scan_digest(case.image, state), "grid": grid_of(scan)})
        return scan

    def scan_name(self, case: Case) -> str:
        """What tells a scan from others that there were, or will be, under its id."""
        self.scan(case)
        return _scan_digest(case.image, file_state(case.image))[:16]

    def recorded_labels(self) -> list[tuple[Mapping[str, Any], ...]]:
        """Names and indices of the labels in each version of every study, the newest first."""
        versions = [version for record in self.records() for version in record.versions.recorded()]
        return [one.entry.label_info for one in sorted(versions, key=lambda one: one.time, reverse=True)]


@lru_cache(maxsize=256)
def _scan_digest(file: Path, state: tuple[int, ...]) -> str:
    return array_digest(_read_scan(file, state).array)


@lru_cache(maxsize=2)
def _read_scan(file: Path, state: tuple[int, ...]) -> io.Image:
    return io.read_image(file)
