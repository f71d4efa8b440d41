"""On which slices a label exists: where it ends between two annotated slices, and beyond the outermost one."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sliceprop.engine.propagation import Carrier

LEAST_RESEMBLANCE = 0.3
"""Beyond the outermost annotated slice a label goes on while the mean squared local correlation around it, between the
annotated slice carried there and the slice itself, stays above this: the level at which, over ten volumes of MRI and
CT, a carried label overlaps the true one as often as not (a single threshold told 82 % of the slices right)."""

DOUBTFUL_RESEMBLANCE = 0.15
"""Down to this a label that has likely ended is still looked for."""

RESEMBLANCE_PULL = 0.5
"""How far the better-looking side moves the end of a label away from half-way, as a share of the interval, where one
annotated slice resembles the slice perfectly and the other not at all."""


def supported_slices(
    carrier: Carrier, known: NDArray[np.bool_], extrapolate: Literal["auto", "none"] | int
) -> NDArray[np.bool_]:
    """Slices on which each label may appear, `(K, S)`.

    Between two slices that hold a label it always may. Where one of them is known not to hold it, it ends about
    half-way, nearer to the side that resembles the slices less, and does not come back. Beyond the outermost slice it
    follows `extrapolate`, and always reaches the label's own scribbles.

    Args:
        carrier: carries labels and images.
        known: `(K, S)`.
        extrapolate: `none`, a number of slices, or `auto`.
    """
    holds = _holds(carrier, known)
    supported = holds.copy()
    for k in range(len(known)):
        for low, up in pairwise(np.flatnonzero(known[k]).tolist()):
            if holds[k, low] and holds[k, up]:
                supported[k, low:up] = True
            elif holds[k, low] or holds[k, up]:
                present, missing = (low, up) if holds[k, low] else (up, low)
                way = range(present, missing, 1 if present < missing else -1)
                alive = takewhile(partial(_before_end, carrier, k, present, missing), way)
                supported[k, list(alive)] = True
        for outermost, beyond in _open_sides(known[k], holds[k]):
            supported[k, list(takewhile(partial(_goes_on, carrier, k, outermost, extrapolate), beyond))] = True
            supported[k, beyond[: _furthest_scribble(carrier, k, beyond)]] = True
    return supported


def possible_slices(
    carrier: Carrier, known: NDArray[np.bool_], supported: NDArray[np.bool_], extrapolate: Literal["auto", "none"] | int
) -> NDArray[np.bool_]:
    """Slices on which each label may turn out to exist, `(K, S)`: the supported ones and doubtful ones beyond the end.

    Args:
        carrier: carries labels and images.
        known: `(K, S)`.
        supported: `(K, S)`, from `supported_slices`.
        extrapolate: beyond the outermost slice only `auto` leaves doubt.
    """
    holds = _holds(carrier, known)
    possible = supported.copy()
    for k in range(len(known)):
        for low, up in pairwise(np.flatnonzero(known[k]).tolist()):
            possible[k, low:up] |= holds[k, low] | holds[k, up]
        for outermost, beyond in _open_sides(known[k], holds[k]) if extrapolate == "auto" else []:
            way = takewhile(partial(_resembles, carrier, k, outermost, DOUBTFUL_RESEMBLANCE), beyond)
            possible[k, list(way)] = True
    return possible & ~known


def _holds(carrier: Carrier, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    holds = np.zeros_like(known)
    for s in np.flatnonzero(known.any(axis=0)):
        holds[:, s] = known[:, s] & np.isin(carrier.annotation.values, carrier.annotation.labels[s])
    return holds


def _before_end(carrier: Carrier, k: int, present: int, missing: int, index: int) -> bool:
    """Whether a label that `present` holds and `missing` does not still exists on slice `index` between them."""
    pull = carrier.resemblance(k, present, present, index) - carrier.resemblance(k, missing, present, index)
    return abs(index - present) / abs(missing - present) <= 0.5 + RESEMBLANCE_PULL * pull


def _open_sides(known: NDArray[np.bool_], holds: NDArray[np.bool_]) -> list[tuple[int, list[int]]]:
    """Outermost known slice with the slices beyond it, nearest first, on each side where it holds the label."""
    slices = np.flatnonzero(known)
    if slices.size == 0:
        return []
    first, last = int(slices[0]), int(slices[-1])
    sides = [(first, list(range(first - 1, -1, -1))), (last, list(range(last + 1, len(known))))]
    return [side for side in sides if holds[side[0]]]


def _goes_on(carrier: Carrier, k: int, outermost: int, extrapolate: Literal["auto", "none"] | int, index: int) -> bool:
    """Whether a label still exists on slice `index` beyond the outermost slice on which it is known."""
    if extrapolate == "none":
        return False
    if extrapolate == "auto":
        return _resembles(carrier, k, outermost, LEAST_RESEMBLANCE, index)
    return abs(index - outermost) <= int(extrapolate)


def _resembles(carrier: Carrier, k: int, outermost: int, least: float, index: int) -> bool:
    return carrier.resemblance(k, outermost, outermost, index) >= least


def _furthest_scribble(carrier: Carrier, k: int, beyond: list[int]) -> int:
    """Number of slices beyond the outermost one up to the last that holds a scribble of the label."""
    marks = carrier.annotation.scribbles
    if marks is None:
        return 0
    reached = [i + 1 for i, s in enumerate(beyond) if (marks[s] == carrier.annotation.values[k]).any()]
    return max(reached, default=0)
