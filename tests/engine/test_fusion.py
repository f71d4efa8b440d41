"""Fusion weights and their limits."""

import pytest
import torch

from sliceprop.config import FUSIONS, Fusion
from sliceprop.engine.fusion import fuse, position_weight, score, similarity_weight, softness


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
    generator = torch.Generator().manual_seed(0)
    fixed, other = torch.rand(1, 1, 40, 40, generator=generator), torch.rand(1, 1, 40, 40, generator=generator)
    region = torch.zeros(2, 40, 40, dtype=torch.bool)
    region[:, 10:30, 10:30] = True
    weight = similarity_weight(fixed, other, fixed, region, rule=rule)
    assert weight.min() > 0.7
    assert weight.max() <= 1
    swapped = similarity_weight(fixed, fixed, other, region, rule=rule)
    assert torch.allclose(weight + swapped, torch.ones_like(weight), atol=1e-5)


def test_scores_have_the_sign_of_the_distance_and_thin_structures_are_sharp() -> None:
    distance = torch.tensor([-2.0, -0.5, 0.5, 2.0]).view(1, 1, 4).repeat(2, 1, 1)
    scores = score(distance, softness(torch.tensor([1.0, 40.0])))
    assert torch.equal(scores > 0, distance > 0)
    assert scores[0, 0, 3] > 0.99 > 0.3 > scores[1, 0, 3]


def test_a_label_held_by_one_side_only_is_not_faded() -> None:
    lower, upper = torch.full((2, 3, 3), 0.8), torch.full((2, 3, 3), -1.0)
    fused = fuse(lower, upper, 0.75, torch.tensor([True, False]))
    assert torch.allclose(fused[0], torch.tensor(0.8))
    assert torch.allclose(fused[1], torch.tensor(0.25 * 0.8 - 0.75))
