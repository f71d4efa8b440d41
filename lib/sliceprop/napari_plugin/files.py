"""Readers and writers for napari: NIfTI, NRRD, MetaImage and DICOM with their place in space; where models are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QStandardPaths

from sliceprop.config import MAX_LABEL
from sliceprop.io import Image, compact_labels, read_image, write_image
from sliceprop.napari_plugin.geometry import AFFINE, layer_placement

LayerData = tuple[Any, dict[str, Any], str]

MOST_LABELS = 200
"""A volume of whole numbers with more different values than this is a scan."""


def reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """npe2 reader: a function for files of a known format and folders with a DICOM series, None for others."""
    return _read if all(one.is_file() or holds_dicom(one) for one in _paths(path)) else None


def holds_dicom(folder: Path) -> bool:
    """Whether a folder has a DICOM file among its first ones: the letters DICM behind 128 bytes."""
    files = (file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else iter(())
    return any(_is_dicom(file) for file in islice(files, 5))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(132)[128:] == b"DICM"


def _paths(path: str | Sequence[str]) -> list[Path]:
    return [Path(path)] if isinstance(path, str) else [Path(one) for one in path]


def _read(path: str | Sequence[str]) -> list[LayerData]:
    return [layer_data(read_image(one), _stem(one)) for one in _paths(path)]


def layer_data(image: Image, name: str) -> LayerData:
    """A volume as napari takes it: labels where its values look like labels, else an image."""
    array = np.ascontiguousarray(image.array.T)
    kind = "labels" if looks_like_labels(array) else "image"
    if kind == "labels":
        array = compact_labels(array)
    return array, {"name": name, **layer_placement(image)}, kind


def looks_like_labels(array: NDArray[Any]) -> bool:
    """Whole numbers from 0 on, few different ones, most of them 0."""
    if not np.issubdtype(array.dtype, np.integer) or array.size == 0:
        return False
    if array.min() < 0 or array.max() > MAX_LABEL:
        return False
    counts = np.bincount(array.ravel(), minlength=1)
    return bool(np.count_nonzero(counts) <= MOST_LABELS and counts[0] >= array.size / 4)


def write_layer(path: str, data: Any, attributes: Mapping[str, Any]) -> list[str]:
    """npe2 writer of one image or labels layer; a layer that came from a file keeps its affine.

    Raises:
        InputError: or a subclass, for what cannot be written.
    """
    array = np.asarray(data).T
    write_image(path, array, Image(array, _affine(attributes)))
    return [path]


def _affine(attributes: Mapping[str, Any]) -> NDArray[np.float64]:
    """`(i, j, k)` to RAS mm; without metadata from napari's transforms, world coordinates taken as `(z, y, x)`."""
    from napari.utils.transforms import Affine

    known = attributes.get("metadata", {}).get(AFFINE)
    if known is not None:
        return np.asarray(known, dtype=np.float64)
    names = ("scale", "translate", "rotate", "shear")
    placed = Affine(**{name: attributes[name] for name in names if attributes.get(name) is not None}, ndim=3)
    outer = attributes.get("affine")
    world = placed.affine_matrix if outer is None else np.asarray(outer) @ placed.affine_matrix
    order = [2, 1, 0, 3]
    matrix: NDArray[np.float64] = np.asarray(world)[np.ix_(order, order)]
    return matrix


def models_folder() -> Path:
    """Where the local backend keeps what it learns: the user's folder for data, or one that goes with the machine."""
    folder = Path(QStandardPaths.writableLocation(QStandardPaths.StandardLocation.GenericDataLocation))
    folder = folder / "sliceprop" / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    return folder if usable else Path(tempfile.gettempdir()) / "sliceprop-models"


def _stem(file: Path) -> str:
    if file.is_dir():
        return file.resolve().name
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name
