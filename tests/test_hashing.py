import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from sliceprop.hashing import array_digest, checksum, digest, file_state, known_digest


def test_a_file_has_the_digest_that_other_programs_compute(tmp_path):
    file = tmp_path / "scan"
    file.write_bytes(b"voxels")
    assert digest(file) == known_digest(file) == hashlib.sha256(b"voxels").hexdigest()
    file.write_bytes(b"other voxels")
    assert known_digest(file) == digest(file)


def test_another_content_is_noticed_though_time_and_size_stay(tmp_path):
    """As two files have them that one archive was unpacked to, or that one program wrote at once."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    file = shutil.copy2(tmp_path / "one", tmp_path / "label.nii")
    assert known_digest(file) == digest(tmp_path / "one")
    shutil.copy2(tmp_path / "two", file)
    assert known_digest(file) == digest(tmp_path / "two")


def test_what_changed_within_a_step_of_the_clock_is_read_again(tmp_path, monkeypatch):
    """The clocks of some file systems count whole seconds."""
    file = tmp_path / "label.nii"
    file.write_text("one")
    true = file.stat()
    state = {name: getattr(true, name) for name in ("st_size", "st_ino", "st_mode")}
    whole = SimpleNamespace(**state, st_mtime_ns=10**18, st_ctime_ns=10**18)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: whole)
    monkeypatch.setattr("sliceprop.hashing.time.time_ns", lambda: 10**18 + 700_000_000)
    before = known_digest(file)
    file.write_text("two")
    assert known_digest(file) != before
    monkeypatch.setattr("sliceprop.hashing.time.time_ns", lambda: 10**18 + 10**10)
    assert file_state(file) == file_state(file)


def test_a_folder_has_one_digest_for_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    before = digest(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    renamed = digest(tmp_path)
    (tmp_path / "c").write_text("c")
    assert len({before, renamed, digest(tmp_path)}) == 3


def test_arrays_are_told_apart_by_type_shape_and_values_alone():
    array = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    assert array_digest(array) == array_digest(np.asfortranarray(array))
    others = [array.astype(np.int64), array.reshape(3, 2, 4), array + 1, array[:0], np.array(""), np.array(3)]
    assert len({array_digest(one) for one in [array, *others]}) == 7


def test_plain_values_have_one_checksum_in_any_order():
    assert checksum({"a": 1, "b": [2]}) == checksum({"b": [2], "a": 1, "sha256": "x"}) != checksum({"a": 1})
