"""The report on a simulation: goals, curves as tables, slices needed, when to stop, which slices were taken."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import common
from contestants import ORACLE, OURS, Step
from curves import CLOSED_AT, LEVELS, Curves, asked_s, gap_closed, goals, slices_needed

MEASURES = {
    "dice": "Mean Dice, whole volume, annotated slices included",
    "dice_rest": "Mean Dice, slices of the labelled range that were not annotated",
    "average_hausdorff_mm": "Average Hausdorff distance of the labels that are not lost, mm",
    "lost_labels": "Labels lost",
}


def markdown(curves: Curves, settings: Sequence[str], picture: str, failures: Sequence[str] = ()) -> str:
    """The whole report.

    Args:
        curves: of all contestants.
        settings: lines on how they came about.
        picture: file name of the plot.
        failures: a line for each volume without a result.
    """
    parts = ["# Which slice to annotate next", "\n".join(f"- {line}" for line in settings)]
    parts += [f"![Dice against annotated slices]({picture})"]
    parts += ["## Goals", common.markdown_table(("goal", "wanted", "reached", "met"), goals(curves))]
    for measure, title in MEASURES.items():
        parts += [f"## {title}", _means(curves, measure)]
    parts += ["## Slices needed, means over the volumes that get there", _needed(curves)]
    parts += ["## Slices needed on each volume", _needed_by_volume(curves)]
    parts += ["## Area under the curve: mean Dice over all numbers of slices", _areas(curves)]
    parts += ["## Share of the gap between the best fixed plan and the oracle that is closed", _gaps(curves)]
    parts += [f"## When to stop: every slice left above {curves.target:g}", _stops(curves)]
    parts += ["## Slices taken, in their order", _taken(curves)]
    parts += ["## Seconds per suggestion, after the first", _seconds(curves)]
    parts += ["## Without a result", "\n".join(f"- {line}" for line in failures) or "Every volume has a result."]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _means(curves: Curves, measure: str) -> str:
    """By number of slices; each line over the volumes with room for so many."""
    most = max(step.n for step in curves.steps)
    rows = []
    for n in range(1, most + 1):
        volumes = curves.with_slices(n)
        rows.append([n, len(volumes), *(curves.mean(volumes, name, n, measure) for name in curves.contestants)])
    return common.markdown_table(["slices", "volumes", *curves.contestants], rows)


def _needed(curves: Curves) -> str:
    rows = []
    for name in curves.contestants:
        cells = []
        for level in LEVELS:
            found = [slices_needed(curves.curve(volume, name), level) for volume in curves.volumes]
            reached = [n for n in found if n is not None]
            cells.append(f"{fmean(reached):.1f} ({len(reached)} of {len(found)})" if reached else None)
        rows.append([name, *cells])
    return common.markdown_table(["contestant", *(f"Dice {level:.2f}" for level in LEVELS)], rows)


def _needed_by_volume(curves: Curves) -> str:
    rows = [
        [volume, f"{level:.2f}", *(slices_needed(curves.curve(volume, name), level) for name in curves.contestants)]
        for volume in curves.volumes
        for level in LEVELS
    ]
    return common.markdown_table(["volume", "Dice", *curves.contestants], rows)


def _areas(curves: Curves) -> str:
    rows: list[list[object]] = [[v, *(curves.area(v, name) for name in curves.contestants)] for v in curves.volumes]
    rows.append(["mean", *(curves.mean_area(name) for name in curves.contestants)])
    return common.markdown_table(["volume", *curves.contestants], rows)


def _gaps(curves: Curves) -> str:
    counts = [(n,) for n in CLOSED_AT] + [CLOSED_AT]
    rows = []
    for some in counts:
        found = gap_closed(curves, some)
        name = str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}"
        rows.append(
            [name, len(curves.with_slices(max(some))), *((f"{found[0]:.0%}", found[1]) if found else (None, None))]
        )
    return common.markdown_table(["slices", "volumes", "closed", "best fixed plan"], rows)


def _stops(curves: Curves) -> str:
    """What the product said, and the truth; the last columns tell what it expected when it ended."""
    rows = []
    for volume in curves.volumes:
        steps = curves.steps_of(volume, OURS)
        if steps:
            expected = [step for step in steps if step.expected_dice is not None]
            off = fmean(abs(step.expected_dice - step.dice) for step in expected) if expected else None
            last = steps[-1]
            rows.append([volume, *curves.moments(volume), last.n, last.worst_dice, last.dice, last.expected_dice, off])
    header = ["volume", "said after", "true after", "slices at the end", "worst slice then", "Dice then"]
    return common.markdown_table([*header, "expected Dice then", "expected is off by, mean"], rows)


def _taken(curves: Curves) -> str:
    names = [name for name in (OURS, ORACLE) if name in curves.contestants]
    rows = [[v, *(_listed(curves.steps_of(v, name)) for name in names)] for v in curves.volumes]
    return common.markdown_table(["volume", *names], rows)


def _listed(steps: Sequence[Step]) -> str:
    return " ".join(str(step.taken) for step in steps)


def _seconds(curves: Curves) -> str:
    rows = []
    for volume in curves.volumes:
        steps = curves.steps_of(volume, OURS)
        seconds = asked_s(steps)
        if seconds:
            first = steps[0]
            rows.append([volume, first.shape, first.n_labels, f"{median(seconds):.2f}", f"{max(seconds):.2f}"])
    return common.markdown_table(["volume", "shape", "labels", "median", "longest"], rows)
