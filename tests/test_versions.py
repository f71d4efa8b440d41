"""Versions of a study, without a server: kept whole, in order, and noticed when damaged."""

import json
import logging
import multiprocessing
import re
import shutil

import numpy as np
import pytest

from sliceprop.errors import FileError, InputError
from sliceprop.hashing import checksum
from sliceprop.versions import DamagedError, Entry, Versions, packed_mask, unpacked_mask


@pytest.fixture(autouse=True)
def heard(monkeypatch, caplog):
    """Logging as it is at the start of a program, whatever other tests and their libraries made of it."""
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.WARNING)
    for name in "sliceprop", "sliceprop.versions":
        caplog.set_level(logging.WARNING, name)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture
def versions(tmp_path):
    return Versions(tmp_path / "study" / "versions")


@pytest.fixture
def submit(versions, tmp_path):
    def submit(text="labels", tag="sparse", **entry):
        file = tmp_path / "upload.nii.gz"
        file.write_text(text)
        return versions.append(Entry(tag, **entry), file, np.arange(24).reshape(2, 3, 4) % 5 == 0)

    return submit


def test_what_is_kept_comes_back_as_it_was(versions, submit):
    by = {"user": "anna", "client": "OHIF"}
    kept = submit("one", by=by, slice_axis=2, annotated_slices=(2, 7), in_force=True, based_on="sparse:4")
    again = versions.get(1)
    assert again == kept and re.fullmatch("sparse:1:[0-9a-f]{8}", again.name)
    assert again.labels_file.read_text() == "one"
    assert (again.entry.by, again.entry.annotated_slices, again.entry.slice_axis) == (by, (2, 7), 2)
    np.testing.assert_array_equal(again.drawn(), np.arange(24).reshape(2, 3, 4) % 5 == 0)
    assert (
        again.time.endswith("Z")
        and again.digest == json.loads((again.folder / "record.json").read_text())["files"]["labels.nii.gz"]
    )


def test_each_tag_has_its_newest_and_a_conflict_is_none(versions, submit):
    assert versions.newest("sparse") is None and versions.numbers() == []
    submit("one")
    submit("two", "scribbles")
    submit("three", event="conflict")
    assert versions.newest("sparse").number == 1
    assert versions.newest("sparse", "scribbles").number == 2
    assert versions.newest("final") is None
    versions.append(Entry("sparse", "removed"))
    assert versions.newest("sparse").labels_file is None
    assert [one.number for one in versions.newest_first()] == [4, 3, 2, 1]


def test_an_old_version_is_restored_as_a_new_one(versions, submit):
    submit("one", annotated_slices=(1,), slice_axis=0)
    submit("two")
    restored = versions.restore(1, {"user": "ben"})
    assert (restored.number, restored.entry.event, restored.entry.restored) == (3, "restored", 1)
    assert restored.labels_file.read_text() == "one" and restored.entry.annotated_slices == (1,)
    assert restored.entry.in_force and restored.entry.by == {"user": "ben"}
    np.testing.assert_array_equal(restored.drawn(), versions.get(1).drawn())
    versions.append(Entry("sparse", "removed"))
    for number in (4, 9):
        with pytest.raises(InputError):
            versions.restore(number)


@pytest.mark.parametrize("event", ["final", "migrated"])  # of releases before versions it is not known which it was
def test_a_result_that_was_accepted_never_counts_as_drawn_however_often_it_is_restored(versions, submit, event):
    submit("one", "final", event=event)
    for number in (1, 2, 3):
        assert not versions.restore(number).entry.in_force


@pytest.mark.parametrize(("tag", "event"), [("sparse", "migrated"), ("final", "submitted"), ("final", "found")])
def test_what_was_drawn_counts_when_it_is_restored(versions, submit, tag, event):
    submit("one", tag, event=event)
    assert versions.restore(1).entry.in_force


def damage(version, file, kind):
    path = version.folder / file
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "flipped"])
@pytest.mark.parametrize("file", ["record.json", "labels.nii.gz", "drawn.npz"])
def test_a_damaged_version_is_told_of_and_the_one_before_counts(versions, submit, caplog, file, kind):
    submit("one")
    damage(submit("two" * 50), file, kind)
    assert versions.newest("sparse").number == 1
    assert [one.number for one in versions.newest_first()] == [1]
    assert list(versions.damaged()) == [2] and "damaged" in versions.damaged()[2]
    assert "damaged" in caplog.text
    with pytest.raises(DamagedError):
        versions.get(2)
    with pytest.raises(DamagedError):
        versions.restore(2)
    assert submit("three").number == 3


def test_a_version_of_a_later_release_is_not_guessed_at(versions, submit):
    record = submit("one").folder / "record.json"
    content = {**json.loads(record.read_text()), "format": 99}
    record.write_text(json.dumps({**content, "sha256": checksum(content)}))
    assert versions.newest("sparse") is None and "99" in versions.damaged()[1]


def test_a_version_that_was_moved_to_another_number_is_damaged(versions, submit):
    folder = submit("one").folder
    shutil.copytree(folder, folder.with_name("000002"))
    assert versions.newest("sparse").number == 1 and list(versions.damaged()) == [2]


def test_what_a_killed_writer_left_is_no_version_and_goes_away(versions, submit):
    left = submit("one").folder.with_name(".writing-killed")
    left.mkdir()
    (left / "labels.nii.gz").write_text("half")
    assert versions.numbers() == [1]
    assert submit("two").number == 2 and not left.exists()


def test_a_label_file_that_cannot_be_read_leaves_nothing(versions, submit, tmp_path):
    submit("one")
    with pytest.raises(FileError):
        versions.append(Entry("sparse"), tmp_path / "missing.nii.gz")
    assert [path.name for path in versions._folder.iterdir() if path.is_dir()] == ["000001"]


def _submit_many(folder, tag):
    file = folder.parent / f"{tag}.nii.gz"
    file.write_text(tag)
    for _ in range(10):
        Versions(folder).append(Entry(tag), file)


def test_several_processes_lose_none_of_each_others_versions(versions, submit):
    submit("one")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_submit_many, args=(versions._folder, tag)) for tag in ("sparse", "scribbles")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert versions.numbers() == list(range(1, 22)) and not versions.damaged()
    for tag in ("sparse", "scribbles"):
        texts = [one.labels_file.read_text() for one in versions.newest_first(tag)]
        assert texts.count(tag) == 10


def test_a_mask_comes_back_as_it_was():
    mask = np.random.default_rng(0).random((3, 5, 7)) > 0.5
    packed = packed_mask(mask)
    np.testing.assert_array_equal(unpacked_mask(packed), mask)
    assert packed["drawn"].nbytes == 14
    with pytest.raises(ValueError, match="differ"):
        unpacked_mask({**packed, "drawn_shape": np.array((3, 5, 9))})


def test_records_are_read_without_the_files_beside_them(versions, submit):
    kept = [submit(text) for text in ("one", "two", "three")]
    kept[0].labels_file.unlink()
    record = kept[1].folder / "record.json"
    record.write_text(record.read_text().replace("sparse", "final"))
    assert list(versions.recorded()) == [kept[0], kept[2]] and list(versions.newest_first()) == [kept[2]]
