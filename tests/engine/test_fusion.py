"""Fusion weights and their limits."""

import pytest
import torch

from sliceprop.config import FUSIONS, Fusion
from sliceprop.engine.fusion import position_weight, score, similarity_weight, softness


@pytest.mark.parametrize("rule", ["sdf", "distance"])
def test_position_weights(rule: Fusion) -> None:
    weights = [position_weight(2, 10, s, rule=rule) for s in range(2, 11)]
    assert weights[0] == pytest.approx(0) and weights[-1] == pytest.approx(1)
    assert weights[4] == pytest.approx(0.5)
    assert weights == sorted(weights)
    mirrored = [position_weight(2, 10, 12 - s, rule=rule) for s in range(2, 11)]
    assert all(a + b == pytest.approx(1) for a, b in zip(weights, mirrored, strict=True))


@pytest.mark.parametrize("rule", [rule for rule in FUSIONS if rule.startswith("lncc")])
def test_similarity_prefers_the_side_that_looks_like_the_slice(rule: Fusion) -> None:
    bad, good = torch.full((40, 40), 0.1), torch.full((40, 40), 0.8)
    window = slice(5, 35), slice(5, 35)
    region = torch.zeros(30, 30, dtype=torch.bool)
    region[10:20, 10:20] = True
    weight = similarity_weight(bad, good, window, region, rule=rule)
    assert 0.85 < weight.min() <= weight.max() <= 1
    swapped = similarity_weight(good, bad, window, region, rule=rule)
    assert torch.allclose(weight + swapped, torch.ones_like(weight))


def test_only_the_pixel_rule_follows_the_place_and_only_the_mask_rule_the_label() -> None:
    below, above = torch.full((40, 40), 0.5), torch.zeros(40, 40)
    above[20:] = 0.9
    window, region = (slice(0, 40), slice(0, 40)), torch.zeros(40, 40, dtype=torch.bool)
    region[25:30] = True
    pixel, whole, mask = (
        similarity_weight(below, above, window, region, rule=rule) for rule in ("lncc-pixel", "lncc-slice", "lncc-mask")
    )
    assert pixel[5, 5] < 0.01 and pixel[30, 30] > 0.6
    assert whole < 0.5 < mask


def test_scores_have_the_sign_of_the_distance_and_thin_structures_are_sharp() -> None:
    distance = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    thin, thick = (score(distance, softness(torch.tensor(radius))) for radius in (1.0, 40.0))
    assert torch.equal(thin > 0, distance > 0) and torch.equal(thick > 0, distance > 0)
    assert thin[3] > 0.99 > 0.3 > thick[3]
