"""The report on a table of results: goals reached, means, margins, cost, each volume, and what has no result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

import common
import goals
import plots
from methods import CLASSICAL, kind_of, rank
from scopes import Scope, Where, scopes
from table import Row


def markdown(rows: Sequence[Row], pictures: Iterable[str] = ()) -> str:
    """The whole report."""
    parts = ["# Accuracy", _origin(rows), *(f"![{name}]({name})" for name in pictures)]
    parts += ["## Goals", common.markdown_table(("goal", "wanted", "reached", "met"), goals.table(rows))]
    for number, scope in enumerate(scopes(rows)):
        parts += _scope_sections(scope, "all cases" if number == 0 else _subset(scope))
    parts += ["## Without a result", _failures(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_MEASURES = {
    "dice": "Mean Dice, slices that were not annotated",
    "dice_volume": "Mean Dice, whole volume",
    "average_hausdorff_mm": "Average Hausdorff distance of the labels that are not lost, mm",
    "hausdorff95_mm": "95 % Hausdorff distance of the labels that are not lost, mm",
    "lost_labels": "Labels lost",
    "overshoot": "Overshoot past the true ends, share of the label's size",
}


def _scope_sections(scope: Scope, title: str) -> list[str]:
    sections = []
    for measure, name in _MEASURES.items():
        sections += [f"## {name}: {title}", _mean_table(scope, measure)]
    sections += [f"## Margin of auto over the best classical method: {title}", _margin_table(scope)]
    sections += [f"## Time and memory: {title}", _cost_table(scope)]
    return [*sections, f"## Dice of each volume: {title}", _volume_table(scope)]


def _mean_table(scope: Scope, measure: str) -> str:
    rows = [
        [*where, _volumes_at(scope, where), *(scope.mean(where, method, measure) for method in scope.methods)]
        for where in scope.places
    ]
    return common.markdown_table(["placement", "slices", "volumes", *scope.methods], rows)


def _margin_table(scope: Scope) -> str:
    rows = []
    for where in scope.places:
        auto = scope.mean(where, "auto", "dice")
        classical = {name: scope.mean(where, name, "dice") for name in CLASSICAL}
        best = max(((value, name) for name, value in classical.items() if value is not None), default=None)
        if auto is not None and best is not None:
            rows.append([*where, _volumes_at(scope, where), f"{auto - best[0]:+.3f}", best[1]])
    return common.markdown_table(["placement", "slices", "volumes", "margin", "best classical"], rows)


def _cost_table(scope: Scope) -> str:
    rows = []
    for method in scope.methods:
        done = [row for row in scope.rows if row.method == method and row.ok]
        if done:
            rows.append([method, len(done), *_spread(done, "train_s"), *_spread(done, "total_s"), _peak(done)])
    header = ["method", "cases", "learning s, median", "max", "total s, median", "max", "peak MiB, max"]
    return common.markdown_table(header, rows)


def _spread(rows: Sequence[Row], name: str) -> list[str]:
    values = [seconds for row in rows if (seconds := getattr(row, name)) is not None] or [0.0]
    return [f"{f(values):.2f}" for f in (median, max)]


def _peak(rows: Sequence[Row]) -> str:
    return f"{max(row.peak_mib or 0 for row in rows):.0f}"


def _volume_table(scope: Scope) -> str:
    dice = {(row.volume, row.placement, row.amount, row.method): row.dice for row in scope.rows}
    rows = [
        [volume, *where, *(dice.get((volume, *where, method)) for method in scope.methods)]
        for volume in scope.volumes
        for where in scope.places
        if any((volume, *where, method) in dice for method in scope.methods)
    ]
    return common.markdown_table(["volume", "placement", "slices", *scope.methods], rows)


def _volumes_at(scope: Scope, where: Where) -> int:
    return len({row.volume for row in scope.rows if (row.placement, row.amount) == where})


def _origin(rows: Sequence[Row]) -> str:
    """Machines, versions and dates that the rows come from, and what stood in for what was asked for."""
    lines = []
    measured = [row for row in rows if row.ok and row.date]
    for (device, cpu, cores, jobs, versions), same in groupby(sorted(measured, key=_circumstances), key=_circumstances):
        group = list(same)
        days = sorted({row.date[:10] for row in group})
        names = ", ".join(sorted({kind_of(row.method) for row in group}, key=rank))
        where = f"{cores} cores of {cpu}" + ("" if device in ("", "cpu") else f", {device}")
        at_once = "one process at a time" if jobs == "1" else f"up to {jobs} processes at a time"
        dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(f"- {names}: {where}, {at_once}; {versions}; {dates}")
    lines += dict.fromkeys(f"- {row.method}: {row.note}" for row in measured if row.note)
    return "\n".join(lines)


def _circumstances(row: Row) -> tuple[str, ...]:
    return row.device, row.cpu, str(row.cores), str(row.jobs), row.versions


def _subset(scope: Scope) -> str:
    return f"{', '.join(scope.volumes)} with {_listed(amount for _, amount in scope.places)} slices"


def _failures(rows: Sequence[Row]) -> str:
    """Every case without a result, those that differ in the method or the amount only on one line."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if not row.ok:
            found.setdefault((row.volume, row.placement, row.status), []).append(row)
    lines = [
        [volume, placement, _listed(r.amount for r in same), _listed(r.method for r in same), status]
        for (volume, placement, status), same in found.items()
    ]
    if not lines:
        return "Every case has a result."
    return common.markdown_table(["volume", "placement", "slices", "method", "reason"], lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def write(path: Path, rows: Sequence[Row]) -> None:
    """The report and the plots beside the table `path`."""
    path.with_suffix(".md").write_text(markdown(rows, plots.write(rows, path)), encoding="utf-8")
