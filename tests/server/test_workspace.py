"""The study of `columns` in a workspace, without a server."""

import gzip
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, NAMES, SHAPE, answered, column, opened
from sliceprop import io
from sliceprop.config import BACKGROUND_SCRIBBLE, PropagateConfig
from sliceprop.errors import GeometryError, InputError, NoAnnotationError, StorageError
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import ConflictError, NotFoundError
from sliceprop.server.label_edits import edit_labels, parse_edits
from sliceprop.server.outcome import current_labels, finalise
from sliceprop.server.requests import LabelOptions, label_options
from sliceprop.server.workspace import Workspace
from sliceprop.study import propagate


def test_a_study_nobody_touched_has_no_annotation(workspace):
    assert opened(workspace).annotation is None
    assert opened(workspace).study.annotation.annotated_slices == ()


def test_what_is_submitted_is_what_is_opened(workspace, submit):
    assert submit(column([2, 7]))["annotated_slices"] == [2, 7]
    study = opened(workspace).study
    assert study.volume.slice_axis == 2 and study.annotation.annotated_slices == (2, 7)
    np.testing.assert_array_equal(study.volume.to_original(study.annotation.labels), column([2, 7]))


def test_sparse_counts_before_a_final_label_of_another_origin(workspace, submit):
    submit(column([4]), tag="final")
    submit(column([2, 7]))
    assert opened(workspace).annotation.annotated_slices == (2, 7)
    submit(column([5]), tag="final")
    assert opened(workspace).annotation.annotated_slices == (2, 7)


def test_our_result_corrected_under_final_counts_before_sparse(workspace, submit):
    submit(column([2, 7]))
    answered(workspace, column(range(1, 10)))
    corrected = column(range(1, 10))
    corrected[0, 0, 4] = 1
    submit(corrected, tag="final")
    assert opened(workspace).annotation.annotated_slices == (2, 4, 7)
    submit(column([3]))
    assert opened(workspace).annotation.annotated_slices == (3,)


def test_our_own_result_saved_as_a_label_is_no_annotation(workspace, submit):
    submit(column([2, 7]), tag="final")
    answered(workspace, column())
    file = workspace.store.get_label_uri("case", "final")
    nib.save(nib.Nifti1Image(column(), AFFINE), file)
    assert opened(workspace).annotation.annotated_slices == (2, 7)


def test_a_label_file_put_there_by_hand_counts(workspace):
    folder = workspace.folder.parent / "labels" / "sparse"
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(column([3, 8], 2), AFFINE), folder / "case.nii.gz")
    workspace.store.refresh()
    assert opened(workspace).annotation.annotated_slices == (3, 8)
    assert workspace.names.indices == {"label_1": 1, "label_2": 2}


@pytest.mark.parametrize("table", ["kept", "lost"])  # releases before kept none of configured names
def test_configured_labels_in_another_order_mean_the_same_voxels(workspace, tmp_path, table):
    served, file = Workspace(workspace.store, ["disc", "core"]), tmp_path / "upload.nii.gz"
    labels = column([2, 7])
    labels[5:8, 6:14, [2, 7]] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), file)
    served.submit("case", "sparse", file, label_options({"label_info": NAMES}))
    for kept in served.folder.glob("names*.json") if table == "lost" else ():
        kept.unlink()
    for order in (["core", "disc"], ["fat", "core"]):
        restarted = Workspace(LocalStudies(str(served.folder.parent)), order)
        case = restarted.case("case")
        (case.record.folder / "annotation.npz").unlink()  # the version is read
        np.testing.assert_array_equal(restarted.drawings.annotation(case).labels, labels)
        assert restarted.names.names[:2] == ["disc", "core"]
    told = restarted.submit("case", "sparse", file, label_options({"label_info": [{"name": "core"}, {"name": "fat"}]}))
    assert [(one["name"], one["idx"]) for one in told["label_info"]] == [("core", 2), ("fat", 3)]


def test_a_configured_label_that_has_scribbles_only_keeps_its_index(workspace, tmp_path):
    served, file = Workspace(workspace.store, ["disc", "core"]), tmp_path / "current.nii.gz"
    nib.save(nib.Nifti1Image(column([2]), AFFINE), file)
    segments = [{"name": "foreground_scribbles", "idx": 1}]
    served.open(served.case("case"), label_options({"label_info": segments}), file, selected="core")
    assert Workspace(workspace.store, ["core", "disc"]).names.names == ["disc", "core"]


def test_without_the_table_of_names_versions_tell_what_values_mean(workspace, submit, tmp_path):
    submit(column([2], 2))
    for file in workspace.folder.glob("names*.json"):
        file.unlink()
    restarted = Workspace(workspace.store)
    assert restarted.names.indices == {"unnamed_1": 1, "core": 2}
    nib.save(nib.Nifti1Image(column([2]), AFFINE), tmp_path / "upload.nii.gz")
    options = label_options({"label_info": [{"name": "spleen"}]})
    told = restarted.submit("case", "sparse", tmp_path / "upload.nii.gz", options)
    assert told["label_names"] == {"unnamed_1": 1, "core": 2, "spleen": 3}
    assert Workspace(workspace.store).names.indices == told["label_names"]


@pytest.mark.parametrize("table", ["renamed", "longer"])
def test_values_that_are_no_indices_mean_the_label_that_they_became(workspace, submit, table):
    """A value put there by hand that is too large for an index, of which there is a label later."""
    submit(column([2]))
    folder = workspace.folder.parent / "labels" / "sparse"
    nib.save(nib.Nifti1Image(column([3, 8], 300), AFFINE), folder / "case.nii.gz")
    assert set(np.unique(opened(workspace).annotation.labels)) == {0, 3}
    if table == "renamed":
        edit_labels(workspace, parse_edits({"labels": [{"name": "liver", "renamed_from": "label_300"}]}))
    else:
        workspace.names.register([f"other_{index}" for index in range(4, 302)])
    names = workspace.names.names
    workspace.drawings.restore(workspace.case("case"), 2)
    np.testing.assert_array_equal(opened(workspace).annotation.labels, column([3, 8], 3))
    assert workspace.names.names == names


def test_replaced_labels_stay_as_versions(workspace, submit):
    submit(column([2]))
    submit(column([9]))
    kept = workspace.case("case").record.versions.get(1)
    np.testing.assert_array_equal(nib.load(kept.labels_file).get_fdata(), column([2]))
    np.testing.assert_array_equal(kept.drawn(), column(range(12)) * 0 + (np.arange(12) == 2))


def test_annotation_in_two_planes_is_refused_and_the_old_one_kept(workspace, submit):
    submit(column([2]))
    crossed = column([2, 6, 9])
    crossed[10, 3:15] = 1
    with pytest.raises(InputError, match="plane"):
        submit(crossed)
    assert opened(workspace).annotation.annotated_slices == (2,)


def test_partial_is_remembered(workspace, submit):
    assert submit(column([2, 7]), partial=True)["annotated_slices"] == [2, 7]
    study = opened(workspace).study
    assert study.annotation.known.tolist()[0][2] and not study.annotation.known.tolist()[0][3]
    assert opened(workspace).annotation.partial


def test_a_listed_slice_without_labels_is_background(workspace, submit):
    submit(column([2]), annotated_slices=[2, 11])
    assert opened(workspace).study.annotation.annotated_slices == (2, 11)


def test_another_axis_can_be_asked_for_until_a_slice_is_annotated(workspace, submit):
    assert opened(workspace, slice_axis=0).study.volume.slice_axis == 0
    submit(column([2, 7]))
    assert opened(workspace, slice_axis=2).study.annotation.annotated_slices == (2, 7)
    with pytest.raises(InputError, match="annotated along axis 2, not 0"):
        opened(workspace, slice_axis=0)
    other = np.zeros(SHAPE, np.uint16)
    other[8, 6:14, 2:9] = 1
    submit(other, slice_axis=0)
    assert opened(workspace, slice_axis=0).study.annotation.annotated_slices == (8,)


def test_a_corrected_result_is_known_whatever_others_were_answered_meanwhile(workspace, submit):
    submit(column([2, 7]))
    answered(workspace, column())
    corrected = column()
    corrected[0, 0, 5] = 1
    for other in (column(value=2), np.zeros(SHAPE), column(range(2, 8))):
        answered(workspace, other)
    assert submit(corrected)["annotated_slices"] == [2, 5, 7]
    assert workspace.drawings.annotation(workspace.case("case")).annotated_slices == (2, 5, 7)


def test_scribbles_have_their_own_background_value(workspace, submit):
    marks = np.zeros(SHAPE, np.uint16)
    marks[0, :, 4], marks[8, 8:10, 4] = 9, 2
    submit(column([2, 7]))
    submit(marks, tag="scribbles", background_scribble=9)
    annotation = opened(workspace).study.annotation
    assert annotation.annotated_slices == (2, 7)
    assert set(np.unique(annotation.scribbles)) == {-1, 0, 2}
    assert set(np.unique(nib.load(workspace.store.get_label_uri("case", "scribbles")).dataobj)) == {0, 2, 255}


def test_label_255_and_background_scribbles_get_along(workspace, submit):
    submit(column([2, 7], 255), label_info=None)
    marks = np.zeros(SHAPE, np.uint16)
    marks[0, :, 4] = 255
    submit(marks, tag="scribbles", label_info=None)
    annotation = opened(workspace).study.annotation
    assert annotation.values == (1,) and (annotation.scribbles == -1).any()


def test_a_mark_is_never_stored_as_background(workspace, submit):
    names = [{"name": f"n{idx}", "idx": idx} for idx in range(1, 257)]
    marks = np.zeros(SHAPE, np.uint16)
    marks[8, 8:10, 4], marks[0, :, 4] = 255, 300
    submit(marks, tag="scribbles", label_info=names, background_scribble=300)
    scribbles = workspace.drawings.scribbles(workspace.case("case"))
    assert (scribbles == BACKGROUND_SCRIBBLE).sum() == (marks == 300).sum()
    assert (scribbles[marks == 255] == workspace.names.indices["n255"]).all()


def test_marks_of_a_label_that_an_earlier_release_numbered_like_background_are_refused(workspace, submit):
    names = [f"n{idx}" for idx in range(1, 256)]
    workspace.names.register(names)
    submit(column([2, 7], 255), label_info=None)
    assert opened(workspace).study.annotation.values == (255,)
    marks, info = np.zeros(SHAPE, np.uint16), [{"name": "n255", "idx": 1}]
    marks[8, 8:10, 4] = 1
    with pytest.raises(InputError, match="n255"):
        submit(marks, tag="scribbles", label_info=info)
    assert workspace.drawings.scribbles(workspace.case("case")) is None


def test_scribble_segments_of_slicer_are_marks(workspace, tmp_path):
    current = column([2, 7])
    current[0, :, 4], current[8, 8:10, 4] = 3, 4
    file = tmp_path / "current.nii.gz"
    nib.save(nib.Nifti1Image(current, AFFINE), file)
    segments = [*NAMES, {"name": "background_scribbles", "idx": 3}, {"name": "foreground_scribbles", "idx": 4}]
    options = label_options({"label_info": segments})
    study = workspace.open(workspace.case("case"), options, file, selected="core").study
    assert study.annotation.annotated_slices == (2, 7)
    assert set(np.unique(study.annotation.scribbles)) == {-1, 0, 2}
    assert workspace.names.names == ["disc", "core"]


@pytest.mark.parametrize("on", [4, 7])
def test_a_stroke_of_slicer_makes_no_slice_a_drawn_one_and_changes_none(workspace, submit, tmp_path, on):
    submit(column([2, 7]))
    answered(workspace, column())
    shown = column()
    shown[6, 7:9, on], shown[8, 8:10, on] = 3, 4
    file = tmp_path / "current.nii.gz"
    nib.save(nib.Nifti1Image(shown, AFFINE), file)
    segments = [*NAMES, {"name": "background_scribbles", "idx": 3}, {"name": "foreground_scribbles", "idx": 4}]
    options = label_options({"label_info": segments})
    opened = workspace.open(workspace.case("case"), options, file, selected="core")
    assert opened.annotation.annotated_slices == (2, 7)
    np.testing.assert_array_equal(opened.annotation.labels, column([2, 7]))
    np.testing.assert_array_equal(opened.labels, column())


def test_the_last_study_touched_is_the_one_meant(workspace, submit):
    other = workspace.folder.parent / "aaa.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(1).normal(0, 1, SHAPE), AFFINE), other)
    workspace.store.refresh()
    assert workspace.requested_case({}).image_id == "aaa"
    submit(column([2]))
    assert workspace.requested_case({}).image_id == "case"
    assert workspace.requested_case({"image": "aaa"}).image_id == "aaa"


@pytest.mark.parametrize(
    ("image", "error"), [("nope", NotFoundError), ("../case", InputError), (None, InputError), (3, InputError)]
)
def test_other_images_are_refused(workspace, image, error):
    with pytest.raises(error):
        workspace.case(image)


def test_a_part_of_the_grid_that_slicer_saved_counts(workspace, tmp_path):
    part = AFFINE.copy()
    part[:3, 3] = AFFINE[:3] @ (2, 0, 1, 1)
    file = tmp_path / "studies" / "labels" / "sparse" / "case.seg.nrrd"
    file.parent.mkdir(parents=True)
    io.write_image(file, column([2, 7])[2:, :, 1:9], io.Image(column([2, 7])[2:, :, 1:9], part))
    workspace.store.refresh()
    np.testing.assert_array_equal(opened(workspace).annotation.labels, column([2, 7]))
    workspace.drawings.restore(workspace.case("case"), 1)
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_new_file_is_found_without_a_restart(workspace):
    nib.save(nib.Nifti1Image(column(), AFFINE), workspace.folder.parent / "new.nii.gz")
    assert workspace.case("new").image_id == "new"


def test_the_scan_is_read_anew_when_its_file_changes(workspace):
    case = workspace.case("case")
    before = workspace.scan(case)
    assert workspace.scan(case) is before
    io.write_image(case.image, before.array + 1, before)
    np.testing.assert_allclose(workspace.scan(case).array, before.array + 1, rtol=1e-5)


def test_a_session_has_no_labels_in_the_datastore(workspace):
    case = replace(workspace.case("case"), image_id="", record=None)
    assert workspace.open(case, LabelOptions()).annotation is None


@pytest.mark.parametrize("tag", ["sparse", "final"])
def test_an_empty_label_is_refused_unless_no_slice_is_listed_on_purpose(workspace, submit, tag):
    submit(column([2]))
    with pytest.raises(NoAnnotationError):
        submit(column([]), tag=tag)
    assert opened(workspace).annotation.annotated_slices == (2,)
    assert submit(column([]), annotated_slices=[])["annotated_slices"] == []
    assert opened(workspace).study.annotation.values == ()


def test_a_client_that_missed_a_change_is_told_so(workspace, submit):
    first = submit(column([2]), annotation_version="")["annotation_version"]
    submit(column([2, 5]), annotation_version=first)
    for stale in ("", first):
        with pytest.raises(ConflictError):
            submit(column([9]), annotation_version=stale)
    assert opened(workspace).annotation.annotated_slices == (2, 5)
    assert submit(column([9]))["annotated_slices"] == [9]


def test_what_a_client_that_missed_a_change_sent_is_kept_too(workspace, submit):
    submit(column([2]))
    with pytest.raises(ConflictError, match=r"version 1\b.* version 2\b"):
        submit(column([9]), annotation_version="sparse:7")
    record = workspace.case("case").record
    lost = record.versions.get(2)
    assert (lost.entry.event, lost.entry.annotated_slices, lost.entry.based_on) == ("conflict", (9,), "sparse:7")
    assert opened(workspace).annotation.annotated_slices == (2,)
    workspace.drawings.restore(workspace.case("case"), 2)
    assert opened(workspace).annotation.annotated_slices == (9,)


@pytest.mark.parametrize("tag", ["sparse", "scribbles"])
def test_a_client_that_stayed_open_while_a_backup_was_put_back_replaces_nobodys_work(workspace, submit, tmp_path, tag):
    """The versions since then have the numbers of those that it knows."""
    version = "scribbles_version" if tag == "scribbles" else "annotation_version"
    submit(column([2]), tag)
    backup = shutil.copytree(workspace.folder.parent, tmp_path / "backup")
    known = submit(column([2, 5]), tag)[version]
    shutil.rmtree(workspace.folder.parent)
    backup.rename(workspace.folder.parent)
    workspace.store.refresh()
    theirs = submit(column([2, 7]), tag)[version]
    assert known.split(":")[:2] == theirs.split(":")[:2]
    with pytest.raises(ConflictError):
        submit(column([2, 5, 9]), tag, annotation_version=known)
    assert workspace.record("case").versions.newest(tag).name == theirs


def test_of_two_clients_at_once_one_wins_and_both_are_kept(workspace, tmp_path):
    def client(number):
        file = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(column([number]), AFFINE), file)
        options = label_options({"label_info": NAMES, "annotation_version": ""})
        try:
            return workspace.submit("case", "sparse", file, options)["annotated_slices"]
        except ConflictError:
            return None

    with ThreadPoolExecutor(8) as threads:
        won = [answer for answer in threads.map(client, range(8)) if answer]
    versions = list(workspace.case("case").record.versions.newest_first())
    assert len(won) == 1 and [list(opened(workspace).annotation.annotated_slices)] == won
    assert sorted(one.entry.annotated_slices for one in versions) == [(number,) for number in range(8)]
    assert [one.entry.event for one in versions].count("conflict") == 7


def test_ten_clients_on_ten_studies_do_not_mix(workspace, tmp_path):
    names = [f"study{number}" for number in range(10)]
    for name in names:
        nib.save(nib.Nifti1Image(np.random.default_rng(1).normal(0, 1, SHAPE), AFFINE), tmp_path / f"{name}.nii.gz")
        workspace.store.add_image(name, str(tmp_path / f"{name}.nii.gz"), {})

    def client(number):
        file = tmp_path / f"labels{number}.nii.gz"
        for last in (10, 11):
            nib.save(nib.Nifti1Image(column([number, last]), AFFINE), file)
            workspace.submit(names[number], "sparse", file, label_options({"label_info": NAMES}))

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(client, range(10)))
    for number, name in enumerate(names):
        annotation = workspace.drawings.annotation(workspace.case(name))
        np.testing.assert_array_equal(annotation.labels, column([number, 11]))
        assert workspace.case(name).record.versions.numbers() == [1, 2]
        assert nib.load(workspace.store.label_file(name, "sparse")).get_fdata()[..., number].any()


def test_scribbles_have_versions_of_their_own(workspace, submit):
    marks = np.zeros(SHAPE, np.uint16)
    marks[0, :, 4] = 255
    first = submit(marks, tag="scribbles", annotation_version="")["scribbles_version"]
    submit(column([2, 7]), annotation_version="")
    marks[1, :, 4] = 255
    second = submit(marks, tag="scribbles", annotation_version=first)["scribbles_version"]
    assert second != first
    with pytest.raises(ConflictError):
        submit(marks, tag="scribbles", annotation_version=first)


def test_a_restored_version_counts_again_everywhere(workspace, submit):
    case = workspace.case("case")
    submit(column([2, 7]), partial=True)
    submit(column([4]))
    before = workspace.drawings.annotation_version(case)
    workspace.drawings.restore(case, 1, {"user": "anna"})
    annotation = workspace.drawings.annotation(case)
    assert (annotation.annotated_slices, annotation.partial) == ((2, 7), True)
    assert workspace.drawings.annotation_version(case) != before
    shown = workspace.store.label_file("case", "sparse")
    np.testing.assert_array_equal(nib.load(shown).get_fdata(), column([2, 7]))
    with pytest.raises(InputError):
        workspace.drawings.restore(case, 99)


def test_a_version_kept_just_before_a_crash_counts_after_it(workspace, submit):
    """Killed between keeping the version and showing it to MONAI Label; the command line restores just so."""
    case = workspace.case("case")
    submit(column([2]))
    submit(column([4]))
    case.record.versions.restore(1)
    assert opened(workspace).annotation.annotated_slices == (2,)
    shown = workspace.store.label_file("case", "sparse")
    np.testing.assert_array_equal(nib.load(shown).get_fdata(), column([2]))


def test_a_label_file_that_is_gone_or_was_changed_by_hand(workspace, submit):
    case = workspace.case("case")
    submit(column([2]))
    file = workspace.store.label_file("case", "sparse")
    file.unlink()
    workspace.store.refresh()
    assert opened(workspace).annotation.annotated_slices == (2,) and file.is_file()
    nib.save(nib.Nifti1Image(column([5, 6]), AFFINE), file)
    assert opened(workspace).annotation.annotated_slices == (5, 6)
    assert case.record.versions.newest("sparse").entry.event == "found"


@pytest.mark.parametrize("damage", ["a byte", "the end", "another grid"])
def test_a_shown_label_file_that_is_damaged_is_set_aside(workspace, submit, damage):
    submit(column([2, 7]))
    file = workspace.store.label_file("case", "sparse")
    content = bytearray(gzip.decompress(file.read_bytes()))
    if damage == "a byte":
        content[-3] ^= 1  # in a voxel, so that everything but the checksum at the end is as it should be
    whole = gzip.compress(bytes(content), mtime=0)
    original = file.read_bytes()
    if damage == "a byte":
        file.write_bytes(whole[:-8] + original[-8:])
    elif damage == "the end":
        file.write_bytes(original[:-5])
    else:
        nib.save(nib.Nifti1Image(column(), AFFINE + np.eye(4, k=3) / 2), file)
    damaged = file.read_bytes()
    assert opened(workspace).annotation.annotated_slices == (2, 7)
    assert file.read_bytes() == original
    assert [one.read_bytes() for one in workspace.record("case").set_aside("sparse")] == [damaged]


def test_a_removed_label_is_gone_and_can_be_restored(workspace, submit):
    case = workspace.case("case")
    submit(column([2]))
    workspace.store.remove_label("case", "sparse")
    assert opened(workspace).annotation is None and workspace.drawings.annotation_version(case) == ""
    workspace.drawings.restore(case, 1)
    assert opened(workspace).annotation.annotated_slices == (2,)


def test_a_damaged_version_is_not_served(workspace, submit):
    case = workspace.case("case")
    submit(column([2]))
    submit(column([4]))
    newest = case.record.versions.get(2)
    newest.labels_file.write_bytes(newest.labels_file.read_bytes()[:-30])
    workspace.store.label_file("case", "sparse").unlink()
    assert opened(workspace).annotation.annotated_slices == (2,)


def test_a_damaged_version_comes_back_from_the_label_file_that_shows_it(workspace, submit):
    submit(column([2]))
    submit(column([4]), annotated_slices=[4, 9], slice_axis=2)
    newest = workspace.case("case").record.versions.get(2)
    newest.labels_file.write_bytes(b"")
    assert opened(workspace).annotation.annotated_slices == (4, 9)
    assert workspace.case("case").record.versions.newest("sparse").number == 3


def test_the_cache_of_the_annotation_may_be_lost(workspace, submit):
    submit(column([2, 7]), annotated_slices=[2, 7, 9])
    partial = column([3])
    partial[0, 0, 5] = 2
    for labels, options in ((column([2, 7]), {"annotated_slices": [2, 7, 9]}), (partial, {"partial": True})):
        submit(labels, **options)
        before = opened(workspace).annotation
        (workspace.case("case").record.folder / "annotation.npz").unlink()
        after = opened(workspace).annotation
        np.testing.assert_array_equal(after.labels, before.labels)
        assert (after.annotated_slices, after.partial, after.source) == (
            before.annotated_slices,
            before.partial,
            before.source,
        )


def test_empty_scribbles_remove_those_before(workspace, submit):
    marks = np.zeros(SHAPE, np.uint16)
    marks[0, :, 4] = 255
    submit(column([2, 7]))
    for _ in range(2):
        submit(marks, tag="scribbles")
        np.testing.assert_array_equal(workspace.drawings.scribbles(workspace.case("case")), marks)
        submit(marks * 0, tag="scribbles")
        assert workspace.drawings.scribbles(workspace.case("case")) is None
        assert opened(workspace).study.annotation.scribbles is None
    versions = list(workspace.case("case").record.versions.newest_first("scribbles"))
    assert [one.entry.event for one in versions] == ["removed", "submitted", "removed", "submitted"]
    assert all((nib.load(one.labels_file).get_fdata() == marks).all() for one in versions[1::2])


def test_a_scan_that_is_gone_is_told_so(workspace):
    case = workspace.case("case")
    case.image.unlink()
    with pytest.raises(InputError):
        workspace.scan(case)


def put_scan(workspace, array, affine):
    """Replace the scan by hand, at the same time by the clock of its file."""
    image = workspace.case("case").image
    before = image.stat()
    nib.save(nib.Nifti1Image(array, affine), image.with_name("new.nii.gz"))
    image.with_name("new.nii.gz").replace(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(array, affine, axis):
    """The same scan, stored in the other direction along an axis."""
    turned = np.array(affine, dtype=float)
    turned[:3, 3] += turned[:3, axis] * (array.shape[axis] - 1)
    turned[:3, axis] *= -1
    return np.flip(array, axis), turned


@pytest.mark.parametrize("change", ["x", "z", "moved", "longer"])
@pytest.mark.parametrize("remembered", [True, False])
def test_what_was_drawn_on_another_grid_is_neither_shifted_nor_lost(workspace, submit, change, remembered):
    """`remembered`: whether the annotation in force is read from its version."""
    submit(column([2, 7]))
    case = workspace.case("case")
    scan = workspace.scan(case).array
    other = {
        "x": flipped(scan, AFFINE, 0),
        "z": flipped(scan, AFFINE, 2),
        "moved": (scan, np.add(AFFINE, [[0, 0, 0, 20], *np.zeros((3, 4))])),
        "longer": (np.concatenate([scan, scan], axis=2), AFFINE),
    }[change]
    put_scan(workspace, *other)
    if not remembered:
        (case.record.folder / "annotation.npz").unlink()
    for act in (lambda: opened(workspace), lambda: current_labels(workspace, case), lambda: finalise(workspace, case)):
        with pytest.raises(GeometryError, match="version 1 was drawn on a scan with another grid"):
            act()
    with pytest.raises(GeometryError):
        workspace.drawings.restore(case, 1)
    put_scan(workspace, scan, AFFINE)
    np.testing.assert_array_equal(opened(workspace).annotation.labels, column([2, 7]))
    assert opened(workspace).annotation.annotated_slices == (2, 7)


def test_after_another_scan_was_put_there_it_can_be_drawn_anew(workspace, submit, tmp_path):
    submit(column([2, 7]))
    scan, turned = flipped(workspace.scan(workspace.case("case")).array, AFFINE, 2)
    put_scan(workspace, scan, turned)
    file = tmp_path / "anew.nii.gz"
    nib.save(nib.Nifti1Image(column([4]), turned), file)
    workspace.submit("case", "sparse", file, label_options({"label_info": NAMES}))
    assert opened(workspace).annotation.annotated_slices == (4,)


def test_a_result_of_another_scan_is_not_given_out(workspace, submit):
    submit(column([2, 7]))
    case = workspace.case("case")
    study = opened(workspace).study
    case.record.save_result(propagate(study, None, PropagateConfig("nearest")), "sparse:1")
    assert current_labels(workspace, case)[..., 3].any()
    put_scan(workspace, workspace.scan(case).array + 1, AFFINE)
    np.testing.assert_array_equal(current_labels(workspace, case), column([2, 7]))


def test_a_link_to_elsewhere_is_no_record_of_a_study(workspace, tmp_path):
    studies = workspace.folder / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    (studies / "case").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        workspace.case("case")


def test_labels_of_versions_are_known_though_something_else_lies_beside_the_studies(workspace, submit):
    submit(column([2]), label_info=[{"name": "vessel", "idx": 1}])
    for table in workspace.folder.glob("names*.json"):
        table.unlink()
    (workspace.folder / "studies" / "notes.txt").write_text("mine")
    assert Workspace(workspace.store).names.indices == {"vessel": 1}


def test_marks_that_show_no_direction_lie_along_that_of_before(workspace, submit):
    labels = np.zeros(SHAPE, np.uint16)
    labels[5, 2:9, 3:8] = 1
    version = submit(labels, slice_axis=0)["annotation_version"]
    dot = np.zeros(SHAPE, np.uint16)
    dot[12, 9, 9] = 1
    version = submit(dot, annotation_version=version)["annotation_version"]
    assert opened(workspace).annotation.slice_axis == 0
    assert submit(column([2, 7]), annotation_version=version)["slice_axis"] == 2


@pytest.mark.parametrize("gone", ["removed", "cleared", "not known"])
def test_the_direction_of_before_does_not_count_for_who_did_not_go_on_from_it(workspace, submit, gone):
    labels = np.zeros(SHAPE, np.uint16)
    labels[5, 2:9, 3:8] = 1
    submit(labels, slice_axis=0)
    if gone == "removed":
        workspace.store.remove_label("case", "sparse")
    elif gone == "cleared":
        submit(labels * 0, slice_axis=0, annotated_slices=[])
    version = workspace.drawings.annotation_version(workspace.case("case"))
    base = {} if gone == "not known" else {"annotation_version": version}
    assert submit(column([5, 6, 7, 8]), **base)["slice_axis"] == 2


def test_what_is_known_stays_while_the_folder_is_out_of_reach(workspace, submit):
    submit(column([2]))
    studies, away = workspace.folder.parent, workspace.folder.parent.with_name("away")
    noted = workspace.store.get_label_info("case", "sparse")
    studies.rename(away)
    studies.mkdir()  # a place where a disk is mounted else
    for use in (lambda: submit(column([4])), lambda: workspace.case("another"), lambda: opened(workspace)):
        with pytest.raises(StorageError, match="out of reach"):
            use()
    workspace.store.notice_files()
    with pytest.raises(StorageError, match="out of reach"):
        workspace.store.remove_label("case", "sparse")
    assert list(studies.iterdir()) == []
    studies.rmdir()
    away.rename(studies)
    submit(column([5]), "mine")
    assert workspace.store.get_label_info("case", "sparse") == noted
    assert LocalStudies(str(studies)).get_label_info("case", "sparse") == noted


@pytest.mark.parametrize("kept", [".labelprop", "labels"])
def test_a_part_of_the_folder_may_be_a_disk_that_is_taken_away(workspace, submit, kept):
    submit(column([2]))
    version, studies = workspace.drawings.annotation_version(workspace.case("case")), workspace.folder.parent
    away = (studies / kept).rename(studies.with_name("away"))
    (studies / kept).mkdir()  # where it is mounted else
    with pytest.raises(StorageError, match="out of reach"):
        submit(column([4]), annotation_version=version)
    (studies / kept).rmdir()  # nothing is in it
    away.rename(studies / kept)
    assert submit(column([4]), annotation_version=version)["annotated_slices"] == [4]


@pytest.mark.parametrize("mounted", [False, True])
def test_a_submission_during_which_the_folder_goes_is_refused_and_leaves_nothing(
    workspace, submit, monkeypatch, mounted
):
    submit(column([2]))
    studies, away, write = workspace.folder.parent, workspace.folder.parent.with_name("away"), io.write_image

    def goes(*args):
        write(*args)
        studies.rename(away)
        if mounted:
            studies.mkdir()

    with monkeypatch.context() as during:
        during.setattr(io, "write_image", goes)
        with pytest.raises(StorageError):
            submit(column([2, 5]))
    assert not list(studies.rglob("*"))
    if studies.exists():
        studies.rmdir()
    away.rename(studies)
    assert submit(column([2, 6]))["annotated_slices"] == [2, 6]
    assert [version.number for version in workspace.record("case").versions.newest_first()] == [2, 1]


@pytest.mark.parametrize("tag", ["sparse", "scribbles"])
def test_what_was_drawn_on_another_scan_of_the_same_name_is_refused(workspace, submit, tag):
    """As by a client that stayed open while the study was erased and another scan came in its place."""
    case = workspace.case("case")
    drawn_on = workspace.scan_name(case)
    assert submit(column([2]), tag, scan=drawn_on)["scan"] == drawn_on
    nib.save(nib.Nifti1Image(io.read_image(case.image).array[::-1], AFFINE), case.image)
    with pytest.raises(ConflictError, match="another scan"):
        submit(column([2, 5]), tag, scan=drawn_on)
    assert len(list(workspace.record("case").versions.newest_first())) == 1
    assert submit(column([2, 5]), tag, scan=workspace.scan_name(case))["scan"] != drawn_on


@pytest.mark.parametrize("tag", ["sparse", "scribbles"])
def test_a_client_that_sends_again_and_again_after_a_conflict_fills_no_disk(workspace, submit, tag):
    submit(column([2]), tag)

    def refused(slices, base):
        with pytest.raises(ConflictError) as told:
            submit(column(slices), tag, annotation_version=base)
        return str(told.value)

    assert refused([5], "") == refused([5], "") != refused([6], "")
    assert refused([6], "other:1") != refused([6], "")
    numbers = [version.number for version in workspace.record("case").versions.newest_first()]
    assert numbers == [5, 4, 3, 2, 1]


def test_a_scan_that_is_exchanged_during_a_submission_gets_nothing_of_it(workspace, submit, monkeypatch):
    case = workspace.case("case")
    drawn_on, check = workspace.scan_name(case), workspace._check_base

    def exchanged(*args):
        nib.save(nib.Nifti1Image(io.read_image(case.image).array[::-1], AFFINE), case.image)
        return check(*args)

    monkeypatch.setattr(workspace, "_check_base", exchanged)
    with pytest.raises(ConflictError, match="another scan"):
        submit(column([2]), scan=drawn_on)
    assert not list(workspace.record("case").versions.newest_first())
