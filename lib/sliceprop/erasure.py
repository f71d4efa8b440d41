"""Everything that a folder of studies keeps of one study, and how it is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from sliceprop import io
from sliceprop.audit import AuditLog
from sliceprop.errors import FileError, InputError
from sliceprop.files import abandoned, held, remove
from sliceprop.io import FOLDER
from sliceprop.versions import CHANGES_LOCK, DAMAGED, DATASTORE, SERVER_LOCK, Versions

_LOCK = ".lock"
_FRESH_S = 60.0
"""What is younger may be written right now."""


def study_folder(studies: Path, study: str) -> Path:
    """Where the server keeps what belongs to one study.

    Args:
        studies: the folder of the scans, or the server's folder for an archive.
        study: id of the image.

    Raises:
        InputError: if nothing is kept of it.
    """
    folder = studies / FOLDER / "studies"
    known = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    if study not in known:
        raise InputError(f"nothing is kept of a study {study!r} in {studies}; --studies names the folder of the scans")
    return folder / study


def erase_study(studies: Path, study: str, *, scan: bool = False, user: str | None = None) -> list[Path]:
    """Remove all versions, results, manifests, checkpoints and label files of a study; the audit says so.

    The scan of an archive is a copy and goes too; another one stays unless that is asked for. Lists of images that are
    damaged, which may name any study, go as a whole.

    Args:
        studies: the folder of the scans, or the server's folder for an archive.
        study: id of the image.
        scan: remove the scan as well.
        user: who erases, for the audit.

    Returns:
        files and folders that are gone.

    Raises:
        InputError: if nothing is kept of such a study, or a server works on the studies.
        FileError: if something cannot be removed.
    """
    known = _known_to_monai_label(studies, study)
    found, damaged = set(_traces(studies, study, known, scan)), set(_damaged(studies))
    if not found and not known and not any(f'"{study}"'.encode() in file.read_bytes() for file in damaged):
        raise InputError(f"nothing is kept of a study {study!r} in {studies}; --studies names the folder of the scans")
    kept = Versions(studies / FOLDER / "studies" / study / "versions").numbers()
    gone = sorted(found.union(_unfinished(studies), damaged))
    try:
        refusal = f"{studies}: a server works on these studies; end it first, then erase again"
        with held(studies / FOLDER / SERVER_LOCK, refusal):  # it would bring back what it has in memory
            for path in gone:
                remove(path)
            _forget(studies, study, whole=not any(_scans(studies, study)))
    except OSError as error:
        raise FileError(f"{error.filename}: cannot be removed ({error.strerror}); erase again") from error
    about = {"user": user, "versions": len(kept), "files": len(gone), "scan": scan}
    AuditLog(studies / FOLDER).record("erase", study=study, **about)
    return gone


def _traces(studies: Path, study: str, known: dict[str, Any], scan: bool) -> Iterator[Path]:
    ours = studies / FOLDER
    if study in {one.name for one in (ours / "studies").glob("*")}:
        yield ours / "studies" / study
    others = {*_objects(studies), *(one.name for one in (ours / "studies").glob("*"))} - {study}
    yield from (file for file in _checkpoints(ours / "checkpoints", study) if file.stem not in others)
    for file in (file for folder in _label_folders(studies) for file in folder.glob("*")):
        image = _id(file)
        if image == study or (image == f"{study}.seg" and image not in others):  # 3D Slicer's `ID.seg.nrrd`
            yield file
    for name in ("training.json", "last_used.json"):
        if _mentions(ours / name, study):
            yield ours / name
    if scan or "SeriesInstanceUID" in known.get("image", {}).get("info", {}) or _is_fetched(studies / study):
        yield from _scans(studies, study)


def _unfinished(studies: Path) -> Iterator[Path]:
    """Of whichever study they are."""
    ours = studies / FOLDER
    for folder in (ours, ours / "checkpoints", studies, *_label_folders(studies)):
        yield from abandoned(folder, _FRESH_S)


def _damaged(studies: Path) -> Iterator[Path]:
    """Lists of images that no single study can be taken out of; a server makes a new one from the files."""
    listed = studies / DATASTORE
    aside = listed.with_suffix(DAMAGED)
    if aside.is_file():
        yield aside
    try:
        json.loads(listed.read_bytes())
    except OSError:
        return
    except ValueError:
        yield listed


def _label_folders(studies: Path) -> list[Path]:
    """One for each tag; those that are links may lead to files of others."""
    return [folder for folder in (studies / "labels").glob("*") if not folder.is_symlink()]


def _checkpoints(folder: Path, study: str) -> Iterator[Path]:
    """Of the study, and those stored under another name that were learned on it."""
    described = {file: _read(file) for file in folder.glob("*.json")}
    learned_on = {str(content.get("study_hash")) for file, content in described.items() if file.stem == study}
    learned_on -= {"None"}
    for file, content in described.items():
        if file.stem == study or content.get("study_hash") in learned_on:
            yield file
    for file in folder.glob("*.safetensors"):
        beside = described.get(file.with_suffix(".json"), {})
        if file.stem == study or beside.get("study_hash") in learned_on:
            yield file


def _scans(studies: Path, study: str) -> Iterator[Path]:
    """The scan's file, and the folder with a series of an archive; other folders may be called like a study too."""
    for path in studies.glob("*"):
        if _id(path) == study and (_is_fetched(path) if path.is_dir() else path.name != study):
            yield path


def _is_fetched(folder: Path) -> bool:
    """Whether a folder holds a series as a server fetches it from an archive, which the list of images may not tell."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    counted = [f"{number:06}.dcm" for number in range(len(names))]
    return bool(names) and names == counted and re.fullmatch(r"[0-9.]{1,64}", folder.name) is not None


def _id(path: Path) -> str:
    """Of the image that a file belongs to."""
    ending = next((suffix for suffix in io.SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(ending)


def _mentions(file: Path, study: str) -> bool:
    content = _read(file)
    return study in (content.get("image"), content.get("value"))


def _read(file: Path) -> dict[str, Any]:
    """An object in a JSON file, a plain value under the key `value`; empty if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {"value": content}


def _known_to_monai_label(studies: Path, study: str) -> dict[str, Any]:
    entry: dict[str, Any] = _objects(studies).get(study, {})
    return entry


def _objects(studies: Path) -> dict[str, Any]:
    """MONAI Label's list of images, by id."""
    objects: dict[str, Any] = _read(studies / DATASTORE).get("objects", {})
    return objects


def _forget(studies: Path, study: str, *, whole: bool) -> None:
    """Take labels and scores of a study, or all of it, out of MONAI Label's list."""
    file = studies / DATASTORE
    with FileLock(studies / CHANGES_LOCK), FileLock(studies / _LOCK):
        content = _read(file)
        objects = content.get("objects", {})
        if study not in objects:
            return
        if whole:
            del objects[study]
        else:
            info = objects[study].get("image", {}).get("info", {})
            for key in ("quality", "suggestion"):
                info.pop(key, None)
            objects[study]["labels"] = {}
        io.write_json(file, content)
