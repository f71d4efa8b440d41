"""Trained models of a server: one safetensors file per id; a study's own model has the image's id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.engine.registration import Model
from sliceprop.errors import FileError
from sliceprop.files import remove_abandoned
from sliceprop.hashing import file_state
from sliceprop.io import make_folder
from sliceprop.server.errors import NotFoundError
from sliceprop.server.guard import inside, plain_name

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Chosen:
    """The model for a request.

    Attributes:
        model: None to do without.
        file: its checkpoint, under a name that no training takes away; None where that is not kept.
        note: why the study's own checkpoint is not used, for the user; empty if nothing is wrong with it.
    """

    model: Model | None = None
    file: Path | None = None
    note: str = ""


class Checkpoints:
    """The folder of checkpoints.

    Args:
        folder: made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, checkpoint_id: str) -> Path:
        """Where a checkpoint lies, whether it exists or not.

        Raises:
            InputError: if the id is not a plain name.
        """
        return self._folder / f"{plain_name(checkpoint_id, 'checkpoint id')}{SUFFIX}"

    def existing(self, checkpoint_id: str) -> Path:
        """Where an existing checkpoint lies.

        Raises:
            NotFoundError: if there is none.
            InputError: if it is a link to a place outside of the folder.
        """
        file = self.file(checkpoint_id)
        if not file.is_file():
            raise NotFoundError(f"there is no checkpoint {checkpoint_id!r}")
        return inside(self._folder, file)

    def load(self, checkpoint_id: str) -> Model:
        """The model; read anew only when the file has changed.

        Raises:
            NotFoundError: if there is none.
            CheckpointError: if it is damaged or of another version.
        """
        return self.read(self.existing(checkpoint_id))

    def read(self, file: Path) -> Model:
        """The model in a file, which need not lie in this folder; read anew only when the file has changed.

        Raises:
            FileError: if it cannot be read.
            CheckpointError: if it is damaged or of another version.
        """
        try:
            return _load(file, file_state(file))
        except OSError as error:
            raise FileError(f"{file}: cannot be read ({error.strerror})") from error

    def save(self, checkpoint_id: str, model: Model) -> None:
        """Write or replace a checkpoint.

        Raises:
            FileError: if the folder is read-only or full.
        """
        make_folder(self._folder)
        save_checkpoint(self.file(checkpoint_id), model)

    def remove_leftovers(self) -> None:
        """Delete what killed trainings left half written an hour ago or earlier."""
        remove_abandoned(self._folder)

    def __contains__(self, checkpoint_id: str) -> bool:
        return self.file(checkpoint_id).is_file()

    def listing(self) -> list[dict[str, Any]]:
        """`id`, `size` in bytes, `modified` as a time stamp in seconds, of every checkpoint; the newest first."""
        files = [file for file in self._folder.glob(f"*{SUFFIX}") if not file.name.startswith(".")]
        entries = [
            {"id": f.name.removesuffix(SUFFIX), "size": f.stat().st_size, "modified": f.stat().st_mtime} for f in files
        ]
        return sorted(entries, key=lambda entry: -entry["modified"])


@lru_cache(maxsize=4)
def _load(file: Path, state: tuple[int, int, int]) -> Model:
    return load_checkpoint(file)
