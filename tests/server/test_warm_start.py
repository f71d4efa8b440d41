"""What a server's trainings start from."""

import json

import pytest

from columns import column
from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model
from sliceprop.server.checkpoints import Checkpoints
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace
from sliceprop.warm_start import Kind, WarmStart


@pytest.fixture
def models(tmp_path):
    """Pretrained models for MR and CT, told apart by their metric."""
    for modality, metric in (("MR", 0.25), ("CT", 0.75)):
        model = Model(RegistrationNet().state_dict(), TrainConfig(), metric=metric)
        Checkpoints(tmp_path / "models").save(modality, model)
        card = {"date": str(metric), "data": {"modality": modality}}
        (tmp_path / f"models/{modality}.card.json").write_text(json.dumps(card))
    return tmp_path / "models"


def chosen(workspace, start, init=None):
    served = Workspace(workspace.store, start=start)
    case = served.case("case")
    return served.models.choose_start(case, served.open(case, label_options({})).study, init)


def test_the_pretrained_model_that_fits(workspace, submit, models):
    submit(column([2, 7]))
    start = WarmStart(str(models), Kind("MR"))
    assert chosen(workspace, start).model.metric == 0.25
    assert chosen(workspace, WarmStart(str(models))).model.metric == 0.75
    assert chosen(workspace, start, "auto").model.metric == 0.25
    assert chosen(workspace, start, "none").model is None
    assert chosen(workspace, WarmStart("none")).model is None


def test_a_study_s_own_model_goes_before(workspace, submit, models):
    submit(column([2, 7]))
    case = workspace.case("case")
    study = workspace.open(case, label_options({})).study
    own = Model(RegistrationNet().state_dict(), TrainConfig(), study.study_hash, metric=0.5)
    workspace.checkpoints.save("case", own)
    assert chosen(workspace, WarmStart(str(models))).model.metric == 0.5
    assert workspace.models.choose(case, study).model.metric == 0.5


def test_propagation_does_without_a_pretrained_model(workspace, submit, models):
    submit(column([2, 7]))
    served = Workspace(workspace.store, start=WarmStart(str(models)))
    case = served.case("case")
    assert served.models.choose(case, served.open(case, label_options({})).study).model is None


def test_a_pretrained_model_that_cannot_be_used_is_said(workspace, submit, models):
    submit(column([2, 7]))
    (models / "CT.safetensors").write_bytes(b"")
    for place in (models, models / "gone"):
        found = chosen(workspace, WarmStart(str(place)))
        assert found.model is None and "starts from nothing" in found.note
