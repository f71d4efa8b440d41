"""What the panel is told of one study of 8 slices, without a server."""

import os

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import NotFoundError
from sliceprop.server.infer import PropagateTask
from sliceprop.server.outcome import undo
from sliceprop.server.panel import study_state, voxels
from sliceprop.server.proxy import archive_path
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace

SHAPE = (20, 18, 8)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 0, 4, -30], [0, -1, 0, 20], [0, 0, 0, 1]])


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    (tmp_path / "studies").mkdir()
    scan = np.random.default_rng(0).normal(column(range(8)) * 100.0, 5).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "studies" / "case.nii.gz")
    return Workspace(LocalStudies(str(tmp_path / "studies")))


def column(slices, value=1):
    labels = np.zeros(SHAPE, np.uint16)
    labels[5:12, 6:14, list(slices)] = value
    return labels


def paint(workspace, tmp_path, labels, **options):
    (tmp_path / "label.bin").write_bytes(labels.astype("<u2").tobytes(order="F"))
    options = {"label_info": [{"name": "disc", "idx": int(labels.max())}], **options}
    return workspace.submit("case", "sparse", tmp_path / "label.bin", label_options(options))


def state(workspace, **training):
    return study_state(workspace, workspace.case("case"), training)


def test_a_study_nobody_touched(workspace):
    told = state(workspace, image="other", status="RUNNING")
    assert (told["image"], told["shape"], told["slice_axis"], told["n_slices"]) == ("case", list(SHAPE), 2, 8)
    np.testing.assert_allclose(np.array(told["affine_lps"]) @ [0, 0, 0, 1], [-10, 30, 20, 1])
    np.testing.assert_allclose(np.array(told["affine_lps"]) @ [1, 2, 3, 1], [-9, 18, 18, 1])
    assert (told["annotated_slices"], told["annotation_version"], told["label_names"]) == ([], "", {})
    assert not (told["model"] or told["scribbles"] or told["undo"] or told["dicom_seg"] or told["partial"])
    assert told["training"] is None and told["result"] is None and told["renamed_labels"] == {}
    for kind in ("labels", "annotation", "scribbles"):
        array, headers = voxels(workspace, workspace.case("case"), kind)
        assert not array.any() and array.dtype == np.uint8 and headers["X-Shape"] == "20,18,8"


def test_a_slice_is_not_suggested_any_more_when_it_is_annotated(workspace, tmp_path):
    paint(workspace, tmp_path, column([1, 6]), slice_axis=2)
    PropagateTask(workspace, 0.95)({"image_id": "case"})
    suggested = state(workspace)["result"]["suggestion"]["slice"]
    paint(workspace, tmp_path, column([1, 6, suggested]), slice_axis=2)
    assert state(workspace)["result"]["suggestion"] is None
    paint(workspace, tmp_path, column([1, 6]), annotated_slices=[1, 6], slice_axis=2)
    assert state(workspace)["result"]["suggestion"]["slice"] == suggested


def test_after_painting_and_propagating(workspace, tmp_path):
    receipt = paint(workspace, tmp_path, column([1, 6]), annotated_slices=[1, 6, 7], slice_axis=2)
    told = state(workspace, image="case", status="DONE")
    assert (told["annotated_slices"], told["label_names"]) == ([1, 6, 7], {"disc": 1})
    assert told["annotation_version"] == receipt["annotation_version"] != ""
    assert told["training"]["status"] == "DONE"

    file, _ = PropagateTask(workspace, 0.95)({"image_id": "case"})
    told = state(workspace)
    result = told["result"]
    assert result["version"] and result["method"] == "auto" and result["trained"] is False
    assert result["quality"].keys() == {"disc"} and 0 <= result["quality"]["disc"] <= 1
    assert {"1", "4"} <= result["quality_slices"]["disc"].keys()
    assert result["suggestion"]["slice"] not in (1, 6, 7) and result["suggestion"]["reason"]
    assert told["undo"] and result["current"]

    shown, headers = voxels(workspace, workspace.case("case"), "labels")
    np.testing.assert_array_equal(shown, nib.load(file).dataobj)
    assert (headers["X-Version"], headers["X-Dtype"]) == (result["version"], "uint8")
    painted, headers = voxels(workspace, workspace.case("case"), "annotation")
    np.testing.assert_array_equal(painted, column([1, 6]))
    assert headers["X-Annotation-Version"] == receipt["annotation_version"]
    doubt, _ = voxels(workspace, workspace.case("case"), "uncertainty")
    assert doubt.dtype == np.uint8 and doubt[..., 4].max() > doubt[..., 1].max() == 0


def test_a_result_is_current_until_something_is_drawn(workspace, tmp_path):
    marks, case = column([3], 255), workspace.case("case")
    paint(workspace, tmp_path, column([1, 6]))
    for draw in (
        lambda: paint(workspace, tmp_path, column([1, 4, 6])),
        lambda: workspace.submit("case", "scribbles", tmp_path / "label.bin", label_options({})),
    ):
        PropagateTask(workspace, 0.95)({"image_id": "case"})
        assert state(workspace)["result"]["current"]
        (tmp_path / "label.bin").write_bytes(marks.astype("<u2").tobytes(order="F"))
        draw()
        assert not state(workspace)["result"]["current"]
    undo(workspace, case)
    assert not state(workspace)["result"]["current"]


def test_no_slice_is_named_that_a_result_along_another_axis_has(workspace, tmp_path):
    paint(workspace, tmp_path, column([1, 6]), slice_axis=2)
    PropagateTask(workspace, 0.95)({"image_id": "case"})
    only_sagittal = np.where(np.arange(SHAPE[0])[:, None, None] == 8, column(range(8)), 0)
    paint(workspace, tmp_path, only_sagittal, slice_axis=0)
    told = state(workspace)
    assert told["slice_axis"] == 0 and told["result"]["quality"].keys() == {"disc"}
    assert told["result"]["quality_slices"] == {} and told["result"]["suggestion"] is None


def test_results_of_another_scan_of_the_name_are_forgotten(workspace, tmp_path):
    paint(workspace, tmp_path, column([1, 6]))
    PropagateTask(workspace, 0.95)({"image_id": "case"})
    case = workspace.case("case")
    before = nib.load(case.image)
    nib.save(nib.Nifti1Image(np.asanyarray(before.dataobj).copy(), before.affine), case.image)
    os.utime(case.image, (1, 1))
    assert state(workspace)["result"]["current"], "the same scan, written again"
    nib.save(nib.Nifti1Image(np.asanyarray(before.dataobj)[::-1] + 1, before.affine), case.image)
    os.utime(case.image, (2, 2))
    assert not (state(workspace)["result"] or {}).get("current")
    assert case.record.result("labels") is None and not case.record.outlines()
    assert workspace.drawings.annotation(case).annotated_slices == (1, 6)


def test_large_label_numbers_take_two_bytes(workspace, tmp_path):
    names = [{"name": f"l{n}", "idx": n} for n in range(1, 300)]
    paint(workspace, tmp_path, column([2], 299), label_info=names)
    array, headers = voxels(workspace, workspace.case("case"), "annotation")
    assert headers["X-Dtype"] == "uint16"
    np.testing.assert_array_equal(array, column([2], 300))


@pytest.mark.parametrize("kind", ["uncertainty", "anything"])
def test_what_is_not_there_is_not_found(workspace, kind):
    with pytest.raises(NotFoundError):
        voxels(workspace, workspace.case("case"), kind)


def test_paths_of_the_archive(monkeypatch):
    assert archive_path("qido/studies") == archive_path("studies") == "studies"
    for kind in ("QIDO", "WADO"):
        monkeypatch.setattr(f"monailabel.config.settings.MONAI_LABEL_{kind}_PREFIX", kind.lower() + "-rs")
    assert archive_path("qido/studies") == "qido-rs/studies"
    assert archive_path("qido/studies/1/metadata") == archive_path("wado/studies/1/metadata")
    assert archive_path("wado/studies/1/metadata") == "wado-rs/studies/1/metadata"
