"""Who says which slices are annotated: the product, plans made before anything is annotated, and a greedy oracle.

`next_slice` sees the whole volume and is never told where labels are. All others get the labelled range, which a user
finds by scrolling: that favours them, so what is won against them is won. `centres-volume` and `keep_n-volume` are
placed in the whole volume instead, and show what the range is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from annotating import Session, Slices
from placements import annotated_slices
from sliceprop.config import PLANS

OURS = "next_slice"
ORACLE = "oracle"
FIXED: tuple[str, ...] = PLANS
"""Plans within the labelled range, made anew for every number of slices."""

DRAWN = 10
"""Seeds of `random`."""

CLUSTERED = 3
"""Seeds of the plans that draw from clusters."""

CANDIDATES = 24
"""Slices that the oracle tries in a step, at most: evenly spread over those that are left."""


@dataclass(frozen=True)
class Step:
    """A volume after so many annotated slices.

    Attributes:
        volume: its name.
        shape: `SxHxW`.
        n_labels: in the reference.
        contestant: who chose.
        seed: of what is drawn.
        n: annotated slices.
        annotated: which, separated by spaces.
        taken: the slice that joined those before; None where a plan was made anew and gave some up.
        dice: mean over the labels, whole volume, annotated slices included.
        dice_rest: the same over the slices of the labelled range that were not annotated.
        average_hausdorff_mm: whole volume, mean over the labels that are not lost.
        lost_labels: labels of the reference that the result lacks.
        worst_dice: lowest Dice of a label on a slice that was not annotated, tips left out.
        expected_dice: what the product expects of the labels known so far; of `next_slice` only, like what follows.
        stop: whether the product says that this is enough.
        suggest_s: seconds to suggest the slice taken.
    """

    volume: str
    shape: str
    n_labels: int
    contestant: str
    seed: int
    n: int
    annotated: str
    taken: int | None
    dice: float
    dice_rest: float | None
    average_hausdorff_mm: float | None
    lost_labels: int
    worst_dice: float | None
    expected_dice: float | None = None
    stop: bool | None = None
    suggest_s: float | None = None

    @property
    def slices(self) -> Slices:
        """Those annotated, ascending."""
        return tuple(int(s) for s in self.annotated.split())


Choose = Callable[[Session, int, Slices, int], Slices]
"""`n` slices, from the session, `n`, those annotated so far, and a seed."""


@dataclass(frozen=True)
class Contestant:
    """A way to choose slices.

    Attributes:
        choose: the slices to have annotated.
        seeds: how often it is run.
    """

    choose: Choose
    seeds: int = 1


def _suggested(session: Session, _: int, annotated: Slices, __: int) -> Slices:
    """One more, as the product says."""
    following = session.answer(annotated).next_slice
    return annotated if following is None else _joined(annotated, following)


def _started(session: Session, n: int, annotated: Slices, seed: int) -> Slices:
    """The same after a first slice in the middle of the labelled range, where one begins who looks first."""
    return (
        _suggested(session, n, annotated, seed) if annotated else _planned(session, n, annotated, seed, plan="centres")
    )


def _planned(session: Session, n: int, _: Slices, seed: int, *, plan: str, everywhere: bool = False) -> Slices:
    """A plan of `n` slices, whatever is annotated."""
    slices, network = session.case.slices(session.case.image.array), session.model.network()
    bounds = (0, len(slices) - 1) if everywhere else session.case.labelled_range
    return tuple(annotated_slices(slices, bounds, plan, str(n), seed, network))


def _best(session: Session, _: int, annotated: Slices, __: int) -> Slices:
    """One more, the one with the highest true Dice after propagation."""
    first, last = session.case.labelled_range
    left = [s for s in range(first, last + 1) if s not in annotated]
    places = np.unique(np.round(np.linspace(0, len(left) - 1, CANDIDATES)).astype(int))
    tried = [_joined(annotated, left[place]) for place in places]
    return max(tried, key=lambda slices: session.dice(slices, session.oracle))


def _joined(annotated: Slices, index: int) -> Slices:
    return tuple(sorted((*annotated, index)))


_SEEDS = dict.fromkeys(FIXED, CLUSTERED) | {"centres": 1, "keep_n": 1, "random": DRAWN}

CONTESTANTS: dict[str, Contestant] = {
    OURS: Contestant(_suggested),
    f"{OURS}-started": Contestant(_started),
    **{plan: Contestant(partial(_planned, plan=plan), _SEEDS[plan]) for plan in FIXED},
    **{f"{p}-volume": Contestant(partial(_planned, plan=p, everywhere=True)) for p in ("centres", "keep_n")},
    ORACLE: Contestant(_best),
}
"""By name."""


def most_slices(session: Session, most: int) -> int:
    """As many as the labelled range has, `most` at most."""
    first, last = session.case.labelled_range
    return min(most, last - first + 1)


def simulate(
    session: Session, name: str, most: int, seed: int = 0, contestant: Contestant | None = None
) -> Iterator[Step]:
    """Annotate one slice after the other.

    Args:
        session: the volume.
        name: of the contestant.
        most: slices to annotate; fewer where the labelled range has fewer.
        seed: of what is drawn.
        contestant: the one of this name in `CONTESTANTS` without it.

    Raises:
        ValueError: a contestant that names too few slices, or a slice twice.
    """
    contestant, annotated = contestant or CONTESTANTS[name], Slices()
    for n in range(1, most_slices(session, most) + 1):
        chosen = contestant.choose(session, n, annotated, seed)
        if len(set(chosen)) != n or len(chosen) != n:
            raise ValueError(f"{name} chose {chosen} on {session.case.name}, which are not {n} different slices")
        new, annotated = set(chosen) - set(annotated), tuple(sorted(chosen))
        said = session.answer(annotated) if name == OURS else None
        yield Step(
            session.case.name,
            "x".join(map(str, session.reference.shape)),
            session.case.n_labels,
            name,
            seed,
            n,
            " ".join(map(str, annotated)),
            min(new) if len(new) == 1 else None,
            **session.measures(annotated),
            expected_dice=said and said.expected_dice,
            stop=said and said.stop,
        )
