import pytest

from sliceprop.errors import InputError
from sliceprop.server.errors import LONGEST, refusal
from sliceprop.server.requests import (
    PREDICTOR_BUDGET_S,
    first_choices,
    flag,
    label_options,
    parse_params,
    propagate_config,
    slice_axis,
    suggest_config,
    train_config,
)


def test_a_list_of_choices_means_its_first_element():
    options = parse_params(
        '{"method": ["shape", "auto"], "extrapolate": ["2"], "annotated_slices": [5, 3], "fusion": []}'
    )
    config = propagate_config(options)
    assert (config.method, config.extrapolate, config.fusion) == ("shape", 2, "sdf")
    assert label_options(options).annotated_slices == (3, 5)


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"x"'])
def test_params_must_be_a_json_object(text):
    with pytest.raises(InputError):
        parse_params(text)


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_no_params_means_the_defaults(text):
    assert parse_params(text) == {}
    assert propagate_config({}).method == "auto"


@pytest.mark.parametrize(
    "options",
    [{"method": "magic"}, {"fusion": "mean"}, {"extrapolate": -1}, {"extrapolate": float("inf")}, {"method": {"a": 1}}],
)
def test_unknown_choices_are_refused(options):
    with pytest.raises(InputError):
        propagate_config(options)


@pytest.mark.parametrize("budget", ["soon", -1, 0, float("inf"), float("nan"), {}, 10**400])
def test_a_budget_must_be_finite_positive_seconds(budget):
    with pytest.raises(InputError):
        train_config({"budget_s": budget}, 30)


def test_a_network_is_overfitted_within_the_budget_of_the_request():
    options = {"method": "unet", "encoder": "resnet152", "encoder_weights": "server.pth"}
    assert propagate_config(options).predictor.budget_s == PREDICTOR_BUDGET_S
    predictor = propagate_config({**options, "budget_s": "20", "seed": 3}).predictor
    assert (predictor.budget_s, predictor.seed) == (20, 3)
    assert (predictor.encoder, predictor.encoder_weights) == ("resnet18", "none")
    with pytest.raises(InputError, match="at most 600"):
        propagate_config({**options, "budget_s": 601})


def test_the_budget_of_the_request_wins():
    assert train_config({"budget_s": "5"}, 30).budget_s == 5
    assert train_config({}, 30).budget_s == 30


def test_suggestions_take_numbers_as_json_text_or_list():
    config = suggest_config(first_choices({"plan": ["kmeans", "ssim"], "n": "3", "seed": [2**63 - 1]}), 0.9)
    assert (config.plan, config.n, config.seed, config.target) == ("kmeans", 3, 2**63 - 1, 0.9)
    assert suggest_config({"target": 0.5}, 0.9).target == 0.5
    assert (suggest_config({}, 0.9).plan, suggest_config({}, 0.9).n) == ("next_slice", 1)


@pytest.mark.parametrize(
    "options",
    [{"n": bad} for bad in (0, 1.5, "many")]
    + [{"target": bad} for bad in (0, 1.1, "high")]
    + [{"plan": bad} for bad in ("every_second", {"a": 1}, 3)]
    + [{"seed": -1}],
)
def test_unusable_wishes_for_suggestions_are_refused(options):
    with pytest.raises(InputError):
        suggest_config(options, 0.95)


@pytest.mark.parametrize(("value", "expected"), [(None, "auto"), ("auto", "auto"), (1, 1), ("2", 2)])
def test_slice_axis(value, expected):
    assert slice_axis({"slice_axis": value}) == expected


@pytest.mark.parametrize("value", [3, -1, "x", True])
def test_other_slice_axes_are_refused(value):
    with pytest.raises(InputError):
        slice_axis({"slice_axis": value})


@pytest.mark.parametrize(
    "options",
    [
        {"annotated_slices": "3,5"},
        {"annotated_slices": [1.5]},
        {"annotated_slices": [True]},
        {"label_info": {"name": "a"}},
        {"label_info": ["a"]},
        {"partial": "maybe"},
        {"partial": True, "reviewed_slices": [2]},
        {"background_scribble": 0},
    ],
)
def test_label_options_of_the_wrong_kind_are_refused(options):
    with pytest.raises(InputError):
        label_options(options)


def test_flags_come_as_json_or_text():
    assert flag({"a": "True"}, "a") and flag({"a": 1}, "a") and not flag({"a": False}, "a", default=True)
    assert flag({}, "a", default=True)


def test_unknown_options_pass_through():
    assert first_choices({"roi": [1, 2]}) == {"roi": [1, 2]}


def test_halves_of_characters_are_refused():
    """They would be kept with a version, and no answer could tell of them."""
    with pytest.raises(InputError, match="not valid JSON"):
        parse_params('{"annotation_version": "\\ud800"}')
    assert parse_params('{"annotation_version": "\\ud83e\\ude7b"}') == {"annotation_version": "\U0001fa7b"}


def test_a_refusal_repeats_only_the_beginning_of_what_was_sent():
    assert len(refusal(InputError("x" * 1_000_000)).body) < 3 * LONGEST
