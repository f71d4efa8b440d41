"""What is shown, taken back and stored for good of a study of 12 slices."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import SHAPE, answered, column, opened
from sliceprop.server.errors import ConflictError
from sliceprop.server.outcome import current_labels, finalise, undo
from sliceprop.study import Propagation


def propagated(workspace, labels):
    """As if a propagation had this result."""
    case = workspace.case("case")
    doubt, report = np.zeros(SHAPE, np.float32), {"slice_axis": 2, "method": "shape"}
    case.record.save_result(Propagation(labels.astype(np.int32), labels, labels, doubt, report), "")
    answered(workspace, labels)


def test_what_is_shown_is_the_result_under_the_newer_annotation(workspace, submit):
    case = workspace.case("case")
    assert not current_labels(workspace, case).any()
    submit(column([2, 7]))
    np.testing.assert_array_equal(current_labels(workspace, case), column([2, 7]))
    propagated(workspace, column(range(2, 8)))
    np.testing.assert_array_equal(current_labels(workspace, case), column(range(2, 8)))
    submit(column([2, 7], value=2), annotated_slices=[2, 5, 7], slice_axis=2)
    np.testing.assert_array_equal(current_labels(workspace, case), column([3, 4, 6]) + column([2, 7], value=2))


def test_undo_takes_back_one_propagation_and_no_painted_voxel(workspace, submit):
    case = workspace.case("case")
    with pytest.raises(ConflictError):
        undo(workspace, case)
    submit(column([2, 7]))
    propagated(workspace, column(range(2, 8)))
    submit(column([2, 7, 10]))
    propagated(workspace, column(range(2, 11)))
    undo(workspace, case)
    shown = column([*range(2, 8), 10])
    np.testing.assert_array_equal(current_labels(workspace, case), shown)
    # The client that now submits all that it shows has drawn no more than before.
    assert submit(shown)["annotated_slices"] == [2, 7, 10]
    undo(workspace, case)
    np.testing.assert_array_equal(current_labels(workspace, case), column([2, 7, 10]))
    with pytest.raises(ConflictError):
        undo(workspace, case)


def test_only_the_last_of_many_propagations_can_be_taken_back(workspace, submit):
    submit(column([2, 7]))
    for last in (8, 9, 10):
        propagated(workspace, column(range(2, last)))
    undo(workspace, workspace.case("case"))
    np.testing.assert_array_equal(current_labels(workspace, workspace.case("case")), column(range(2, 9)))
    with pytest.raises(ConflictError):
        undo(workspace, workspace.case("case"))


@pytest.mark.parametrize("tag", ["sparse", "final"])
def test_the_final_label_is_what_is_shown_and_leaves_the_annotation(workspace, submit, tag):
    case = workspace.case("case")
    with pytest.raises(ConflictError):
        finalise(workspace, case)
    submit(column([2, 7]), tag=tag)
    propagated(workspace, column(range(2, 8)))
    drawn = workspace.drawings.label_versions("case")
    workspace.keep_estimate(case, {"expected_dice": 0.97, "stop": True}, 0.95, drawn)
    assert finalise(workspace, case) == {"dicom_seg": False, "sentence": "Saved on this server as NIfTI."}
    info = workspace.store.get_label_info("case", "final")
    assert info["annotated_slices"] == [2, 7] and [one["name"] for one in info["label_info"]] == ["disc"]
    np.testing.assert_array_equal(nib.load(workspace.store.label_file("case", "final")).dataobj, column(range(2, 8)))
    assert opened(workspace).annotation.annotated_slices == (2, 7)
    assert workspace.studies_by_need(0.95) == ([], ["case"])
    workspace.case("case").record.folder.joinpath("annotation.npz").unlink()
    assert opened(workspace).annotation.annotated_slices == (2, 7)
