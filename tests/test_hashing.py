import hashlib

import numpy as np

from sliceprop.hashing import array_digest, checksum, digest, known_digest


def test_a_file_has_the_digest_that_other_programs_compute(tmp_path):
    file = tmp_path / "scan"
    file.write_bytes(b"voxels")
    assert digest(file) == known_digest(file) == hashlib.sha256(b"voxels").hexdigest()
    file.write_bytes(b"other voxels")
    assert known_digest(file) == digest(file)


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
