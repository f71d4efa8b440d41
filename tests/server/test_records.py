import json

import numpy as np
import pytest

from sliceprop import io
from sliceprop.arrays import save_arrays
from sliceprop.hashing import array_digest
from sliceprop.server.errors import ConflictError
from sliceprop.server.provenance import Annotation, Sent, outlined
from sliceprop.server.records import DRAFTS, StudyRecord
from sliceprop.study import Propagation
from sliceprop.versions import Entry


@pytest.fixture
def record(tmp_path):
    return StudyRecord(tmp_path / "studies" / "case")


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 400, (4, 5, 6), dtype=np.int32)


def remembered(record):
    """The one label of each result, the newest first."""
    results = (record.sent(outline.name) for outline in record.outlines())
    return [sent.labels.max() for sent in results if sent is not None]


def test_a_new_study_has_no_past(record):
    assert (record.annotation(), record.report(), record.result("labels")) == (None,) * 3
    assert not record.outlines()


def test_an_annotation_comes_back_as_it_was(record, labels):
    record.save_annotation(Annotation(labels, 1, (0, 3), partial=True, source="sparse:17"))
    kept = record.annotation()
    np.testing.assert_array_equal(kept.labels, labels)
    assert kept.labels.dtype == np.int32
    assert (kept.slice_axis, kept.annotated_slices, kept.partial, kept.source) == (1, (0, 3), True, "sparse:17")


def test_the_result_sent_comes_back_as_it_was(record, labels):
    record.save_sent(Sent(labels, labels * 0, 2, ()))
    (outline,) = record.outlines()
    assert outline == outlined(Sent(labels, labels * 0, 2, ()), outline.name)
    kept = record.sent(outline.name)
    np.testing.assert_array_equal(kept.labels, labels)
    assert not kept.drawn.any() and (kept.slice_axis, kept.annotated_slices) == (2, ())


def test_the_last_four_results_sent_are_kept_and_a_damaged_one_hides_no_other(record, labels):
    for number in range(6):
        record.save_sent(Sent(labels * 0 + number, labels * 0, 2, ()))
    assert remembered(record) == [5, 4, 3, 2]
    assert record.holds(2) and not record.holds(1)
    newest = record.folder / "sent.npz"  # the only one of an earlier release
    newest.write_bytes(newest.read_bytes()[:100])
    assert remembered(record) == [4, 3, 2]
    record.save_sent(Sent(labels * 0 + 9, labels * 0, 2, ()), DRAFTS)
    assert record.holds(9) and remembered(record) == [9, 4, 3, 2]
    record.forget_results()
    assert not record.outlines()


def test_the_name_of_a_scan_that_is_gone_is_taken_up_by_the_same_scan_unless_nothing_was_drawn(
    record, labels, tmp_path
):
    scan, other = (io.Image(np.full((4, 5, 6), grey, np.int16), np.eye(4)) for grey in (1, 2))
    record.notice_scan({"voxels": array_digest(scan.array)})
    record.save_sent(Sent(labels, labels * 0, 2, ()))
    record.take_up("case", other)
    assert not record.outlines()
    (tmp_path / "labels.nii.gz").write_bytes(b"voxels")
    record.versions.append(Entry("sparse", "submitted"), tmp_path / "labels.nii.gz", labels > 0)
    record.take_up("case", scan)
    with pytest.raises(ConflictError, match="labels of another scan called 'case'"):
        record.take_up("case", other)


def test_results_of_an_earlier_release_are_outlined_from_their_voxels(record, labels):
    sent = Sent(labels, labels * 0, 2, (1,))
    save_arrays(
        record.folder / "sent.npz",
        labels=labels,
        drawn=sent.drawn,
        slice_axis=np.array(2),
        annotated_slices=np.array([1]),
    )
    assert record.outlines() == [outlined(sent, "sent")]


def test_a_propagation_comes_back_in_all_its_kinds(record, labels):
    uncertainty = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    record.save_result(
        Propagation(labels, labels + 1, labels + 2, uncertainty, {"method": "shape"}), "sparse:3", "scribbles:4"
    )
    assert record.report() == {"method": "shape", "source": "sparse:3", "scribbles": "scribbles:4"}
    for added, kind in enumerate(("labels", "from_lower", "from_upper")):
        np.testing.assert_array_equal(record.result(kind), labels + added)
    np.testing.assert_allclose(record.result("uncertainty"), uncertainty, atol=1e-3)


def test_undo_brings_the_propagation_before_back_whole(record, labels):
    assert not record.can_undo() and record.version() == ""
    for number in (1, 2, 3):
        uncertainty = np.full(labels.shape, number / 4, np.float32)
        record.save_result(Propagation(labels * number, labels, labels, uncertainty, {"number": number}), "sparse:1")
    version = record.version()
    assert record.can_undo()
    record.undo()
    np.testing.assert_array_equal(record.result("labels"), labels * 2)
    assert record.report()["number"] == 2 and record.result("uncertainty").max() == 0.5
    assert record.version() != version and not record.can_undo()


def test_undo_of_the_first_propagation_leaves_none(record, labels):
    record.save_result(Propagation(labels, labels, labels, labels.astype(np.float32), {}), "")
    record.undo()
    assert (record.report(), record.version(), record.can_undo()) == (None, "", False)


def test_every_memory_of_a_label_is_found(record, labels):
    assert not record.holds(3)
    record.save_sent(Sent(labels * 0 + 3, labels * 0, 2, ()))
    assert record.holds(3) and not record.holds(4)
    for value in (4, 5):
        record.save_result(Propagation(labels * 0 + value, labels, labels, labels * 0.0, {}), "")
    assert record.holds(4) and record.holds(5)


def test_an_estimate_comes_back_as_it_was(record):
    assert record.estimate() == {}
    record.save_estimate({"expected_dice": 0.9, "stop": False})
    assert record.estimate() == {"expected_dice": 0.9, "stop": False}


def test_a_damaged_file_counts_as_absent(record, labels):
    record.save_annotation(Annotation(labels, 1, (0,)))
    file = record.folder / "annotation.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert record.annotation() is None


def test_a_file_with_another_value_than_its_checksum_says_counts_as_absent(record, labels):
    record.save_annotation(Annotation(labels, 1, (0,)))
    file = record.folder / "annotation.npz"
    with np.load(file) as data:
        arrays = dict(data)
    np.savez(file, **{**arrays, "slice_axis": np.array(2)})
    assert record.annotation() is None


def test_a_file_of_a_later_format_counts_as_absent_and_one_of_an_earlier_is_read(record, labels):
    record.save_annotation(Annotation(labels, 1, (0,)))
    file = record.folder / "annotation.npz"
    with np.load(file) as data:
        arrays = dict(data)
    checksums = json.loads(str(arrays.pop("checksums")))
    np.savez(file, **arrays, checksums=json.dumps({**checksums, "format": 99}))
    assert record.annotation() is None
    np.savez(file, **arrays)
    np.testing.assert_array_equal(record.annotation().labels, labels)


def test_no_flipped_bit_is_taken_for_an_annotation(record, labels):
    record.save_annotation(Annotation(labels, 1, (0, 3), source="sparse:1"))
    file = record.folder / "annotation.npz"
    whole = file.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole) * 8, 400, replace=False):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        kept = record.annotation()
        if kept is not None:  # a flipped bit of the archive's own, such as a date
            np.testing.assert_array_equal(kept.labels, labels)
            assert (kept.slice_axis, kept.annotated_slices, kept.source) == (1, (0, 3), "sparse:1")


def test_replaced_labels_that_an_earlier_release_kept_become_versions(record, tmp_path):
    history = record.folder / "history"
    history.mkdir(parents=True)
    for moment, tag in (("20250102T030405", "sparse"), ("20250102T030406", "final")):
        (history / f"{moment}-000000001-{tag}.nii.gz").write_text(tag)
    versions = record.versions
    assert [(one.number, one.entry.tag, one.entry.event) for one in versions.newest_first()] == [
        (2, "final", "migrated"),
        (1, "sparse", "migrated"),
    ]
    assert versions.get(1).labels_file.read_text() == "sparse" and versions.get(1).time.startswith("2025-01-0")
    assert not history.exists() and record.versions.numbers() == [1, 2]


def test_a_label_that_was_kept_twice_by_an_earlier_release_is_taken_over_twice(record):
    """Also if a crash interrupted that: here after the first two of three."""
    history = record.folder / "history"
    for kept in (("one", "two"), ("one", "two", "one")):
        history.mkdir(parents=True)
        for second, text in enumerate(kept):
            (history / f"20250102T03040{second}-000000001-sparse.nii.gz").write_text(text)
        versions = record.versions
    assert [one.labels_file.read_text() for one in versions.newest_first()] == ["one", "two", "one"]
