"""Checkpoints: the way to disk and back, and everything that must be refused."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sliceprop import checkpoint
from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model
from sliceprop.engine.training import Fields
from sliceprop.errors import CheckpointError, FileError
from sliceprop.roi import Roi


@pytest.fixture
def model() -> Model:
    velocity = torch.randn(4, 2, 10, 12)
    fields = Fields(velocity, velocity + 1)
    weights = {k: v.clone() for k, v in RegistrationNet().state_dict().items()}
    return Model(weights, TrainConfig(budget_s=7, seed=3), "ab" * 32, Roi(1, 21, 2, 26), fields, 0.75)


def test_round_trip(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "study.safetensors"
    save_checkpoint(path, model)
    loaded = load_checkpoint(path)
    assert (loaded.config, loaded.study_hash, loaded.roi, loaded.metric) == (
        model.config,
        model.study_hash,
        model.roi,
        model.metric,
    )
    assert all(torch.equal(loaded.weights[name], model.weights[name]) for name in model.weights)
    assert loaded.fields is not None and model.fields is not None
    assert torch.allclose(loaded.fields.velocity, model.fields.velocity, atol=2e-3)
    description = json.loads((tmp_path / "study.json").read_text())
    assert description["format_version"] == 1 and description["study_hash"] == model.study_hash
    assert "torch" in description["versions"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.json", "study.safetensors"]


def test_a_pretrained_network_has_no_fields(tmp_path: Path, model: Model) -> None:
    save_checkpoint(tmp_path / "net.safetensors", Model(model.weights, model.config))
    loaded = load_checkpoint(tmp_path / "net.safetensors")
    assert loaded.fields is None and loaded.study_hash is None


def test_truncated(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_tampered_with(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="changed"):
        load_checkpoint(path)


def test_another_version(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    save_file(load_file(path), path, metadata={"sliceprop": json.dumps({"format_version": 99})})
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04pickle" * 100])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "description",
    [
        "[]",
        "{}",
        "[" * 100_000,
        '{"format_version": 1, "study_hash": null, "config": [], "roi": null, "metric": 0}',
        f'{{"format_version": 1, "study_hash": {"[" * 500 + "]" * 500}, "config": {{}}, "roi": null, "metric": 0}}',
        '{"format_version": 1, "study_hash": null, "config": {"patience": []}, "roi": null, "metric": 0}',
        '{"format_version": 1, "study_hash": null, "config": {}, "roi": [Infinity, 1, 1, 1], "metric": 0}',
    ],
)
def test_descriptions_of_other_kinds(tmp_path: Path, model: Model, description: str) -> None:
    """With the checksum that belongs to them, where they can have one."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    tensors = load_file(path)
    with suppress(RecursionError, TypeError):
        known = json.loads(description)
        description = json.dumps({**known, "sha256": checkpoint._checksum(tensors, known)})
    path.with_suffix(".json").unlink()
    save_file(tensors, path, metadata={"sliceprop": description})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path, model: Model) -> None:
    with pytest.raises(FileError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(FileError):
        save_checkpoint(tmp_path / "none" / "m.safetensors", model)


def test_a_description_that_was_changed(tmp_path: Path, model: Model) -> None:
    """Claiming to be another study's must not pass, neither in the file itself nor in the JSON beside it."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model)
    beside = tmp_path / "m.json"
    changed = json.dumps(json.loads(beside.read_text()) | {"study_hash": "cd" * 32})
    beside.write_text(changed)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        load_checkpoint(path)
    beside.unlink()
    assert load_checkpoint(path).study_hash == model.study_hash
    save_file(load_file(path), path, metadata={"sliceprop": changed})
    with pytest.raises(CheckpointError, match="changed"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 99}'])
def test_json_beside_that_cannot_be_its_own(tmp_path: Path, model: Model, content: str) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model)
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "m.safetensors")
