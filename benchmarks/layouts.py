"""Where data sets keep their scans and references: one reader per layout, by name in `LAYOUTS`.

A reader lists what lies in a folder without opening a volume; `cases.load` opens one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sliceprop.errors import FileError
from sliceprop.io import SUFFIXES

AXES = ("auto", "0", "1", "2", "axial", "coronal", "sagittal")
"""Ways to say across which axis the slices are counted; `auto` is the data set's own, else across the thickest ones."""


@dataclass(frozen=True)
class Source:
    """Files of one scan with its dense reference.

    Attributes:
        name: of the volume, once per data set.
        image: file of the scan.
        reference: file of the label map on the same grid.
        values: label values to score in the order that numbers them 1..K; all that occur, ascending, without any.
        slice_axis: axis that counts slices where the data set says so, else None.
    """

    name: str
    image: Path
    reference: Path
    values: tuple[int, ...] = ()
    slice_axis: int | None = None


def sources(layout: str, data: Path, names: Sequence[str] = (), limit: int | None = None) -> list[Source]:
    """The volumes of a data set in the order of their names; those of `names`, all without any; the first `limit`.

    Raises:
        FileError: if the folder holds nothing in this layout, or a name that is not there.
    """
    found = {source.name: source for source in sorted(LAYOUTS[layout](data), key=lambda source: source.name)}
    if not found:
        raise FileError(f"{data}: no volumes in the layout {layout!r}; give another --layout or folder")
    absent = [name for name in names if name not in found]
    if absent:
        raise FileError(f"{data}: no volume named {', '.join(absent)}; there are {', '.join(found)}")
    return [source for name, source in found.items() if not names or name in names][:limit]


def _measuring(data: Path) -> Iterator[Source]:
    """Folders with `image.nii.gz`, `label.nii.gz` and `meta.json`: `recommended_labels`, `propagation_axis`."""
    for path in data.glob("*/meta.json"):
        folder, meta = path.parent, json.loads(path.read_text(encoding="utf-8"))
        if "recommended_labels" in meta:
            values, axis = tuple(meta["recommended_labels"]), meta["propagation_axis"]
            yield Source(folder.name, folder / "image.nii.gz", folder / "label.nii.gz", values, axis)


def _decathlon(data: Path) -> Iterator[Source]:
    """The training part of a task of the Medical Segmentation Decathlon, as its `dataset.json` lists it."""
    from monai.data import load_decathlon_datalist

    if not (data / "dataset.json").is_file():
        raise FileError(f"{data}: no dataset.json; give the folder of a task, such as Task02_Heart, or --download it")
    for item in load_decathlon_datalist(data / "dataset.json", is_segmentation=True, data_list_key="training"):
        image = Path(item["image"])
        yield Source(_stem(image), image, Path(item["label"]))


def _flare(data: Path) -> Iterator[Source]:
    """FLARE21: `TrainingImg/train_001_0000.nii.gz` and `TrainingMask/train_001.nii.gz`."""
    for mask in (data / "TrainingMask").glob("*.nii.gz"):
        yield Source(_stem(mask), data / "TrainingImg" / f"{_stem(mask)}_0000.nii.gz", mask)


def _brats(data: Path) -> Iterator[Source]:
    """BraTS19: a folder per case, at any depth, with `*_t1ce.nii.gz` and `*_seg.nii.gz`; labels as given."""
    for image in data.rglob("*_t1ce.nii*"):
        name, _, ending = image.name.partition("_t1ce")
        yield Source(name, image, image.with_name(f"{name}_seg{ending}"))


def _folders(data: Path) -> Iterator[Source]:
    """`images/` and `labels/` with files of equal names."""
    for image in (data / "images").iterdir() if (data / "images").is_dir() else ():
        if image.name.endswith(SUFFIXES):
            yield Source(_stem(image), image, data / "labels" / image.name)


LAYOUTS: dict[str, Callable[[Path], Iterator[Source]]] = {
    "measuring": _measuring,
    "decathlon": _decathlon,
    "flare": _flare,
    "brats": _brats,
    "folders": _folders,
}


def download_decathlon(data: Path) -> None:
    """Fetch the task that the folder is named after, such as `Task02_Heart`, unless it is there."""
    if data.is_dir():
        return
    from monai.apps import DecathlonDataset

    data.parent.mkdir(parents=True, exist_ok=True)
    DecathlonDataset(data.parent, data.name, "training", transform=lambda item: item, download=True, cache_num=0)


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in reversed(SUFFIXES) if path.name.endswith(suffix))
