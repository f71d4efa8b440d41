"""What the timings are made of; the times themselves are no test."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cases import Case
from phantoms import moving_disc
from scale import Point
from sliceprop.config import TrainConfig
from sliceprop.io import Image, read_image
from speed import Measurement, corrections, measure_in_process, report, run_process, write_files

MIB = 2**20


def phantom() -> Case:
    image, labels = moving_disc()
    labels[labels == 7] = 2
    return Case("phantom", Image(image, np.diag([4.0, 1.0, 1.0, 1.0])), labels, 0)


def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_waits() -> None:
    kept = np.ones(900 * MIB, np.uint8)
    _, peak_gib = run_process(sys.executable, "-c", "import torch")
    assert 0.05 < peak_gib < kept.size / 2**30


def test_a_process_that_fails_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="exit status 3"):
        run_process(sys.executable, "-c", "raise SystemExit(3)")


def test_files_hold_the_annotated_slices_only(tmp_path: Path) -> None:
    case = phantom()
    files = write_files(case, tmp_path / "case", case.reference, count=3)
    assert files.annotated == [0, 5, 10]
    given = read_image(files.labels).array
    assert np.flatnonzero(given.any(axis=(1, 2))).tolist() == files.annotated
    np.testing.assert_array_equal(given[5], case.reference[5])


def test_a_correction_is_one_more_slice_or_one_scribble() -> None:
    case = phantom()
    before = case.reference.copy()
    before[6, 10:20, 20:30] = 2
    studies = {name: study() for name, study in corrections(case, [0, 2, 9, 10], before).items()}
    slice_more, scribble = studies["one more annotated slice"].annotation, studies["one scribble"].annotation
    assert slice_more.annotated_slices == (0, 2, 5, 9, 10) and slice_more.scribbles is None
    assert scribble.annotated_slices == (0, 2, 9, 10) and scribble.scribbles is not None
    assert np.flatnonzero(scribble.scribbles.any(axis=(1, 2))).tolist() == [6]


def test_corrections_are_timed_against_their_goal() -> None:
    found = list(measure_in_process(phantom(), 2, TrainConfig(budget_s=20, max_epochs=1, refine_steps=4)))
    assert [(len(measurement.seconds), measurement.goal_s) for measurement in found] == [(2, 1), (2, 1)]


def test_the_report_has_goals_and_growth() -> None:
    measurement = Measurement("propagate", "thigh", [3.0, 1.0, 2.0], goal_s=60, peak_gib=1.5, goal_gib=3)
    points = [Point(series, n, n, n, n, n, n) for series in ("slices", "labels") for n in (4, 8)]
    machine = {"cpu": "Z80", "cores": 1, "gpu": None, "python": "3.11", "torch": "2"}
    results = {"machine": machine, "measurements": [vars(measurement)], "points": [vars(point) for point in points]}
    text = report(results, "speed_scale")
    assert "| propagate | thigh | 2.00 | 1.00 | 3.00 | 60 | 1.500 | 3 |" in text
    assert "Growth with slices and labels" in text and "(speed_scale.png)" in text
    assert "| slices | 4 | 4 |" in report(results | {"points": [vars(points[0])]}, "speed_scale")
    assert "Growth" not in report(results | {"points": []}, "speed")
