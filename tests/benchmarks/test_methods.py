"""Methods by name."""

from __future__ import annotations

import pytest

from methods import kind_of, parse, rank, together
from sliceprop.errors import InputError


def test_settings_reach_learning_and_propagation() -> None:
    method = parse("registration:fusion=distance,similarity=mse,budget_s=2.5")
    assert method.train is not None and method.propagate is not None
    assert (method.train.similarity, method.train.budget_s, method.propagate.fusion) == ("mse", 2.5, "distance")
    assert method.settings["similarity"] == "mse"


def test_settings_reach_an_overfitted_network() -> None:
    method = parse("unet:budget_s=3,encoder=resnet34")
    assert method.train is None and method.propagate is not None
    assert (method.propagate.predictor.budget_s, method.propagate.predictor.encoder) == (3, "resnet34")


def test_a_peer_takes_what_it_gets() -> None:
    method = parse("deep-labelprop:max_epochs=2")
    assert method.is_peer and method.settings == {"max_epochs": "2"}
    assert not parse("auto").is_peer


@pytest.mark.parametrize("name", ["magic", "auto:colour=red", "auto:budget_s", "nearest:budget_s=3", "auto:fusion=x"])
def test_what_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        parse(name)


def test_methods_that_learn_alike_share_a_process() -> None:
    names = ["nearest", "auto", "registration:fusion=distance", "auto:budget_s=1", "shape", "registration"]
    groups = [[method.name for method in group] for group in together(map(parse, names))]
    assert groups == [
        ["nearest"],
        ["auto", "registration:fusion=distance", "registration"],
        ["auto:budget_s=1"],
        ["shape"],
    ]


def test_tables_begin_with_the_classical_methods_and_end_with_ours() -> None:
    names = ["auto", "registration", "auto:budget_s=1", "unet", "deep-labelprop", "shape", "nearest"]
    ordered = ["nearest", "shape", "deep-labelprop", "unet", "registration", "auto:budget_s=1", "auto"]
    assert sorted(names, key=rank) == ordered
    assert kind_of("auto:budget_s=1") == "auto"
