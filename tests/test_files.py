import json

import pytest

from sliceprop.errors import FileError
from sliceprop.files import read_table, write_table
from sliceprop.hashing import checksum

NAMES = ["disc", "core", "Bündel"]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder" / "names.json"


def test_a_table_comes_back_as_it_was(file):
    assert read_table(file) is None
    for value in (NAMES, {"disc": "#102030"}, {"value": 1, "sha256": 2}):
        write_table(file, value)
        assert read_table(file) == value


@pytest.mark.parametrize("damaged", [b"", b"[", b'["disc"', b"\xff"])
def test_a_damaged_table_is_read_from_its_second_copy(file, damaged):
    write_table(file, NAMES)
    file.write_bytes(damaged)
    assert read_table(file) == NAMES
    file.with_name("names.copy.json").unlink()
    assert read_table(file) == NAMES


def test_no_changed_letter_changes_a_name(file):
    write_table(file, NAMES)
    second = file.with_name("names.copy.json")
    content = file.read_bytes()
    second.unlink()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert read_table(file) in (NAMES, None)


def test_a_table_of_a_later_release_is_not_guessed_at(file):
    write_table(file, NAMES)
    content = {"format": 99, "value": [*NAMES, "more"]}
    file.write_text(json.dumps({**content, "sha256": checksum(content)}))
    with pytest.raises(FileError, match="99"):
        read_table(file)


def test_tables_of_earlier_releases_are_read(file):
    file.parent.mkdir()
    for value in (NAMES, {"disc": "#102030"}):
        file.write_text(json.dumps(value))
        assert read_table(file) == value
