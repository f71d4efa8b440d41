"""Which slices are annotated: one function per rule, by name in `PLACEMENTS`.

Two ways of asking for them. A *number* of slices is placed within the labelled range, as a user would who looks where
the structures are. A *percentage* is of all slices of the volume, empty ones included, as in Payer et al.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Wanted:
    """What a rule has to choose from.

    Attributes:
        slices: the scan `(S, H, W)`.
        first: first slice that may be chosen.
        last: last slice that may be chosen.
        count: how many.
        seed: for rules that draw at random.
        every: `n` where every n-th slice was asked for, else None.
    """

    slices: NDArray[Any]
    first: int
    last: int
    count: int
    seed: int = 0
    every: int | None = None

    @property
    def length(self) -> int:
        """Slices to choose from."""
        return self.last - self.first + 1


def annotated_slices(
    slices: NDArray[Any], labelled_range: tuple[int, int], placement: str, amount: str, seed: int = 0
) -> list[int]:
    """Slices to annotate, ascending.

    Args:
        slices: the scan `(S, H, W)`.
        labelled_range: first and last slice that holds a label.
        placement: one of `PLACEMENTS`.
        amount: `5` slices of the labelled range, or `20%` of all slices.
        seed: for `random`.
    """
    if amount.endswith("%"):
        share, n_slices = float(amount[:-1]) / 100, len(slices)
        count, every = max(1, round(share * n_slices)), max(1, round(1 / share))
        wanted = Wanted(slices, 0, n_slices - 1, count, seed, every)
    else:
        wanted = Wanted(slices, *labelled_range, int(amount), seed)
    return sorted({int(s) for s in np.round(list(PLACEMENTS[placement](wanted)))})


def _ends(wanted: Wanted) -> Iterable[float]:
    """Evenly from the first to the last slice, both included."""
    return np.linspace(wanted.first, wanted.last, wanted.count)


def _centres(wanted: Wanted) -> Iterable[float]:
    """The middles of equal bins."""
    return wanted.first - 0.5 + (np.arange(wanted.count) + 0.5) * wanted.length / wanted.count


def _keep_n(wanted: Wanted) -> Iterable[float]:
    """Every n-th slice, from the first on; for a number of slices the largest n that gives as many."""
    every = wanted.every or max(1, wanted.length // wanted.count)
    chosen = np.arange(wanted.first, wanted.last + 1, every)
    return chosen if wanted.every else chosen[: wanted.count]


def _random(wanted: Wanted) -> Iterable[float]:
    """Drawn without replacement."""
    return wanted.first + np.random.default_rng(wanted.seed).permutation(wanted.length)[: wanted.count]


PLACEMENTS: dict[str, Callable[[Wanted], Iterable[float]]] = {
    "ends": _ends,
    "centres": _centres,
    "keep_n": _keep_n,
    "random": _random,
}
