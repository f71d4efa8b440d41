"""Pieces of results: what a preview of a few slices replaces in a propagation of the whole volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.napari_plugin.backend import Result


def patched(whole: Result, part: Result, first: int, last: int) -> Result:
    """A propagation with some of its slices in place of what was there; which slice is next is not known any more.

    Args:
        whole: what is shown now.
        part: of the slices from `first` to `last` alone, which it counts from 0, along the same axis.
        first: slice of the whole.
        last: slice of the whole, included.
    """
    axis = whole.report["slice_axis"]

    def put(before: NDArray[Any], now: NDArray[Any]) -> NDArray[Any]:
        array = before.copy()
        np.moveaxis(array, axis, 0)[first : last + 1] = np.moveaxis(now, axis, 0)
        return array

    quality = _quality(whole.report["quality"], part.report["quality"], range(first, last + 1))
    return replace(
        whole,
        labels=put(whole.labels, part.labels),
        from_lower=put(whole.from_lower, part.from_lower),
        from_upper=put(whole.from_upper, part.from_upper),
        uncertainty=put(whole.uncertainty, part.uncertainty),
        report={**whole.report, "quality": quality, "suggestion": None},
    )


def _quality(whole: dict[str, Any], part: dict[str, Any], window: range) -> dict[str, Any]:
    """Estimates of the slices in the window from the part, of the others as they were, of the volume no more."""
    found = {}
    for value in sorted(whole.keys() | part.keys(), key=int):
        before = whole.get(value, {}).get("slices", {})
        now = part.get(value, {}).get("slices", {})
        kept = {s: dice for s, dice in before.items() if int(s) not in window}
        found[value] = {"dice": None, "slices": kept | {str(int(s) + window.start): dice for s, dice in now.items()}}
    return found
