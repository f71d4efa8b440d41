"""The table on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sliceprop.errors import FileError
from table import Row, locked, read, write


def row(method: str = "auto", **facts: object) -> Row:
    return Row("measuring", "spine, upper", "auto", 0, 0, "ends", "3", method, **facts)  # type: ignore[arg-type]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        row(dice=0.1 + 0.2, n_labels=4, dice_labels='{"1": 0.5}', annotated="1 2"),
        row("unet", status='failed: it said "no",\nand ended'),
    ]
    write(tmp_path / "table.csv", rows)
    assert read(tmp_path / "table.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_no_table_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "table.csv") == []


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("volume,dice\nspine,0.5\n")
    with pytest.raises(FileError, match="columns"):
        read(tmp_path / "table.csv")


def test_one_run_writes_a_table_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with locked(path), pytest.raises(FileError, match="another run"), locked(path):
        pass
    with locked(path):
        pass
