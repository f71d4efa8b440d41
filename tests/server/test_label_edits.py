"""The list of labels as the panel changes it; one study of 3 slices."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from sliceprop.errors import InputError
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import ConflictError
from sliceprop.server.label_edits import edit_labels, parse_edits
from sliceprop.server.names import MAX_LABELS
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace

SHAPE = (6, 5, 3)


@pytest.fixture
def open_workspace(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    (tmp_path / "studies").mkdir()
    scan = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([1.0, 1, 3, 1])), tmp_path / "studies" / "case.nii.gz")
    return lambda names=None: Workspace(LocalStudies(str(tmp_path / "studies")), names)


@pytest.fixture
def workspace(open_workspace):
    return open_workspace()


def change(workspace, *labels, removed=()):
    edit_labels(workspace, parse_edits({"labels": list(labels), "removed": list(removed)}))
    return workspace.names.names


def colors(workspace):
    return workspace.colors.of(workspace.names.indices)


def paint(workspace, tmp_path, value, tag="sparse", **params):
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:3, 1] = value
    (tmp_path / "label.bin").write_bytes(labels.tobytes(order="F"))
    workspace.submit("case", tag, tmp_path / "label.bin", label_options(params))


def test_new_labels_follow_those_that_are_there(workspace):
    assert change(workspace, {"name": " disc "}, {"name": "core", "color": "#AA3300"}) == ["disc", "core"]
    assert change(workspace, {"name": "fat"}) == ["disc", "core", "fat"]
    assert colors(workspace)["core"] == "#aa3300"


def test_labels_without_a_chosen_colour_have_one_of_their_own(workspace):
    change(workspace, *({"name": f"l{n}"} for n in range(20)))
    assert len(set(colors(workspace).values())) == 20


def test_a_renamed_label_keeps_number_and_colour_also_after_a_restart(workspace, open_workspace):
    change(workspace, {"name": "disc", "color": "#112233"}, {"name": "core"})
    edited = {"name": "nucleus", "renamed_from": "disc"}
    for _ in range(2):  # also when the answer was lost and the panel asks again
        assert change(workspace, edited) == ["nucleus", "core"]
    assert colors(open_workspace())["nucleus"] == "#112233"
    assert open_workspace().names.indices == {"nucleus": 1, "core": 2}
    assert open_workspace().names.renamed == {"disc": "nucleus"}


def test_labels_do_not_grow_in_number_request_by_request(workspace):
    added = [f"label {number}" for number in range(MAX_LABELS - 1)]  # one is left out
    edit_labels(workspace, parse_edits({"labels": [{"name": name} for name in added]}))
    before = workspace.names.names
    with pytest.raises(InputError, match="at most"):
        edit_labels(workspace, parse_edits({"labels": [{"name": "one more"}]}))
    assert workspace.names.names == before and len(before) == MAX_LABELS
    edit_labels(workspace, parse_edits({"labels": [{"name": "another", "renamed_from": added[-1]}]}))
    assert "another" in workspace.names.indices


def test_names_can_be_exchanged(workspace):
    change(workspace, {"name": "a", "color": "#000001"}, {"name": "b", "color": "#000002"})
    swapped = change(workspace, {"name": "b", "renamed_from": "a"}, {"name": "a", "renamed_from": "b"})
    assert swapped == ["b", "a"] and colors(workspace) == {"b": "#000001", "a": "#000002"}


def test_a_client_that_missed_a_renaming_means_the_same_label(workspace, open_workspace, tmp_path):
    change(workspace, {"name": "draft"}, {"name": "core"})
    change(workspace, {"name": "disc", "renamed_from": "draft"})
    change(workspace, {"name": "nucleus", "renamed_from": "disc"})
    for name in ("draft", "disc", "nucleus"):
        info = [{"name": name, "idx": 7}, {"name": "core", "idx": 2}]
        paint(open_workspace(), tmp_path, 7, label_info=info)
        assert open_workspace().names.names == ["nucleus", "core"]
        assert open_workspace().drawings.annotation(workspace.case("case")).labels.max() == 1


def test_a_former_name_beside_the_present_one_is_another_label(workspace, tmp_path):
    change(workspace, {"name": "draft"})
    change(workspace, {"name": "disc", "renamed_from": "draft"})
    paint(workspace, tmp_path, 1, label_info=[{"name": "draft", "idx": 1}, {"name": "disc", "idx": 2}])
    assert workspace.names.names == ["disc", "draft"]
    assert workspace.drawings.annotation(workspace.case("case")).labels.max() == 2


def test_a_new_label_does_not_get_the_number_of_background_scribbles(workspace):
    change(workspace, *({"name": f"n{number}"} for number in range(1, 255)))
    change(workspace, {"name": "disc"})
    assert workspace.names.indices["n254"] == 254 and workspace.names.indices["disc"] == 256


def test_conflicts_change_nothing(workspace):
    change(workspace, {"name": "disc"}, {"name": "core"})
    for labels in ([{"name": "core", "renamed_from": "disc"}], [{"name": "x", "renamed_from": "gone"}]):
        with pytest.raises(ConflictError):
            change(workspace, {"name": "new"}, *labels)
    assert workspace.names.names == ["disc", "core"]


def test_only_what_is_last_and_was_never_painted_can_be_removed(workspace, tmp_path):
    change(workspace, *({"name": name} for name in "abcde"))
    assert change(workspace, removed=["d", "e", "unknown"]) == ["a", "b", "c"]
    with pytest.raises(ConflictError, match="rename"):
        change(workspace, removed=["a"])
    paint(workspace, tmp_path, 3)
    with pytest.raises(ConflictError, match="voxels"):
        change(workspace, removed=["c"])
    paint(workspace, tmp_path, 1)
    with pytest.raises(ConflictError, match="versions"):
        change(workspace, removed=["c"])


def test_a_label_of_scribbles_cannot_be_removed(workspace, tmp_path):
    change(workspace, {"name": "a"}, {"name": "b"})
    paint(workspace, tmp_path, 2, tag="scribbles")
    with pytest.raises(ConflictError, match="voxels"):
        change(workspace, removed=["b"])


def test_a_restored_version_means_the_labels_that_it_was_painted_with(workspace, tmp_path):
    change(workspace, {"name": "a"}, {"name": "b"})
    file = tmp_path / "studies" / "labels" / "sparse" / "case.nii"
    file.parent.mkdir(parents=True)
    labels = np.full(SHAPE, 2, np.uint8)
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 3, 1])), file)  # kept as it is, without a list of its labels
    workspace.store.refresh()
    workspace.store.remove_label("case", "sparse")
    assert workspace.drawings.annotation(workspace.case("case")) is None
    with pytest.raises(ConflictError, match="versions"):
        change(workspace, removed=["b"])
    workspace.drawings.restore(workspace.case("case"), 1)
    assert workspace.names.by_index[workspace.drawings.annotation(workspace.case("case")).labels.max()] == "b"


def test_the_operators_names_stay_but_can_be_coloured(open_workspace):
    workspace = open_workspace(["disc", "core"])
    for labels, removed in (([{"name": "fat"}], []), ([{"name": "x", "renamed_from": "disc"}], []), ([], ["core"])):
        with pytest.raises(InputError, match="operator"):
            change(workspace, *labels, removed=removed)
    change(workspace, {"name": "disc", "color": "#123456"})
    assert colors(workspace)["disc"] == "#123456"


@pytest.mark.parametrize(
    "body",
    [
        {"labels": {"disc": 1}},
        {"labels": ["disc"]},
        {"labels": [{"name": " "}]},
        {"labels": [{"name": 5}]},
        {"labels": [{"name": "a"}, {"name": "a"}]},
        {"labels": [{"name": "background"}]},
        {"labels": [{"name": "a", "color": "red"}]},
        {"labels": [{"name": "a", "color": "#12345"}]},
        {"removed": "a"},
    ],
)
def test_bad_requests_are_refused(body):
    with pytest.raises(InputError):
        parse_edits(body)


def test_a_file_that_nobody_can_read_holds_no_label(workspace, tmp_path):
    change(workspace, {"name": "disc"}, {"name": "core"})
    paint(workspace, tmp_path, 1, tag="mine")
    workspace.store.label_file("case", "mine").write_bytes(b"not a label")
    assert change(workspace, removed=["core"]) == ["disc"]
    paint(workspace, tmp_path, 1, tag="mine")
    assert [one.entry.event for one in workspace.record("case").versions.newest_first()][1] == "found"
    change(workspace, {"name": "core"})
    assert change(workspace, removed=["core"]) == ["disc"]
    with pytest.raises(ConflictError):
        change(workspace, removed=["disc"])


def test_a_label_cannot_be_removed_while_something_with_it_is_stored(workspace, tmp_path, monkeypatch):
    change(workspace, {"name": "draft"}, {"name": "core"})
    kept, refused = workspace.drawings.keep, list[str]()

    def interrupted(*args, **options):
        with pytest.raises(ConflictError, match="rename it instead"):
            change(workspace, removed=["core"])
        refused.append("core")
        return kept(*args, **options)

    monkeypatch.setattr(workspace.drawings, "keep", interrupted)
    paint(workspace, tmp_path, 7, label_info=[{"name": "core", "idx": 7}])
    assert refused == ["core"] and "core" in workspace.names.names
