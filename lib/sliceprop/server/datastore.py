"""MONAI Label's folder of studies, safe against crashes, full disks and a second process."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.local import DataModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException

from sliceprop.io import SUFFIXES
from sliceprop.server.files import copy_file, write_file


class LocalStudies(LocalDatastore):  # type: ignore[misc]
    """Differs from its base in that files appear whole or not at all, and other processes' entries are kept.

    Args:
        folder: holds the images; MONAI Label adds `labels/` and `datastore_v2.json`.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(
            folder,
            extensions=[f"*{suffix}" for suffix in SUFFIXES],
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label file under a tag, replacing the one that was there."""
        self._init_from_datastore_file()
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            raise ImageNotFoundException(f"Image {image_id} not found")
        _, suffix = self._to_id(Path(label_filename).name)
        name = self._filename(image_id, suffix)
        copy_file(Path(label_filename), Path(self._datastore.label_path(label_tag)) / name)
        entry.labels[label_tag] = DataModel(info={**label_info, "ts": int(time.time()), "name": name}, ext=suffix)
        self._update_datastore_file()
        return image_id

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image, by this process or another, such as one that scores."""
        self._init_from_datastore_file()
        info: dict[str, Any] = super().get_image_info(image_id)
        return info

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        self._init_from_datastore_file()
        super().update_image_info(image_id, info)

    def _update_datastore_file(self, lock: bool = True) -> None:
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        file = Path(self._datastore_config_path)
        with FileLock(self._lock_file) if lock else nullcontext():
            write_file(file, lambda temporary: temporary.write_text(text))
            self._config_ts = file.stat().st_mtime
