"""Plots of a table of results: Dice against the number of annotated slices, and what each method costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.optimize import isotonic_regression

from methods import kind_of, rank
from scopes import Scope, scopes
from table import Row

mpl.use("Agg")

COLOURS = {
    "nearest": "#999999",
    "shape": "#56B4E9",
    "contour": "#0072B2",
    "deep-labelprop": "#000000",
    "biomedisa": "#8C6D31",
    "unet": "#009E73",
    "deeplabv3plus": "#CC79A7",
    "manet": "#7A5195",
    "registration": "#E69F00",
    "auto": "#D55E00",
}
"""After Okabe and Ito, so that readers who do not see all colours can tell them apart; markers differ as well."""

MARKERS = dict(zip(COLOURS, "sv^XPDhpo*", strict=True))
PANELS_PER_ROW = 4

Line = tuple[list[float], list[float]]
"""Amounts and Dice."""

NAME_HEIGHT = 0.055
"""Of a line's name, share of the panel."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "savefig.dpi": 150,
}


def write(rows: Sequence[Row], table: Path) -> list[str]:
    """Draw what these rows can show, beside the table; the names of the files."""
    with mpl.rc_context(STYLE):
        figures = dict(_figures(rows))
        for name, figure in figures.items():
            figure.savefig(table.with_name(f"{table.stem}_{name}.png"), bbox_inches="tight")
    return [f"{table.stem}_{name}.png" for name in figures]


def _figures(rows: Sequence[Row]) -> Iterable[tuple[str, Figure]]:
    for number, scope in enumerate(scopes(rows), start=1):
        if any(row.ok for row in scope.rows):
            yield f"mean_{number}" if number > 1 else "mean", _mean_figure(scope)
    if not any(row.ok for row in rows):
        return
    first = scopes(rows)[0]
    for placement in dict.fromkeys(placement for placement, _ in first.places):
        yield f"volumes_{placement}", _volumes_figure(first, placement)
    yield "cost", _cost_figure([row for row in rows if row.ok])


def _mean_figure(scope: Scope) -> Figure:
    """A panel per placement, means over the volumes that have every amount, each line named at its end."""
    placements = list(dict.fromkeys(placement for placement, _ in scope.places))
    figure = Figure(figsize=(1.2 + 4.6 * len(placements), 3.9), layout="constrained")
    panels = figure.subplots(1, len(placements), sharey=True, squeeze=False)[0]
    for axes, placement in zip(panels, placements, strict=True):
        ends = []
        for method, (x, y) in mean_lines(scope, placement):
            _draw(axes, x, y, method)
            ends.append((y[-1], method))
        _dress(axes, scope, placement)
        volumes = len(_with_every_amount(scope, placement))
        axes.set_title(f"{placement}, mean over {volumes} volume{'s' * (volumes != 1)}", loc="left")
        _name_lines(axes, _amounts(scope, placement)[-1], ends)
    panels[0].set_ylabel("Dice, slices that were not annotated")
    return figure


def mean_lines(scope: Scope, placement: str) -> list[tuple[str, Line]]:
    """Each method's mean Dice by amount, over the volumes that have every amount."""
    volumes = _with_every_amount(scope, placement)
    lines = [(method, _line(scope, placement, method, volumes)) for method in scope.methods]
    return [(method, line) for method, line in lines if line[0]]


def _volumes_figure(scope: Scope, placement: str) -> Figure:
    """A panel per volume, one legend for all."""
    columns = min(PANELS_PER_ROW, len(scope.volumes))
    lines = -(-len(scope.volumes) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.6, 2.3 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for number, (axes, volume) in enumerate(zip(panels, scope.volumes, strict=False)):
        for method in scope.methods:
            x, y = _line(scope, placement, method, [volume])
            if x:
                _draw(axes, x, y, method)
        _dress(axes, scope, placement)
        axes.set_title(volume, loc="left", fontsize=9)
        if number + columns < len(scope.volumes):
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    for axes in panels[len(scope.volumes) :]:
        axes.remove()
    figure.supylabel(f"Dice, slices that were not annotated ({placement}; every panel has its own scale)", fontsize=9)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _cost_figure(rows: Sequence[Row]) -> Figure:
    """Time and memory of each method: a dot per case, a bar at the median."""
    methods = sorted({row.method for row in rows}, key=rank, reverse=True)
    figure = Figure(figsize=(9.5, 0.9 + 0.42 * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure, name in zip(panels, ("total_s", "peak_mib"), ("seconds", "peak memory, MiB"), strict=True):
        for height, method in enumerate(methods):
            known = [getattr(row, measure) for row in rows if row.method == method]
            values = [max(value, 1e-3) for value in known if value is not None] or [1e-3]
            colour = COLOURS[kind_of(method)]
            axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
            axes.plot([median(values)] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.5)
        axes.set_xlabel(f"{name} (a dot per case, a bar at the median)")
        axes.grid(axis="y", visible=False)
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panels[1].set_xlim(left=0)
    panels[0].set_yticks(range(len(methods)), methods)
    return figure


def _line(scope: Scope, placement: str, method: str, volumes: Sequence[str]) -> Line:
    """Amounts for which the method has a result for each of these volumes, and the mean Dice there."""
    points = []
    for amount in _amounts(scope, placement):
        rows = [row for row in scope.at((placement, amount), method) if row.volume in volumes]
        dice = [row.dice for row in rows if row.dice is not None]
        if dice and len(dice) == len({row.volume for row in rows}) == len(set(volumes)):
            points.append((_number(amount), fmean(dice)))
    return [x for x, _ in points], [y for _, y in points]


def _draw(axes: Axes, x: Sequence[float], y: Sequence[float], method: str) -> None:
    kind, ours = kind_of(method), method == "auto"
    axes.plot(
        x,
        y,
        label=method,
        color=COLOURS[kind],
        marker=MARKERS[kind],
        markersize=8 if ours else 5,
        linewidth=2.4 if ours else 1.4,
        linestyle="-" if method == kind else "--",
        zorder=3 if ours else 2,
    )


def _dress(axes: Axes, scope: Scope, placement: str) -> None:
    amounts = _amounts(scope, placement)
    axes.set_xticks([_number(amount) for amount in amounts], [amount.rstrip("%") for amount in amounts])
    first, last = _number(amounts[0]), _number(amounts[-1])
    edge = 0.05 * (last - first) or 1
    axes.set_xlim(first - edge, last + edge)
    axes.set_xlabel("annotated slices, %" if amounts[0].endswith("%") else "annotated slices")


def _name_lines(axes: Axes, last: str, ends: Sequence[tuple[float, str]]) -> None:
    """The method's name at the end of its line, as near as other names let it."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: (end[0], rank(end[1])))
    heights = apart([y for y, _ in ordered], NAME_HEIGHT * (high - low))
    for height, (_, method) in zip(heights, ordered, strict=True):
        axes.annotate(
            method,
            (_number(last), height),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[kind_of(method)],
            fontweight="bold" if method == "auto" else "normal",
            annotation_clip=False,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as can be so that neighbours are at least `gap` apart."""
    steps = gap * np.arange(len(heights))
    return list(isotonic_regression(np.array(heights) - steps).x + steps)


def _with_every_amount(scope: Scope, placement: str) -> list[str]:
    """Volumes that are large enough for every amount, so that the line does not change its company."""
    amounts = _amounts(scope, placement)
    return [
        volume
        for volume in scope.volumes
        if {row.amount for row in scope.rows if row.volume == volume and row.placement == placement} >= set(amounts)
    ]


def _amounts(scope: Scope, placement: str) -> list[str]:
    return [amount for where, amount in scope.places if where == placement]


def _number(amount: str) -> float:
    return float(amount.rstrip("%"))
