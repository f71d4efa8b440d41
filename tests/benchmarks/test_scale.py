"""Growth of a cost with the size, on costs whose growth is known."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from scale import Point, draw, growth, markdown, measure_size


def points(power: float, fixed: float = 0.0) -> list[Point]:
    """Costs that grow with a power of the number of slices, and of the number of labels."""
    costs = {(series, n): fixed + n**power for series in ("slices", "labels") for n in (10, 20, 80)}
    sizes = {"slices": lambda n: (n, 4), "labels": lambda n: (50, n)}
    return [Point(series, *sizes[series](n), cost, cost, cost, cost) for (series, n), cost in costs.items()]


@pytest.mark.parametrize(("power", "factor"), [(0, 1), (1, 2), (2, 4)])
def test_growth_is_the_factor_per_doubling(power: float, factor: float) -> None:
    assert growth(points(power)[:3], "learn_s") == pytest.approx((factor, factor))


def test_fixed_costs_cannot_hide_growth_in_the_last_step() -> None:
    fitted, last = growth(points(2, fixed=1000)[:3], "learn_s")
    assert fitted < 2.2 < last


@pytest.mark.parametrize(("power", "verdict"), [(1, "yes"), (2, "no")])
def test_the_report_tells_linear_from_quadratic(power: float, verdict: str) -> None:
    text = markdown(points(power))
    assert text.count(f" | {verdict} |") == 8
    assert f"| labels | 50 | 80 | {80**power:.2f} |" in text


def test_the_plot_has_something_to_show(tmp_path: Path) -> None:
    draw(points(1), tmp_path / "scale.png")
    assert matplotlib.image.imread(tmp_path / "scale.png").std() > 0.01


def test_a_size_is_measured_in_processes_of_its_own() -> None:
    learn_s, propagate_s, learn_mib, propagate_mib = measure_size((8, 96, 96), 4)
    assert learn_s > 0 and propagate_s > 0
    assert learn_mib > 5
    assert propagate_mib >= 0
