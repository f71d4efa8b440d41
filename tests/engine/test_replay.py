"""Learning that the clock cut short, repeated without the clock."""

import numpy as np
import pytest
import torch

from phantoms import moving_disc, only
from sliceprop import study
from sliceprop.config import PropagateConfig, TrainConfig
from sliceprop.engine.replay import counted_steps

LONG = TrainConfig(budget_s=1000)


@pytest.fixture(scope="module")
def opened():
    image, labels = moving_disc()
    return study.open_study(image, only(labels, [1, 5, 9]), slice_axis=0)


def cancel_after(steps):
    """As a clock that stops learning in the middle of a stage."""
    asked = iter(range(steps))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("steps", [3, 30])
def test_a_model_that_was_cut_short_is_learned_again_bit_by_bit(opened, steps):
    with counted_steps() as counted:
        first = study.train(opened, LONG, cancelled=cancel_after(steps))
    assert 0 < sum(counted.taken) <= steps
    with counted_steps(counted.taken) as again:
        second = study.train(opened, LONG)
    assert again.taken == counted.taken
    for name in ("velocity", "image_velocity"):
        assert torch.equal(getattr(first.fields, name), getattr(second.fields, name))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_registration_without_a_model_repeats_the_steps_that_its_budget_allowed(opened):
    config = PropagateConfig(method="registration")
    with counted_steps() as counted:
        first = study.propagate(opened, config=config)
    fewer = [count // 2 for count in counted.taken]
    with counted_steps(fewer) as half:
        other = study.propagate(opened, config=config)
    with counted_steps(half.taken):
        again = study.propagate(opened, config=config)
    assert half.taken == fewer
    np.testing.assert_array_equal(again.uncertainty, other.uncertainty)
    assert (other.uncertainty != first.uncertainty).any()


def test_the_clock_counts_outside_the_context(opened):
    with counted_steps() as counted:
        pass
    study.train(opened, TrainConfig(budget_s=0.2))
    assert counted.taken == []


def test_the_smallest_budget_buys_a_step(opened):
    """Where a busy machine needs longer than the budget to load what learning needs."""
    events = []
    model = study.train(opened, TrainConfig(budget_s=1e-6), progress=events.append)
    assert [event.epoch for event in events] == [1] and model.metric > 0
