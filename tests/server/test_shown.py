"""Label files in MONAI Label's folder beside the versions, with other processes, crashes and copies in between."""

import errno
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, NAMES, column, opened
from sliceprop.errors import MemoryTakenError, StorageError
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import ConflictError
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace
from sliceprop.versions import Entry, Versions

HOUR_NS = 3_600_000_000_000


def another(workspace):
    """As another process, or the next one, on the same folder."""
    return Workspace(LocalStudies(str(workspace.folder.parent)))


def put(labels, *folders, name="case.nii.gz"):
    """A label file as somebody puts it there by hand."""
    file = Path(*folders, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, AFFINE), file)
    return file


def shown_file(workspace, tag="sparse"):
    return workspace.store.label_file("case", tag)


def events(workspace):
    """How the versions came about, the oldest first."""
    versions = workspace.record("case").versions
    return [versions.get(number).entry.event for number in versions.numbers()]


def make_newer(file):
    """As a copy does that does not keep times, or a file server whose clock is ahead."""
    os.utime(file, ns=(file.stat().st_mtime_ns + HOUR_NS,) * 2)


def flip_a_voxel(file):
    """As a disk does: another content, nothing else. The new file is one that no program has read yet."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-100] ^= 1
    damaged = file.with_name("damaged")
    damaged.write_bytes(content)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    damaged.replace(file)


def test_who_looks_while_another_process_submits_brings_nothing_old_back(workspace, tmp_path):
    other, finished = another(workspace), Event()
    options = label_options({"label_info": NAMES})

    def look():
        while not finished.is_set():
            other.drawings.annotation(other.case("case"))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            for number in range(60):
                workspace.submit("case", "sparse", put(column([1 + number % 8]), tmp_path), options)
        finally:
            finished.set()
        looking.result()
    assert events(workspace) == ["submitted"] * 60


def test_what_two_processes_find_at_once_is_one_version(workspace):
    both = another(workspace), another(workspace)
    file = put(column([1]), workspace.folder.parent, "labels", "sparse")
    for number in range(1, 9):
        put(column([number]), file.parent)
        for one in both:
            one.store.refresh()
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda one: opened(one).annotation.annotated_slices, both))
        assert found == [(number,)] * 2
    assert events(workspace) == ["found"] * 8


def test_who_looks_at_a_study_that_nobody_touched_writes_nothing(workspace):
    assert opened(workspace).annotation is None
    assert not workspace.record("case").folder.exists()


def test_a_restored_version_counts_whatever_the_time_of_the_label_file(workspace, submit):
    submit(column([2]))
    submit(column([4]))
    workspace.record("case").versions.restore(1)  # killed before this is shown; the command line restores just so
    make_newer(shown_file(workspace))
    assert opened(another(workspace)).annotation.annotated_slices == (2,)
    np.testing.assert_array_equal(nib.load(shown_file(workspace)).get_fdata(), column([2]))
    assert events(workspace) == ["submitted", "submitted", "restored"]


def test_that_holds_for_a_label_file_that_was_put_there_by_hand_too(workspace, submit):
    submit(column([2]))
    put(column([4]), shown_file(workspace).parent)
    assert opened(workspace).annotation.annotated_slices == (4,)
    workspace.record("case").versions.restore(1)
    make_newer(shown_file(workspace))
    assert opened(another(workspace)).annotation.annotated_slices == (2,)
    assert events(workspace) == ["submitted", "found", "restored"]


def test_a_removed_label_stays_removed_whatever_the_time_of_its_file(workspace, submit):
    submit(column([2]))
    workspace.record("case").versions.append(Entry("sparse", "removed"))  # killed before the file is gone
    make_newer(shown_file(workspace))
    next_one = another(workspace)
    assert opened(next_one).annotation is None and shown_file(next_one) is None
    assert events(workspace) == ["submitted", "removed"]


def test_an_older_version_that_is_put_there_by_hand_counts(workspace, submit):
    submit(column([2]))
    before = another(workspace)
    submit(column([4]))
    old = workspace.record("case").versions.get(1).labels_file
    file = shown_file(workspace)
    file.write_bytes(old.read_bytes())
    make_newer(file)
    assert opened(before).annotation.annotated_slices == (2,)
    assert events(workspace) == ["submitted", "submitted", "found"]


@pytest.mark.parametrize("origin", ["submitted", "found"])
def test_a_label_file_that_rots_on_the_disk_is_no_version(workspace, origin, tmp_path):
    if origin == "submitted":
        file = put(column([2]), tmp_path, name="upload.nii")
        workspace.submit("case", "sparse", file, label_options({"label_info": NAMES}))
        file = shown_file(workspace)
        content = file.read_bytes()
    else:
        file = put(column([2]), workspace.folder.parent, "labels", "sparse", name="case.nii")
        content = file.read_bytes()
        workspace.store.refresh()
    before = opened(workspace).annotation.labels
    flip_a_voxel(file)
    np.testing.assert_array_equal(opened(another(workspace)).annotation.labels, before)
    assert events(workspace) == [origin] and shown_file(another(workspace)).read_bytes() == content
    assert [one.name for one in (workspace.record("case").folder / "set_aside").iterdir()] != []


def test_a_label_file_that_keeps_an_old_time_is_taken_up(workspace, submit, tmp_path):
    submit(column([2]))
    file, copied = shown_file(workspace), put(column([5, 6]), tmp_path)
    os.utime(copied, ns=(file.stat().st_mtime_ns - HOUR_NS,) * 2)
    copied.replace(file)
    assert opened(workspace).annotation.annotated_slices == (5, 6)


def test_a_label_file_that_cannot_be_kept_yet_stays_where_it_is(workspace, submit):
    submit(column([2]))
    put(column([5, 6]), shown_file(workspace).parent)
    lock = workspace.record("case").folder / "versions" / ".lock"
    lock.unlink()
    lock.mkdir()  # as on a full disk, no version can be added
    assert opened(workspace).annotation.annotated_slices == (2,)
    lock.rmdir()
    assert opened(workspace).annotation.annotated_slices == (5, 6)


def test_a_label_file_that_cannot_be_set_aside_is_not_replaced(workspace, submit):
    submit(column([2]))
    shown_file(workspace).write_bytes(b"not a label")
    (workspace.record("case").folder / "set_aside").write_bytes(b"in the way")
    assert opened(workspace).annotation.annotated_slices == (2,)
    assert shown_file(workspace).read_bytes() == b"not a label"


def test_a_label_file_that_is_not_listed_yet_is_not_replaced(workspace, submit):
    submit(column([2]))
    file = shown_file(workspace)
    file.unlink()
    workspace.store.refresh()
    put(column([5, 6]), file.parent)
    assert opened(workspace).annotation.annotated_slices == (5, 6)


def test_a_copy_of_an_older_version_that_keeps_its_time_does_not_count_and_that_is_logged(workspace, submit, caplog):
    """As a backup has it that was made while something was submitted."""
    submit(column([2]))
    submit(column([4]))
    shutil.copy2(workspace.record("case").versions.get(1).labels_file, shown_file(workspace))
    with caplog.at_level(logging.WARNING, "sliceprop.server.drawings"):
        assert opened(workspace).annotation.annotated_slices == (4,)
    assert "held an older version; version 2 counts" in caplog.text


def test_a_backup_made_while_somebody_submits_holds_what_counted(workspace, submit, tmp_path):
    """In the order of docs/reliability.md: `.labelprop` last."""
    studies, backup = workspace.folder.parent, tmp_path / "backup"
    backup.mkdir()
    submit(column([2]), partial=True)
    shutil.copy2(studies / "datastore_v2.json", backup)
    submit(column([2, 5]), partial=True)
    shutil.copytree(studies / "labels", backup / "labels")
    submit(column([2, 5, 7]) * 2, annotated_slices=[0, 2, 5, 7])
    shutil.copytree(workspace.folder, backup / ".labelprop")
    shutil.copy2(studies / "case.nii.gz", backup)
    drawn = workspace.record("case").versions.get(3).drawn()

    again = Workspace(LocalStudies(str(backup)))
    annotation, newest = opened(again).annotation, again.record("case").versions.newest("sparse")
    assert annotation.annotated_slices == (0, 2, 5, 7) and not annotation.partial
    assert (newest.number, newest.entry.event) == (3, "submitted")
    np.testing.assert_array_equal(newest.drawn(), drawn)
    np.testing.assert_array_equal(nib.load(shown_file(again)).dataobj, column([2, 5, 7]) * 2)


@pytest.mark.parametrize("tag", ["mine", "final"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_label_file_is_a_version_before_another_takes_its_place(workspace, submit, tag, listed):
    """`listed`: whether MONAI Label knows already that there is one."""
    if listed:
        submit(column([2]), tag)
    file = put(column([5, 6]), workspace.folder.parent, "labels", tag)
    by_hand = file.read_bytes()
    submit(column([4]), tag)
    assert events(workspace)[-2:] == ["found", "submitted"]
    put(column([7]), file.parent)
    workspace.drawings.restore(workspace.case("case"), len(events(workspace)) - 1)
    assert events(workspace)[-2:] == ["found", "restored"] and file.read_bytes() == by_hand
    assert shown_file(workspace, tag) == file


def test_who_submits_gets_to_know_the_version_of_what_he_sent(workspace, submit, monkeypatch):
    """On a full disk a file that arrived meanwhile stays where it is, and counts."""
    monkeypatch.setattr(workspace.store, "save_label", full := Mock(side_effect=StorageError("full")))
    append = Versions.append

    def interrupted(versions, *args, **options):
        version = append(versions, *args, **options)
        put(column([5, 6]), workspace.folder.parent, "labels", "sparse") if not full.called else None
        return version

    monkeypatch.setattr(Versions, "append", interrupted)
    told = submit(column([4]))
    assert told["annotation_version"] == workspace.record("case").versions.get(1).name
    assert opened(workspace).annotation.annotated_slices == (5, 6)
    with pytest.raises(ConflictError):
        submit(column([4, 7]), annotation_version=told["annotation_version"])


@pytest.mark.parametrize("tag", ["sparse", "mine"])
def test_a_label_file_that_arrives_during_a_submission_is_kept(workspace, submit, tag, monkeypatch):
    submit(column([2]), tag)
    append = Versions.append

    def interrupted(versions, *args, **options):
        monkeypatch.undo()
        version = append(versions, *args, **options)
        put(column([5, 6]), workspace.folder.parent, "labels", tag)
        return version

    monkeypatch.setattr(Versions, "append", interrupted)
    submit(column([4]), tag)
    assert events(workspace) == ["submitted", "submitted", "conflict"]
    np.testing.assert_array_equal(nib.load(shown_file(workspace, tag)).dataobj, column([4]))
    workspace.drawings.restore(workspace.case("case"), 3)
    np.testing.assert_array_equal(nib.load(shown_file(workspace, tag)).dataobj, column([5, 6]))


@pytest.mark.parametrize("goes", ["replaced", "removed"])
def test_a_label_file_that_somebody_puts_there_at_the_last_moment_becomes_a_version(
    workspace, submit, monkeypatch, goes
):
    submit(column([2]))
    file, hook = shown_file(workspace), {"replaced": "set_aside", "removed": "before_removal"}[goes]
    looked, by_hand = getattr(workspace.store, hook), list[bytes]()

    def interrupted(*label):
        if goes == "removed":
            looked(*label)
        if not by_hand:
            by_hand.append(put(column([5, 6]), file.parent).read_bytes())
        return looked(*label) if goes == "replaced" else None

    monkeypatch.setattr(workspace.store, hook, interrupted)
    submit(column([2, 3])) if goes == "replaced" else workspace.store.remove_label("case", "sparse")
    newest = next(workspace.record("case").versions.newest_first())
    assert newest.entry.event == "conflict" and newest.labels_file.read_bytes() == by_hand[0]
    assert (shown_file(workspace) is not None) == (goes == "replaced")
    assert not list(workspace.record("case").folder.glob("set_aside/*"))
    if goes == "replaced":
        assert opened(workspace).annotation.annotated_slices == (2, 3)
        workspace.drawings.restore(workspace.case("case"), newest.number)
        assert opened(workspace).annotation.annotated_slices == (5, 6)


@pytest.mark.parametrize("leads", [True, False])
def test_a_label_file_that_is_a_link_is_replaced_and_what_it_leads_to_stays(workspace, submit, leads):
    submit(column([2]))
    labels = shown_file(workspace).parent.parent
    (labels / "mine").mkdir()
    link = labels / "mine" / "case.nii.gz"
    link.symlink_to("../sparse/case.nii.gz" if leads else "../sparse/gone.nii.gz")
    submit(column([4]), "mine")
    assert not link.is_symlink() and (nib.load(link).get_fdata() == column([4])).all()
    assert (nib.load(labels / "sparse" / "case.nii.gz").get_fdata() == column([2])).all()


def test_a_label_file_put_there_while_memory_is_short_becomes_a_version_afterwards(workspace, submit, monkeypatch):
    submit(column([2]))
    put(column([5, 6]), shown_file(workspace).parent)
    with monkeypatch.context() as short:
        short.setattr("sliceprop.memory.free_and_total_bytes", lambda: (0, 1 << 40))
        with pytest.raises(MemoryTakenError):
            opened(workspace)
    assert opened(workspace).annotation.annotated_slices == (5, 6) and events(workspace) == ["submitted", "found"]
    assert not list(workspace.record("case").folder.glob("set_aside/*"))


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_label_file_of_another_user_is_removed_like_any_other(workspace, submit, monkeypatch, meanwhile):
    submit(column([2]))
    monkeypatch.setattr(os, "utime", Mock(side_effect=PermissionError))
    by_hand = put(column([5, 6]), shown_file(workspace).parent).read_bytes()
    if meanwhile:
        monkeypatch.setattr(workspace.store, "before_removal", lambda *label: None)
    workspace.store.remove_label("case", "sparse")
    assert shown_file(workspace) is None and not list(workspace.record("case").folder.glob("set_aside/*"))
    assert by_hand in [
        one.labels_file.read_bytes() for one in workspace.record("case").versions.newest_first() if one.labels_file
    ]


def test_label_folders_may_be_a_file_system_of_their_own(workspace, submit, monkeypatch):
    def within_one(name):
        def checked(source, target):
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            name(source, target)

        return checked

    for name in ("link", "rename"):
        monkeypatch.setattr(os, name, within_one(getattr(os, name)))
    submit(column([2]))
    by_hand = put(column([5, 6]), shown_file(workspace).parent).read_bytes()
    submit(column([2, 3]))
    assert by_hand in [one.labels_file.read_bytes() for one in workspace.record("case").versions.newest_first()]
    assert (nib.load(shown_file(workspace)).get_fdata() == column([2, 3])).all()
    workspace.store.remove_label("case", "sparse")
    assert not list((workspace.folder.parent / "labels" / "sparse").iterdir())
    assert not list(workspace.record("case").folder.glob("set_aside/*"))
