"""Refinement on a label whose carried border is wrong while the image shows the right one."""

import numpy as np
import pytest
import torch

from phantoms import dice
from sliceprop.engine.appearance import Appearance
from sliceprop.engine.filling import fill
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.refinement import FEATURES, LEAST_TRUST, Question, RefinementNet, Refiner, log_odds
from sliceprop.engine.registration import SliceTransforms
from sliceprop.errors import CheckpointError, FileError
from sliceprop.labels import sparse_labels
from sliceprop.pretrained import load_refinement, save_refinement

ROWS, COLUMNS = np.mgrid[:64, :64]
LABEL = 5


@pytest.fixture(scope="module")
def refiner() -> tuple[Refiner, Carrier, np.ndarray]:
    """A bright square of 16 pixels that moves by 8 pixels and is 24 pixels wide half-way; carried without motion."""
    labels = np.zeros((5, 64, 64), np.int32)
    for s, half in enumerate((8, 10, 12, 10, 8)):
        labels[s][(abs(ROWS - 28 - 2 * s) < half) & (abs(COLUMNS - 32) < half)] = LABEL
    noise = np.random.default_rng(0).normal(0, 0.02, labels.shape)
    image = torch.from_numpy((0.2 + 0.6 * (labels > 0) + noise).astype(np.float32))[:, None]
    sparse = labels.copy()
    sparse[1:4] = 0
    still = Carrier(sparse_labels(sparse), image, None)
    return Refiner(still, still, Appearance(still), load_refinement()), still, labels


def question(still: Carrier, *, supported: bool = True) -> Question:
    return Question(0, 0, 4, supported, still.scores(0, 2, 0, 4, "sdf"))


def test_the_border_moves_to_where_the_image_has_it(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    refine, still, labels = refiner
    asked = question(still)
    (refined,) = refine.refine(2, [asked])
    truth = labels[2][still.windows[0]] == LABEL
    before, after = dice((asked.scores.fused > 0).numpy(), truth), dice((refined > 0).numpy(), truth)
    assert before < 0.85
    assert after > 0.92
    assert refined.min() >= -1 and refined.max() <= 1


def test_far_from_the_border_nothing_changes(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    refine, still, _ = refiner
    asked = question(still)
    (evidence,), (refined,) = refine.evidence(2, [asked]), refine.refine(2, [asked])
    assert evidence.features.shape == (int(evidence.band.sum()), FEATURES)
    assert torch.isfinite(evidence.features).all()
    assert torch.equal(refined[~evidence.band], asked.scores.fused[~evidence.band])
    assert not evidence.band.all() and evidence.band.any()


def test_nothing_asked_nothing_answered(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    assert refiner[0].refine(2, []) == []


def test_without_trust_the_score_is_that_of_propagation(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    _, still, _ = refiner
    asked = question(still)
    (refined,) = Refiner(still, still, Appearance(still), RefinementNet(trust=0.0)).refine(2, [asked])
    assert torch.allclose(refined, asked.scores.fused, atol=0.021)


def test_where_both_sides_agree_the_network_is_followed_less(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    refine, still, _ = refiner
    asked = question(still)
    same = asked.scores._replace(lower=asked.scores.fused, upper=asked.scores.fused)
    change = [
        float((refine.refine(2, [one])[0] - asked.scores.fused).abs().mean())
        for one in (asked._replace(scores=same), asked)
    ]
    assert change[0] < change[1]


@pytest.mark.parametrize(("alike", "share"), [(True, LEAST_TRUST), (False, 1.0)])
def test_beyond_the_outermost_slice_the_network_is_followed_where_the_scan_looks_different(
    alike: bool, share: float
) -> None:
    """A network that always adds one to the log-odds shows how far it is followed."""
    labels = np.zeros((2, 64, 64), np.int32)
    labels[0][(abs(ROWS - 32) < 10) & (abs(COLUMNS - 32) < 10)] = LABEL
    first, second = np.random.default_rng(0).random((2, 64, 64)).astype(np.float32)
    image = torch.from_numpy(np.stack([first, first if alike else second]))[:, None]
    still = Carrier(sparse_labels(labels), image, None)
    network = RefinementNet(trust=0.5)
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    torch.nn.init.ones_(network.layers[-1].bias)
    refine = Refiner(still, still, Appearance(still), network)
    asked = Question(0, 0, -1, True, still.scores(0, 1, 0, -1, "sdf"))
    (evidence,), (refined,) = refine.evidence(1, [asked]), refine.refine(1, [asked])
    near = evidence.band & (asked.scores.fused.abs() < 0.9)
    added = (log_odds(refined) - log_odds(asked.scores.fused))[near]
    assert near.any() and torch.allclose(added, torch.full_like(added, 0.5 * share), atol=1e-3)


def test_however_many_threads_fill_the_result_is_the_same(refiner: tuple[Refiner, Carrier, np.ndarray]) -> None:
    refine, still, _ = refiner
    moving = Carrier(still.annotation, still.images, SliceTransforms(torch.randn(4, 2, 32, 32), 64, 64))
    candidates, everywhere = [(moving, np.array([0.7])), (still, np.array([0.3]))], np.ones((1, 5), bool)
    one, three = (fill(candidates, everywhere, "sdf", refiner=refine, threads=n) for n in (1, 3))
    assert one.labels[2].any()
    for part in ("labels", "from_lower", "from_upper", "uncertainty", "expected_dice", "refined_px", "claimed_px"):
        np.testing.assert_array_equal(getattr(one, part), getattr(three, part))


def test_what_was_changed_is_counted_among_what_was_the_labels_before_or_after(
    refiner: tuple[Refiner, Carrier, np.ndarray],
) -> None:
    """A network that takes away all that it may."""
    _, still, _ = refiner
    network = RefinementNet(trust=1.0)
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(network.layers[-1].bias, -9)
    candidates, everywhere = [(still, np.ones(1))], np.ones((1, 5), bool)
    plain = fill(candidates, everywhere, "sdf").labels > 0
    filled = fill(candidates, everywhere, "sdf", refiner=Refiner(still, still, Appearance(still), network))
    left = filled.labels > 0
    assert filled.refined_px is not None and filled.claimed_px is not None
    for s in (1, 2, 3):
        assert filled.refined_px[0, s] == np.count_nonzero(plain[s] != left[s])
        assert filled.claimed_px[0, s] == np.count_nonzero(plain[s] | left[s])
    assert filled.refined_px[0, 2] > np.count_nonzero(left[2])


def test_log_odds_are_those_of_the_probability() -> None:
    score = torch.tensor([-0.5, 0.0, 0.8, 1.0])
    probability = (1 + score[:3]) / 2
    assert torch.allclose(log_odds(score)[:3], torch.log(probability / (1 - probability)), atol=1e-5)
    assert torch.isfinite(log_odds(score)).all()


def test_networks_come_back_as_they_were_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    network = RefinementNet(width=8, trust=0.25)
    save_refinement(tmp_path / "own.safetensors", network, {"volumes": ["a"]})
    again = load_refinement(str(tmp_path / "own.safetensors"))
    features = torch.randn(9, FEATURES).clamp(-0.9, 0.9)
    assert torch.equal(again(features), network(features))


def test_a_file_that_is_no_network_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileError, match="no such refinement network"):
        load_refinement(str(tmp_path / "absent.safetensors"))
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(CheckpointError, match="not a refinement network"):
        load_refinement(str(tmp_path / "text.safetensors"))
