"""Every layout of a data set is found, and measured from end to end as README.md says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import accuracy
import worker
from layouts import Source, sources
from phantoms import moving_disc
from sliceprop.errors import FileError
from table import Row


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Scan and labels along axis 2."""
    image, labels = moving_disc(n_slices=9)
    return np.moveaxis(image, 0, 2), np.moveaxis(labels, 0, 2)


def flare(folder: Path, write: Callable, image: np.ndarray, labels: np.ndarray) -> None:
    write(folder / "TrainingImg" / "train_001_0000.nii.gz", image)
    write(folder / "TrainingMask" / "train_001.nii.gz", labels)


def brats(folder: Path, write: Callable, image: np.ndarray, labels: np.ndarray) -> None:
    case = folder / "HGG" / "BraTS19_2013_2_1"
    write(case / f"{case.name}_t1ce.nii.gz", image)
    write(case / f"{case.name}_flair.nii.gz", image)
    write(case / f"{case.name}_seg.nii.gz", labels)


def decathlon(folder: Path, write: Callable, image: np.ndarray, labels: np.ndarray) -> None:
    write(folder / "imagesTr" / "la_003.nii.gz", image)
    write(folder / "labelsTr" / "la_003.nii.gz", labels)
    training = [{"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"training": training, "test": []}))


def folders(folder: Path, write: Callable, image: np.ndarray, labels: np.ndarray) -> None:
    write(folder / "images" / "a.mha", image)
    write(folder / "labels" / "a.mha", labels)


LAYOUTS = {"flare": flare, "brats": brats, "decathlon": decathlon, "folders": folders}
NAMES = {"flare": "train_001", "brats": "BraTS19_2013_2_1", "decathlon": "la_003", "folders": "a"}


def measure(*command: str | Path) -> list[Row]:
    """The rows of a command, measured in this process."""
    arguments = accuracy.parse_arguments([str(word) for word in command])
    return [row for job in accuracy.plan(arguments) for row in worker.work(job)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_measured_in_percent_along_an_axis(
    layout: str, tmp_path: Path, write: Callable, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    LAYOUTS[layout](tmp_path, write, *pair)
    command = ["--layout", layout, "--data", tmp_path, "--axis", "axial", "--placements", "keep_n"]
    (row,) = measure(*command, "--percentages", "33", "--methods", "nearest")
    assert (row.status, row.volume, row.shape, row.n_labels) == ("ok", NAMES[layout], "9x48x60", 2)
    assert row.annotated == "0 3 6"
    assert row.dice is not None and row.dice_volume is not None
    assert 0.6 < row.dice < row.dice_volume < 1  # the annotated slices, which are right, count in one of them only


def test_the_measuring_folder_says_which_labels_and_axis(measuring: Path) -> None:
    (source,) = sources("measuring", measuring)
    assert (source.name, source.values, source.slice_axis) == ("phantom", (7, 1), 2)
    (row,) = measure("--data", measuring, "--counts", "3", "--placements", "ends", "--methods", "shape")
    assert (row.shape, row.annotated) == ("11x48x60", "0 5 10")


def test_crops_after_padding_break_the_concordance(measuring: Path) -> None:
    command = ["--data", measuring, "--percentages", "50", "--placements", "keep_n", "--methods", "nearest"]
    (whole,), (broken,) = measure(*command), measure(*command, "--pad-and-crop", "10")
    assert whole.dice is not None and broken.dice is not None
    assert broken.dice < whole.dice - 0.2


def test_volumes_come_by_name_and_not_too_many(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        for folder in ("images", "labels"):
            path = tmp_path / folder / f"{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    a, b, c = (Source(n, tmp_path / "images" / f"{n}.nii.gz", tmp_path / "labels" / f"{n}.nii.gz") for n in "abc")
    assert sources("folders", tmp_path) == [a, b, c]
    assert sources("folders", tmp_path, limit=2) == [a, b]
    assert sources("folders", tmp_path, ["c", "b"]) == [b, c]
    with pytest.raises(FileError, match="no volume named d; there are a, b, c"):
        sources("folders", tmp_path, ["d"])


@pytest.mark.parametrize("layout", [*LAYOUTS, "measuring"])
def test_a_folder_with_something_else_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        sources(layout, tmp_path)
