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
from sliceprop.io import FOLDER, SUFFIXES, ZARR_REASON, ZARR_SUFFIX
from sliceprop.versions import DATASTORE, NAMES

COLUMNS = ("image", "labels", "scribbles", "slice_axis", "model")
LABEL_TAGS = ("sparse", "final")
"""Folders of a studies folder that hold what was drawn, the better one first; the server looks in the same order."""
LABEL_FOLDERS = (*LABEL_TAGS, "scribbles")
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
            `image,labels` and perhaps `scribbles,slice_axis,model`, paths absolute or relative to it. A folder with a
            DICOM series is a scan where it has labels, or is called `image` in the folder of its study.

    Raises:
        FileError: there is no such folder or file, it cannot be read, or it holds no study.
        InputError: columns that are missing or unknown.
    """
    source = source.absolute()
    if source.is_dir():
        found = [*_in_studies_folder(source), *_in_folders(source)]
    elif source.is_file():
        found = list(_in_csv(source))
    else:
        raise FileError(f"{source}: no such folder or CSV file")
    if not found:
        raise FileError(f"{source}: holds no studies; give scans, folders with image.* and labels.*, or a CSV file")
    found = [_readable(each) for each in found]
    entries, repeated = _named([each for each in found if isinstance(each, Entry)])
    return entries, [each for each in found if isinstance(each, Failure)] + repeated


def stem(file: Path) -> str:
    """The name of a scan without its ending."""
    endings = (*reversed(SUFFIXES), ZARR_SUFFIX)
    return next((file.name.removesuffix(s) for s in endings if file.name.endswith(s)), file.name)


def beside(folder: Path, stems: Sequence[str]) -> Path | None:
    """The file in a folder with the first of these names, in any format; None without one."""
    return next(_all_beside(folder, stems), None)


def _all_beside(folder: Path, stems: Sequence[str]) -> Iterator[Path]:
    files = (folder / f"{name}{suffix}" for name in stems for suffix in SUFFIXES)
    return (file for file in files if file.is_file())


def _the_one_beside(folder: Path, stems: Sequence[str]) -> Path | None:
    """The file in a folder with one of these names; None without one.

    Raises:
        InputError: there are several.
    """
    files = list(_all_beside(folder, stems))
    if len(files) > 1:
        raise InputError(f"has {' and '.join(file.name for file in files)} in {folder}; remove all but one")
    return files[0] if files else None


def _readable(found: Entry | Failure) -> Entry | Failure:
    """OME-Zarr has a command of its own."""
    if isinstance(found, Entry) and found.image.name.endswith(ZARR_SUFFIX):
        return Failure(str(found.image), ZARR_REASON)
    return found


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


def _in_studies_folder(folder: Path) -> Iterator[Entry | Failure]:
    """Scans that lie in the folder itself, which may be that of one study, and label files without a scan."""
    known, drawn = _datastore(folder / DATASTORE), _label_files(folder)
    scans = [each for each in sorted(folder.iterdir()) if is_scan(each)]
    names = {stem(each) for each in scans}
    series = {name for name in drawn.keys() - names if (folder / name).is_dir()}
    if CASE not in names and (folder / CASE).is_dir() and beside(folder, (*CASE_LABELS, *CASE_SCRIBBLES)):
        series.add(CASE)
    ours = (*CASE_LABELS, *CASE_SCRIBBLES) if CASE in names | series else ()
    for image in sorted([*(each for each in scans if stem(each) not in ours), *(folder / name for name in series)]):
        yield _study_of(folder, image, known)
    for name in sorted(drawn.keys() - names - series):
        yield Failure(str(drawn[name]), f"has no scan: there is no {name}.* in {folder}")


def _label_files(folder: Path) -> dict[str, Path]:
    """The best label file of each name in a studies folder."""
    files = [each for tag in reversed(LABEL_FOLDERS) for each in (folder / "labels" / tag).glob("*") if is_scan(each)]
    return {stem(each): each for each in files}


def _study_of(folder: Path, image: Path, known: dict[str, Any]) -> Entry | Failure:
    try:
        entry = _case_files(image) if stem(image) == CASE else Entry("", image)
        scribbles = _the_one_beside(folder / "labels" / LABEL_FOLDERS[-1], [stem(image)])
        entry = replace(entry, scribbles=scribbles or entry.scribbles)
        for tag in LABEL_TAGS:
            file = _the_one_beside(folder / "labels" / tag, [stem(image)])
            if file is not None:
                info = known.get(stem(image), {}).get("labels", {}).get(tag, {}).get("info", {})
                return _with_info(replace(entry, labels=file), info)
    except InputError as error:
        return Failure(str(image), str(error))
    return entry


def _with_info(entry: Entry, info: dict[str, Any]) -> Entry:
    """What our server noted about a label file."""
    if "slice_axis" not in info:
        return entry
    listed, partial = info.get("annotated_slices"), bool(info.get("partial"))
    slices = None if listed is None or partial else tuple(int(s) for s in listed)
    return replace(entry, slice_axis=str(info["slice_axis"]), annotated_slices=slices, partial=partial)


def _in_folders(folder: Path) -> Iterator[Entry | Failure]:
    """A folder per study; and folders that hold studies in turn, which are to be given themselves."""
    for each in sorted(folder.iterdir()):
        if each.name == "labels" or each.name.startswith(".") or is_scan(each) or not each.is_dir():
            continue
        images = _case_images(each)
        for image in images:
            yield _case_of(image)
        if not images and (labels := beside(each, (*CASE_LABELS, *CASE_SCRIBBLES))):
            yield Failure(str(labels), f"has no scan: there is no {CASE}.* in {each}")
        if _holds_studies(each):
            yield Failure(str(each), "holds studies of its own, which lie too deep here; give it as the folder")


def _case_images(folder: Path) -> list[Path]:
    """Scans in the folder of one study; a series counts where there is no file."""
    files = [each for each in sorted(folder.glob(f"{CASE}.*")) if is_scan(each)]
    return files or [each for each in (folder / CASE,) if each.is_dir()]


def _holds_studies(folder: Path) -> bool:
    tags, series = (folder / "labels" / tag for tag in LABEL_TAGS), folder.glob(f"*/{CASE}")
    files = (each for each in folder.glob(f"*/{CASE}.*") if is_scan(each))
    return any(each.is_dir() for each in (*tags, *series)) or any(files)


def _case_of(image: Path) -> Entry | Failure:
    try:
        return _case_files(image)
    except InputError as error:
        return Failure(str(image), str(error))


def _case_files(image: Path) -> Entry:
    labels, scribbles = (_the_one_beside(image.parent, names) for names in (CASE_LABELS, CASE_SCRIBBLES))
    return Entry("", image, labels, scribbles)


def is_scan(path: Path) -> bool:
    """Whether this may be a scan by its name; OME-Zarr is, although it is a folder."""
    if path.name.startswith("."):
        return False
    return path.suffix == ZARR_SUFFIX or (path.name.endswith(SUFFIXES) and path.is_file())


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


def _in_csv(file: Path) -> Iterator[Entry | Failure]:
    """A study per line; a line without a scan is a failure of its own."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            _check_columns(file, reader.fieldnames)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file}: cannot be read as CSV ({error})") from error
    for number, row in rows:
        if reason := _wrong(row):
            yield Failure(f"{file.name}, line {number}", reason)
        else:
            yield _entry_of(file.parent, {key: (value or "").strip() for key, value in row.items()})


def _wrong(row: dict[str, str]) -> str:
    """Why a line is no study; empty if it is one."""
    if None in row:
        return "more values than columns"
    if not (row["image"] or "").strip():
        return "no image"
    return "a NUL character" if any("\0" in (value or "") for value in row.values()) else ""


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
