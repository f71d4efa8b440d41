import json

import numpy as np
import pytest
import SimpleITK as sitk

from sliceprop import io
from sliceprop.errors import FileError, InputError
from sliceprop.segments import Segment, default_color, description, read_segments, segments_for

SEGMENTS = [Segment(1, "liver", "#dd8265"), Segment(300, "left kidney (Ø 5)", "#b9665d")]

ITK_SNAP = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    2     0  255  128      0.7  1  0    "left ventricle"
    1   255    0    0        1  1  1    "Label 1"
"""


def mitk_file(path, components=None):
    """A NRRD file as MITK 2022.10 and later write it: labels per group as JSON in the header."""
    labels = [
        {"color": {"type": "ColorProperty", "value": [0.5, 0.25, 1.0]}, "name": "tumour", "value": 1, "opacity": 0.6},
        {"color": {"type": "ColorProperty", "value": [0.0, 1.0, 0.0]}, "name": "edema", "value": 2, "opacity": 0.6},
    ]
    array = np.zeros((3, 4, 5), np.uint16)
    array[1, 1:3, 2], array[2, 3, 3] = 1, 2
    picture = sitk.GetImageFromArray(array)
    if components:
        picture = sitk.Compose([picture] * components)
    picture.SetMetaData("modality", "org.mitk.multilabel.segmentation")
    picture.SetMetaData("org.mitk.multilabel.segmentation.version", "1")
    picture.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", json.dumps([{"labels": labels}]))
    sitk.WriteImage(picture, str(path), True)
    return array.T


def test_descriptions_of_itk_snap_are_read(tmp_path):
    (tmp_path / "labels.txt").write_text(ITK_SNAP)
    assert read_segments(tmp_path / "labels.txt") == [
        Segment(1, "Label 1", "#ff0000"),
        Segment(2, "left ventricle", "#00ff80"),
    ]


def test_descriptions_come_back(tmp_path):
    (tmp_path / "labels.label").write_text(description(SEGMENTS), encoding="utf-8")
    assert read_segments(tmp_path / "labels.label") == SEGMENTS


def test_files_of_mitk_are_label_maps_with_names(tmp_path):
    array = mitk_file(tmp_path / "mitk.nrrd")
    np.testing.assert_array_equal(io.read_image(tmp_path / "mitk.nrrd").array, array)
    assert read_segments(tmp_path / "mitk.nrrd") == [Segment(1, "tumour", "#8040ff"), Segment(2, "edema", "#00ff00")]


def test_several_groups_of_mitk_are_refused(tmp_path):
    mitk_file(tmp_path / "mitk.nrrd", components=2)
    with pytest.raises(InputError, match="2 values per voxel"):
        io.read_image(tmp_path / "mitk.nrrd")


def test_other_files_name_nothing(tmp_path):
    for name in ("plain.nrrd", "plain.nii.gz"):
        io.write_image(tmp_path / name, np.ones((2, 3, 4), np.uint8), io.Image(np.ones((2, 3, 4)), np.eye(4)))
        assert read_segments(tmp_path / name) == []


@pytest.mark.parametrize("text", ["1 2 3", '1 255 0 0 1 1 1 "open', "x 1 2 3 1 1 1 name", '70000 1 1 1 1 1 1 "n"'])
def test_damaged_descriptions_are_refused(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(FileError, match="no label description"):
        read_segments(tmp_path / "labels.txt")
    with pytest.raises(FileError, match="no such file"):
        read_segments(tmp_path / "absent.txt")


@pytest.mark.parametrize("wrong", [(0, "a", "#000000"), (1, " ", "#000000"), (1, "a\nb", "#000000"), (1, "a", "red")])
def test_segments_are_checked(wrong):
    with pytest.raises(InputError):
        Segment(*wrong)


def test_unknown_values_get_a_name_and_colours_that_differ():
    made = segments_for({5, 1, 2}, [Segment(2, "core", "#010203"), Segment(9, "unused", "#010203")])
    assert [(s.value, s.name) for s in made] == [(1, "label_1"), (2, "core"), (5, "label_5")]
    assert len({default_color(value) for value in range(1, 25)}) == 24
