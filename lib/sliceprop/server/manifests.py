"""What it takes to make a study's results again: a folder per result, which appears as a whole, and the models used."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sliceprop import io
from sliceprop.errors import InputError, SlicePropError
from sliceprop.files import remove_abandoned
from sliceprop.hashing import digest, known_digest
from sliceprop.labels import LabelArray
from sliceprop.manifest import MANIFEST, MANIFESTS, Making, Recipe, make_manifest, read_manifest, write_manifest
from sliceprop.study import Propagation

logger = logging.getLogger(__name__)

MAX_MANIFESTS = 20
"""Kept per study, with the models that they name; sparse labels compress to kilobytes, a model takes megabytes."""


@dataclass(frozen=True)
class Manifests:
    """The manifests of one study.

    Attributes:
        folder: of the study.
    """

    folder: Path

    def keep_model(self, checkpoint: Path) -> Path:
        """A second name for a checkpoint as it is now; the file stays when a training replaces the first one.

        Raises:
            OSError: or a `StorageError`, if the folder is read-only or full, or there is no such checkpoint.
        """
        models = self.folder / "models"
        io.make_folder(models)
        with tempfile.TemporaryDirectory(dir=models, prefix=io.UNFINISHED) as folder:
            copy = Path(folder) / checkpoint.name
            try:
                os.link(checkpoint, copy)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(checkpoint, copy)
            kept = models / f"{digest(copy)}{checkpoint.suffix}"
            if not kept.is_file() or known_digest(kept) != kept.stem:
                copy.replace(kept)
        return kept

    def add(
        self,
        scan: io.Image,
        recipe: Recipe,
        noted: Making,
        result: Propagation,
        drawn: Mapping[str, LabelArray],
    ) -> int | None:
        """Write the manifest of a result.

        Args:
            scan: gives the grid.
            recipe: how the result was made; its files without what was drawn.
            noted: while it was made.
            result: what came out.
            drawn: `labels` and `scribbles` as they were when it was made.

        Returns:
            its number; None if it could not be written, which is logged: the result is good without it.
        """
        folder = self.folder / MANIFESTS
        try:
            io.make_folder(folder)
            number = max(self.numbers(), default=0) + 1
            with tempfile.TemporaryDirectory(dir=folder, prefix=io.UNFINISHED) as unfinished:
                whole = Path(unfinished) / f"{number:06d}"
                whole.mkdir()
                files = dict(recipe.files)
                for name, array in drawn.items():
                    files[name] = whole / f"{name}.nii.gz"
                    io.write_image(files[name], array, scan)
                content = make_manifest(whole, replace(recipe, files=files), noted, result)
                write_manifest(whole / MANIFEST, _seen_from(content, whole, folder / whole.name))
                whole.rename(folder / whole.name)
        except (OSError, SlicePropError):
            logger.exception("the manifest of a result in %s cannot be written", self.folder)
            return None
        try:
            self._remove_old()
        except OSError:
            logger.exception("what is old in %s cannot be removed", self.folder)
        return number

    def numbers(self) -> list[int]:
        """Of the manifests that are kept, ascending."""
        return sorted(int(one.name) for one in (self.folder / MANIFESTS).glob("*") if one.name.isdecimal())

    def read(self, number: int) -> dict[str, Any]:
        """A manifest.

        Raises:
            InputError: or a subclass, if there is none or it is damaged.
        """
        return read_manifest(self.folder / MANIFESTS / f"{number:06d}" / MANIFEST)

    def _remove_old(self) -> None:
        """Remove all but the newest manifests, models that none of them names, and what killed writers left."""
        for number in self.numbers()[:-MAX_MANIFESTS]:
            shutil.rmtree(self.folder / MANIFESTS / f"{number:06d}")
        for folder in (self.folder / "models", self.folder / MANIFESTS):
            remove_abandoned(folder)
        try:
            used = {_model(self.read(number)) for number in self.numbers()}
        except InputError:
            logger.exception("no model in %s is removed while a manifest cannot be read", self.folder)
            return
        for file in (self.folder / "models").glob("*.safetensors"):
            if file.name not in used:
                file.unlink()


def _model(manifest: Mapping[str, Any]) -> str:
    """Name of the model's file; empty without one.

    Raises:
        InputError: for a manifest of format 1 that is damaged.
    """
    try:
        inputs = manifest["inputs"]
        return Path(inputs["model"]["path"]).name if "model" in inputs else ""
    except (KeyError, TypeError) as error:
        raise InputError(f"the manifest is damaged ({error})") from error


def _seen_from(content: dict[str, Any], then: Path, now: Path) -> dict[str, Any]:
    """The manifest with the paths as they are from the folder that it is moved to."""
    inputs = {}
    for name, one in content["inputs"].items():
        file = Path(os.path.normpath(then.resolve() / one["path"]))
        inside = file.is_relative_to(then.resolve())
        path = file.relative_to(then.resolve()) if inside else Path(os.path.relpath(file, now.resolve()))
        inputs[name] = {**one, "path": path.as_posix()}
    return {**content, "inputs": inputs}
