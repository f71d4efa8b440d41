"""Where annotated slices lie, on known answers."""

from __future__ import annotations

import numpy as np
import pytest

from placements import PLACEMENTS, annotated_slices
from sliceprop.engine.network import RegistrationNet

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
    for placement in PLACEMENTS:
        assert annotated_slices(SCAN, LABELLED, placement, "40") == list(range(5, 15))


LOOKING = ("kmeans", "histogram", "ssim", "perceptual")


def scan() -> np.ndarray:
    """Textures change at slice 10, and outside the labelled range nothing is like the slices in it."""
    rng = np.random.default_rng(0)
    slices = np.repeat(rng.normal(size=(2, 1, 12, 12)) * [[[[100]]], [[[300]]]], (10, 14), axis=0)[:, 0]
    slices[:5], slices[15:] = rng.normal(size=(2, 1, 12, 12)) * 1000
    return slices.astype(np.int16)


@pytest.mark.parametrize("placement", LOOKING)
def test_plans_that_look_take_a_slice_of_each_kind_within_the_range(placement: str) -> None:
    for seed in range(5):
        low, high = annotated_slices(scan(), LABELLED, placement, "2", seed)
        assert 5 <= low < 10 <= high <= 14


@pytest.mark.parametrize("placement", LOOKING)
def test_percentages_are_of_all_slices(placement: str) -> None:
    chosen = annotated_slices(scan(), LABELLED, placement, "50%")
    assert len(chosen) == 12 and (min(chosen) < 5 or max(chosen) > 14)


def test_a_network_of_the_scan_can_judge() -> None:
    network = RegistrationNet()
    for block in network.down:
        block[0].bias.data.fill_(1e9)  # blind: draws as if all slices were alike
    seen, unseen = (
        [annotated_slices(scan(), LABELLED, "perceptual", "2", s, n) for s in range(9)] for n in (None, network)
    )
    assert all(low < 10 <= high for low, high in seen) and not all(low < 10 <= high for low, high in unseen)
