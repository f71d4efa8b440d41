"""Every version of what was drawn on a study: small folders that appear whole and are never changed.

A version is `DIR/.labelprop/studies/<study>/versions/000012/` with `record.json` (who, when, which slices, and a
checksum of every file and of itself), the label file as any program can read it, and which of its voxels were drawn.
Folders are renamed into place when all of it is on the disk, so that a crash leaves a version or none. A version that
does not match its checksums is told of and never used; then the one before it counts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.arrays import load_arrays
from sliceprop.errors import GeometryError, InputError, StorageError
from sliceprop.hashing import checksum, digest

logger = logging.getLogger(__name__)

FORMAT = 1
CHANGES_LOCK = ".changes.lock"
"""Held by who changes MONAI Label's list of images, from reading to writing it."""

SERVER_LOCK = ".server.lock"
"""Held by a server in `FOLDER` as long as it runs."""

DATASTORE = "datastore_v2.json"
"""MONAI Label's list of the images and labels of a folder; our server notes in it which slices of a label are drawn.
Processes for batches and scoring write it too."""

NAMES = "names.json"
"""The names of the labels 1, 2, ... of all studies of a server, in `FOLDER`."""

DAMAGED = ".damaged"
"""Ends the name of a list of images that could not be read, in place of its own ending."""

SPARSE, FINAL, SCRIBBLES = "sparse", "final", "scribbles"
"""Tags under which users submit."""

RESULT = "result"
"""Name of the file with the last propagation of a study."""

_RECORD, _LABELS, _DRAWN = "record.json", "labels", "drawn.npz"

Event = Literal["submitted", "found", "final", "restored", "removed", "conflict", "migrated"]
"""How a version came about: `found` was put into the folder by hand, `final` is a result that a user accepted, and
`conflict` is what was submitted after somebody else's version that its author did not know; it never counts."""


class DamagedError(InputError):
    """A version that does not match its checksums."""


@dataclass(frozen=True)
class Entry:
    """What is known of a version beside its voxels.

    Attributes:
        tag: under which it was submitted.
        event: how it came about.
        by: `user` and `client`, as far as they are known.
        in_force: whether it became the study's annotation.
        based_on: name of the version that its author had changed; empty if unknown.
        restored: number of the version that it repeats; 0 for a new one.
        slice_axis: axis of the image file that counts slices; None for scribbles.
        annotated_slices: drawn by hand, ascending; None for scribbles and where that was not kept.
        partial: a slice counts only for the labels on it.
        label_info: `name`, `idx` and `color` of each label in the file.
        indices: label index of each value in the file that is not one itself, as in a file put there by hand.
        grid: `shape` and `affine` (RAS mm) of the scan that slices and drawn voxels count on; None if that was not
            kept.
    """

    tag: str
    event: Event = "submitted"
    by: Mapping[str, str] = field(default_factory=dict)
    in_force: bool = False
    based_on: str = ""
    restored: int = 0
    slice_axis: int | None = None
    annotated_slices: tuple[int, ...] | None = None
    partial: bool = False
    label_info: tuple[Mapping[str, Any], ...] = ()
    indices: Mapping[str, int] = field(default_factory=dict)
    grid: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Version:
    """One sound version.

    Attributes:
        number: counts from 1 over all tags of a study.
        time: when it was kept, ISO 8601 in UTC.
        entry: what is known of it.
        folder: where it lies.
        files: SHA-256 by file name.
        sha256: of the record.
    """

    number: int
    time: str
    entry: Entry
    folder: Path
    files: Mapping[str, str]
    sha256: str

    @property
    def name(self) -> str:
        """What clients get to know as the version of an annotation, such as `sparse:12:5f3a9c01`.

        Its number comes again when a backup is put back, or a study is erased and drawn anew; its name does not.
        """
        return f"{self.entry.tag}:{self.number}:{self.sha256[:8]}"

    @property
    def labels_file(self) -> Path | None:
        """The label file; None if the version says that there is none any more."""
        return next((self.folder / name for name in self.files if name.startswith(_LABELS)), None)

    @property
    def digest(self) -> str:
        """SHA-256 of the label file; empty without one."""
        return "" if self.labels_file is None else self.files[self.labels_file.name]

    def drawn(self) -> NDArray[np.bool_] | None:
        """Which voxels of the label file were drawn by hand, `(i, j, k)`; None where that was not kept.

        Raises:
            DamagedError: if that cannot be read any more.
        """
        if _DRAWN not in self.files:
            return None
        try:
            with np.load(self.folder / _DRAWN, allow_pickle=False) as data:
                return unpacked_mask(data)
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise DamagedError(f"version {self.number} is damaged ({_DRAWN}: {error})") from error

    def told(self) -> dict[str, Any]:
        """As plain values, for people and programs."""
        known = {"version": self.number, "name": self.name, "time": self.time, "sha256": self.digest}
        told = known | asdict(self.entry)
        del told["grid"]  # of the scan, which clients have
        return told


class Versions:
    """The versions of one study.

    Args:
        folder: of the versions; made when the first one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(
        self, entry: Entry, labels: Path | None = None, drawn: NDArray[np.bool_] | None = None, *, time: str = ""
    ) -> Version:
        """Keep a new version; when this returns it is on the disk.

        Args:
            entry: what is known of it.
            labels: label file to copy; None to say that there is none any more.
            drawn: its voxels that were drawn by hand, `(i, j, k)`; None if unknown.
            time: when it was drawn, ISO 8601 in UTC; now without it.

        Raises:
            StorageError: if the folder is read-only or full; then nothing has changed.
        """
        io.make_folder(self._folder)
        try:
            with FileLock(self._folder / ".lock"):
                return self._append(entry, labels, drawn, time or now())
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot keep what was drawn ({error.strerror or error})") from error

    def _append(self, entry: Entry, labels: Path | None, drawn: NDArray[np.bool_] | None, time: str) -> Version:
        self._remove_unfinished()
        number = max(self.numbers(), default=0) + 1
        unfinished = Path(tempfile.mkdtemp(dir=self._folder, prefix=io.UNFINISHED))
        try:
            if labels is not None:
                shutil.copyfile(labels, unfinished / f"{_LABELS}{_ending(labels)}")
            if drawn is not None:
                np.savez_compressed(unfinished / _DRAWN, **packed_mask(drawn))
            files = {file.name: digest(file) for file in sorted(unfinished.iterdir())}
            record = _record(number, time, entry, files)
            (unfinished / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            unfinished.chmod(0o755)
            for file in unfinished.iterdir():
                io.sync(file)
            io.sync(unfinished)
            folder = unfinished.rename(self._folder / f"{number:06d}")
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        io.sync(self._folder)
        return _version(folder, record)

    def _remove_unfinished(self) -> None:
        """What writers left that were killed; only the one that holds the lock can be writing."""
        for folder in self._folder.glob(f"{io.UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def restore(self, number: int, by: Mapping[str, str] | None = None) -> Version:
        """Make an old version count again, as a new one.

        Raises:
            InputError: if there is no such version, it is damaged, or it holds nothing.
            FileError: if the folder is read-only or full.
        """
        old = self.get(number)
        if old.labels_file is None:
            raise InputError(f"version {number} says that there is no label; choose another one")
        counts = _counts_again(old.entry)
        entry = replace(old.entry, event="restored", restored=number, by=dict(by or {}), based_on="", in_force=counts)
        return self.append(entry, old.labels_file, old.drawn())

    def numbers(self) -> list[int]:
        """Of all versions, also damaged ones, ascending.

        Raises:
            StorageError: if the folder cannot be read; it may hold versions.
        """
        try:
            return sorted(int(file.name) for file in self._folder.iterdir() if file.name.isdecimal())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be read ({error.strerror})") from error

    def get(self, number: int) -> Version:
        """A version by its number.

        Raises:
            InputError: if there is none.
            DamagedError: if it does not match its checksums.
        """
        folder = self._folder / f"{number:06d}"
        if not folder.is_dir():
            raise InputError(f"there is no version {number}; there are {_listed(self.numbers())}")
        return _read(folder)

    def newest(self, *tags: str) -> Version | None:
        """The newest sound version under a tag, or under any of several; also one that says that there is no label."""
        return next((one for one in self.newest_first(*tags) if one.entry.event != "conflict"), None)

    def newest_first(self, *tags: str) -> Iterator[Version]:
        """All sound versions, or those under some tags."""
        for number in reversed(self.numbers()):
            folder = self._folder / f"{number:06d}"
            with suppress(OSError, DamagedError):
                if not tags or _tag(folder, folder.stat().st_mtime_ns) in (*tags, None):
                    version = _read(folder)
                    if not tags or version.entry.tag in tags:
                        yield version

    def recorded(self) -> Iterator[Version]:
        """All versions with a sound record, ascending; whether their files are is not looked at, which takes long."""
        for number in self.numbers():
            folder = self._folder / f"{number:06d}"
            with suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
                record = _read_record(folder)
                if not _wrong(folder, record):
                    yield _version(folder, record)

    def damaged(self) -> dict[int, str]:
        """What is wrong with the versions that cannot be used, by number."""
        found = {}
        for number in self.numbers():
            try:
                self.get(number)
            except InputError as error:
                found[number] = str(error)
        return found


def _counts_again(entry: Entry) -> bool:
    """Whether a version becomes the annotation when it is restored; one with slices that nobody drew does not.

    Releases before versions kept under `final` what was propagated and accepted, and what was drawn, without telling.
    """
    if entry.event == "restored":
        return entry.in_force
    return entry.tag == SPARSE or (entry.tag == FINAL and entry.event not in ("final", "migrated"))


def grid_of(scan: io.Image) -> dict[str, Any]:
    """`Entry.grid`."""
    return {"shape": list(scan.array.shape), "affine": scan.affine.tolist()}


def check_grid(grid: Mapping[str, Any] | None, scan: io.Image, what: str) -> None:
    """Refuse what has its slices and drawn voxels on another grid than that of the scan.

    Args:
        grid: that they count on; None if that was not kept.
        scan: of the study.
        what: what is refused, and how it came about.

    Raises:
        GeometryError: saying what to do.
    """
    if grid is None:
        return
    try:
        io.check_same_grid(scan, io.Image(np.empty(grid["shape"], np.uint8), np.array(grid["affine"])), "labels")
    except InputError as error:
        raise GeometryError(
            f"{what} on a scan with another grid than this study's has now; "
            "put that scan back, or erase the study and draw anew"
        ) from error


def study_versions(folder: Path) -> Versions:
    """Those in the folder of a study; what releases before versions kept is taken over first."""
    versions = Versions(folder / "versions")
    migrate_history(folder / "history", versions)
    return versions


def migrate_history(folder: Path, versions: Versions) -> None:
    """Take over the label files that releases before versions kept as `20261121T163357-000000000-sparse.nii.gz`.

    Args:
        folder: of those files; it is gone afterwards. Nothing happens if there is none, or it cannot be changed.
        versions: of the same study.
    """
    if not folder.is_dir():
        return
    try:
        known = {(one.time, one.digest) for one in versions.newest_first() if one.entry.event == "migrated"}
        for file in sorted(folder.glob("[0-9]*T[0-9]*-*-*")):
            time = _history_time(file)
            if (time, digest(file)) not in known:
                versions.append(Entry(_history_tag(file), "migrated"), file, time=time)
            file.unlink()
        shutil.rmtree(folder)
    except (OSError, ValueError):
        logger.exception("%s cannot be taken over into versions yet", folder)


def _history_tag(file: Path) -> str:
    return file.name.split("-", 2)[-1].removesuffix(_ending(file)).partition(".")[0]


def _history_time(file: Path) -> str:
    moment = datetime.strptime(file.name.partition("-")[0], "%Y%m%dT%H%M%S").astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def packed_mask(mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """A mask of any shape as arrays to save, one bit per voxel."""
    return {"drawn": np.packbits(mask), "drawn_shape": np.array(mask.shape)}


def unpacked_mask(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """What `packed_mask` packed.

    Raises:
        ValueError: if shape and size differ.
    """
    shape = tuple(int(size) for size in arrays["drawn_shape"])
    voxels = int(np.prod(shape, dtype=np.int64))
    if arrays["drawn"].size != (voxels + 7) // 8:
        raise ValueError("the mask's shape and size differ")
    return np.unpackbits(arrays["drawn"], count=voxels).astype(bool).reshape(shape)


def result_mask(folder: Path) -> NDArray[np.bool_] | None:
    """Which voxels of the last result in the folder of a study were drawn, `(i, j, k)`; None if that is not known."""
    file = folder / f"{RESULT}.npz"
    arrays = load_arrays(file, "drawn", "drawn_shape") if file.is_file() else None
    return None if arrays is None else unpacked_mask(arrays)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _record(number: int, time: str, entry: Entry, files: Mapping[str, str]) -> dict[str, Any]:
    known = {"format": FORMAT, "number": number, "time": time, **asdict(entry), "files": dict(files)}
    record: dict[str, Any] = json.loads(json.dumps(known))
    return {**record, "sha256": checksum(record)}


def _version(folder: Path, record: Mapping[str, Any]) -> Version:
    known = {name: record[name] for name in Entry.__dataclass_fields__ if name in record}
    slices = known["annotated_slices"]
    known |= {"annotated_slices": None if slices is None else tuple(slices), "label_info": tuple(known["label_info"])}
    return Version(record["number"], record["time"], Entry(**known), folder, record["files"], record["sha256"])


def _read(folder: Path) -> Version:
    """A version after checking every byte of it; what did not change since is not read again.

    Raises:
        DamagedError: if anything does not match.
    """
    try:
        files = ((entry.name, entry.stat()) for entry in os.scandir(folder))
        found = tuple(sorted((name, state.st_mtime_ns, state.st_size, state.st_ino) for name, state in files))
    except OSError as error:
        raise DamagedError(f"version {folder.name} cannot be read ({error.strerror})") from error
    try:
        result = _checked(folder, found)
    except OSError as error:
        raise DamagedError(f"version {int(folder.name)} cannot be read ({error.strerror or error})") from error
    if isinstance(result, str):
        raise DamagedError(f"version {int(folder.name)} is damaged: {result}")
    return result


@lru_cache(maxsize=65_536)
def _tag(folder: Path, mtime_ns: int) -> str | None:
    """Tag of a version, without checking anything else of it; None if even that cannot be read."""
    try:
        return str(_read_record(folder)["tag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _checked(folder: Path, found: tuple[tuple[str, int, int, int], ...]) -> Version | str:
    """The version, or what is wrong with it, which is logged once."""
    try:
        record = _read_record(folder)
        changed = (name for name, sha256 in record["files"].items() if digest(folder / name) != sha256)
        reason = _wrong(folder, record) or next((f"{name} does not match its checksum" for name in changed), "")
        if not reason:
            return _version(folder, record)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{_RECORD} cannot be read ({error})"
    logger.warning("%s is damaged and left out: %s", folder, reason)
    return reason


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return record


def _wrong(folder: Path, record: Mapping[str, Any]) -> str:
    """What is wrong with a record; empty for nothing."""
    if record["format"] != FORMAT:
        return f"it has format {record['format']}, this program reads {FORMAT}"
    if record["sha256"] != checksum(record) or record["number"] != int(folder.name):
        return f"{_RECORD} does not match its checksum"
    return ""


def _ending(file: Path) -> str:
    """Of the name; one of those that are read, `.nii.gz` rather than `.gz`."""
    known = (".seg.nrrd", *io.SUFFIXES)
    return next((suffix for suffix in known if file.name.endswith(suffix)), file.suffix)


def _listed(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
