"""What the report says about the goals, on tables whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goals import against_labelprop, against_networks, clearly_better, never_worse, table, yardstick
from table import Row


def rows(amount: str = "3", volume: str = "a", **dice: float) -> list[Row]:
    """One case under several methods."""
    case = ("measuring", volume, "auto", 0, 0, "ends", amount)
    return [Row(*case, method.replace("_", "-"), dice=value) for method, value in dice.items()]


def classical(best: float, amount: str = "3", **dice: float) -> list[Row]:
    return rows(amount, nearest=best, shape=best - 0.1, contour=best - 0.2, **dice)


def test_the_worst_case_decides_whether_ours_is_never_worse() -> None:
    _, _, reached, met = never_worse(classical(0.8, auto=0.9) + classical(0.7, "5", auto=0.696))
    assert met == "yes" and reached == "worst -0.004 (a, ends, 5); 0 of 2 cases below"
    _, _, reached, met = never_worse(classical(0.8, auto=0.9) + classical(0.7, "5", auto=0.69))
    assert met == "no" and reached == "worst -0.010 (a, ends, 5); 1 of 2 cases below"


def test_the_mean_error_is_compared_with_the_best_single_method() -> None:
    found = rows("3", nearest=0.5, shape=0.9, contour=0.4, auto=0.9) + rows(
        "5", nearest=0.9, shape=0.7, contour=0.4, auto=0.9
    )
    _, _, reached, met = clearly_better(found)  # errors: ours 0.1, shape 0.2, nearest 0.3
    assert (reached, met) == ("50.0% (0.100, shape 0.200)", "yes")


def test_a_failed_case_counts_for_nobody() -> None:
    failed = [replace(row, status="failed: x", dice=None) for row in rows("5", auto=0.1)]
    _, _, reached, _ = clearly_better(classical(0.8, auto=0.9) + failed + rows("5", nearest=0.9, shape=0.9))
    assert reached == "50.0% (0.100, nearest 0.200)"


def test_gain_and_speed_over_labelprop() -> None:
    found = rows("3", auto=0.8, deep_labelprop=0.7) + rows("5", auto=0.9, deep_labelprop=0.86)
    seconds = {"auto": 2.0, "deep-labelprop": 300.0}
    gain, speed = against_labelprop([replace(row, total_s=seconds[row.method]) for row in found])
    assert gain[2:] == ("+0.070 over 2 cases", "yes")
    assert speed[2:] == ("150 times over 2 cases", "yes")


def test_the_network_is_met_at_the_amount_where_it_is_best() -> None:
    found = rows("20%", auto=0.9, unet=0.8) + rows("50%", auto=0.95, unet=0.97)
    (goal,) = against_networks(found)
    assert goal[2:] == ("least -0.020 at 50%, of 20%, 50%", "no")


def test_the_yardstick_is_the_largest_common_study() -> None:
    slow = [replace(row, shape="29x400x400", n_labels=4, total_s=61.0, peak_mib=900.0) for row in rows(auto=0.9)]
    time, memory = yardstick([*slow, *rows("5", auto=0.9)])
    assert (time[2], time[3], memory[2], memory[3]) == ("61.0 s at most", "no", "900 MiB at most", "yes")


def test_nothing_measured_is_said() -> None:
    assert {goal[2] for goal in table([])} == {"not measured"}


@pytest.mark.parametrize("missing", ["auto", "nearest"])
def test_a_table_without_both_sides_says_nothing(missing: str) -> None:
    assert {goal[2] for goal in table([r for r in rows(auto=0.9, nearest=0.8) if r.method != missing])} == {
        "not measured"
    }
