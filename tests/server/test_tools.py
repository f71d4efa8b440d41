"""The tools on the study of `columns`, as clients ask for them; no server."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, SHAPE, answered, column
from sliceprop import io
from sliceprop.errors import FileError, InputError, NoAnnotationError
from sliceprop.server.provenance import given_bare
from sliceprop.server.tools import tool_tasks
from sliceprop.tools.threshold_islands import threshold_islands

DISC = [{"name": "disc", "idx": 1}]
POINTS = [[5, 9, 5], [11, 9, 5], [8, 6, 5], [8, 13, 5], [8, 9, 1], [8, 9, 10]]
TOOLS = {
    "grow_from_seeds": {},
    "fast_marching": {},
    "threshold_islands": {"lower": 50},
    "fill_between_slices": {},
    "boundary_points": {"points": {"disc": POINTS}},
}
SCRIBBLED = [
    {"name": "background_scribbles", "id": 1},
    {"name": "foreground_scribbles", "id": 2},
    {"name": "disc", "id": 3},
    {"name": "core", "id": 4},
]


def odd(slices=(3, 8)):
    """Annotated slices on which both labels lie where the scan shows nothing, and miss where it shows something."""
    drawn = column(slices)
    drawn[0:3, 0:3, slices[0]], drawn[5:8, 6:9, slices[0]] = 1, 0
    drawn[14:17, 2:5, slices[1]], drawn[9:12, 6:14, slices[1]] = 2, 2
    return drawn


def in_slicer(shown, *, on=5):
    """What 3D Slicer sends from its Scribbles tab: its segments, and over them strokes for the disc and background."""
    upload = np.choose(shown, [0, 3, 4]).astype(np.uint16)
    upload[7:10, 10, on], upload[16, 2:16, on] = 2, 1
    return upload


def with_answer(shown, answer):
    """What 3D Slicer shows once the disc has come back."""
    return np.where(answer == 1, 1, np.where(shown == 1, 0, shown)).astype(np.uint16)


def marks(foreground=1, background=255):
    """A stroke in the column, and a frame of background in its own slice and in the outermost ones."""
    drawn = np.zeros(SHAPE, np.uint16)
    drawn[7:10, 10, 5] = foreground
    drawn[[1, 18], 1:17, 5] = drawn[1:19, 1, 5] = drawn[1:19, 16, 5] = background
    drawn[1:4, :, 1] = drawn[1:4, :, 10] = background
    return drawn


@pytest.fixture
def ask(workspace, tmp_path):
    """Runs a model; answers with the labels and the params, and keeps the mask of what was drawn."""

    def ask(model, upload=None, **options):
        request = {"image_id": "case", "image": "case", **options}
        if upload is not None:
            request["label"] = str(tmp_path / "label.nii.gz")
            nib.save(nib.Nifti1Image(upload, AFFINE), request["label"])
        file, params, ask.drawn, _ = tool_tasks(workspace)[model].reply(request)
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
    sent = workspace.case("case").record.sent("draft").labels
    assert (sent[12:15, 2:4, 4:7] == indices["core"]).all(), "the client still shows the other segments"
    np.testing.assert_array_equal(sent == indices["disc"], labels == 1)


@pytest.mark.parametrize("shows", ["what it drew", "a result"])
@pytest.mark.parametrize("tool", TOOLS)
def test_annotated_slices_of_slicer_stay_too_and_are_still_so_when_submitted(ask, submit, workspace, tool, shows):
    drawn = odd()
    submit(drawn)
    whole = np.where(drawn.any(axis=(0, 1)), drawn, column()).astype(np.uint16)
    answered(workspace, whole)
    shown = drawn if shows == "what it drew" else whole
    answer, _ = ask(tool, in_slicer(shown), label_info=SCRIBBLED, selected_label_name="disc", **TOOLS[tool])
    np.testing.assert_array_equal((answer == 1)[..., [3, 8]], (drawn == 1)[..., [3, 8]])
    assert (answer == 1)[7:10, 10, 5].all() and not answer[16, 2:16, 5].any(), "scribbles decide elsewhere"
    np.testing.assert_array_equal(np.unique(np.nonzero(ask.drawn)[2]), [3, 5, 8])
    assert ask.drawn[..., [3, 8]].all() and ask.drawn[..., 5].sum() == 3 + 14
    assert submit(with_answer(shown, answer))["annotated_slices"] == [3, 8]
    np.testing.assert_array_equal(workspace.drawings.annotation(workspace.case("case")).labels, drawn)


@pytest.mark.parametrize("sent", [False, True])
def test_what_slicer_has_just_corrected_on_an_annotated_slice_is_kept(ask, submit, workspace, sent):
    submit(odd())
    if sent:
        answered(workspace, np.where(odd().any(axis=(0, 1)), odd(), column()))
    corrected = odd()
    corrected[0:3, 0:3, 3], corrected[18, 15, 8] = 0, 1
    answer, _ = ask("grow_from_seeds", in_slicer(corrected), label_info=SCRIBBLED, selected_label_name="disc")
    np.testing.assert_array_equal((answer == 1)[..., [3, 8]], (corrected == 1)[..., [3, 8]])
    assert submit(with_answer(corrected, answer))["annotated_slices"] == [3, 8]
    np.testing.assert_array_equal(workspace.drawings.annotation(workspace.case("case")).labels, corrected)


@pytest.mark.parametrize("tool", ["grow_from_seeds", "threshold_islands"])
def test_scribbles_on_an_annotated_slice_hide_what_is_drawn_there_but_do_not_change_it(ask, submit, workspace, tool):
    drawn = odd()
    drawn[15:18, 2:16, 8] = 2
    submit(drawn)
    options = {"label_info": SCRIBBLED, "selected_label_name": "disc", **TOOLS[tool]}
    answer, _ = ask(tool, in_slicer(drawn, on=8), **options)
    np.testing.assert_array_equal((answer == 1)[..., [3, 8]], (drawn == 1)[..., [3, 8]])
    assert submit(with_answer(drawn, answer))["annotated_slices"] == [3, 8]
    np.testing.assert_array_equal(workspace.drawings.annotation(workspace.case("case")).labels, drawn)


@pytest.mark.parametrize("got", ["the scan alone", "nothing", "nothing, but another client a result"])
def test_what_slicer_was_not_shown_is_not_lost_by_a_tool(ask, submit, workspace, got):
    drawn, case = odd(), workspace.case("case")
    submit(drawn)
    if got == "the scan alone":
        case.record.save_sent(given_bare(workspace.drawings.annotation(case)))
    elif got != "nothing":
        answered(workspace, np.where(drawn.any(axis=(0, 1)), drawn, column()))
    shown = np.zeros_like(drawn)
    for _ in range(2):
        answer, _ = ask("grow_from_seeds", in_slicer(shown), label_info=SCRIBBLED, selected_label_name="disc")
        np.testing.assert_array_equal((answer == 1)[..., [3, 8]], (drawn == 1)[..., [3, 8]])
        shown = with_answer(shown, answer)
    assert submit(shown)["annotated_slices"] == [3, 8]
    np.testing.assert_array_equal(workspace.drawings.annotation(case).labels, drawn)


def test_marks_sent_along_leave_annotated_slices_alone(ask, submit, workspace):
    submit(odd())
    answered(workspace, odd())
    labels, _ = ask("grow_from_seeds", marks(), label_info=None)
    np.testing.assert_array_equal(labels[..., [3, 8]], odd()[..., [3, 8]])
    assert submit(labels.astype(np.uint16))["annotated_slices"] == [3, 8]


def test_of_a_partial_annotation_only_what_was_drawn_stays(ask, submit, workspace):
    drawn = np.zeros(SHAPE, np.uint16)
    drawn[0:3, 0:3, 3], drawn[14:17, 2:5, 8] = 1, 2
    submit(drawn, partial=True)
    shown = np.where(drawn > 0, drawn, column())
    answer, _ = ask("threshold_islands", in_slicer(shown), label_info=SCRIBBLED, selected_label_name="core", lower=50)
    answer = answer == 1
    assert answer[..., 5].any() and not answer[..., 3][drawn[..., 3] == 1].any()
    np.testing.assert_array_equal(answer[..., 8], drawn[..., 8] == 2)
    assert not ask.drawn[5:12, 6:14, 8].any() and ask.drawn[14:17, 2:5, 8].all()


@pytest.mark.parametrize("tool", TOOLS)
def test_stored_scribbles_stay_and_count_as_drawn(ask, submit, tool):
    drawn, scribbles = odd(), np.zeros(SHAPE, np.uint16)
    submit(drawn)
    scribbles[1:3, 15, 4], scribbles[8, 9, 4], scribbles[6:9, 10, 6], scribbles[0, 0, 3] = 1, 2, 255, 255
    submit(scribbles, tag="scribbles")
    labels, _ = ask(tool, label_name="disc", **TOOLS[tool])
    np.testing.assert_array_equal(labels[..., [3, 8]], drawn[..., [3, 8]])
    off = (scribbles > 0) & ~drawn.any(axis=(0, 1))
    np.testing.assert_array_equal(labels[off], np.where(scribbles == 255, 0, scribbles)[off])
    np.testing.assert_array_equal(ask.drawn, off | drawn.any(axis=(0, 1)))


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
    labels, params = ask("boundary_points", points={"disc": POINTS})
    assert params["label_names"] == {"disc": 1}
    np.testing.assert_array_equal((labels == 1)[..., 1:11], (column() == 1)[..., 1:11])
    dots = np.zeros(SHAPE, np.uint16)
    dots[tuple(np.array(POINTS).T)] = 1
    submit(dots, tag="scribbles", label_info=DISC)
    np.testing.assert_array_equal(ask("boundary_points")[0], labels)


def test_a_refusal_tells_names_of_labels_and_no_numbers(ask, submit):
    submit(marks(), tag="scribbles", label_info=DISC)
    for name in ("disc", "new"):
        with pytest.raises(InputError, match=f"^label {name}: all points lie in one plane"):
            ask("boundary_points", points={"other": POINTS, name: [[1, 1, 1]] * 6})


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


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("threshold_islands", {"thresholds": {"a": [50, None], "b": ["x", None]}}),
        ("threshold_islands", {"thresholds": {"a": [50, None], "b": [5000, None]}}),
        ("threshold_islands", {"thresholds": {f"label {i}": [50, None] for i in range(5000)}}),
        ("threshold_islands", {"lower": 50, "label_name": "a", "keep": "selected"}),
        ("threshold_islands", {"lower": 50, "label_name": "a", "result_extension": ".html"}),
        ("threshold_islands", {"lower": 50, "selected_label_name": "a", "shown": "perhaps"}),
        ("fast_marching", {"max_volume_ml": {"a": 1, "b": "x"}}),
        ("boundary_points", {"points": {"a": POINTS, "b": "x"}}),
    ],
)
def test_a_refused_request_leaves_no_label_behind(ask, workspace, model, options):
    with pytest.raises(InputError):
        ask(model, marks(), label_info=DISC, **options)
    assert workspace.names.names == []


def test_a_label_that_somebody_names_while_a_tool_runs_is_another_one(ask, submit, workspace, monkeypatch):
    def meanwhile(*args, **options):
        submit((column([3]) == 1).astype(np.uint8), label_info=[{"name": "vessel", "idx": 1}])
        return threshold_islands(*args, **options)

    monkeypatch.setattr("sliceprop.server.tools.threshold_islands", meanwhile)
    shown = np.zeros(SHAPE, np.uint8)
    shown[0, 0, 0] = 1
    labels, params = ask("threshold_islands", shown, label_info=DISC, thresholds={"bone": [50, None]})
    assert params["label_names"] == {"vessel": 1, "disc": 2, "bone": 3}
    np.testing.assert_array_equal(labels, np.where(column() == 1, 3, 0))
    assert workspace.drawings.annotation(workspace.case("case")).labels.max() == 1


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


def test_tries_of_tools_do_not_push_out_the_result_that_the_client_goes_on_with(ask, submit, workspace):
    submit(column([2, 7]))
    answered(workspace, column(range(1, 10)))
    for lower in range(5):
        ask("threshold_islands", None, lower=lower, selected_label_name="disc")
    corrected = column(range(1, 10))
    corrected[0, 0, 4] = 1
    assert submit(corrected)["annotated_slices"] == [2, 4, 7]
