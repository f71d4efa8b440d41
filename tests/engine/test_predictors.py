"""Overfitted networks on a study whose labels are its bright places, and their parts on known answers."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from phantoms import dice, only
from sliceprop.config import PREDICTORS, PredictorConfig, PropagateConfig
from sliceprop.engine.predictors import messages
from sliceprop.engine.predictors.job import OPEN, Failure, Job, make_job
from sliceprop.engine.predictors.networks import CHANNELS, load_library, make_network, make_substitute
from sliceprop.engine.predictors.overfitting import label, make_augmentation, merge_unknown, padded
from sliceprop.engine.predictors.process import WORKER, run
from sliceprop.engine.training import Progress
from sliceprop.errors import FileError, InputError
from sliceprop.labels import sparse_labels
from sliceprop.study import Propagation, open_study, propagate

ANNOTATED = [2, 4, 6]
OTHERS, TOO_FAR = [1, 3, 5, 7], [0, 8]
ENOUGH_EPOCHS = 3

HAS_LIBRARY = importlib.util.find_spec("segmentation_models_pytorch") is not None
Overfitted = tuple[np.ndarray, Propagation, list[Progress]]

needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="segmentation-models-pytorch is not installed")


def bright_places() -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise; label 3 is its brightest quarter."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(9, 28, 32)), (1, 3, 3))
    image = (noise - noise.min()) / np.ptp(noise)
    return image.astype(np.float32), np.where(image > np.quantile(image, 0.75), 3, 0).astype(np.int32)


@pytest.fixture(scope="module")
def overfitted() -> Overfitted:
    """The truth, what a network makes of three slices up to one further, and what it said meanwhile; stopped early."""
    image, truth = bright_places()
    study, events = open_study(image, only(truth, ANNOTATED), slice_axis=0), list[Progress]()
    config = PropagateConfig("manet", extrapolate=1, predictor=PredictorConfig(budget_s=600, patience=200))
    result = propagate(
        study,
        config=config,
        device="cpu",
        progress=events.append,
        cancelled=lambda: events[-1].epoch >= ENOUGH_EPOCHS,
    )
    return truth, result, events


def test_what_the_image_shows_is_learnt(overfitted: Overfitted) -> None:
    truth, result, _ = overfitted
    assert dice(result.labels[OTHERS] == 3, truth[OTHERS] == 3) > 0.9


def test_annotated_slices_come_back_bit_identical(overfitted: Overfitted) -> None:
    truth, result, _ = overfitted
    for part in (result.labels, result.from_lower, result.from_upper):
        assert np.array_equal(part[ANNOTATED], truth[ANNOTATED])
    assert not result.uncertainty[ANNOTATED].any()


def test_uncertainty_is_high_at_the_borders(overfitted: Overfitted) -> None:
    truth, result, _ = overfitted
    assert result.uncertainty.min() >= 0 and result.uncertainty.max() <= 1
    inside = truth[OTHERS] == 3
    border = np.stack([ndimage.binary_dilation(s) ^ ndimage.binary_erosion(s) for s in inside])
    assert result.uncertainty[OTHERS][border].mean() > 2 * result.uncertainty[OTHERS][~border].mean()


def test_stopping_keeps_the_best_so_far(overfitted: Overfitted) -> None:
    events = overfitted[2]
    assert events[0].epoch == 0
    assert events[-1].epoch <= ENOUGH_EPOCHS + 1
    assert events[-1].best_metric == max(event.best_metric for event in events) > 0.5


def test_the_report_names_the_network(overfitted: Overfitted) -> None:
    report = overfitted[1].report
    assert report["methods"] == {"3": "manet"}
    library = "segmentation-models-pytorch MAnet, encoder resnet18, encoder weights none"
    substitute = "monai AttentionUnet, a substitute for manet: segmentation-models-pytorch could not be loaded ("
    assert report["network"].startswith(library if HAS_LIBRARY else substitute)


def test_nothing_is_found_too_far_beyond_the_outermost_annotated_slice(
    overfitted: Overfitted,
) -> None:
    result = overfitted[1]
    for part in (result.labels, result.from_lower, result.from_upper):
        assert not part[TOO_FAR].any()
    assert result.labels[OTHERS].any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("predictor", "device", "error"),
    [
        ({"encoder_weights": "missing.pth"}, "cpu", FileError),
        ({}, "abacus", InputError),
        ({}, "cuda:99", InputError),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    predictor: dict[str, str], device: str, error: type[InputError]
) -> None:
    image, truth = bright_places()
    study = open_study(image, only(truth, ANNOTATED), slice_axis=0)
    with pytest.raises(error):
        propagate(study, config=PropagateConfig("unet", predictor=PredictorConfig(**predictor)), device=device)


@pytest.mark.parametrize(
    "settings",
    [{"encoder": ""}, {"encoder_weights": ""}, {"budget_s": 0}, {"max_epochs": 0}, {"patience": 0}, {"seed": -1}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PredictorConfig(**settings)  # type: ignore[arg-type]


def test_an_unknown_encoder_is_found_by_the_child() -> None:
    image, truth = bright_places()
    job = make_job(sparse_labels(only(truth, ANNOTATED)), image, "unet", PredictorConfig(encoder="magic"), "cpu")
    with pytest.raises(InputError, match="encoder 'magic'"):
        run(job, progress=lambda _: None, cancelled=lambda: False)


def test_messages_arrive_as_they_were_and_half_ones_do_not() -> None:
    image, truth = bright_places()
    config = PredictorConfig(encoder="resnet34", seed=2**62)
    job = make_job(sparse_labels(only(truth, ANNOTATED)), image, "unet", config, "cpu")
    sent = [job, Progress(1, 20, np.float32(0.5), 3.0, float("inf")), Failure("no such encoder", mendable=True)]
    stream = io.BytesIO()
    for message in sent:
        messages.write(stream, message)
    stream.seek(0)
    got, progress, failure = (messages.read(stream) for _ in sent)
    assert isinstance(got, Job) and (got.config, got.device, got.steps) == (config, "cpu", None)
    np.testing.assert_array_equal(got.targets, job.targets)
    assert got.targets.dtype == job.targets.dtype and got.unknown.dtype == bool
    assert (progress, failure) == (sent[1], sent[2])
    for length in (0, 10, 100, stream.tell() - 1):
        with pytest.raises(EOFError):
            half = io.BytesIO(stream.getvalue()[:length])
            while True:
                messages.read(half)


def test_the_child_ends_with_its_parent() -> None:
    image, truth = bright_places()
    job = make_job(sparse_labels(only(truth, ANNOTATED)), image, "unet", PredictorConfig(), "cpu")
    command = [sys.executable, "-P", "-m", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin
        try:
            messages.write(child.stdin, job)
            child.stdin.close()
            assert child.wait(timeout=60) == 1
        finally:
            child.kill()


def test_targets_of_complete_and_partial_slices() -> None:
    labels = np.zeros((5, 4, 6), np.int32)
    labels[1, :2], labels[1, 2:, :3], labels[3, :, :2] = 7, 9, 9
    image = np.zeros(labels.shape, np.float32)
    whole = make_job(sparse_labels(labels), image, "unet", PredictorConfig(), "cpu")
    assert whole.slices.tolist() == [1, 3]
    assert not whole.unknown.any()
    assert np.array_equal(whole.targets, np.searchsorted([0, 7, 9], labels[[1, 3]]))
    partial = make_job(sparse_labels(labels, partial=True), image, "unet", PredictorConfig(), "cpu")
    assert partial.unknown.tolist() == [[False, False, False], [False, True, False]]
    assert np.array_equal(partial.targets[0], whole.targets[0])
    assert np.array_equal(partial.targets[1], np.where(labels[3] == 9, 2, OPEN))


def test_scribbles_are_targets_where_nothing_else_is_known() -> None:
    labels, scribbles = np.zeros((5, 4, 6), np.int32), np.zeros((5, 4, 6), np.int32)
    labels[1, :2] = 7
    scribbles[1, 3], scribbles[2, 0], scribbles[2, 1, :3], scribbles[4, 2, 2] = 8, 7, 255, 8
    job = make_job(
        sparse_labels(labels, scribbles=scribbles),
        np.zeros(labels.shape, np.float32),
        "unet",
        PredictorConfig(),
        "cpu",
    )
    assert job.slices.tolist() == [1, 2, 4]
    assert job.unknown.tolist() == [[False, False, False], [False, True, True], [False, True, True]]
    assert np.array_equal(job.targets[0], np.where(labels[1] == 7, 1, 0))
    expected = np.full((4, 6), OPEN)
    expected[0], expected[1, :3] = 1, 0
    assert np.array_equal(job.targets[1], expected)
    assert (job.targets[2] == 2).sum() == 1 and (job.targets[2] == OPEN).sum() == 23


def test_an_open_pixel_may_be_background_or_any_unknown_label() -> None:
    logits = torch.randn(1, 4, 1, 2, generator=torch.Generator().manual_seed(0))
    target, unknown = torch.tensor([[[OPEN, 3]]]), torch.tensor([[False, False, True, False]])
    merged, classes = merge_unknown(logits, target, unknown)
    before, after = logits.softmax(dim=1)[0, :, 0], merged.softmax(dim=1)[0, :, 0]
    assert after[0, 0] == pytest.approx(float(before[0, 0] + before[2, 0]))
    assert after[[1, 3], 0].tolist() == pytest.approx(before[[1, 3], 0].tolist())
    assert after[2, 0] == 0
    assert torch.equal(merged[..., 1], logits[..., 1])
    assert classes.tolist() == [[[0, 3]]]


def test_a_pixel_of_which_nothing_is_known_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    merged, classes = merge_unknown(logits, torch.full((1, 2, 2), OPEN), torch.tensor([[False, True, True]]))
    loss = torch.nn.functional.cross_entropy(merged, classes)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def test_padding_repeats_the_border_and_can_be_cut_off() -> None:
    slices = torch.rand(2, 1, 33, 64)
    larger = padded(slices)
    assert larger.shape == (2, 1, 64, 64)
    assert torch.equal(larger[..., :33, :], slices)
    assert torch.equal(larger[..., 63, :], slices[..., 32, :])


def test_augmentation_moves_slice_and_target_together_and_mirrors_nothing() -> None:
    """A bright corner stays where it is marked, in its quarter of the slice."""
    marked = torch.zeros(1, 64, 64)
    marked[:, 8:24, 36:58] = 1
    augment, seen = make_augmentation(64, 64, seed=3), set()
    for _ in range(20):
        pair = augment({"image": marked.clone(), "target": marked.clone()})
        image, target = pair["image"][0].numpy(), pair["target"][0].numpy()
        assert set(np.unique(target)) == {0, 1}
        assert image[ndimage.binary_erosion(target)].min() > image[~ndimage.binary_dilation(target)].max()
        row, column = ndimage.center_of_mass(target)
        assert row < 32 < column
        seen.add((round(row, 2), round(column, 2)))
    assert len(seen) == 20


def test_the_most_probable_class_and_its_lead() -> None:
    """A network that only scales: class 2 at 0.6, 0.3 for the next one leaves a doubt of 0.7."""
    network = torch.nn.Conv2d(CHANNELS, 3, kernel_size=1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.3, 0.1, 0.6]).log())  # type: ignore[union-attr]
    classes, doubt = label(network, torch.rand(5, 1, 32, 32))
    assert (classes == 2).all()
    assert doubt.numpy() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("method", PREDICTORS)
def test_every_network_has_a_substitute(method: str) -> None:
    network, name = make_substitute(method, PredictorConfig(), 4)  # type: ignore[arg-type]
    assert name.startswith("monai ")
    assert network.eval()(torch.rand(1, CHANNELS, 32, 64)).shape == (1, 4, 32, 64)


@pytest.mark.parametrize("settings", [{"encoder": "resnext101_32x8d"}, {"encoder_weights": "imagenet"}])
@pytest.mark.parametrize("method", PREDICTORS)
def test_substitutes_say_what_they_cannot_do(method: str, settings: dict[str, str]) -> None:
    with pytest.raises(InputError, match="segmentation-models-pytorch"):
        make_substitute(method, PredictorConfig(**settings), 4)  # type: ignore[arg-type]


@needs_library
@pytest.mark.parametrize("method", PREDICTORS)
def test_networks_of_the_library_take_weights_from_a_file(method: str, tmp_path: Path) -> None:
    network, name = make_network(method, PredictorConfig(), 4)  # type: ignore[arg-type]
    assert name.lower().startswith(f"segmentation-models-pytorch {method}")
    assert network.eval()(torch.rand(1, CHANNELS, 32, 64)).shape == (1, 4, 32, 64)
    torch.save(network.encoder.state_dict(), tmp_path / "encoder.pth")
    config = PredictorConfig(encoder_weights=str(tmp_path / "encoder.pth"))
    again, _ = make_network(method, config, 3)  # type: ignore[arg-type]
    for one, other in zip(network.encoder.parameters(), again.encoder.parameters(), strict=True):
        assert torch.equal(one, other)


@needs_library
@pytest.mark.parametrize("content", [b"damaged", None], ids=["damaged", "of another encoder"])
def test_weights_that_do_not_fit_are_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "encoder.pth"
    if content is None:
        torch.save(load_library().encoders.get_encoder("mobilenet_v2").state_dict(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be used as weights"):
        make_network("unet", PredictorConfig(encoder_weights=str(file)), 3)
