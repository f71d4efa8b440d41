"""The studies of a folder or of a CSV file: which files belong together, and how each study is called.

Nothing is opened here but the list itself, so that ten thousand studies are found in seconds.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sliceprop.errors import FileError, InputError
from sliceprop.files import read_table
from sliceprop.io import SUFFIXES
from sliceprop.versions import DATASTORE, FOLDER, NAMES

COLUMNS = ("image", "labels", "scribbles", "slice_axis", "model")
LABEL_TAGS = ("sparse", "final")
"""Folders of a studies folder that hold what was drawn, the better one first; the server looks in the same order."""
CASE, CASE_LABELS, CASE_SCRIBBLES = "image", ("labels", "label"), ("scribbles",)
"""Names of the files of one study that has a folder of its own."""


@dataclass(frozen=True)
class Entry:
    """The files of one study.

    Attributes:
        id: names the study and its folder of results; once per cohort.
        image: scan, or folder with one DICOM series.
        labels: painted slices; None where none were found.
        scribbles: marks in any plane.
        slice_axis: `auto`, `0`, `1` or `2`.
        model: checkpoint to use or to start from.
        annotated_slices: where the list knows them; else what is painted decides.
        partial: a slice counts as annotated for the labels on it only.
    """

    id: str
    image: Path
    labels: Path | None = None
    scribbles: Path | None = None
    slice_axis: str = "auto"
    model: Path | None = None
    annotated_slices: tuple[int, ...] | None = None
    partial: bool = False

    @property
    def files(self) -> list[Path]:
        """All files that the result depends on."""
        return [file for file in (self.image, self.labels, self.scribbles, self.model) if file is not None]


@dataclass(frozen=True)
class Failure:
    """A study that has no result.

    Attributes:
        name: file of the scan, or place in the list.
        reason: one sentence.
        id: of the study; empty where it got none.
    """

    name: str
    reason: str
    id: str = ""


def find_studies(source: Path) -> tuple[list[Entry], list[Failure]]:
    """The studies of a folder or CSV file in the order of their names or lines, and what cannot be one.

    Args:
        source: a studies folder (scans, and label files of the same names in `labels/sparse`), a folder of folders with
            `image.*` and `labels.*` or `label.*`, one of these folders, or a CSV file with the columns
            `image,labels` and perhaps `scribbles,slice_axis,model`, paths absolute or relative to it.

    Raises:
        FileError: there is no such folder or file, it cannot be read, or it holds no study.
        InputError: columns that are missing or unknown.
    """
    source = source.absolute()
    if source.is_dir():
        found, failures = [*_in_studies_folder(source), *_in_case_folders(source)], list[Failure]()
    elif source.is_file():
        found, failures = _in_csv(source)
    else:
        raise FileError(f"{source}: no such folder or CSV file")
    if not found and not failures:
        raise FileError(f"{source}: holds no studies; give scans, folders with image.* and labels.*, or a CSV file")
    entries, repeated = _named(found)
    return entries, failures + repeated


def stem(file: Path) -> str:
    """The name of a scan without its ending."""
    return next((file.name.removesuffix(s) for s in reversed(SUFFIXES) if file.name.endswith(s)), file.name)


def beside(folder: Path, stems: Sequence[str]) -> Path | None:
    """The file in a folder with the first of these names, in any format; None without one."""
    files = (folder / f"{name}{suffix}" for name in stems for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def label_names(source: Path) -> dict[int, str]:
    """Label value to name in a studies folder: as its server has them, else from `labels.json`, else none.

    Raises:
        FileError: if that is there and not `{name: value}`, or the server is of a later release.
    """
    file = source / "labels.json"
    if names := read_table(source / FOLDER / NAMES):
        return dict(enumerate(names, start=1))
    if not file.is_file():
        return {}
    try:
        return {int(value): str(name) for name, value in _read_json(file).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise FileError(f'{file}: names are written {{"name": value}} ({error})') from error


def _in_studies_folder(folder: Path) -> list[Entry]:
    """Scans that lie in the folder itself, which may be that of one study."""
    known = _datastore(folder / DATASTORE)
    scans = [file for file in sorted(folder.iterdir()) if file.is_file() and _is_scan(file.name)]
    drawn = (*CASE_LABELS, *CASE_SCRIBBLES) if CASE in map(stem, scans) else ()
    return [_study_of(folder, file, known) for file in scans if stem(file) not in drawn]


def _study_of(folder: Path, image: Path, known: dict[str, Any]) -> Entry:
    entry = _case_of(image) if stem(image) == CASE else Entry("", image)
    entry = replace(entry, scribbles=beside(folder / "labels" / "scribbles", [stem(image)]) or entry.scribbles)
    for tag in LABEL_TAGS:
        file = beside(folder / "labels" / tag, [stem(image)])
        if file is not None:
            info = known.get(stem(image), {}).get("labels", {}).get(tag, {}).get("info", {})
            return _with_info(replace(entry, labels=file), info)
    return entry


def _with_info(entry: Entry, info: dict[str, Any]) -> Entry:
    """What our server noted about a label file."""
    if "slice_axis" not in info:
        return entry
    listed, partial = info.get("annotated_slices"), bool(info.get("partial"))
    slices = None if listed is None or partial else tuple(int(s) for s in listed)
    return replace(entry, slice_axis=str(info["slice_axis"]), annotated_slices=slices, partial=partial)


def _in_case_folders(folder: Path) -> Iterator[Entry]:
    """A folder per study."""
    for image in sorted(folder.glob(f"*/{CASE}.*")):
        if _is_scan(image.name):
            yield _case_of(image)


def _case_of(image: Path) -> Entry:
    return Entry("", image, beside(image.parent, CASE_LABELS), beside(image.parent, CASE_SCRIBBLES))


def _is_scan(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _datastore(file: Path) -> dict[str, Any]:
    """What MONAI Label knows of each image; nothing where it never looked, or wrote something else."""
    try:
        return dict(_read_json(file)["objects"]) if file.is_file() else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from error


def _in_csv(file: Path) -> tuple[list[Entry], list[Failure]]:
    """A study per line; a line without a scan is a failure of its own."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            _check_columns(file, reader.fieldnames)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file}: cannot be read as CSV ({error})") from error
    found, failures = list[Entry](), list[Failure]()
    for number, row in rows:
        if None in row or not (row.get("image") or "").strip():
            reason = "more values than columns" if None in row else "no image"
            failures.append(Failure(f"{file.name}, line {number}", reason))
        else:
            found.append(_entry_of(file.parent, {key: (value or "").strip() for key, value in row.items()}))
    return found, failures


def _check_columns(file: Path, columns: Sequence[str] | None) -> None:
    given = set(columns or ())
    if not {"image", "labels"} <= given or given - set(COLUMNS):
        raise InputError(
            f"{file}: needs the columns image,labels and may have {','.join(COLUMNS[2:])}; found "
            f"{','.join(columns or ()) or 'none'}"
        )


def _entry_of(folder: Path, row: dict[str, str]) -> Entry:
    def path(column: str) -> Path | None:
        return (folder / row[column]).absolute() if row.get(column) else None

    image = path("image")
    assert image is not None
    return Entry("", image, path("labels"), path("scribbles"), row.get("slice_axis") or "auto", path("model"))


def _named(found: Sequence[Entry]) -> tuple[list[Entry], list[Failure]]:
    """The studies with their ids, and those that are there already."""
    scans, repeated = dict[Path, Entry](), list[Failure]()
    for entry in found:
        if entry.image.resolve() in scans:
            repeated.append(Failure(str(entry.image), "is listed more than once; its first place counts"))
        else:
            scans[entry.image.resolve()] = entry
    entries = dict[str, Entry]()
    for entry, name in zip(scans.values(), study_ids([entry.image for entry in scans.values()]), strict=True):
        if name in entries:
            repeated.append(Failure(str(entry.image), f"would be called {name} like another scan; rename one of them"))
        else:
            entries[name] = replace(entry, id=name)
    return list(entries.values()), repeated


def study_ids(images: Sequence[Path]) -> list[str]:
    """What each study is called: the stem of its scan, with as many parent folders before it as tell it apart.

    Args:
        images: absolute paths.

    Returns:
        ids in the same order; equal ones where the paths differ in nothing but their endings.
    """
    folders = [Path(os.path.normpath(image)).parts[1:-1] for image in images]
    parts = [[*above, stem(image).lstrip(".") or "study"] for above, image in zip(folders, images, strict=True)]
    depth = [1] * len(images)
    while True:
        ids = ["_".join(path[-n:]) for path, n in zip(parts, depth, strict=True)]
        counts = Counter(ids)
        deeper = [n for n, name in enumerate(ids) if counts[name] > 1 and depth[n] < len(parts[n])]
        if not deeper:
            return ids
        for n in deeper:
            depth[n] += 1
