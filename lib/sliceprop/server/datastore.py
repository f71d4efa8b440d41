"""MONAI Label's folder of studies, safe against crashes, full disks and a second process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException
from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from sliceprop import io
from sliceprop.errors import FileError, InputError, SlicePropError, StorageError
from sliceprop.files import copy_file, remove_abandoned, write_file
from sliceprop.hashing import file_state
from sliceprop.io import FOLDER, SUFFIXES
from sliceprop.server.errors import ConflictError
from sliceprop.server.guard import check_unlike, inside
from sliceprop.server.label_files import CROPPED_SUFFIX
from sliceprop.server.logs import used_names
from sliceprop.versions import CHANGES_LOCK, DAMAGED, DATASTORE, FINAL

logger = logging.getLogger(__name__)

SetAside = Callable[[Path, Path], None]
"""Gives a file another name, beside its own or in place of it."""

MASK = "_drawn"
"""Ends the tag of the mask beside a stored result: 1 where the user decided, 0 where it was propagated."""


MARK = ".present"
"""File in `FOLDER` and in `labels`, which may lie on disks of their own: without it the disk is not there."""

OUT_OF_REACH = "the folder of the studies is out of reach; bring it back"


class _Arrivals(FileSystemEventHandler):
    """Calls a function whenever a scan, a label or MONAI Label's list of them comes, goes or is renamed."""

    EVENTS: ClassVar = [FileCreatedEvent, FileDeletedEvent, FileMovedEvent]

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """One of `EVENTS`; the thread that watches must outlive a full disk."""
        names = [Path(os.fsdecode(path)).name for path in (event.src_path, event.dest_path)]
        if not any(name.endswith((*SUFFIXES, DATASTORE)) and not name.startswith(io.UNFINISHED) for name in names):
            return
        try:
            self._changed()
        except (OSError, SlicePropError):
            logger.exception("the list of images could not be renewed")


class Studies(LocalDatastore):  # type: ignore[misc]
    """Differs from its base in that files appear whole or not at all, and other processes' entries are kept.

    Args:
        folder: holds the images; MONAI Label adds `labels/` and `DATASTORE`.
        watch: notice files that others put there; MONAI Label's setting by default.

    Raises:
        FileError: if the folder cannot be used; a `StorageError` if it is out of reach by now.
    """

    may_begin: ClassVar = True
    """Whether this process makes what is kept beside the images where it is not there; one beside a server does not."""

    def __init__(self, folder: str, *, watch: bool | None = None) -> None:
        kept = [Path(folder, name) for name in ("labels", FOLDER)]
        self._needed = kept[:1]
        if not self.may_begin and not all(one.is_dir() and any(one.iterdir()) for one in kept):
            raise StorageError(OUT_OF_REACH)
        self._changing, self._changes = RLock(), FileLock(Path(folder) / CHANGES_LOCK)
        self._list_state: tuple[int, ...] | None = None
        self.before_removal: Callable[[str, str], None] = lambda image_id, tag: None
        """Called with image id and tag before a client removes a label."""
        self.set_aside: Callable[[str, str, Path, SetAside], Path | None] = lambda image_id, tag, file, how: None
        """Called with image id, tag, a label file, and `os.link` before another one takes its name, or `os.rename`;
        gives its other name, or None if it is not there or only leads to another place."""
        self.after_removal: Callable[[str, str, Path], None] = lambda image_id, tag, file: None
        """Called with image id, tag and a file that was set aside, when another one took its place or none does."""
        try:
            self._set_damaged_list_aside(Path(folder))
            remove_unfinished(Path(folder))
            super().__init__(
                folder,
                extensions=[f"*{suffix}" for suffix in SUFFIXES],
                read_only=True,  # else the list is written here, for which a folder must be neither read-only nor full
            )
        except OSError as error:
            raise FileError(f"{folder}: cannot be used ({error.strerror or error})") from error
        if self.may_begin:
            with suppress(OSError):  # a folder that is read-only is still served
                for one in kept:
                    one.mkdir(exist_ok=True)
                    (one / MARK).touch()
        self._needed += [one / MARK for one in kept if (one / MARK).exists()]
        if not settings.MONAI_LABEL_DATASTORE_READ_ONLY:
            self.notice_files()
        if settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD if watch is None else watch:
            self._watch()

    def _set_damaged_list_aside(self, folder: Path) -> None:
        """Without it the list is made anew from the files in the folder; with it the server could not start."""
        file = folder / DATASTORE
        try:
            LocalDatastoreModel.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            logger.exception("%s is damaged; it is made anew", file)
            with suppress(OSError):
                file.replace(file.with_suffix(DAMAGED))

    def _watch(self) -> None:
        """Notice scans and labels that others add or take away.

        The base would watch the folders of all versions as well, more with every submission, until the system has no
        watches left.
        """
        arrivals = _Arrivals(self.refresh)
        self._observer = PollingObserver() if self._is_on_mount(self._datastore_path) else Observer()
        for folder, recursive in ((self._datastore_path, False), (self._datastore.label_path(None), True)):
            self._observer.schedule(arrivals, folder, recursive=recursive, event_filter=arrivals.EVENTS)
        try:
            self._observer.start()
        except OSError:
            logger.exception("files that others put into the folder are noticed when a client asks for them")

    def has_image(self, image_id: str) -> bool:
        """Whether there is such an image; then its name stays out of the log for good."""
        if image_id not in self.list_images():
            self.refresh()
        found = image_id in self.list_images()
        if found:
            used_names.add(image_id)
        return found

    def check_reach(self) -> None:
        """Refuse to take a folder for empty that is out of reach, as when its disk is taken away.

        Raises:
            StorageError: if what is made in it at the start is not there.
        """
        if not all(needed.exists() for needed in self._needed):
            raise StorageError(OUT_OF_REACH)

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image; empty if there is none.

        Raises:
            InputError: if it is a link to a place outside of the folder.
        """
        return self._inside(super().get_image_uri(image_id), f"the image of {image_id!r}")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label; empty if there is none.

        Raises:
            InputError: if it is a link to a place outside of the folder.
        """
        return self._inside(super().get_label_uri(label_id, label_tag), f"the label {label_tag!r} of {label_id!r}")

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Files of every image with a final label, and of that label, as `image` and `label`.

        Raises:
            InputError: if one is a link to a place outside of the folder.
        """
        pairs = zip(self._datastore.filter_by_tag(FINAL), super().datalist(full_path), strict=True)
        return [{key: self._inside(file, f"the {key} of {one!r}") for key, file in pair.items()} for one, pair in pairs]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image; one that is there already, voxel by voxel, stays as it is.

        Raises:
            ConflictError: if another scan has this id: what was drawn on that one does not fit.
            InputError: if its id looks like another one, or a link to a place outside of the folder is in its way.
        """
        file = Path(image_filename)
        image_id, suffix = image_id or self._to_id(file.name)[0], self._to_id(file.name)[1]
        self.refresh()  # notices files that were put there or removed since
        with self._entries() as entries:
            entry = entries.get(image_id)
            if entry is None:
                check_unlike(image_id, entries)
            name = self._filename(image_id, entry.image.ext if entry else suffix)
            target = Path(self._inside(str(Path(self._datastore.image_path()) / name)))
            taken = entry is not None or target.exists()
            if not taken:
                copy_file(file, target)
                info = {**(image_info or {}), "ts": int(time.time()), "name": name}
                entries[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
        if taken and not _same_scan(target, file):
            raise ConflictError(
                f"there is another scan called {image_id!r}; choose another name, "
                "or let the operator erase that study first (sliceprop erase STUDY --scan)"
            )
        return image_id

    def _inside(self, uri: str, called: str = "") -> str:
        return str(inside(Path(self._datastore_path), Path(uri), called)) if uri else ""

    def label_file(self, image_id: str, tag: str) -> Path | None:
        """The label file of an image under a tag; None if there is none."""
        uri = self.get_label_uri(image_id, tag)
        return Path(uri) if uri and Path(uri).is_file() else None

    def label_files(self) -> Iterator[Path]:
        """Those of all images and tags that are known here, in an archive those of this server."""
        labels = [(image, tag) for image, entry in list(self._datastore.objects.items()) for tag in list(entry.labels)]
        return (file for image, tag in labels if (file := self.label_file(image, tag)))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label file under a tag, replacing the one that was there and the mask beside it."""
        with self._entries() as entries:
            if image_id not in entries:
                raise ImageNotFoundException(f"Image {image_id} not found")
            self._drop(image_id, f"{label_tag}{MASK}")
            cropped = label_filename.endswith(CROPPED_SUFFIX)
            suffix = CROPPED_SUFFIX if cropped else self._to_id(Path(label_filename).name)[1]
            name = self._filename(image_id, suffix)
            target = Path(self._inside(f"{self._datastore.label_path(label_tag)}/{name}"))

            target.parent.mkdir(exist_ok=True)  # not its parents: they are out of reach if they are not there
            mtime_ns = self._replace(image_id, label_tag, target, Path(label_filename))
            info = {**label_info, "ts": int(time.time()), "mtime_ns": mtime_ns, "name": name}
            entries[image_id].labels[label_tag] = DataModel(info=info, ext=suffix)
        return image_id

    def _replace(self, image_id: str, tag: str, target: Path, source: Path) -> int:
        """Let a copy take the place of a label file, which nobody misses meanwhile; the time of the copy."""
        aside, times = list[Path | None](), list[int]()

        def put(temporary: Path, target: Path) -> None:
            times.append(temporary.stat().st_mtime_ns)
            aside.append(self.set_aside(image_id, tag, target, os.link))
            temporary.replace(target)

        try:
            io.write_atomically(target, lambda temporary: shutil.copyfile(source, temporary), put)
        finally:
            for old in filter(None, aside):
                self.after_removal(image_id, tag, old)
        return times[0]

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label, and the mask beside it, as a client asks.

        Files of it in other formats, which somebody put there, would take its place, and go too.
        """
        self.check_reach()
        for _ in SUFFIXES:
            self.before_removal(label_id, label_tag)
            self.drop_label(label_id, label_tag)
            self.notice_files()
            if self.label_file(label_id, label_tag) is None:
                return

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; files of it in other formats too, as of a label."""
        self.check_reach()
        for _ in SUFFIXES:
            super().remove_image(image_id)
            self.notice_files()
            if image_id not in self._datastore.objects:
                return

    def drop_label(self, image_id: str, tag: str) -> None:
        """Take a label file, and the mask beside it, away; none is fine."""
        with self._entries():
            self._drop(image_id, f"{tag}{MASK}")
            self._drop(image_id, tag)

    def _drop(self, image_id: str, tag: str) -> None:
        file = self.label_file(image_id, tag)
        if file is None:
            return
        old = None if tag.endswith(MASK) else self.set_aside(image_id, tag, file, os.rename)
        if old is None:
            file.unlink(missing_ok=True)
        else:
            self.after_removal(image_id, tag, old)
        self._datastore.objects[image_id].labels.pop(tag, None)

    def note_label(self, image_id: str, tag: str, info: Mapping[str, Any]) -> None:
        """Add to what is known of a label file that is there."""
        with self._entries() as entries:
            if image_id in entries and tag in entries[image_id].labels:
                entries[image_id].labels[tag].info.update(info)

    def notice_files(self) -> None:
        """Compare the list with the files now, since others may have changed both."""
        try:
            self._reconcile_datastore()
        except (OSError, SlicePropError):  # read anew, but in a folder that is read-only or full not written
            logger.exception("the list of images could not be renewed")

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image, by this process or another, such as one that scores."""
        self._init_from_datastore_file()
        info: dict[str, Any] = super().get_image_info(image_id)
        return info

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        with self._entries() as entries:
            if image_id not in entries:
                raise ImageNotFoundException(f"Image {image_id} not found")
            entries[image_id].image.info.update(info)

    @contextmanager
    def _entries(self) -> Iterator[dict[str, ImageLabelModel]]:
        """What is known of every image, to change: read anew first and written afterwards, by one process at a time.

        Raises:
            FileError: if the folder is read-only or full; a `StorageError` if it is out of reach.
        """
        self.check_reach()
        with self._changing:
            try:
                with self._changes:
                    self._init_from_datastore_file()
                    yield self._datastore.objects
                    self._update_datastore_file()
            except OSError as error:
                raise FileError(f"{self._datastore_path}: cannot be changed ({error.strerror or error})") from error

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Names of the files in a folder, without those that are being written or that killed writers left."""
        files: dict[str, str] = super()._list_files(path, patterns)
        return {name: file for name, file in files.items() if not name.startswith(io.UNFINISHED)}

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read what is known of every image, if it was written anew: always as a whole, so that no lock is needed.

        Raises:
            OSError: at the start, if it is there and cannot be read; later what was read before stays.
        """
        file = Path(self._datastore_config_path)
        try:
            state = file_state(file)
            if state != self._list_state:
                known = LocalDatastoreModel.model_validate_json(file.read_bytes())
                known.base_path = self._datastore_path
                self._datastore, self._list_state = known, state
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            if throw_exception:
                raise
            logger.exception("the list of images in %s cannot be read", self._datastore_path)

    def _reconcile_datastore(self) -> None:
        """Compare entries and files; the thread that watches the folder does it too, at any moment.

        Another process that adds a label has put the file there and not yet its entry.

        Raises:
            StorageError: if the folder is out of reach; what is known of the images stays.
        """
        self.check_reach()
        with self._changing, ExitStack() as held:
            with suppress(OSError):  # in a folder that is read-only nothing is written below either
                held.enter_context(self._changes)
            self._init_from_datastore_file()
            super()._reconcile_datastore()

    def _remove_non_existing(self) -> int:
        """Forget what has no file any more; how much that was.

        Threads that look meanwhile miss nothing that stays: the base takes all away for a moment.
        """
        self._init_from_datastore_file()
        known, gone = self._datastore, 0

        def there(folder: str, image: str, ending: str) -> bool:
            return Path(folder, self._filename(image, ending)).exists()

        images = {one: e for one, e in known.objects.items() if there(known.image_path(), one, e.image.ext)}
        for image, entry in images.items():
            labels = {tag: e for tag, e in entry.labels.items() if there(known.label_path(tag), image, e.ext)}
            if len(labels) < len(entry.labels):
                gone += len(entry.labels) - len(labels)
                entry.labels = labels
        if len(images) < len(known.objects):
            gone += len(known.objects) - len(images)
            known.objects = images
        return gone

    def _add_non_existing_labels(self, tag: str) -> int:
        """Labels of a tag that the list lacks, `ID.seg.nrrd` of 3D Slicer among them unless an image is called so."""
        added: int = super()._add_non_existing_labels(tag)
        images = self._datastore.objects
        for name in self._list_files(self._datastore.label_path(tag), [f"*{CROPPED_SUFFIX}"]):
            image = images.get(name.removesuffix(CROPPED_SUFFIX))
            if image is not None and tag not in image.labels and self._to_id(name)[0] not in images:
                image.labels[tag] = DataModel(info={"ts": int(time.time()), "name": name}, ext=CROPPED_SUFFIX)
                added += 1
        return added

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write what is known of every image.

        Raises:
            InputError: for what could not be read again; what is in the file stays, and counts.
        """
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        try:
            LocalDatastoreModel.model_validate_json(text)
        except ValueError as error:
            self._list_state = None  # the file is read anew
            raise InputError("this could not be read again; send plain text, numbers, lists and objects") from error
        file = Path(self._datastore_config_path)
        with FileLock(self._lock_file) if lock else nullcontext():
            write_file(file, lambda temporary: temporary.write_text(text))
            self._list_state = file_state(file)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed writers and downloads left an hour ago or earlier; studies remove that of versions themselves.

    Args:
        folder: of the studies.
    """
    ours = folder / FOLDER
    studies = [place for pattern in ("*", "*/set_aside") for place in ours.glob(f"studies/{pattern}")]
    places = [folder, *folder.glob("labels/*"), ours, ours / "checkpoints", *studies]
    for place in places:
        if place.resolve().is_relative_to(folder.resolve()):
            remove_abandoned(place)


def _same_scan(file: Path, other: Path) -> bool:
    """Whether two files hold the same voxels at the same place, however they are compressed."""
    one, two = io.read_image(file), io.read_image(other)
    try:
        io.check_same_grid(one, two, other.name)
    except InputError:
        return False
    return one.array.dtype.names is None and np.array_equal(one.array, two.array)  # colours cannot be compared


class LocalStudies(Studies):
    """A folder of scans that the operator or clients put there."""
