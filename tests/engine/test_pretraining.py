"""Learning over many scans: what is drawn, and that a network learns a motion that it then finds in another scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Events
from scipy import ndimage

from sliceprop.engine.anchors import Anchors
from sliceprop.engine.pretraining import PretrainConfig, Pretraining, Scan, draw, recent_mean
from sliceprop.errors import InputError

SHIFT = 1.5


def shifting(seed: int, n_slices: int = 6) -> Scan:
    """Texture that moves by `SHIFT` pixels per slice along the columns."""
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 40)), 2.0, mode="wrap")
    texture = (texture - texture.min()) / np.ptp(texture)
    slices = [ndimage.shift(texture, (0, SHIFT * s), order=3, mode="grid-wrap") for s in range(n_slices)]
    return Scan(torch.from_numpy(np.stack(slices).astype(np.float32))[:, None].clamp(0, 1))


def test_a_sample_depends_on_its_number_alone() -> None:
    scans, config = [shifting(0), shifting(1)], PretrainConfig(patch_px=16, pairs=3)
    for number in range(20):
        first, again = draw(scans, config, number), draw(scans, config, number)
        torch.testing.assert_close(first.slices, again.slices, rtol=0, atol=0)
        assert first.slices.shape[1:] == (1, 16, 16)
        assert 2 <= len(first.slices) <= 4
        assert first.slices.min() >= 0 and first.slices.max() <= 1
    assert not torch.equal(draw(scans, config, 0).slices, draw(scans, config, 1).slices)


def test_masks_are_turned_with_their_slices() -> None:
    """The masks are the scan's own bright voxels, so that they must still be after cutting, turning and mirroring."""
    half = shifting(0).half
    bright = (half[:, 0] > 0.5).float()
    scan = Scan(half, (Anchors((1, 4), torch.stack([bright[1], bright[4]])[:, None]),))
    config, anchored = PretrainConfig(patch_px=24), 0
    for number in range(30):
        sample = draw([scan], config, number)
        for group in sample.anchors:
            anchored += 1
            assert group.slices == (0, 3) and len(sample.slices) == 4
            for end in (0, 1):
                inside = group.masks[end, 0] > 0
                values = sample.slices[[0, 3][end], 0]
                assert values[inside].min() > values[~inside].max() or values[inside].max() < values[~inside].min()
    assert 5 < anchored < 25


def test_a_motion_that_was_learnt_is_found_in_another_scan() -> None:
    config = PretrainConfig(epochs=6, steps=5, batch=2, patch_px=40, mixed_precision=False)
    run = Pretraining([shifting(n) for n in range(4)], [shifting(9)], config, torch.device("cpu"))
    before = run.validate()
    run.run()
    assert run.best_similarity > before + 0.1
    run.average.module.load_state_dict(run.best)
    assert run.validate() == run.best_similarity
    half = shifting(9).half
    with torch.no_grad():
        velocity = run.average.module(half[:1], half[1:2])[0, 1, 8:-8, 8:-8]
    assert float(velocity.mean()) < -SHIFT / 3  # 30 steps find which way it goes


def test_the_mean_reaches_back_a_tenth_of_the_way() -> None:
    mean = torch.tensor(1.0)
    for step in range(2, 1001):
        mean = recent_mean(mean, torch.tensor(float(step)), step - 1)
    assert float(mean) == pytest.approx(900.1, abs=0.01)


def test_what_is_judged_is_the_mean_of_the_weights() -> None:
    config = PretrainConfig(epochs=1, steps=6, batch=1, patch_px=16, learning_rate=0.1, mixed_precision=False)
    run, steps = Pretraining([shifting(0)], [shifting(1)], config, torch.device("cpu")), list[torch.Tensor]()
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(run.network.head.weight.clone()))
    run.run()
    expected = steps[0]
    for count, weight in enumerate(steps[1:], start=1):
        expected = recent_mean(expected, weight, count)
    torch.testing.assert_close(run.best["head.weight"], expected)
    assert (expected - steps[-1]).abs().max() > 0.01


def test_no_gradient_is_longer_than_it_may_be() -> None:
    config = PretrainConfig(epochs=1, steps=1, batch=2, patch_px=16, gradient_norm=1e-4, mixed_precision=False)
    run = Pretraining([shifting(0)], [shifting(1)], config, torch.device("cpu"))
    run.run()
    gradients = torch.cat([each.grad.ravel() for each in run.network.parameters() if each.grad is not None])
    assert float(gradients.norm()) == pytest.approx(1e-4, rel=0.02)


def test_no_improvement_ends_learning() -> None:
    config = PretrainConfig(epochs=50, steps=1, batch=1, patch_px=16, patience=2, learning_rate=1e-12)
    run, epochs = Pretraining([shifting(0)], [shifting(1)], config, torch.device("cpu")), []
    run.run(epochs.append)
    assert len(epochs) < 10


@pytest.mark.parametrize("bad", ["epochs", "patch_px", "learning_rate", "gradient_norm", "budget_s"])
def test_settings_are_checked(bad: str) -> None:
    with pytest.raises(InputError):
        PretrainConfig(**{bad: 0})
