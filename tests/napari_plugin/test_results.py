"""A preview of a few slices takes the place of those slices, and of nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sliceprop.napari_plugin.backend import Result
from sliceprop.napari_plugin.results import patched


def result(value: int, shape: tuple[int, ...], axis: int, slices: dict[str, float]) -> Result:
    labels = np.full(shape, value, np.uint16)
    quality: dict[str, Any] = {"3": {"dice": 0.9, "slices": slices}}
    report = {"slice_axis": axis, "quality": quality, "suggestion": {"slice": 1}, "trained": True}
    return Result(labels, labels + 1, labels + 2, labels / np.float32(10), report)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_replaced(axis: int) -> None:
    part_shape = [6, 6, 6]
    part_shape[axis] = 3
    whole = result(1, (6, 6, 6), axis, {"1": 0.5, "2": 0.6, "5": 0.7})
    new = patched(whole, result(5, tuple(part_shape), axis, {"0": 0.8, "2": 0.9}), 2, 4)
    for array, before in ((new.labels, 1), (new.from_lower, 2), (new.from_upper, 3), (new.uncertainty * 10, 1)):
        planes = np.moveaxis(array, axis, 0).round().astype(int)
        assert (planes[[0, 1, 5]] == before).all() and (planes[2:5] == before + 4).all()
    assert new.report["quality"]["3"] == {"dice": None, "slices": {"1": 0.5, "5": 0.7, "2": 0.8, "4": 0.9}}
    assert new.report["suggestion"] is None and new.report["trained"]
    assert (whole.labels == 1).all()
