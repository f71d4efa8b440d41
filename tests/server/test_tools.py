"""The tools on the study of `columns`, as clients ask for them; no server."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, SHAPE, column
from sliceprop import io
from sliceprop.errors import FileError, InputError, NoAnnotationError
from sliceprop.server.tools import tool_tasks

DISC = [{"name": "disc", "idx": 1}]
SCRIBBLED = [
    {"name": "background_scribbles", "id": 1},
    {"name": "foreground_scribbles", "id": 2},
    {"name": "disc", "id": 3},
    {"name": "core", "id": 4},
]


def marks(foreground=1, background=255):
    """A stroke in the column, and a frame of background in its own slice and in the outermost ones."""
    drawn = np.zeros(SHAPE, np.uint16)
    drawn[7:10, 10, 5] = foreground
    drawn[[1, 18], 1:17, 5] = drawn[1:19, 1, 5] = drawn[1:19, 16, 5] = background
    drawn[1:4, :, 1] = drawn[1:4, :, 10] = background
    return drawn


@pytest.fixture
def ask(workspace, tmp_path):
    """Runs a model; answers with the labels and the params."""

    def ask(model, upload=None, **options):
        request = {"image_id": "case", "image": "case", **options}
        if upload is not None:
            request["label"] = str(tmp_path / "label.nii.gz")
            nib.save(nib.Nifti1Image(upload, AFFINE), request["label"])
        file, params = tool_tasks(workspace)[model](request)
        try:
            return io.read_image(file).array, params
        finally:
            (tmp_path / file).unlink()

    return ask


def test_stored_scribbles_grow(ask, submit):
    submit(marks(), tag="scribbles", label_info=DISC)
    labels, params = ask("grow_from_seeds", smoothing_mm=0)
    np.testing.assert_array_equal(labels == 1, column() == 1)
    assert params == {"label_names": {"disc": 1}, "tool": "grow_from_seeds", "draft": True}


def test_annotated_slices_are_seeds_with_their_background_and_stay_as_they_are(ask, submit):
    drawn = column([3, 8])
    drawn[0, 0, 3] = 1
    submit(drawn, label_info=DISC)
    labels, _ = ask("grow_from_seeds")
    np.testing.assert_array_equal(labels[..., [3, 8]], drawn[..., [3, 8]])
    assert ((labels == 1) == (column() == 1))[..., 3:9].mean() > 0.99


def test_slicers_scribbles_give_the_selected_label_as_one(ask, workspace):
    upload = marks(foreground=2, background=1)
    upload[12:15, 2:4, 4:7] = 4
    upload[0, 0, 0] = 3
    options = {"label_info": SCRIBBLED, "selected_label_name": "disc", "smoothing_mm": 0}
    labels, params = ask("grow_from_seeds", upload, **options)
    assert params["label_names"] == {"disc": 1} and set(np.unique(labels)) == {0, 1}
    np.testing.assert_array_equal(labels == 1, column() == 1)
    assert labels[0, 0, 0] == 0, "an earlier result of the selected label is no seed"
    indices = workspace.names.indices
    sent = workspace.case("case").record.sent().labels
    assert (sent[12:15, 2:4, 4:7] == indices["core"]).all(), "the client still shows the other segments"
    np.testing.assert_array_equal(sent == indices["disc"], labels == 1)


def test_segments_without_scribbles_are_seeds_of_their_labels_in_any_planes(ask):
    upload = np.zeros(SHAPE, np.uint16)
    upload[8, 7:13, 2:10] = upload[6:11, 10, 2:10] = upload[6:11, 7:13, 5] = 2
    upload[1:19, 1, 1:11] = upload[1:19, 16, 1:11] = upload[1, 1:17, 1:11] = upload[18, 1:17, 1:11] = 1
    info = [{"name": "background", "idx": 1}, {"name": "disc", "idx": 2}]
    labels, params = ask("grow_from_seeds", upload, label_info=info, smoothing_mm=0)
    np.testing.assert_array_equal(labels == params["label_names"]["disc"], column() == 1)


def test_a_result_that_comes_back_is_no_annotation_but_what_is_changed_in_it(ask, submit):
    submit(marks(), tag="scribbles", label_info=DISC)
    labels, _ = ask("grow_from_seeds")
    labels = labels.astype(np.uint16)
    labels[:3, :3, 6] = 1
    assert submit(labels, label_info=DISC)["annotated_slices"] == [6]


def test_fast_marching_ends_at_its_volume(ask, submit):
    submit(marks(), tag="scribbles", label_info=DISC)
    labels, _ = ask("fast_marching", max_volume_ml="0.6")
    assert 0.55 <= np.count_nonzero(labels) * 0.003 <= 0.6
    labels, _ = ask("fast_marching", max_volume_ml={"disc": 0.3})
    assert 0.27 <= np.count_nonzero(labels) * 0.003 <= 0.3


def test_thresholds_take_a_label_by_name(ask, workspace):
    labels, params = ask("threshold_islands", lower=50, label_name="bone")
    assert params["label_names"] == {"bone": 1} and workspace.names.indices == {"bone": 1}
    np.testing.assert_array_equal(labels == 1, column() == 1)
    ranges = {"air": [None, 50], "bone": [50, None]}
    labels, params = ask("threshold_islands", thresholds=ranges, keep=["all"])
    np.testing.assert_array_equal(labels == params["label_names"]["air"], column() == 0)


def test_slices_are_filled(ask, submit):
    submit(column([2, 9]), label_info=DISC)
    labels, _ = ask("fill_between_slices")
    np.testing.assert_array_equal(labels, column(range(2, 10)))


def test_points_come_as_a_list_or_as_marks(ask, submit):
    points = [[5, 9, 5], [11, 9, 5], [8, 6, 5], [8, 13, 5], [8, 9, 1], [8, 9, 10]]
    labels, params = ask("boundary_points", points={"disc": points})
    assert params["label_names"] == {"disc": 1}
    np.testing.assert_array_equal((labels == 1)[..., 1:11], (column() == 1)[..., 1:11])
    dots = np.zeros(SHAPE, np.uint16)
    dots[tuple(np.array(points).T)] = 1
    submit(dots, tag="scribbles", label_info=DISC)
    np.testing.assert_array_equal(ask("boundary_points")[0], labels)


def test_a_study_with_nothing_marked_is_refused(ask):
    for model in ("grow_from_seeds", "fast_marching", "fill_between_slices", "boundary_points"):
        with pytest.raises(NoAnnotationError):
            ask(model)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("threshold_islands", {"lower": 50}, "say what is to be labelled"),
        ("threshold_islands", {"lower": 5000, "label_name": "a"}, "no voxel lies"),
        ("threshold_islands", {"preset": "gold", "label_name": "a"}, "preset must be one of"),
        ("threshold_islands", {"thresholds": {"a": 5}}, "thresholds must look like"),
        ("threshold_islands", {"lower": "x", "label_name": "a"}, "lower must be a finite number"),
        ("boundary_points", {"points": [[1, 2, 3]]}, "points must look like"),
        ("boundary_points", {"points": {"a": [[99, 1, 1]] * 6}}, "outside the image"),
        ("boundary_points", {"points": {"background": [[1, 1, 1]] * 6}}, "no name of a structure"),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(ask, model, options, words):
    with pytest.raises(InputError, match=words):
        ask(model, **options)


def test_scribbles_need_the_label_they_belong_to(ask):
    with pytest.raises(InputError, match="selected_label_name"):
        ask("grow_from_seeds", marks(2, 1), label_info=SCRIBBLED)


def test_the_tools_are_what_clients_list_and_a_bundle_has_to_be_one(workspace, tmp_path):
    tasks = tool_tasks(workspace)
    types = {name: task.info()["type"] for name, task in tasks.items()}
    assert types == {
        "grow_from_seeds": "scribbles",
        "fast_marching": "scribbles",
        "threshold_islands": "scribbles",
        "fill_between_slices": "segmentation",
        "boundary_points": "scribbles",
    }
    with pytest.raises(FileError, match="no MONAI bundle"):
        tool_tasks(workspace, str(tmp_path))
