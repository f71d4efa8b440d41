"""Reading and writing through napari, sample data, names and colours: voxels and their place survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels

from sliceprop import io
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError
from sliceprop.napari_plugin.files import reader, write_layer
from sliceprop.napari_plugin.geometry import file_affine, file_image, layer_affine
from sliceprop.napari_plugin.label_names import read_itksnap, set_styles, styles_of, write_itksnap
from sliceprop.napari_plugin.sample import thigh, thigh_scan

OBLIQUE = np.array([[-0.9, 0.1, 0.2, 10.0], [0.1, 1.1, -0.3, -20.0], [0.05, 0.2, 4.0, 30.0], [0, 0, 0, 1]])
RIGHT_ANGLED = np.array([[0, 0, 3.0, 1], [-0.7, 0, 0, 2], [0, 0.8, 0, 3], [0, 0, 0, 1]])


def written(file: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    io.write_image(file, array, io.Image(array, affine))
    return file


def read(file: Path) -> tuple[np.ndarray, dict[str, Any], str]:
    function = reader(str(file))
    assert function is not None
    return function(str(file))[0]


@pytest.mark.parametrize("suffix", io.OUTPUT_SUFFIXES)
def test_a_file_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    affine = OBLIQUE if suffix.startswith(".nii") else RIGHT_ANGLED
    array = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
    data, options, kind = read(written(tmp_path / f"scan{suffix}", array, affine))
    assert kind == "image" and options["name"] == "scan"
    np.testing.assert_array_equal(data, array.T)
    np.testing.assert_allclose(options["scale"], np.linalg.norm(affine[:3, :3], axis=0)[::-1], rtol=1e-5)
    layer = Image(data, **options)
    np.testing.assert_allclose(file_affine(layer), affine, atol=1e-5)

    data, attributes, _ = layer.as_layer_data_tuple()
    again = io.read_image(write_layer(str(tmp_path / f"again{suffix}"), data, attributes)[0])
    np.testing.assert_array_equal(again.array, array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)


def test_a_dicom_folder_opens(tmp_path: Path, viewer: Any) -> None:
    array = np.random.default_rng(1).integers(0, 900, (6, 5, 4)).astype(np.int16)
    folder = tmp_path / "series"
    write_dicom_series(folder, io.Image(array, RIGHT_ANGLED))
    (layer,) = viewer.open(folder, plugin="sliceprop")
    viewer.layers.clear()
    again = file_image(layer)
    assert layer.name == "series" and again.array.shape == array.shape
    assert layer.source.path == str(folder)
    i, j, k = np.round(np.linalg.inv(again.affine) @ RIGHT_ANGLED @ [1, 2, 3, 1]).astype(int)[:3]
    assert again.array[i, j, k] == array[1, 2, 3]


def test_other_folders_are_left_to_other_readers(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert reader(str(tmp_path)) is None and reader(str(tmp_path / "missing")) is None


def test_labels_are_known_by_their_values(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.uint16)
    labels[1, 2, 3] = 700
    data, _, kind = read(written(tmp_path / "labels.nii.gz", labels, OBLIQUE))
    assert kind == "labels" and data[3, 2, 1] == 700
    assert read(written(tmp_path / "scan.nii.gz", labels + 1, OBLIQUE))[2] == "image"


def test_a_layer_without_metadata_lies_where_napari_shows_it(tmp_path: Path) -> None:
    layer = Labels(np.eye(3, dtype=np.uint8)[None] * 2, scale=(3, 0.5, 0.4), translate=(30, 20, 10))
    x, y, z = (layer_affine(layer) @ [0, 2, 1, 1])[:3]
    np.testing.assert_allclose((x, y, z), (10.4, 21.0, 30.0))
    data, attributes, _ = layer.as_layer_data_tuple()
    again = io.read_image(write_layer(str(tmp_path / "a.nrrd"), data, attributes)[0])
    np.testing.assert_allclose(again.affine, file_image(layer).affine)
    assert again.array[2, 2, 0] == 2


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(FileError, match="cannot be read as NIfTI"):
        read(tmp_path / "broken.nii.gz")
    assert reader(str(tmp_path / "missing.nii")) is None


def test_sample_data_can_be_propagated() -> None:
    (scan, _, kind), (labels, options, labels_kind) = thigh()
    assert (kind, labels_kind) == ("image", "labels") and scan.shape == labels.shape
    layer = Labels(labels, **options)
    assert styles_of(layer, set())[4].name == "sartorius"
    assert len(thigh_scan()) == 1


def test_label_descriptions_of_itksnap(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text(
        "# comment\n"
        '    0     0    0    0        0  0  0    "Clear Label"\n'
        '    1   255    0    0        1  1  1    "left psoas"\n'
        '   12     0  128  255      0.5  1  0    "disc"\n'
    )
    styles = read_itksnap(file)
    assert {value: style.name for value, style in styles.items()} == {1: "left psoas", 12: "disc"}
    layer = Labels(np.zeros((2, 3, 4), np.uint8))
    set_styles(layer, styles)
    np.testing.assert_allclose(layer.get_color(12)[:3], (0, 128 / 255, 1), atol=1e-6)
    write_itksnap(tmp_path / "again.txt", styles_of(layer, {1, 12}))
    assert read_itksnap(tmp_path / "again.txt") == styles
    file.write_text("1 2 3\n")
    with pytest.raises(FileError, match="not a label description"):
        read_itksnap(file)
