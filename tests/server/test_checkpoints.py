import os

import pytest
import torch

from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model
from sliceprop.engine.training import Fields
from sliceprop.errors import InputError
from sliceprop.roi import Roi
from sliceprop.server.checkpoints import Checkpoints
from sliceprop.server.errors import NotFoundError

FIELDS = Fields(torch.full((3, 2, 4, 4), 0.5), torch.zeros(3, 2, 4, 4))
MODEL = Model(RegistrationNet().state_dict(), TrainConfig(budget_s=7), "abc", Roi(0, 8, 0, 8), FIELDS, 0.75)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_a_new_server_has_none(checkpoints):
    assert checkpoints.listing() == [] and "a" not in checkpoints
    with pytest.raises(NotFoundError):
        checkpoints.load("a")


def test_what_is_saved_is_listed_and_loaded(checkpoints):
    checkpoints.save("scan.v1", MODEL)
    assert [entry["id"] for entry in checkpoints.listing()] == ["scan.v1"]
    model = checkpoints.load("scan.v1")
    assert (model.study_hash, model.config, model.metric) == ("abc", MODEL.config, 0.75)
    assert checkpoints.load("scan.v1") is model


def test_a_model_saved_anew_is_read_anew(checkpoints):
    checkpoints.save("a", MODEL)
    before = checkpoints.load("a")
    checkpoints.save("a", MODEL)
    assert checkpoints.load("a") is not before


@pytest.mark.parametrize("name", ["../a", "a/b", ".."])
def test_ids_cannot_leave_the_folder(checkpoints, name):
    with pytest.raises(InputError):
        checkpoints.save(name, MODEL)


def test_a_link_to_elsewhere_is_no_checkpoint(checkpoints, tmp_path):
    checkpoints.save("a", MODEL)
    checkpoints.file("a").rename(tmp_path / "secret")
    checkpoints.file("a").symlink_to(tmp_path / "secret")
    for read in (checkpoints.existing, checkpoints.load):
        with pytest.raises(InputError, match="link"):
            read("a")


def test_leftovers_go_even_if_another_process_takes_one_away(checkpoints):
    checkpoints.save("a", MODEL)
    folder = checkpoints.file("a").parent
    (folder / ".writing-gone").symlink_to(folder / "nothing")  # listed, but not there
    for name in (".writing-new", ".writing-old"):
        (folder / name).touch()
    os.utime(folder / ".writing-old", (0, 0))
    checkpoints.remove_leftovers()
    assert (folder / ".writing-new").exists() and not (folder / ".writing-old").exists()
