"""Losses on inputs with known values."""

import torch

from sliceprop.engine.losses import box_mean, diffusion_loss, lncc, lncc_loss, mse_loss, soft_dice_loss


def texture(seed: int) -> torch.Tensor:
    return torch.rand(1, 1, 32, 40, generator=torch.Generator().manual_seed(seed))


def test_box_mean_of_an_impulse() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 9
    mean = box_mean(image, radius=1)
    assert torch.allclose(mean[0, 0, 3:6, 3:6], torch.ones(3, 3))
    assert mean.sum() == 9


def test_lncc_ignores_local_brightness_contrast_and_sign() -> None:
    image = texture(0)
    assert lncc(image, 1 - 0.5 * image).min() > 0.98


def test_lncc_of_unrelated_textures_is_low_and_of_flat_regions_zero() -> None:
    assert lncc(texture(0), texture(1)).mean() < 0.1
    assert lncc(texture(0), torch.full((1, 1, 32, 40), 0.5)).abs().max() < 1e-3


def test_identical_images_cost_nothing() -> None:
    image = texture(2)
    assert lncc_loss(image, image) < 1e-2
    assert mse_loss(image, image) == 0


def test_diffusion_of_a_ramp_is_its_slope_squared() -> None:
    velocity = torch.zeros(1, 2, 8, 8)
    velocity[:, 0] = 0.5 * torch.arange(8.0).view(8, 1)
    assert torch.isclose(diffusion_loss(velocity), torch.tensor(0.125))
    assert diffusion_loss(torch.full((1, 2, 8, 8), 3.0)) == 0


def test_soft_dice_counts_only_labels_that_are_there() -> None:
    fixed = torch.zeros(1, 2, 10, 10)
    fixed[:, 0, :, :5] = 1
    warped = torch.zeros(1, 2, 10, 10)
    warped[:, 0, :5, :5] = 1
    warped[:, 1] = 1
    assert torch.isclose(soft_dice_loss(warped, fixed), torch.tensor(1 - 2 * 25 / 75))
    assert soft_dice_loss(fixed, fixed) == 0
