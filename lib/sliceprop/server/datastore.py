"""MONAI Label's folder of studies, safe against crashes, full disks and a second process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any

from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException

from sliceprop.io import SUFFIXES
from sliceprop.server.files import copy_file, write_file


class Studies(LocalDatastore):  # type: ignore[misc]
    """Differs from its base in that files appear whole or not at all, and other processes' entries are kept.

    Args:
        folder: holds the images; MONAI Label adds `labels/` and `datastore_v2.json`.
        watch: notice files that others put there; MONAI Label's setting by default.
    """

    def __init__(self, folder: str, *, watch: bool | None = None) -> None:
        self._changing = RLock()
        super().__init__(
            folder,
            extensions=[f"*{suffix}" for suffix in SUFFIXES],
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD if watch is None else watch,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def has_image(self, image_id: str) -> bool:
        """Whether there is such an image."""
        if image_id not in self.list_images():
            self.refresh()
        return image_id in self.list_images()

    def label_file(self, image_id: str, tag: str) -> Path | None:
        """The label file of an image under a tag; None if there is none."""
        uri = self.get_label_uri(image_id, tag)
        return Path(uri) if uri and Path(uri).is_file() else None

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label file under a tag, replacing the one that was there."""
        with self._entries() as entries:
            if image_id not in entries:
                raise ImageNotFoundException(f"Image {image_id} not found")
            _, suffix = self._to_id(Path(label_filename).name)
            name = self._filename(image_id, suffix)
            copy_file(Path(label_filename), Path(self._datastore.label_path(label_tag)) / name)
            info = {**label_info, "ts": int(time.time()), "name": name}
            entries[image_id].labels[label_tag] = DataModel(info=info, ext=suffix)
        return image_id

    def drop_label(self, image_id: str, tag: str) -> None:
        """Take a label file away; none is fine."""
        file = self.label_file(image_id, tag)
        if file is not None:
            with self._entries() as entries:
                entries[image_id].labels.pop(tag, None)
            file.unlink(missing_ok=True)

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
        """What is known of every image, to change: read anew first and written afterwards, one thread at a time."""
        with self._changing:
            self._init_from_datastore_file()
            yield self._datastore.objects
            self._update_datastore_file()

    def _reconcile_datastore(self) -> None:
        """Compare entries and files; the base's thread that watches the folder does it too, at any moment."""
        with self._changing:
            super()._reconcile_datastore()

    def _update_datastore_file(self, lock: bool = True) -> None:
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        file = Path(self._datastore_config_path)
        with FileLock(self._lock_file) if lock else nullcontext():
            write_file(file, lambda temporary: temporary.write_text(text))
            self._config_ts = file.stat().st_mtime


class LocalStudies(Studies):
    """A folder of scans that the operator or clients put there."""
