"""Use cases on a study with a known answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phantoms import dice, moving_disc, only
from sliceprop.config import FUSIONS, METHODS, PLANS, PropagateConfig, SuggestConfig, TrainConfig
from sliceprop.engine.filling import Filled
from sliceprop.engine.plans import plan_slices
from sliceprop.engine.registration import Model
from sliceprop.errors import CheckpointError, GeometryError, InputError, NoAnnotationError, ShapeError
from sliceprop.io import Image
from sliceprop.labels import sparse_labels
from sliceprop.study import Filling, open_study, propagate, resolve_device, suggest, train

ANNOTATED = [1, 5, 9]
QUICK = TrainConfig(budget_s=120, max_epochs=5, refine_steps=40)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    return moving_disc(shift_px=2.5)


@pytest.fixture(scope="module")
def model(phantom: tuple[np.ndarray, np.ndarray]) -> Model:
    image, labels = phantom
    return train(open_study(image, only(labels, ANNOTATED)), QUICK)


def test_learning_beats_standing_still(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, ANNOTATED))
    between = [2, 3, 4, 6, 7, 8]
    learned, still = propagate(study, model).labels, propagate(study).labels
    assert dice(learned[between] == 1, labels[between] == 1) > 0.95
    assert dice(still[between] == 1, labels[between] == 1) < 0.9
    assert dice(learned[between] == 7, labels[between] == 7) > 0.93


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_annotated_slices_come_back_bit_identical(
    phantom: tuple[np.ndarray, np.ndarray], model: Model, method: str, fusion: str
) -> None:
    image, labels = phantom
    ragged = only(labels, ANNOTATED)
    ragged[5, 0, 0], ragged[5, -1, -1] = 7, 1
    result = propagate(open_study(image, ragged), model, PropagateConfig(method, fusion))  # type: ignore[arg-type]
    assert np.array_equal(result.labels[ANNOTATED], ragged[ANNOTATED])
    assert not result.uncertainty[ANNOTATED].any()
    assert result.uncertainty.min() >= 0 and result.uncertainty.max() <= 1
    assert result.labels.any(axis=(1, 2))[1:10].all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_order_gives_the_same_result_on_the_input_grid(
    phantom: tuple[np.ndarray, np.ndarray], axis: int
) -> None:
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    upright = propagate(open_study(image, sparse))
    turned = propagate(open_study(np.moveaxis(image, 0, axis), np.moveaxis(sparse, 0, axis)))
    assert turned.report["slice_axis"] == axis
    assert np.array_equal(turned.labels, np.moveaxis(upright.labels, 0, axis))


def test_label_values_are_names_only(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    renamed = np.select([sparse == 1, sparse == 7], [65_535, 300], 0).astype(np.int32)
    plain, far = propagate(open_study(image, sparse)).labels, propagate(open_study(image, renamed)).labels
    assert np.array_equal(far == 65_535, plain == 1)
    assert np.array_equal(far == 300, plain == 7)


def test_flipping_flips(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    plain = propagate(open_study(image, sparse)).labels
    flipped = propagate(open_study(image[:, ::-1, ::-1], sparse[:, ::-1, ::-1])).labels
    assert (flipped[:, ::-1, ::-1] != plain).mean() < 2e-3


def test_one_annotated_slice_is_enough(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, [5]))
    result = propagate(study, train(study, TrainConfig(budget_s=60, max_epochs=0, refine_steps=40)))
    assert dice(result.labels[4:7] == 1, labels[4:7] == 1) > 0.9


@pytest.mark.parametrize(("extrapolate", "reached"), [("none", []), (2, [0, 10]), (0, [])])
def test_extrapolation_is_limited(phantom: tuple[np.ndarray, np.ndarray], extrapolate: str, reached: list[int]) -> None:
    image, labels = phantom
    result = propagate(
        open_study(image, only(labels, ANNOTATED)),
        config=PropagateConfig(extrapolate=extrapolate),  # type: ignore[arg-type]
    )
    beyond = [s for s in (0, 10) if result.labels[s].any()]
    assert beyond == reached


def test_a_structure_that_ends_is_not_carried_on(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    """Disc 7 vanishes from image and truth after slice 6; the outermost annotated slice is 5."""
    image, labels = phantom
    gone = labels[0] == 7
    image = image.copy()
    for s in range(7, 11):
        image[s][gone | (labels[s] == 7)] = 0
    study = open_study(image, only(labels, [1, 5]))
    result = propagate(study, train(study, QUICK))
    assert (result.labels[6] == 7).any()
    assert not (result.labels[9:] == 7).any()


def test_partial_slices_fill_the_labels_that_are_missing_there(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    sparse[5][sparse[5] == 7] = 0
    complete = propagate(open_study(image, sparse))
    partial = propagate(open_study(image, sparse, partial=True))
    assert not (complete.labels[5] == 7).any()
    assert dice(partial.labels[5] == 7, labels[5] == 7) > 0.85
    assert np.array_equal(partial.labels[5] == 1, labels[5] == 1)


def test_known_background_slices_end_a_label(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    result = propagate(open_study(image, only(labels, [3, 5]), annotated_slices=[3, 5, 9]))
    assert not result.labels[9].any()
    assert result.report["annotated_slices"] == [3, 5, 9]


def test_scribbles_win_where_they_are_and_nearby(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    plain = propagate(open_study(image, sparse)).labels
    scribbles = np.zeros_like(labels)
    scribbles[3, 40:44, 50:56] = 1
    inside = np.argwhere(plain[7] == 7)[::3]
    scribbles[7, inside[:, 0], inside[:, 1]] = 255
    marked = propagate(open_study(image, sparse, scribbles=scribbles)).labels
    assert (marked[3][scribbles[3] == 1] == 1).all()
    assert (marked[3] == 1).sum() > (plain[3] == 1).sum() + (scribbles[3] == 1).sum()
    assert not marked[7][scribbles[7] == 255].any()
    assert (marked[7] == 7).sum() < (plain[7] == 7).sum() / 2
    assert np.array_equal(marked[ANNOTATED], sparse[ANNOTATED])


def test_scribbles_extend_a_label_beyond_the_outermost_slice(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    scribbles = np.zeros_like(labels)
    scribbles[10, 34:38, 28:32] = 7
    config = PropagateConfig(extrapolate="none")
    result = propagate(open_study(image, only(labels, [1, 5, 8]), scribbles=scribbles), config=config)
    assert (result.labels[9] == 7).any() and (result.labels[10] == 7).any()
    assert not (result.labels[9:] == 1).any()


def test_the_report_is_plain_json(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    report = propagate(open_study(image, only(labels, ANNOTATED)), model).report
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert report["trained"] and report["method"] == "auto"
    assert set(report["quality"]) == {"1", "7"}
    assert report["quality"]["1"]["slices"]["5"] == 1
    assert 0.5 < report["quality"]["1"]["dice"] <= 1


def test_suggestions(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    affine = np.diag([4.0, 1, 1, 1])
    study = open_study(image, only(labels, [1, 9]), affine=affine)
    first, *rest = suggest(study, config=SuggestConfig(n=3), names={1: "disc"})
    assert 3 <= first.slice <= 7 and first.expected_gain > 0 and not first.stop
    assert first.position_ras == pytest.approx((4 * first.slice, 23.5, 29.5))
    assert len({s.slice for s in (first, *rest)} - {1, 9}) == 3
    assert "1 and 9" in first.reason


def test_a_suggestion_tells_labels_and_dice_now_and_after(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, [1, 9]))
    found = suggest(study, config=SuggestConfig(n=9))
    report = propagate(study).report
    now = np.mean([report["quality"][label]["dice"] for label in ("1", "7")])
    assert [s.expected_dice for s in found] == pytest.approx([now] * 9, abs=1e-3)
    gains = [s.expected_gain for s in found]
    assert [s.expected_dice_after for s in found] == pytest.approx(now + np.cumsum(gains), abs=1e-3)
    assert found[-1].expected_dice_after == pytest.approx(1, abs=1e-3)
    assert found[0].labels[0] == 1  # disc 1 moves, disc 7 stays
    assert all(set(s.labels) <= {1, 7} for s in found)
    assert report["suggestion"]["labels"] == found[0].labels


def test_a_label_that_the_result_does_not_show_may_go_on(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    study = open_study(image, np.where(only(labels, [5]) == 1, 1, 0))
    shown = propagate(study).labels.any(axis=(1, 2))
    reasons = {s.slice: s.reason for s in suggest(study, config=SuggestConfig(n=9), names={1: "the disc"})}
    assert reasons[1] == "It lies beyond the outermost annotated slice 5, where the disc may go on."
    for s, reason in reasons.items():
        assert ("(expected Dice 0." in reason, "may go on" in reason) == (shown[s], not shown[s])


def test_nothing_is_promised_where_nothing_is_known(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    for study, plan in (
        (open_study(image, slice_axis=0), "next_slice"),
        (open_study(image, only(labels, [5])), "kmeans"),
    ):
        found = suggest(study, config=SuggestConfig(2, plan=plan))[0]  # type: ignore[arg-type]
        assert (found.labels, found.expected_dice, found.expected_dice_after, found.expected_gain) == ((),) + 3 * (
            None,
        )
        assert found.reason and not found.stop


@pytest.mark.parametrize(("plan", "expected"), [("centres", [1, 5, 9]), ("keep_n", [0, 3, 6])])
def test_a_plan_lays_out_the_whole_scan(phantom: tuple[np.ndarray, np.ndarray], plan: str, expected: list[int]) -> None:
    image, labels = phantom
    config = SuggestConfig(3, plan=plan)  # type: ignore[arg-type]
    affine = np.diag([4.0, 1, 1, 1])
    found = suggest(open_study(image, affine=affine, slice_axis=0), config=config)
    assert [s.slice for s in found] == expected
    assert found[1].position_ras == pytest.approx((4 * expected[1], 23.5, 29.5))
    started = suggest(open_study(image, only(labels, [expected[1], 4]), slice_axis=0), config=config)
    assert [s.slice for s in started] == [expected[0], expected[2]]
    done = suggest(open_study(image, only(labels, expected), slice_axis=0), config=config)
    assert [(s.slice, s.stop) for s in done] == [(None, True)]
    everything = suggest(open_study(image, labels, slice_axis=0), config=config)
    assert [(s.slice, s.stop) for s in everything] == [(None, True)]


@pytest.mark.parametrize("plan", PLANS)
def test_plans_follow_their_seed_and_give_reasons_of_their_own(
    phantom: tuple[np.ndarray, np.ndarray], plan: str
) -> None:
    study = open_study(phantom[0], slice_axis=0)
    drawn = [suggest(study, config=SuggestConfig(4, plan=plan, seed=seed)) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert drawn[0] == drawn[1]
    assert all([s.slice for s in found] == sorted({s.slice for s in found}) for found in drawn)
    assert len(drawn[0]) == 4
    reasons = {suggest(study, config=SuggestConfig(4, plan=other))[0].reason for other in PLANS}
    assert len(reasons) == len(PLANS)


def test_the_studys_own_network_judges_likeness(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    bare, started = open_study(image, slice_axis=0), open_study(image, only(labels, ANNOTATED))
    config = SuggestConfig(4, plan="perceptual")
    slices = bare.volume.slices
    learnt = plan_slices(slices, 4, "perceptual", network=model.network())
    assert learnt != plan_slices(slices, 4, "perceptual")
    assert [s.slice for s in suggest(bare, model, config)] == learnt
    assert [s.slice for s in suggest(started, model, config)] == [s for s in learnt if s not in ANNOTATED]
    with pytest.raises(CheckpointError, match="another study"):
        suggest(open_study(image[:, ::-1], slice_axis=0), model, config)


def test_weights_that_cannot_be_read_are_refused(phantom: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    config = SuggestConfig(3, plan="perceptual", perceptual_weights=tmp_path / "missing.pth")
    with pytest.raises(InputError, match=r"missing\.pth"):
        suggest(open_study(phantom[0], slice_axis=0), config=config)


def test_suggestions_without_annotation_and_with_all(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    assert 3 <= suggest(open_study(image, slice_axis=0))[0].slice <= 7
    done = suggest(open_study(image, labels, slice_axis=0))[0]
    assert done.slice is None and done.stop and done.expected_dice == 1
    empty_slices = suggest(open_study(image, slice_axis=0, annotated_slices=[5]), config=SuggestConfig(n=99))
    assert 5 not in [s.slice for s in empty_slices] and len(empty_slices) == 10


def test_stop_when_the_target_is_reached(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    study = open_study(
        np.repeat(image[:1], 9, axis=0) + 0.01 * image[:9], only(np.repeat(labels[:1], 9, axis=0), [0, 4, 8])
    )
    suggestion = suggest(study, config=SuggestConfig(target=0.8))[0]
    assert suggestion.stop and suggestion.slice is not None
    assert not suggest(study, config=SuggestConfig(target=0.999))[0].stop


def test_warm_start_continues(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, [1, 3, 5, 9]))
    warm = train(study, TrainConfig(budget_s=60, max_epochs=0, refine_steps=2), init=model)
    cold = train(study, TrainConfig(budget_s=60, max_epochs=0, refine_steps=2))
    assert warm.metric > cold.metric + 0.05


def test_another_studys_model(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    other = open_study(image[::-1], only(labels[::-1], ANNOTATED))
    with pytest.raises(CheckpointError, match="another study"):
        propagate(other, model)
    assert (
        train(other, TrainConfig(budget_s=60, max_epochs=1, refine_steps=1), init=model).study_hash == other.study_hash
    )


def test_a_label_outside_the_learnt_region_still_works(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    small = only(np.where(labels == 7, 7, 0).astype(np.int32), ANNOTATED)
    model = train(open_study(image, small), TrainConfig(budget_s=60, max_epochs=1, refine_steps=4))
    result = propagate(open_study(image, only(labels, ANNOTATED)), model)
    assert set(np.unique(result.labels)) == {0, 1, 7}


def test_nothing_annotated(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(NoAnnotationError):
        propagate(open_study(phantom[0]))


def test_grids_that_differ(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    with pytest.raises(ShapeError, match="same grid"):
        open_study(image, labels[:-1])
    with pytest.raises(GeometryError, match="resample"):
        open_study(Image(image, np.eye(4)), Image(labels, np.diag([1.0, 1, 1.1, 1])))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", "meta"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        resolve_device(device)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PropagateConfig(method="magic"),  # type: ignore[arg-type]
        lambda: PropagateConfig(fusion="mean"),  # type: ignore[arg-type]
        lambda: PropagateConfig(extrapolate=-1),
        lambda: TrainConfig(budget_s=0),
        lambda: TrainConfig(max_epochs=-1),
        lambda: TrainConfig(similarity="mind"),  # type: ignore[arg-type]
        lambda: SuggestConfig(n=0),
        lambda: SuggestConfig(target=0),
        lambda: SuggestConfig(target=1.01),
        lambda: SuggestConfig(target=float("nan")),
        lambda: SuggestConfig(plan="every_second"),  # type: ignore[arg-type]
        lambda: SuggestConfig(seed=-1),
        lambda: SuggestConfig(plan="kmeans", perceptual_weights=Path("alexnet.pth")),
    ],
)
def test_unusable_settings(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_another_study_is_refused_by_every_method(
    phantom: tuple[np.ndarray, np.ndarray], model: Model, method: str
) -> None:
    image, labels = phantom
    other = open_study(image[:, ::-1], only(labels, ANNOTATED))
    with pytest.raises(CheckpointError, match="another study"):
        propagate(other, model, PropagateConfig(method))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="another study"):
        suggest(open_study(image[:, ::-1], slice_axis=0), model)


def test_interpolation_is_not_reported_as_trained(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    result = propagate(open_study(image, only(labels, ANNOTATED)), model, PropagateConfig("nearest"))
    assert result.report["trained"] is False


def test_scribbles_alone_are_enough(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = phantom
    scribbles = np.zeros_like(labels)
    scribbles[3:6, 34:38, 28:32] = 7
    study = open_study(image, scribbles=scribbles, slice_axis=0)
    assert (propagate(study).labels[scribbles == 7] == 7).all()
    assert "scribbles" in suggest(study)[0].reason


def test_one_slice_is_never_enough_to_stop() -> None:
    """In noise nothing goes on beyond the annotated slice, which shows nothing about where the structure ends."""
    image = np.random.default_rng(0).random((9, 20, 24))
    labels = np.zeros(image.shape, np.int32)
    labels[4, 5:15, 5:15] = 1
    assert not suggest(open_study(image, labels))[0].stop


def test_candidates_keep_what_is_known_of_a_partial_slice(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    """Label 7 is drawn over where label 1 is carried to, on slices that say nothing about label 1."""
    image, labels = phantom
    sparse = np.where(only(labels, [1, 9]) == 1, 1, 0)
    sparse[5, 8:24, 20:40] = 7
    result = propagate(open_study(image, sparse, partial=True, slice_axis=0))
    for part in (result.labels, result.from_lower, result.from_upper):
        assert np.array_equal(part[5] == 7, sparse[5] == 7)


def test_the_report_says_what_decided_where(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, ANNOTATED))
    refined, plain = (propagate(study, model, PropagateConfig(refinement=r)).report for r in ("default", "none"))
    for report in (refined, plain):
        runs = report["intervals"]["1"]
        assert [run["between"] for run in runs] == [[None, 1], [1, 5], [5, 9], [9, None]]
        assert [run["slices"] for run in runs] == [[0, 0], [2, 4], [6, 8], [10, 10]]
        assert report["quality"]["1"]["slices_surface_mm"]["5"] == 0
        assert report["quality"]["1"]["surface_mm"] >= 0
    assert {run["method"] for run in refined["intervals"]["1"]} == {"registration, refined"}
    assert {run["method"] for run in plain["intervals"]["1"]} == {"registration"}
    assert {run["refined"] for run in plain["intervals"]["1"]} == {None}
    assert all(0 <= run["refined"] < 0.5 for run in refined["intervals"]["1"])
    json.dumps(refined)


def test_the_share_that_refinement_changed_is_one_at_most() -> None:
    """Beyond the outermost annotated slice it takes 9 pixels of 10 away, then all of 6; a scribble it has not seen."""
    labels = np.zeros((5, 8, 8), np.int32)
    labels[1, :3, :3], labels[2, 0, 0], labels[4, 0, 0] = 1, 1, 1
    drawn = sparse_labels(np.where(np.arange(5)[:, None, None] == 1, labels, 0))
    refined, claimed = np.array([[0, 0, 9, 6, 0]]), np.array([[0, 0, 10, 6, 0]])
    filled = Filled(labels, labels, labels, np.zeros(labels.shape, np.float32), None, refined, claimed)
    (run,) = Filling(filled, ["registration, refined"]).intervals(drawn, 0)
    assert (run["slices"], run["refined"]) == ([2, 4], 0.9375)
    scribbled = replace(filled, refined_px=0 * refined, claimed_px=0 * claimed)
    assert Filling(scribbled, ["registration, refined"]).intervals(drawn, 0)[0]["refined"] == 0


def test_refinement_keeps_what_is_known(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    """Also where a label is known on a slice and another one is not."""
    image, labels = phantom
    sparse = only(labels, ANNOTATED)
    sparse[5][sparse[5] == 7] = 0
    result = propagate(open_study(image, sparse, partial=True), model)
    painted = sparse > 0
    assert np.array_equal(result.labels[painted], sparse[painted])
    assert dice(result.labels[5] == 7, labels[5] == 7) > 0.8


def test_an_unknown_refinement_network_is_refused(phantom: tuple[np.ndarray, np.ndarray], model: Model) -> None:
    image, labels = phantom
    study = open_study(image, only(labels, ANNOTATED))
    with pytest.raises(InputError, match="no such refinement network"):
        propagate(study, model, PropagateConfig(refinement="absent.safetensors"))
