"""What a pretrained start buys, on volumes small enough to see all of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import table
import warm_start
from sliceprop.checkpoint import load_checkpoint
from sliceprop.study import Progress
from warm_start import FULL, NOTHING, OTHERS, PHANTOM, Row, parser, report, run, steps_to


def test_steps_until_a_level_is_reached() -> None:
    events = [Progress(epoch, 3, metric, 0.0, 0.0) for epoch, metric in ((1, 0.25), (2, 0.5), (3, 0.75))]
    assert [steps_to(level, events) for level in (0.25, 0.5, 0.6, 0.8)] == [1, 2, 3, None]


def test_gain_and_harm_are_told_against_nothing_with_the_same_budget() -> None:
    rows = [
        Row("a", 3, NOTHING, FULL, 0.5, 60, 0.70, 0.800),
        Row("a", 5, NOTHING, FULL, 0.5, 60, 0.70, 0.800),
        Row("b", 3, NOTHING, FULL, 0.5, 60, 0.70, 0.800),
        Row("a", 3, PHANTOM, FULL, 0.6, 30, 0.71, 0.790),
        Row("a", 5, PHANTOM, FULL, 0.4, None, 0.71, 0.804),
        Row("b", 3, PHANTOM, FULL, 0.6, 10, 0.73, 0.830),
        Row("a", 3, NOTHING, 11, 0.4, None, 0.60, 0.700),
    ]
    lines = report(rows, "").splitlines()
    (mean,) = (line for line in lines if line.startswith(f"| {PHANTOM} | {FULL}"))
    assert mean == f"| {PHANTOM} | {FULL} | 3 | 0.717 | +0.017 | 0.808 | +0.008 | -0.003 | 1 | 2/3 | 20.000 |"
    (each,) = (line for line in lines if line.startswith("| a | 3 | 0.800"))
    assert "| -0.010 |" in each


@pytest.fixture
def arguments(measuring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run on two volumes of one patient and a third one, with as little learning as there can be."""
    for name in ("other", "third"):
        shutil.copytree(measuring / "phantom", measuring / name)
    monkeypatch.setattr(warm_start, "THIGHS", ((32, 6), (32, 8)))
    where = ["--data", measuring, "--work", tmp_path / "work", "--out", tmp_path / "out.csv"]
    few = ["--volumes", "phantom", "--counts", 3, "--epochs", 1, "--steps", 1, "--batch", 1]
    return [str(each) for each in [*where, *few, "--same-patient", "phantom,other"]]


def test_a_volume_from_every_start_and_the_same_command_again(arguments: list[str], tmp_path: Path) -> None:
    run(parser().parse_args([*arguments, "--budgets", "0", "11"]))
    rows = table.read(tmp_path / "out.csv", Row)
    assert [row.key[2:] for row in rows] == [
        (start, steps) for start in (NOTHING, PHANTOM, OTHERS) for steps in (0, 11)
    ]
    assert all(0 < row.auto <= 1 and 0 < row.registration <= 1 for row in rows)
    assert (tmp_path / "work/without_other_phantom.csv").read_text().count("image.nii.gz") == 1
    assert load_checkpoint(tmp_path / "work/phantom.safetensors").study_hash is None
    shutil.rmtree(tmp_path / "work")
    run(parser().parse_args([*arguments, "--budgets", "0"]))
    assert table.read(tmp_path / "out.csv", Row) == rows
    assert not list((tmp_path / "work").glob("*.safetensors"))
