"""Transforms: identities exactly, known fields recovered within a stated tolerance in pixels."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sliceprop.engine.flow import (
    compose,
    compose_steps,
    folding_fraction,
    identity_grid,
    integrate_velocity,
    jacobian_determinant,
    resize_flow,
    warp,
)

HEIGHT, WIDTH = 40, 56


def smooth_field(seed: int, magnitude_px: float) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(1, 2, HEIGHT, WIDTH))
    field = ndimage.gaussian_filter(noise, sigma=(0, 0, 6, 6))
    return torch.from_numpy(magnitude_px * field / np.abs(field).max()).float()


def blob() -> torch.Tensor:
    grid = identity_grid(HEIGHT, WIDTH, like=torch.zeros(1))
    centre = torch.tensor([18.0, 30.0]).view(1, 2, 1, 1)
    return torch.exp(-((grid - centre) ** 2).sum(1, keepdim=True) / 60)


def test_no_displacement_changes_nothing() -> None:
    image = torch.rand(2, 3, HEIGHT, WIDTH)
    assert torch.allclose(warp(image, torch.zeros(2, 2, HEIGHT, WIDTH)), image, atol=1e-5)


def test_warp_reads_the_moving_image_at_x_plus_disp() -> None:
    image = torch.arange(HEIGHT * WIDTH, dtype=torch.float32).view(1, 1, HEIGHT, WIDTH)
    disp = torch.zeros(1, 2, HEIGHT, WIDTH)
    disp[:, 0], disp[:, 1] = 3.0, -2.0
    warped = warp(image, disp)
    assert torch.allclose(warped[0, 0, 5, 10], image[0, 0, 8, 8], atol=1e-2)


def test_composition_walks_first_then_second() -> None:
    first, second = smooth_field(0, 3.0), smooth_field(1, 3.0)
    image = blob()
    at_once, in_turn = warp(image, compose(first, second)), warp(warp(image, second), first)
    assert (at_once - in_turn).abs()[..., 6:-6, 6:-6].max() < 0.02


def test_composing_translations_adds_them() -> None:
    first, second = torch.full((1, 2, HEIGHT, WIDTH), 1.5), torch.full((1, 2, HEIGHT, WIDTH), -0.25)
    assert torch.allclose(compose(first, second), torch.full_like(first, 1.25))


def test_runs_of_steps_walk_every_step_in_order() -> None:
    steps = torch.cat([smooth_field(seed, 3.0) for seed in range(5)])
    runs = compose_steps(steps, 3)
    assert len(runs) == 3
    for first, run in enumerate(runs):
        a, b, c = (steps[first + i : first + i + 1] for i in range(3))
        assert torch.allclose(run[None], compose(compose(a, b), c))
    assert torch.equal(compose_steps(steps, 1), steps)


def test_zero_velocity_is_the_identity() -> None:
    assert not integrate_velocity(torch.zeros(1, 2, HEIGHT, WIDTH)).any()


def test_integrating_a_rotation_field_rotates() -> None:
    """The flow of `v(x) = theta J (x - c)` after unit time is the rotation by theta about c."""
    theta, centre = 0.2, torch.tensor([(HEIGHT - 1) / 2, (WIDTH - 1) / 2]).view(1, 2, 1, 1)
    arm = identity_grid(HEIGHT, WIDTH, like=torch.zeros(1)) - centre
    velocity = theta * torch.stack([-arm[:, 1], arm[:, 0]], dim=1)
    sin, cos = np.sin(theta), np.cos(theta)
    rotated = torch.stack([cos * arm[:, 0] - sin * arm[:, 1], sin * arm[:, 0] + cos * arm[:, 1]], dim=1)
    error = (integrate_velocity(velocity, steps=8) - (rotated - arm)).norm(dim=1)[0, 10:-10, 10:-10]
    assert error.max() < 0.05


def test_negated_velocity_gives_the_inverse() -> None:
    velocity = smooth_field(2, 4.0)
    there_and_back = compose(integrate_velocity(velocity), integrate_velocity(-velocity))
    assert there_and_back[..., 6:-6, 6:-6].abs().max() < 0.05


def test_smooth_velocities_do_not_fold_but_a_mirror_does() -> None:
    assert folding_fraction(integrate_velocity(smooth_field(3, 6.0))) == 0
    mirror = torch.zeros(1, 2, HEIGHT, WIDTH)
    mirror[:, 1] = (WIDTH - 1) - 2 * torch.arange(WIDTH, dtype=torch.float32)
    assert folding_fraction(mirror) == 1


def test_jacobian_of_a_uniform_scaling() -> None:
    disp = 0.1 * identity_grid(HEIGHT, WIDTH, like=torch.zeros(1))
    assert torch.allclose(jacobian_determinant(disp), torch.full((1, HEIGHT - 1, WIDTH - 1), 1.21), atol=1e-4)


@pytest.mark.parametrize("size", [(20, 28), (HEIGHT, WIDTH), (80, 113)])
def test_resized_flow_moves_the_same_share_of_the_image(size: tuple[int, int]) -> None:
    flow = torch.ones(1, 2, HEIGHT, WIDTH)
    resized = resize_flow(flow, *size)
    assert resized.shape == (1, 2, *size)
    assert torch.allclose(resized[0, 0], torch.tensor((size[0] - 1) / (HEIGHT - 1)))
    assert torch.allclose(resized[0, 1], torch.tensor((size[1] - 1) / (WIDTH - 1)))
