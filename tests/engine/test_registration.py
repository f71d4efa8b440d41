"""Learning recovers known motion; the network's field is antisymmetric; anchors and budgets do what they say."""

import numpy as np
import pytest
import torch

from phantoms import HEIGHT, WIDTH, moving_disc
from sliceprop.config import TrainConfig
from sliceprop.engine.anchors import ANCHOR_GAP, Anchors, anchor_loss, make_anchors
from sliceprop.engine.flow import integrate_velocity
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model, SliceTransforms, register, widened_fields
from sliceprop.engine.training import Fields, Learner, Progress, half_size, halved, predict_velocity
from sliceprop.labels import sparse_labels
from sliceprop.roi import Roi
from sliceprop.volume import normalise_intensity

SHIFT_PX = 2.0


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    image, _ = moving_disc(n_slices=5, shift_px=SHIFT_PX)
    return torch.from_numpy(normalise_intensity(image))[:, None]


def disc_displacement(transforms: SliceTransforms, source: int, target: int) -> torch.Tensor:
    """Mean displacement (row, col) over the border of disc 1 on the target slice."""
    _, labels = moving_disc(n_slices=5, shift_px=SHIFT_PX)
    return transforms.between(source, target)[0][:, torch.from_numpy(labels[target] == 1)].mean(dim=1)


def test_direct_registration_recovers_the_drift(images: torch.Tensor) -> None:
    """Disc 1 moves 2 px to the right per slice, so a pixel of slice s + 1 is found 2 px further left in slice s."""
    transforms = SliceTransforms(register(images, budget_s=60).velocity, HEIGHT, WIDTH)
    assert torch.allclose(disc_displacement(transforms, 1, 2), torch.tensor([0.0, -SHIFT_PX]), atol=0.4)
    assert torch.allclose(disc_displacement(transforms, 2, 1), torch.tensor([0.0, SHIFT_PX]), atol=0.4)
    assert torch.allclose(disc_displacement(transforms, 0, 3), torch.tensor([0.0, -3 * SHIFT_PX]), atol=1.0)


def test_transforms_to_the_same_slice_are_the_identity(images: torch.Tensor) -> None:
    transforms = SliceTransforms(torch.randn(4, 2, *half_size(HEIGHT, WIDTH)), HEIGHT, WIDTH)
    assert not transforms.between(2, 2).any()


def test_network_is_antisymmetric_and_takes_any_size() -> None:
    network = RegistrationNet()
    first, second = torch.rand(2, 1, 37, 51), torch.rand(2, 1, 37, 51)
    velocity = network(first, second)
    assert velocity.shape == (2, 2, 37, 51)
    assert torch.allclose(velocity, -network(second, first), atol=1e-6)
    assert network(first, first).abs().max() < 1e-6


def test_the_network_learns_the_study(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    events: list[Progress] = []
    config = TrainConfig(budget_s=300, max_epochs=40, refine_steps=0)
    network = RegistrationNet()
    before = Learner(images, network, config).predict().clone()
    learner = Learner(images, network, config, progress=events.append)
    learner.run()
    assert events[-1].best_metric > events[0].best_metric + 0.05
    assert not torch.allclose(learner.predict(), before, atol=1e-2)
    assert [e.epoch for e in events] == sorted(e.epoch for e in events)
    assert all(e.total_epochs == 40 and e.seconds_left >= 0 for e in events)


def test_same_seed_same_fields(images: torch.Tensor) -> None:
    def fields() -> torch.Tensor:
        torch.manual_seed(1)
        config = TrainConfig(budget_s=300, max_epochs=2, refine_steps=4, seed=5)
        return Learner(images, RegistrationNet(), config).run().velocity

    assert torch.equal(fields(), fields())


def test_cancelling_ends_at_once_and_keeps_the_best(images: torch.Tensor) -> None:
    events: list[Progress] = []
    learner = Learner(
        images,
        RegistrationNet(),
        TrainConfig(budget_s=300, max_epochs=500, refine_steps=500),
        progress=events.append,
        cancelled=lambda: len(events) >= 3,
    )
    fields = learner.run()
    assert len(events) <= 4
    assert fields.velocity.shape == (4, 2, *half_size(HEIGHT, WIDTH))
    assert torch.isfinite(fields.velocity).all()


def test_slices_several_steps_apart_are_compared_where_annotations_lie_far_apart() -> None:
    """Slices alternate in contrast so that neighbours look alike only where noise is; two steps on they match."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    random = np.random.default_rng(0)
    planes = [np.sin((columns - s) / 2.5) * np.sin(rows / 2.5) for s in range(8)]
    noise = [random.normal(size=(HEIGHT, WIDTH)) for _ in planes]
    slices = np.stack([p if s % 2 == 0 else n for s, (p, n) in enumerate(zip(planes, noise, strict=True))])
    images = torch.from_numpy(((slices - slices.min()) / np.ptp(slices)).astype(np.float32))[:, None]
    start = torch.zeros(7, 2, *half_size(HEIGHT, WIDTH))
    config = TrainConfig(budget_s=300, max_epochs=0, refine_steps=60)

    def drift(gap: int) -> float:
        fields = Learner(images, RegistrationNet(), config, gap=gap, start=start).run()
        disp = SliceTransforms(fields.velocity, HEIGHT, WIDTH).between(2, 4)
        return float(disp[0, 1, 8:-8, 8:-8].mean())

    assert abs(drift(0)) < 0.5
    assert drift(6) == pytest.approx(-2, abs=0.7)


def test_every_planned_step_is_told_as_an_epoch(images: torch.Tensor) -> None:
    events: list[Progress] = []
    config = TrainConfig(budget_s=300, max_epochs=1, refine_steps=20)
    learner = Learner(images, RegistrationNet(), config, gap=30, progress=events.append)
    learner.run()
    assert len(learner.hops) == 3
    assert [e.epoch for e in events] == sorted(e.epoch for e in events)
    assert all(e.total_epochs == 21 for e in events)
    assert events[-1].epoch == 21


def translation(columns: float, n: int = 3) -> torch.Tensor:
    velocity = torch.zeros(n, 2, 20, 24)
    velocity[:, 1] = columns
    return velocity


def loss_of(velocity: torch.Tensor, anchors: list[Anchors]) -> float:
    return float(anchor_loss(integrate_velocity(velocity), integrate_velocity(-velocity), anchors))


def test_anchor_loss_vanishes_for_the_true_motion_and_only_for_it() -> None:
    masks = torch.zeros(2, 1, 20, 24)
    masks[0, 0, 6:12, 4:10] = 1
    masks[1, 0, 6:12, 10:16] = 1
    anchors = [Anchors((0, 3), masks)]
    assert loss_of(translation(-2.0), anchors) < 1e-4
    assert loss_of(translation(0.0), anchors) == pytest.approx(1)
    assert loss_of(translation(2.0), anchors) == pytest.approx(1)


def test_masks_far_apart_do_not_anchor() -> None:
    far = np.zeros((20, 20, 24), np.int32)
    far[[0, ANCHOR_GAP + 1], 2:8, 2:8] = 1
    assert make_anchors(sparse_labels(far), 10, 12, device=torch.device("cpu")) == []
    masks = torch.zeros(3, 1, 20, 24)
    masks[0, 0, 6:12, 4:10] = 1
    masks[1:, 0, 6:12, 10:16] = 1
    velocity = translation(0.0, n=ANCHOR_GAP + 2)
    assert loss_of(velocity, [Anchors((0, ANCHOR_GAP + 1, ANCHOR_GAP + 2), masks)]) < 1e-6
    assert loss_of(velocity, [Anchors((0, ANCHOR_GAP, ANCHOR_GAP + 1), masks)]) == pytest.approx(0.5)


def test_scribbles_on_the_way_join_the_anchor_loss() -> None:
    masks = torch.zeros(2, 1, 20, 24)
    masks[:, 0, 6:12, 4:10] = 1
    covered, missed = torch.zeros(2, 1, 20, 24), torch.zeros(2, 1, 20, 24)
    covered[0, 0, 8, 5:8] = 1
    missed[0, 0, 16, 5:8] = 1
    still = translation(0.0)
    assert loss_of(still, [Anchors((0, 3), masks, {1: covered})]) < 1e-6
    assert loss_of(still, [Anchors((0, 3), masks, {1: missed})]) > 0.1


def test_labels_known_on_different_slices_become_groups() -> None:
    labels = np.zeros((6, 20, 24), np.int32)
    labels[[0, 3], 2:8, 2:8] = 1
    labels[[0, 5], 10:16, 10:16] = 2
    groups = make_anchors(sparse_labels(labels, partial=True), 10, 12, device=torch.device("cpu"))
    assert {group.slices for group in groups} == {(0, 3), (0, 5)}
    assert all(group.masks.shape == (2, 1, 10, 12) for group in groups)
    assert groups[0].masks.sum() == 2 * 36 / 4


def test_fields_on_a_larger_part_of_the_slices_keep_what_they_cover() -> None:
    """A linear field, which resampling reproduces; far outside it is the network that tells."""
    old, new = Roi(20, 81, 30, 111), Roi(4, 81, 30, 160)
    rows, columns = torch.meshgrid(torch.arange(31.0), torch.arange(41.0), indexing="ij")
    velocity = torch.stack([0.02 * rows, 0.5 - 0.01 * columns])[None]
    images = torch.rand(2, 1, 77, 130, generator=torch.Generator().manual_seed(0))
    model = Model(RegistrationNet().state_dict(), TrainConfig(), "study", old, Fields(velocity, velocity))
    assert model.fields_of("study") == (old, model.fields) and model.fields_of("another") is None
    assert widened_fields(model, images[..., :61, :81], old, old, model.fields) is model.fields

    fields = widened_fields(model, images, old, new, model.fields)
    was = SliceTransforms(velocity, 61, 81).between(0, 1)[..., 8:-8, 8:-8]
    now = SliceTransforms(fields.velocity, 77, 130).between(0, 1)[..., 16 + 8 : -8, 8 : 81 - 8]
    assert torch.allclose(was, now, atol=0.02)
    around = predict_velocity(model.network(), halved(images))
    assert torch.allclose(fields.velocity[..., 52:], around[..., 52:], atol=1e-5)
    assert not torch.allclose(fields.velocity[..., 43], around[..., 43], atol=1e-2)
