"""Fitting the refinement network on pixels whose truth one feature tells."""

import numpy as np
import pytest
import torch

from fit_refinement import TRUST, Pixels, _annotated_slices, fit
from sliceprop.engine.refinement import BASE, FEATURES, log_odds


def pixels(n: int, seed: int) -> Pixels:
    """Feature 0 tells what propagation, which says nothing, does not know."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, FEATURES, generator=generator) - 0.5
    features[:, BASE] = 0
    return {"features": features, "inside": (features[:, 0] > 0.1).float(), "weight": torch.ones(n)}


def test_what_the_features_tell_is_learnt_and_carries_over() -> None:
    network = fit([pixels(20_000, 0), pixels(20_000, 1)])
    unseen = pixels(2_000, 2)
    with torch.no_grad():
        odds = log_odds(unseen["features"][:, BASE]) + network(unseen["features"])
    assert ((odds > 0).float() == unseen["inside"]).float().mean() > 0.95
    assert network.trust == TRUST


def test_fitting_twice_gives_the_same_network() -> None:
    first, second = (fit([pixels(4_000, 0)]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("first", "last"), [(0, 6), (10, 40)])
def test_annotated_slices_lie_in_the_labelled_range(first: int, last: int) -> None:
    random = np.random.default_rng(0)
    drawn = [_annotated_slices(first, last, random) for _ in range(200)]
    assert all(first <= min(slices) and max(slices) <= last for slices in drawn)
    assert all(slices == sorted(set(slices)) for slices in drawn)
    assert max(map(len, drawn)) > 2
    assert {len(slices) for slices in drawn} >= {2, 3}
