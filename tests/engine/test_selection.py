"""Suggestions on error profiles with an obvious answer."""

import numpy as np
import pytest

from sliceprop.engine.filling import Filled
from sliceprop.engine.quality import Quality, estimate_quality
from sliceprop.engine.selection import choose_slices, first_slices
from sliceprop.labels import sparse_labels


def quality(dice: np.ndarray, size_px: float) -> Quality:
    return Quality(dice, np.zeros_like(dice), np.full(dice.shape, size_px))


def filled(labels: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Filled:
    return Filled(labels, lower, upper, np.zeros(labels.shape, np.float32))


def test_the_middle_of_the_wider_gap_comes_first() -> None:
    dice = np.full((1, 21), 0.8)
    dice[0, [0, 6, 20]] = 1
    choices = choose_slices(quality(dice, 100.0), {0, 6, 20}, 2)
    assert choices[0].index == 13
    assert 0 < choices[1].gain < choices[0].gain


def test_a_bad_label_attracts_more_than_a_good_one() -> None:
    dice = np.full((2, 21), 0.98)
    dice[1, 3:6] = 0.2
    dice[:, [0, 10, 20]] = 1
    best = choose_slices(quality(dice, 50.0), {0, 10, 20}, 1)[0]
    assert 2 <= best.index <= 6
    assert best.label == 1


def test_labels_that_gain_next_to_nothing_are_not_concerned() -> None:
    dice = np.full((4, 21), 1.0)
    dice[1, 3:8], dice[3, 3:8], dice[0, 3:8] = 0.5, 0.2, 0.99
    assert choose_slices(quality(dice, 50.0), {0, 10, 20}, 1)[0].labels == (3, 1)


def test_annotated_slices_are_never_chosen_and_no_slice_twice() -> None:
    dice, annotated = np.full((1, 8), 0.5), {1, 4}
    chosen = [c.index for c in choose_slices(quality(dice, 1.0), annotated, 99)]
    assert sorted(chosen) == [0, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(("n_slices", "n"), [(30, 1), (30, 3), (7, 7), (5, 9), (2, 1)])
def test_first_slices_are_distinct_and_central_first(n_slices: int, n: int) -> None:
    slices = np.random.default_rng(0).random((n_slices, 16, 16)).astype(np.float32)
    plan = first_slices(slices, n)
    assert len(plan) == len(set(plan)) == min(n, n_slices)
    assert abs(plan[0] - n_slices / 2) <= n_slices / 4 + 1


def test_first_slices_skip_empty_ends() -> None:
    slices = np.zeros((30, 16, 16), np.float32)
    slices[20:] = np.random.default_rng(0).random((10, 16, 16))
    assert 23 <= first_slices(slices, 1)[0] <= 26


def test_expected_dice_is_one_where_known_and_falls_with_disagreement() -> None:
    labels = np.zeros((5, 40, 40), np.int32)
    labels[:, 10:30, 10:30] = 2
    sparse = labels.copy()
    sparse[1:4] = 0
    agree = estimate_quality(sparse_labels(sparse), filled(labels, labels, labels))
    moved = np.roll(labels, 6, axis=2)
    differ = estimate_quality(sparse_labels(sparse), filled(labels, labels, moved))
    assert (agree.dice[0, [0, 4]] == 1).all()
    assert (differ.dice[0, 1:4] < agree.dice[0, 1:4] - 0.05).all()
    assert agree.label_dice(0) > differ.label_dice(0)


def test_without_any_gain_the_furthest_slice_is_chosen() -> None:
    nowhere = quality(np.full((1, 12), np.nan), 0.0)
    best = choose_slices(nowhere, {3, 11}, 1)[0]
    assert (best.index, best.label, best.labels) == (7, None, ())


def test_short_labels_send_the_next_slice_into_the_stretch_without_annotation() -> None:
    n_slices, annotated = 41, {5, 10}
    dice, size = np.full((2, n_slices), np.nan), np.zeros((2, n_slices))
    for k, middle in enumerate((5, 10)):
        dice[k, middle - 2 : middle + 3], size[k, middle - 2 : middle + 3] = 0.9, 100.0
        dice[k, list(annotated)] = 1
    best = choose_slices(Quality(dice, np.zeros_like(dice), size), annotated, 1)[0]
    assert 15 <= best.index <= 36
    assert best.explores and best.finds > 0.1


def test_a_label_in_need_comes_before_what_may_be_found() -> None:
    n_slices, annotated = 41, {5, 30}
    dice, size = np.full((2, n_slices), 0.3), np.full((2, n_slices), 100.0)
    dice[:, list(annotated)] = 1
    best = choose_slices(Quality(dice, np.zeros_like(dice), size), annotated, 1)[0]
    assert not best.explores and best.label is not None


def with_one_label_on(first: int, last: int, annotated: set[int], n_slices: int) -> Quality:
    dice, size = np.full((1, n_slices), np.nan), np.zeros((1, n_slices))
    dice[0, first : last + 1], size[0, first : last + 1] = 0.99, 100.0
    dice[0, list(annotated)] = 1
    return Quality(dice, np.zeros_like(dice), size)


def test_a_label_may_go_on_where_the_result_ends_it() -> None:
    annotated = {10, 20}
    best = choose_slices(with_one_label_on(5, 22, annotated, 60), annotated, 1)[0]
    assert best.index > 22
    assert (best.label, best.dice) == (0, None)


def test_a_label_does_not_go_on_behind_a_slice_that_lacks_it() -> None:
    annotated = {3, 10, 20, 24}
    choices = choose_slices(with_one_label_on(5, 22, annotated, 60), annotated, 12)
    assert all(3 < choice.index < 24 for choice in choices)
