"""Where annotated slices lie, on known answers."""

from __future__ import annotations

import numpy as np
import pytest

from placements import annotated_slices

SCAN = np.zeros((24, 4, 4))
LABELLED = (5, 14)


@pytest.mark.parametrize(
    ("placement", "amount", "expected"),
    [
        ("ends", "3", [5, 10, 14]),
        ("ends", "2", [5, 14]),
        ("centres", "2", [7, 12]),
        ("centres", "5", [6, 8, 10, 12, 14]),
        ("keep_n", "3", [5, 8, 11]),
        ("keep_n", "50%", list(range(0, 24, 2))),
        ("keep_n", "33%", list(range(0, 24, 3))),
        ("keep_n", "20%", [0, 5, 10, 15, 20]),
        ("keep_n", "12.5%", [0, 8, 16]),
        ("ends", "12.5%", [0, 12, 23]),
    ],
)
def test_known_places(placement: str, amount: str, expected: list[int]) -> None:
    assert annotated_slices(SCAN, LABELLED, placement, amount) == expected


def test_random_slices_repeat_with_their_seed_and_stay_in_range() -> None:
    chosen = [annotated_slices(SCAN, LABELLED, "random", "6", seed) for seed in range(20)]
    assert chosen[3] == annotated_slices(SCAN, LABELLED, "random", "6", 3)
    assert all(len(slices) == 6 and slices == sorted(slices) for slices in chosen)
    assert {s for slices in chosen for s in slices} == set(range(5, 15))
    assert len(annotated_slices(SCAN, LABELLED, "random", "50%")) == 12


def test_more_slices_than_there_are_give_them_all() -> None:
    for placement in ("ends", "centres", "keep_n", "random"):
        assert annotated_slices(SCAN, LABELLED, placement, "40") == list(range(5, 15))
