"""Dice against the number of annotated slices: what the curves of all contestants say, and the goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from contestants import CONTESTANTS, FIXED, ORACLE, OURS, Step
from goals import YARDSTICK, Goal, yes

LEVELS = (0.85, 0.90, 0.95)
FEWER = 0.2
"""Slices that are to be saved, share."""

CLOSED = 0.5
"""Of the gap between the best fixed plan and the oracle."""

CLOSED_AT = (3, 4, 5, 6)
NEAR = 1
"""Slices between `stop` and the moment when it is true."""

SUGGEST_S = 2.0
NOT_MEASURED = "not measured", "-"

Curve = list[float]
"""After 1, 2, 3, ... slices."""


@dataclass(frozen=True)
class Curves:
    """Steps by volume and contestant; one that was run with several seeds counts with the mean over them.

    Attributes:
        steps: of all volumes.
        target: Dice above which a slice needs no annotation.
    """

    steps: Sequence[Step]
    target: float

    @cached_property
    def volumes(self) -> list[str]:
        """Names, sorted."""
        return sorted({step.volume for step in self.steps})

    @cached_property
    def contestants(self) -> list[str]:
        """Those that were run, in the order of the tables."""
        found = {step.contestant for step in self.steps}
        return [name for name in CONTESTANTS if name in found]

    @property
    def fixed(self) -> list[str]:
        """The plans among them."""
        return [name for name in self.contestants if name in FIXED]

    @cached_property
    def _found(self) -> dict[tuple[str, str], dict[int, list[Step]]]:
        found: dict[tuple[str, str], dict[int, list[Step]]] = {}
        for step in self.steps:
            found.setdefault((step.volume, step.contestant), {}).setdefault(step.n, []).append(step)
        return found

    def steps_of(self, volume: str, contestant: str) -> list[Step]:
        """All seeds, by number of slices."""
        by_n = self._found.get((volume, contestant), {})
        return [step for n in sorted(by_n) for step in by_n[n]]

    def curve(self, volume: str, contestant: str) -> Curve:
        """Dice over the whole volume; empty if it was not run."""
        by_n = self._found.get((volume, contestant), {})
        return [fmean(step.dice for step in by_n[n]) for n in sorted(by_n)]

    def mean(self, volumes: Sequence[str], contestant: str, n: int, measure: str = "dice") -> float | None:
        """Of a measure after `n` slices over these volumes, those for which it has no meaning left out."""
        means = []
        for volume in volumes:
            values = [getattr(step, measure) for step in self._found.get((volume, contestant), {}).get(n, ())]
            known = [value for value in values if value is not None]
            means += [fmean(known)] if known else []
        return fmean(means) if means else None

    def with_slices(self, n: int) -> list[str]:
        """Volumes that have room for `n` slices."""
        return [v for v in self.volumes if any(step.n >= n for step in self.steps if step.volume == v)]

    def area(self, volume: str, contestant: str) -> float | None:
        """Mean height of the curve."""
        curve = self.curve(volume, contestant)
        return fmean(curve) if curve else None

    def mean_area(self, contestant: str) -> float:
        """Over the volumes."""
        return fmean(fmean(curve) for volume in self.volumes if (curve := self.curve(volume, contestant)))

    def moments(self, volume: str) -> tuple[int | None, int | None]:
        """Slices after which the product said stop, and after which that was first true; None for neither so far."""
        steps = self.steps_of(volume, OURS)
        said = next((step.n for step in steps if step.stop), None)
        return said, next((step.n for step in steps if is_enough(step, self.target)), None)


def is_enough(step: Step, target: float) -> bool:
    """Whether every label is above the target on all slices left; as for the product, never after one slice alone."""
    return step.n > 1 and (step.worst_dice is None or step.worst_dice >= target)


def slices_needed(curve: Curve, level: float) -> int | None:
    """The first number of slices at which the curve is at this level; None if it never is."""
    return next((n for n, dice in enumerate(curve, start=1) if dice >= level), None)


def cost(curve: Curve, level: float) -> int:
    """The same; one slice more than there are where the level is not reached."""
    return slices_needed(curve, level) or len(curve) + 1


def cheapest(curves: Curves, level: float) -> str | None:
    """The fixed plan that needs fewest slices, on average over the volumes."""
    costs = {plan: fmean(cost(curves.curve(v, plan), level) for v in curves.volumes) for plan in curves.fixed}
    return min(costs, key=costs.__getitem__, default=None)


def gap_closed(curves: Curves, counts: Sequence[int] = CLOSED_AT) -> tuple[float, str] | None:
    """Of the gap between the best fixed plan and the oracle, the share that is closed, all counts together.

    Returns:
        the share and the plan, over the volumes with room for all counts; None without a gap or somebody to compare.
    """
    volumes = curves.with_slices(max(counts))
    if not volumes or not curves.fixed or not {OURS, ORACLE} <= set(curves.contestants):
        return None
    height = {
        name: fmean(curves.mean(volumes, name, n) or 0.0 for n in counts) for name in (*curves.fixed, OURS, ORACLE)
    }
    plan = max(curves.fixed, key=height.__getitem__)
    gap = height[ORACLE] - height[plan]
    return ((height[OURS] - height[plan]) / gap, plan) if gap > 0 else None


def goals(curves: Curves) -> list[Goal]:
    """Goal, wanted, reached, met; those that the steps say nothing about as not measured."""
    needed = [goal for level in LEVELS for goal in _slices_needed(curves, level)]
    return [*needed, _area(curves), _gap(curves), _stop(curves), _speed(curves)]


def _slices_needed(curves: Curves, level: float) -> list[Goal]:
    names = f"fewer slices to Dice {level:.2f} than the best fixed plan", f"Dice {level:.2f} on no volume later"
    wanted = f"{FEWER:.0%}", "0 volumes"
    plan = cheapest(curves, level)
    if plan is None or OURS not in curves.contestants:
        return [(name, what, *NOT_MEASURED) for name, what in zip(names, wanted, strict=True)]
    found = {v: (curves.curve(v, OURS), curves.curve(v, plan)) for v in curves.volumes}
    needed = [(slices_needed(ours, level), slices_needed(theirs, level)) for ours, theirs in found.values()]
    pairs = [(ours, theirs) for ours, theirs in needed if ours is not None and theirs is not None]
    later = [volume for volume, (ours, theirs) in found.items() if cost(ours, level) > cost(theirs, level)]
    reached = sum(pair != (None, None) for pair in needed)
    return [
        (names[0], wanted[0], *_saved(pairs, plan)),
        (names[1], wanted[1], *_later(later, plan, reached)),
    ]


def _saved(pairs: Sequence[tuple[int, int]], plan: str) -> tuple[str, str]:
    if not pairs:
        return "not reached by both on any volume", "-"
    ours, theirs = (fmean(column) for column in zip(*pairs, strict=True))
    saved = 1 - ours / theirs
    return f"{saved:.0%}: {ours:.1f}, {plan} {theirs:.1f}; {len(pairs)} volumes where both do", yes(saved >= FEWER)


def _later(volumes: Sequence[str], plan: str, of: int) -> tuple[str, str]:
    if not of:
        return "not reached by either on any volume", "-"
    names = f": {', '.join(volumes)}" if volumes else ""
    return f"{len(volumes)} of {of} later than {plan}{names}", yes(not volumes)


def _area(curves: Curves) -> Goal:
    name, wanted = "area under the curve above every fixed plan", "> 0"
    if not curves.fixed or OURS not in curves.contestants:
        return name, wanted, *NOT_MEASURED
    margins = {plan: curves.mean_area(OURS) - curves.mean_area(plan) for plan in curves.fixed}
    least = min(margins, key=margins.__getitem__)
    return name, wanted, f"least {margins[least]:+.4f}, over {least}", yes(margins[least] > 0)


def _gap(curves: Curves) -> Goal:
    name = f"gap between the best fixed plan and the oracle closed at {CLOSED_AT[0]} to {CLOSED_AT[-1]} slices"
    found = gap_closed(curves)
    if found is None:
        return name, f"{CLOSED:.0%}", *NOT_MEASURED
    share, plan = found
    return name, f"{CLOSED:.0%}", f"{share:.0%}; the best is {plan}", yes(share >= CLOSED)


def _stop(curves: Curves) -> Goal:
    name, wanted = f"stop within {NEAR} slice of the true moment", "most volumes"
    if OURS not in curves.contestants:
        return name, wanted, *NOT_MEASURED
    moments = [curves.moments(volume) for volume in curves.volumes]
    judged = [(said, true) for said, true in moments if said is not None or true is not None]
    if not judged:
        return name, wanted, "neither came on any volume", "-"
    right = sum(said is not None and true is not None and abs(said - true) <= NEAR for said, true in judged)
    open_ones = f"; on {len(moments) - len(judged)} neither came" if len(judged) < len(moments) else ""
    return name, wanted, f"{right} of {len(judged)} where one came{open_ones}", yes(2 * right > len(judged))


def _speed(curves: Curves) -> Goal:
    name, wanted = f"seconds per suggestion, {YARDSTICK[0]}", f"{SUGGEST_S:g} s"
    seconds = [s for step in curves.steps if step.shape == YARDSTICK[0] for s in asked_s([step])]
    if not seconds:
        return name, wanted, *NOT_MEASURED
    return name, wanted, f"median {median(seconds):.2f} s of {len(seconds)}", yes(median(seconds) <= SUGGEST_S)


def asked_s(steps: Sequence[Step]) -> list[float]:
    """Seconds of the suggestions after the first one, which has nothing to propagate."""
    return [step.suggest_s for step in steps if step.suggest_s is not None and step.n > 1]
