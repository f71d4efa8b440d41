"""How time and memory grow with the number of slices and of labels, learning and propagating apart.

Learning here is a fixed number of steps: with a budget in seconds its cost would hide. Every figure comes from a
process of its own, on synthetic scans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import common
import plots
from memory import PeakMemory
from placements import annotated_slices
from sliceprop import study as use_cases
from sliceprop.config import TrainConfig
from synthetic import thigh

STEPS = TrainConfig(budget_s=3600, max_epochs=1, refine_steps=10)
"""Every stage of learning, cut short by its steps and never by the clock."""

SIZE, SLICES, LABELS = 256, 50, 4
"""Pixels along a side; slices where labels vary, labels where slices vary."""

SERIES = {
    "slices": tuple((n, LABELS) for n in (25, 50, 100, 200)),
    "labels": tuple((SLICES, n) for n in (1, 4, 16, 60)),
}
COUNT = 5
LINEAR = 2.2
"""Growth per doubling up to which it counts as linear: exactly linear is 2, the rest is scatter of the measurement."""

COSTS = {
    "learn_s": "learning, s",
    "propagate_s": "propagation, s",
    "learn_mib": "learning, MiB",
    "propagate_mib": "propagation, MiB",
}


@dataclass(frozen=True)
class Point:
    """The cost of one size.

    Attributes:
        series: a key of `SERIES`.
        slices: of `SIZE` by `SIZE` pixels, `COUNT` of them annotated.
        labels: how many.
        learn_s: of `STEPS`.
        propagate_s: with the model learnt.
        learn_mib: peak resident memory above that of the process with packages and study loaded.
        propagate_mib: the same.
    """

    series: str
    slices: int
    labels: int
    learn_s: float
    propagate_s: float
    learn_mib: float
    propagate_mib: float

    @property
    def size(self) -> int:
        """What varies along the series."""
        return self.slices if self.series == "slices" else self.labels


def measure() -> Iterator[Point]:
    """All points; what both series share is measured once."""
    done: dict[tuple[int, int], tuple[float, ...]] = {}
    for series, sizes in SERIES.items():
        for size in sizes:
            done[size] = done.get(size) or measure_size((size[0], SIZE, SIZE), size[1])
            yield Point(series, *size, *done[size])


def measure_size(shape: tuple[int, int, int], n_labels: int) -> tuple[float, float, float, float]:
    """Seconds of learning and of propagating, and the MiB of each."""
    model, learn_s, learn_mib = _in_own_process(_learn, shape, n_labels)
    _, propagate_s, propagate_mib = _in_own_process(_propagate, shape, n_labels, model)
    return learn_s, propagate_s, learn_mib, propagate_mib


def growth(points: Sequence[Point], cost: str) -> tuple[float, float]:
    """The factor by which a cost grows when the size doubles: fitted over all points, and in the last step alone.

    The fit is a straight line through the logarithms. Work that does not depend on the size makes the factor smaller,
    the more so at small sizes; therefore the last step is told apart.
    """
    size, value = (np.log2([getattr(point, name) for point in points]) for name in ("size", cost))
    fitted = np.polyfit(size, value, 1)[0]
    last = (value[-1] - value[-2]) / (size[-1] - size[-2])
    return float(2**fitted), float(2**last)


def markdown(points: Sequence[Point]) -> str:
    """Costs of each size, and how they grow."""
    rows = [[p.series, p.slices, p.labels, *(_short(p, cost) for cost in COSTS)] for p in points]
    header = ["varied", "slices", "labels", *COSTS.values()]
    grown = [
        [series, name, *(f"{factor:.2f}" for factor in factors), "yes" if max(factors) <= LINEAR else "no"]
        for series, within in _by_series(points).items()
        if len(within) > 1
        for cost, name in COSTS.items()
        for factors in [growth(within, cost)]
    ]
    verdict = ["varied", "cost", "per doubling, fitted", "per doubling, last step", f"at most linear (<= {LINEAR})"]
    text = f"{SIZE}x{SIZE} pixels a slice, {COUNT} slices annotated; learning is {STEPS.max_epochs} epoch of the "
    text += f"network and {STEPS.refine_steps} steps of refinement; memory is what the work adds to the loaded study."
    tables = common.markdown_table(header, rows), common.markdown_table(verdict, grown)
    return "\n\n".join(["## Growth with slices and labels", text, *tables])


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel for time and one for memory per series, both axes logarithmic, so that linear growth has one slope."""
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(8.6, 6.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (series, within) in zip(panels.T, _by_series(points).items(), strict=True):
            for axes, unit in zip(column, ("s", "mib"), strict=True):
                _draw_panel(axes, within, unit)
            column[0].set_title(f"{'labels' if series == 'slices' else 'slices'} fixed", loc="left")
            column[1].set_xlabel(series)
        for axes, name in zip(panels[:, 0], ("seconds", "memory of the work, MiB"), strict=True):
            axes.set_ylabel(name)
        panels[0, 0].legend(frameon=False)
        figure.savefig(path, bbox_inches="tight")


def _draw_panel(axes: Axes, points: Sequence[Point], unit: str) -> None:
    sizes = [point.size for point in points]
    for work, colour, marker in (("learn", "#0072B2", "s"), ("propagate", "#D55E00", "o")):
        costs = [getattr(point, f"{work}_{unit}") for point in points]
        name = {"learn": "learning, fixed steps", "propagate": "propagation with a model"}[work]
        axes.plot(sizes, costs, marker=marker, color=colour, label=name)
        linear = [costs[-1] * size / sizes[-1] for size in sizes]
        axes.plot(sizes, linear, ":", color="#999999", zorder=1, label="linear" if work == "propagate" else None)
    axes.loglog()
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def _learn(shape: tuple[int, int, int], n_labels: int) -> tuple[Any, float, float]:
    study = _study(shape, n_labels)
    return _measured(lambda: use_cases.train(study, STEPS))


def _propagate(shape: tuple[int, int, int], n_labels: int, model: Any) -> tuple[None, float, float]:
    study = _study(shape, n_labels)
    _, seconds, mib = _measured(lambda: use_cases.propagate(study, model))
    return None, seconds, mib


def _study(shape: tuple[int, int, int], n_labels: int) -> use_cases.Study:
    case = thigh(shape, n_labels)
    return case.study(annotated_slices(case.image.array, case.labelled_range, "ends", str(COUNT)))


def _measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What came of it, seconds, MiB above what the process had before; what is loaded late is loaded before."""
    small = _study((6, 32, 32), 1)
    use_cases.propagate(small, use_cases.train(small, STEPS))
    with PeakMemory() as idle:
        pass
    start = time.perf_counter()
    with PeakMemory() as memory:
        result = work()
    return result, time.perf_counter() - start, memory.mib + memory.children_mib - idle.mib


def _in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(work, *arguments).result()


def _by_series(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return found


def _short(point: Point, cost: str) -> str:
    value = getattr(point, cost)
    return f"{value:.0f}" if cost.endswith("mib") else f"{value:.2f}"
