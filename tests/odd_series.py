"""DICOM series that are no volume: how to spoil the headers of one that is, and how the refusal says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def turn(dataset: Any, index: int) -> None:
    if index % 3:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def repeat(dataset: Any, index: int) -> None:
    dataset.ImagePositionPatient = [0, 0, 4 * (index // 2)]


def leave_gap(dataset: Any, index: int) -> None:
    dataset.ImagePositionPatient = [0, 0, 4 * (index + 2 * (index > 5))]


def space_unequally(dataset: Any, index: int) -> None:
    dataset.ImagePositionPatient = [0, 0, 4 * index + index**2 / 4]


ODD: dict[str, tuple[Callable[[Any, int], None], str]] = {
    "localiser": (turn, "orientations"),
    "time series": (repeat, "time points"),
    "gap": (leave_gap, "missing"),
    "unequal": (space_unequally, "unequally"),
}
"""By name: what to do to the header of each slice, and a word of the refusal."""
