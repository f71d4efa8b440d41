"""Files of 3D Slicer and MITK say themselves what their values mean."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("monailabel")

from columns import AFFINE, column
from sliceprop import io
from sliceprop.errors import FileError
from sliceprop.export import export_labels
from sliceprop.segments import Segment
from sliceprop.server.file_names import named_by_file
from sliceprop.server.requests import LabelOptions, label_options

SEGMENTS = [Segment(3, "core", "#112233"), Segment(7, "disc", "#445566")]


def drawn():
    """A column of the value 7 beside a block of the value 3, on two slices."""
    labels = column([3, 8]).astype(np.int32) * 7
    labels[0:3, 0:3, [3, 8]] = 3
    return labels


def slicer_file(folder):
    [file] = export_labels(folder / "drawn.seg.nrrd", drawn(), io.Image(drawn(), AFFINE), SEGMENTS)
    return file


def mitk_file(folder):
    colors = {segment.value: [part / 255 for part in segment.rgb] for segment in SEGMENTS}
    labels = [{"name": s.name, "value": s.value, "color": {"value": colors[s.value]}} for s in SEGMENTS]
    file = folder / "drawn.nrrd"
    io.write_image(file, drawn(), io.Image(drawn(), AFFINE))
    picture = sitk.ReadImage(str(file))
    picture.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", json.dumps([{"labels": labels}]))
    sitk.WriteImage(picture, str(file))
    return file


FILES = pytest.mark.parametrize("write", [slicer_file, mitk_file])


def put(workspace, file, **params):
    return workspace.submit("case", "sparse", file, label_options(params))


def annotated(workspace):
    return workspace.drawings.annotation(workspace.case("case")).labels


@FILES
def test_values_go_by_the_names_in_the_file(workspace, submit, tmp_path, write):
    submit(column([5]), label_info=[{"name": "disc", "idx": 1}])
    put(workspace, write(tmp_path))
    assert workspace.names.indices == {"disc": 1, "core": 2}
    np.testing.assert_array_equal(annotated(workspace), np.select([drawn() == 7, drawn() == 3], [1, 2]))
    assert workspace.colors.of({"core": 2}) == {"core": "#112233"}
    assert workspace.colors.of({"disc": 1}) != {"disc": "#445566"}, "a label that was there keeps its colour"


@FILES
def test_a_list_of_the_same_names_counts_by_name_not_by_number(workspace, tmp_path, write):
    put(workspace, write(tmp_path), label_info=[{"name": "disc", "idx": 3}, {"name": "core", "idx": 7}])
    indices = workspace.names.indices
    np.testing.assert_array_equal(annotated(workspace) == indices["disc"], drawn() == 7)


def test_other_names_from_the_client_win(workspace, tmp_path):
    put(workspace, slicer_file(tmp_path), label_info=[{"name": "fat", "idx": 3}, {"name": "bone", "idx": 7}])
    assert workspace.names.indices == {"fat": 1, "bone": 2}


def test_a_file_without_names_is_as_the_client_says(workspace, tmp_path):
    file = tmp_path / "drawn.nrrd"
    io.write_image(file, drawn(), io.Image(drawn(), AFFINE))
    put(workspace, file, label_info=[{"name": "a", "idx": 3}, {"name": "b", "idx": 7}])
    assert workspace.names.indices == {"a": 1, "b": 2}


@FILES
def test_a_file_that_comes_with_a_request_too(workspace, tmp_path, write):
    opened = workspace.open(workspace.case("case"), LabelOptions(), write(tmp_path))
    np.testing.assert_array_equal(opened.labels == workspace.names.indices["disc"], drawn() == 7)


def test_scribbles_are_no_name_to_agree_on():
    segments = [*SEGMENTS, Segment(9, "background_scribbles", "#000000")]
    told = LabelOptions(label_info=({"name": "disc", "idx": 1}, {"name": "core", "idx": 2}))
    assert {entry["idx"] for entry in named_by_file(told, segments).label_info} == {3, 7, 9}


def test_a_damaged_header_is_refused(workspace, tmp_path):
    file = tmp_path / "drawn.nrrd"
    file.write_bytes(b"NRRD0004\nhello")
    with pytest.raises(FileError):
        put(workspace, file)
