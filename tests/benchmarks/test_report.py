"""The report and the plots on a small table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import plots
from report import markdown, write
from scopes import scopes
from table import Row

DICE = {"nearest": 0.5, "auto": 0.8}


def results() -> list[Row]:
    """Two methods on two volumes with 3 and 5 slices, volume b with 3 only; a peer on volume a with 3."""
    rows = []
    for volume, amount in (("a", "3"), ("a", "5"), ("b", "3")):
        for method, dice in DICE.items():
            row = Row("measuring", volume, "auto", 0, 0, "ends", amount, method, n_labels=1, overshoot=0.0)
            bonus = 0.1 * (volume == "b") + 0.01 * float(amount)
            rows.append(replace(row, dice=dice + bonus, dice_volume=dice, total_s=1.0, train_s=0.5, peak_mib=100.0))
    rows.append(replace(rows[0], method="deep-labelprop", dice=0.6, total_s=50.0))
    rows.append(replace(rows[0], volume="b", amount="5", status="skipped: fewer than 3 slices to score", dice=None))
    return rows


def line(text: str, *cells: str) -> bool:
    return f"| {' | '.join(cells)} |" in text


def test_means_run_over_volumes() -> None:
    text = markdown(results())
    assert line(text, "ends", "3", "2", "0.580", "0.880")
    assert line(text, "ends", "5", "1", "0.550", "0.850")
    assert line(text, "ends", "3", "2", "+0.300", "nearest")
    assert line(text, "b", "ends", "3", "0.630", "0.930")


def test_a_method_with_fewer_cases_is_compared_on_these() -> None:
    whole, subset = scopes(results())
    assert whole.methods == ("nearest", "auto") and whole.volumes == ["a", "b"]
    assert subset.methods == ("nearest", "deep-labelprop", "auto") and subset.places == [("ends", "3")]
    assert line(markdown(results()), "ends", "3", "1", "0.530", "0.600", "0.830")


def test_a_failure_leaves_no_mean_and_is_listed() -> None:
    rows = results()
    rows[0] = replace(rows[0], status="failed: exit status -11", dice=None)
    text = markdown(rows)
    assert line(text, "ends", "3", "2", "-", "0.880")
    assert line(text, "a", "ends", "3", "nearest", "failed: exit status -11")
    assert line(text, "b", "ends", "5", "nearest", "skipped: fewer than 3 slices to score")


def test_machine_versions_dates_and_substitutes_stand_at_the_top() -> None:
    rows = [
        replace(r, cpu="Z80", cores=1, versions="python 3.11", date=f"2026-01-0{n}") for n, r in enumerate(results())
    ]
    rows[1] = replace(rows[1], note="monai FlexibleUNet, a substitute for unet")
    text = markdown(rows)
    assert "1 cores of Z80, one process at a time; python 3.11; 2026-01-00 to 2026-01-06" in text
    assert "- auto: monai FlexibleUNet, a substitute for unet" in text


def test_pictures_show_the_means(tmp_path: Path) -> None:
    rows = results()
    write(tmp_path / "accuracy.csv", rows)
    pictures = {"accuracy_mean", "accuracy_mean_2", "accuracy_volumes_ends", "accuracy_cost"}
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    assert all(f"]({name}.png)" in (tmp_path / "accuracy.md").read_text() for name in pictures)
    assert matplotlib.image.imread(tmp_path / "accuracy_mean.png").std() > 0.01


def test_a_line_keeps_its_volumes() -> None:
    """Only volume a has 5 slices, so the mean over 3 slices is drawn without b too."""
    lines = dict(plots.mean_lines(scopes(results())[0], "ends"))
    assert lines["auto"] == ([3, 5], pytest.approx([0.83, 0.85]))


def test_names_of_lines_stand_apart() -> None:
    heights = plots.apart([0.5, 0.505, 0.9], 0.05)
    np.testing.assert_allclose(heights, [0.4775, 0.5275, 0.9])
