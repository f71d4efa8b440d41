"""The goals of the project, and what a table of results says about each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

from methods import CLASSICAL, kind_of
from table import Row

OURS = "auto"
NEVER_WORSE = 0.005
CLEARLY_BETTER = 0.4
YARDSTICK = "29x400x400", 4
YARDSTICK_S = 60.0
YARDSTICK_MIB = 3 * 1024
LABELPROP_GAIN = 0.02
LABELPROP_TIMES = 100.0

Case = tuple[Any, ...]
Goal = tuple[str, str, str, str]
"""Goal, wanted, reached, met."""


def table(rows: Sequence[Row]) -> list[Goal]:
    """All goals that these rows can speak of; the others as not measured."""
    return [
        never_worse(rows),
        clearly_better(rows),
        *against_labelprop(rows),
        *against_networks(rows),
        *yardstick(rows),
    ]


def never_worse(rows: Iterable[Row]) -> Goal:
    """The largest deficit to the best classical method in one case."""
    margins = {case: ours.dice - max(r.dice for r in others) for case, ours, others in against(rows, CLASSICAL)}
    name, wanted = "never worse than the best classical method", f"no case below -{NEVER_WORSE}"
    if not margins:
        return name, wanted, "not measured", "-"
    worst = min(margins, key=margins.__getitem__)
    below = sum(margin < -NEVER_WORSE for margin in margins.values())
    reached = f"worst {margins[worst]:+.3f} ({', '.join(_words(worst))}); {below} of {len(margins)} cases below"
    return name, wanted, reached, yes(below == 0)


def clearly_better(rows: Iterable[Row]) -> Goal:
    """Mean error 1 - Dice against the classical method with the lowest one, over the same cases."""
    name, wanted = "clearly better: mean error below the best classical one's", f"{CLEARLY_BETTER:.0%}"
    found = [found for found in against(rows, CLASSICAL) if len(found[2]) == len(CLASSICAL)]
    if not found:
        return name, wanted, "not measured", "-"
    ours = 1 - fmean(row.dice for _, row, _ in found)
    errors = {m: 1 - fmean(r.dice for _, _, others in found for r in others if r.method == m) for m in CLASSICAL}
    best = min(errors, key=errors.__getitem__)
    reached = 1 - ours / errors[best]
    return name, wanted, f"{reached:.1%} ({ours:.3f}, {best} {errors[best]:.3f})", yes(reached >= CLEARLY_BETTER)


def against_labelprop(rows: Sequence[Row]) -> Iterator[Goal]:
    """Gain in Dice and speed over LabelProp's own code."""
    gain_name, speed_name = "Dice above LabelProp's own code", "faster than LabelProp's own code"
    wanted = f"{LABELPROP_GAIN:+.2f}", f"{LABELPROP_TIMES:g} times"
    found = [pair for name in _named(rows, "deep-labelprop") for pair in against(rows, (name,))]
    if not found:
        yield gain_name, wanted[0], "not measured", "-"
        yield speed_name, wanted[1], "not measured", "-"
        return
    gain = fmean(ours.dice - others[0].dice for _, ours, others in found)
    timed = [(ours.total_s, others[0].total_s) for _, ours, others in found if others[0].total_s is not None]
    times = sum(theirs for _, theirs in timed) / sum(own for own, _ in timed)
    yield gain_name, wanted[0], f"{gain:+.3f} over {len(found)} cases", yes(gain >= LABELPROP_GAIN)
    yield speed_name, wanted[1], f"{times:.0f} times over {len(timed)} cases", yes(times >= LABELPROP_TIMES)


def against_networks(rows: Sequence[Row]) -> Iterator[Goal]:
    """Gain over each overfitted network, at the amount where it is smallest."""
    for name in _named(rows, "unet", "deeplabv3plus", "manet"):
        gains: dict[str, list[float]] = {}
        for case, ours, others in against(rows, (name,)):
            gains.setdefault(case[-1], []).append(ours.dice - others[0].dice)
        if gains:
            means = {amount: fmean(values) for amount, values in gains.items()}
            least = min(means, key=means.__getitem__)
            reached = f"least {means[least]:+.3f} at {least}, of {', '.join(means)}"
            yield f"above the overfitted {name} at every amount", "> 0", reached, yes(means[least] > 0)


def yardstick(rows: Iterable[Row]) -> Iterator[Goal]:
    """Time and memory of the largest common study, at worst."""
    found = [row for row in rows if row.ok and row.method == OURS and (row.shape, row.n_labels) == YARDSTICK]
    name = f"{YARDSTICK[0]} with {YARDSTICK[1]} labels"
    if not found:
        yield f"time, {name}", f"{YARDSTICK_S:g} s", "not measured", "-"
        return
    seconds, mib = max(row.total_s or 0 for row in found), max(row.peak_mib or 0 for row in found)
    yield f"time, {name}", f"{YARDSTICK_S:g} s", f"{seconds:.1f} s at most", yes(seconds <= YARDSTICK_S)
    yield f"memory, {name}", f"{YARDSTICK_MIB} MiB", f"{mib:.0f} MiB at most", yes(mib <= YARDSTICK_MIB)


def against(rows: Iterable[Row], methods: Sequence[str]) -> list[tuple[Case, Any, list[Any]]]:
    """Cases with a result of ours and of at least one of these methods: the case, our row, theirs."""
    cases: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row.ok:
            cases.setdefault(row.case, {})[row.method] = row
    return [
        (case, found[OURS], others)
        for case, found in cases.items()
        if OURS in found and (others := [found[name] for name in methods if name in found])
    ]


def _named(rows: Iterable[Row], *kinds: str) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows if kind_of(row.method) in kinds))


def _words(case: Case) -> tuple[str, str, str]:
    _, volume, *_, placement, amount = case
    return volume, placement, amount


def yes(met: bool) -> str:
    """Whether a goal is met, as its last entry."""
    return "yes" if met else "no"
