"""Corrections and their measures, on studies with a known answer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cases import Case
from phantoms import moving_disc
from scribbles import MODES, SCOPES, Session, compare, parser, run, scopes
from sliceprop.config import TrainConfig
from sliceprop.io import Image

QUICK = TrainConfig(budget_s=20, max_epochs=1, refine_steps=4)


@pytest.fixture(scope="module")
def session() -> Session:
    image, labels = moving_disc()
    labels[labels == 7] = 2
    return Session(Case("phantom", Image(image, np.diag([4.0, 1.0, 1.0, 1.0])), labels, 0), [2, 8], QUICK, QUICK)


def test_scopes_are_told_by_their_distance_to_the_scribbles() -> None:
    scribbled, regions = np.zeros((20, 4, 4), bool), np.zeros((20, 4, 4), bool)
    scribbled[8, 1, 1], regions[8, 1, :3] = True, True
    masks = scopes(scribbled, regions, [5, 9, 14], (3, 15))
    slices = {name: np.flatnonzero(mask.any(axis=(1, 2))).tolist() for name, mask in masks.items()}
    assert slices == {
        "scribble": [8],
        "region": [8],
        "slices": [8],
        "near": [6, 7, 10],
        "range": [3, 4, 6, 7, 8, 10, 11, 12, 13, 15],
        "far": [0, 1, 2, 15, 16, 17, 18, 19],
    }
    assert masks["region"].sum() == 2 and masks["slices"].sum() == 15


def test_changes_are_counted() -> None:
    reference = np.array([[1, 1, 0, 0, 2]])
    before, after = np.array([[1, 0, 0, 1, 1]]), np.array([[1, 1, 1, 0, 2]])
    measured = compare(before, after, reference, np.array([[True, True, True, True, False]]))
    assert measured == {
        "voxels": 4,
        "wrong_before": 2,
        "wrong_after": 1,
        "spoilt": 1,
        "dice_before": 0.5,
        "dice_after": 0.8,
    }
    assert compare(before, after, reference, np.array([[False, False, True, True, False]]))["dice_after"] is None


@pytest.mark.parametrize("planes", ["slices", "cross"])
def test_each_mode_is_measured_in_each_scope(session: Session, planes: str) -> None:
    rows = list(session.rows(planes, 2))
    assert {(row.mode, row.scope) for row in rows} == {(mode, scope) for mode in MODES for scope in SCOPES}
    assert {row.drawn for row in rows} == {2}
    marked = {row.mode: row for row in rows if row.scope == "scribble"}
    assert marked["scribbles"].voxels == marked["scribbles"].wrong_before > 0
    assert marked["scribbles"].wrong_after == marked["both"].wrong_after == 0
    assert marked["learning"].wrong_after > 0
    assert {row.mode: row.learn_s > 0 for row in rows} == {"scribbles": False, "learning": True, "both": True}


def test_a_table_and_a_report_are_written(measuring: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "scribbles.csv"
    arguments = ["--data", str(measuring), "--counts", "3", "9", "--marks", "1", "--budget-s", "1", "--more-s", "1"]
    run(parser().parse_args([*arguments, "--out", str(out)]))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["annotated"] for row in rows} == {"3"}  # with 9 too few slices are left
    assert len(rows) == 2 * len(MODES) * len(SCOPES)
    text = out.with_suffix(".md").read_text()
    assert "| phantom | 3 | cross | 1 | both | 1 | " in text
    assert "learning 1 s, going on for 1 s" in text
