import io as memory
import zipfile

import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, column
from sliceprop import io
from sliceprop.errors import InputError
from sliceprop.segments import Segment, read_segments
from sliceprop.server.errors import NotFoundError
from sliceprop.server.export_routes import exported


def test_what_is_annotated_comes_with_names_and_colours(workspace, submit, tmp_path):
    submit(column([2, 7]))
    workspace.colors.change({"disc": "#102030"}, {})
    name, content = exported(workspace, "case", "seg.nrrd")
    (tmp_path / name).write_bytes(content)
    back = io.read_image(tmp_path / name)
    np.testing.assert_array_equal(back.array, column([2, 7]))
    np.testing.assert_allclose(back.affine, AFFINE)
    assert name == "case.seg.nrrd" and read_segments(tmp_path / name) == [Segment(1, "disc", "#102030")]


def test_several_files_come_as_an_archive_and_tags_can_be_named(workspace, submit):
    submit(column([2, 7]))
    submit(column([4], 2), tag="mine")
    for form, tag, files in ((".obj", "", ["case.mtl", "case.obj"]), (".stl", "mine", ["case_2_core.stl"])):
        name, content = exported(workspace, "case", form, tag)
        if len(files) > 1:
            assert sorted(zipfile.ZipFile(memory.BytesIO(content)).namelist()) == files
        else:
            assert name == files[0] and b"name=core" in content[:80]


@pytest.mark.parametrize(
    ("form", "tag", "error", "words"),
    [
        ("exe", "", InputError, "format must be one of"),
        ("nrrd", "", NotFoundError, "no labels"),
        ("nrrd", "absent", NotFoundError, "no label 'absent'"),
        ("nrrd", "../x", InputError, "plain name"),
    ],
)
def test_what_is_not_there_is_refused(workspace, form, tag, error, words):
    with pytest.raises(error, match=words):
        exported(workspace, "case", form, tag)


def test_dicom_seg_needs_a_dicom_series(workspace, submit):
    submit(column([2, 7]))
    with pytest.raises(InputError, match="refers to the DICOM series"):
        exported(workspace, "case", "dcm")
