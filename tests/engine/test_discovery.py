"""Labels that are still to be found, in scans where they can be counted."""

import numpy as np
import pytest

from sliceprop.engine import discovery
from sliceprop.engine.discovery import undiscovered


@pytest.fixture
def no_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PRIOR_SHARE", 0.0)


def test_nothing_is_hidden_where_every_slice_is_annotated() -> None:
    assert not undiscovered([3, 4], set(range(12)), 12).any()


def test_nothing_is_to_be_found_on_an_annotated_slice() -> None:
    found = undiscovered([2, 5], {4, 9}, 16)
    assert not found[[4, 9]].any()
    assert found[[0, 6, 13]].all()


def test_a_single_label_has_no_other() -> None:
    assert not undiscovered([2], {4}, 30).any()


def test_nothing_is_expected_before_anything_is_found() -> None:
    assert not undiscovered([], {4}, 30).any()


def test_runs_longer_than_a_gap_cannot_hide_in_it(no_prior: None) -> None:
    found = undiscovered([6, 6], {5, 10}, 30)
    assert not found[:10].any()
    assert found[11:].any()


def test_the_middle_of_a_gap_finds_most() -> None:
    found = undiscovered([4, 6, 8], {0, 30}, 31)
    assert found[15] == pytest.approx(found.max())
    np.testing.assert_allclose(found, found[::-1], atol=1e-12)


def test_the_number_found_is_right_on_average(no_prior: None) -> None:
    """Labels of one length laid at random: those found and what the estimate adds come to the number that there are."""
    random, n_slices, length, n_labels, annotated = np.random.default_rng(0), 40, 6, 30, {7, 19, 31}
    totals = []
    for _ in range(400):
        starts = random.integers(0, n_slices - length + 1, n_labels)
        n_found = sum(any(start <= s < start + length for s in annotated) for start in starts)
        hidden = undiscovered([length] * n_found, annotated, n_slices).sum() / length * n_found / (n_found - 1)
        totals.append(n_found + hidden)
    assert np.mean(totals) == pytest.approx(n_labels, rel=0.03)
