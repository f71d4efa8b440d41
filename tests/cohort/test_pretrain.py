"""Pretraining from files to a checkpoint: on one process and two, put down and taken up, with scans of all kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cohorts import write_study
from phantoms import moving_disc
from sliceprop.checkpoint import load_checkpoint
from sliceprop.cli import main
from sliceprop.cohort.pretrain import MLFLOW_FILE, PretrainFiles, pretrain
from sliceprop.engine.pretraining import PretrainConfig
from sliceprop.engine.threads import one_thread
from sliceprop.errors import FileError, InputError
from sliceprop.io import Image, write_image
from sliceprop.study import open_study, train
from sliceprop.warm_start import Kind, WarmStart

ROOT = Path(__file__).resolve().parents[2]
SMALL = PretrainConfig(epochs=2, steps=2, batch=2, pairs=3, patch_px=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies with labels and one without, of different sizes, spacings and slice axes."""
    folder = tmp_path_factory.mktemp("scans")
    for n in range(2):
        write_study(folder / f"{n}", seed=n)
    write_study(folder / "turned", seed=2, affine=np.diag([1.0, 1, 3, 1]), axes=(1, 2, 0))
    image = moving_disc(n_slices=6, seed=3)[0][:, :40, :33]
    (folder / "bare").mkdir()
    write_image(folder / "bare/image.nii.gz", image, Image(image, np.diag([5.0, 2, 2, 1])))
    return folder


def files(data: Path, tmp_path: Path, name: str = "model", **options: object) -> PretrainFiles:
    return PretrainFiles([data], tmp_path / f"{name}.safetensors", cache=tmp_path / "cache", **options)  # type: ignore[arg-type]


def weights(file: Path) -> torch.Tensor:
    return torch.cat([tensor.ravel() for tensor in load_checkpoint(file).weights.values()])


def test_a_checkpoint_to_start_from_and_its_card(data: Path, tmp_path: Path) -> None:
    (data / "0/image.json").write_text('{"Modality": "CT"}')  # as dcm2niix writes it; what is said counts first
    where = files(data, tmp_path, licence="CC0", tracking=tmp_path / "runs", kind=Kind("MR"))
    result = pretrain(where, SMALL, device="cpu")
    assert result.studies == (3, 1)
    assert not result.failures
    assert [event.epoch for event in result.events] == [1, 2]
    card = json.loads(where.card.read_text())
    told = {"sources": [data.name], "learnt_from": 3, "held_out": 1, "licence": "CC0"}
    assert card["data"] == {**told, "modality": "MR", "anatomy": ""}
    assert card["metrics"]["held_out_squared_local_correlation"] == pytest.approx(result.events[-1].best, abs=1e-4)
    assert any((tmp_path / "runs").iterdir())
    assert WarmStart(str(tmp_path), Kind("MR", "KNEE")).checkpoint() == where.output
    assert WarmStart(str(tmp_path), Kind("CT")).checkpoint() != where.output
    model = load_checkpoint(where.output)
    assert model.study_hash is None and model.fields is None
    learned = train(open_study(moving_disc()[0], slice_axis=0), init=model, device="cpu")
    assert learned.fields is not None


def test_every_epoch_is_tracked_under_its_number(data: Path, tmp_path: Path) -> None:
    where = files(data, tmp_path, tracking=tmp_path / "board", mlflow=str(tmp_path / "flow"))
    epochs = {event.epoch: event.similarity for event in pretrain(where, SMALL, device="cpu").events}
    client = MlflowClient(f"sqlite:///{tmp_path}/flow/{MLFLOW_FILE}")
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("model", "FINISHED")
    assert run.data.params["batch"] == "2"
    tracked = client.get_metric_history(run.info.run_id, "pretraining similarity")
    assert {each.step: each.value for each in tracked} == pytest.approx(epochs)
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {each.step: each.value for each in board.Scalars("pretraining/similarity")} == pytest.approx(epochs)


def test_a_store_that_cannot_be_used_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing://x: cannot be used to track \(.+\)"):
        pretrain(files(data, tmp_path, mlflow="nothing://x"), SMALL, device="cpu")


def test_put_down_and_taken_up_is_the_same_as_in_one_go(data: Path, tmp_path: Path) -> None:
    whole, parts = files(data, tmp_path, "whole"), files(data, tmp_path, "parts")
    pretrain(whole, SMALL, device="cpu")
    assert len(pretrain(parts, PretrainConfig(1, 2, 2, 3, 32), device="cpu").events) == 1
    assert [event.epoch for event in pretrain(parts, SMALL, device="cpu").events] == [2]
    torch.testing.assert_close(weights(whole.output), weights(parts.output), rtol=0, atol=0)
    assert pretrain(parts, SMALL, device="cpu").events == []
    with pytest.raises(InputError, match="--redo"):
        pretrain(parts, PretrainConfig(2, 2, 2, 3, 48), device="cpu")
    redone = files(data, tmp_path, "parts", redo=True)
    assert len(pretrain(redone, PretrainConfig(2, 2, 2, 3, 48), device="cpu").events) == 2
    parts.state.write_bytes(b"no state")
    with pytest.raises(FileError, match="damaged"):
        pretrain(parts, SMALL, device="cpu")


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    program = [str(ROOT / "main.py"), "pretrain", str(data), "-o", str(tmp_path / "two.safetensors")]
    options = ["--epochs", "2", "--steps", "2", "--batch", "3", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*start, *program, *options], check=True, capture_output=True, timeout=300)
    with one_thread():  # as torchrun gives each process; sums in another order would part the two
        pretrain(files(data, tmp_path, "one"), PretrainConfig(epochs=2, steps=2, batch=3), device="cpu")
    one, two = (weights(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


def test_scans_that_cannot_be_read_are_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad/x").mkdir(parents=True)
    (tmp_path / "bad/x/image.nii.gz").write_text("no scan")
    options = ["--epochs", "1", "--steps", "1", "--batch", "1", "--device", "cpu", "--json"]
    command = ["pretrain", str(data), str(tmp_path / "bad"), "-o", str(tmp_path / "m.safetensors"), *options]
    assert main(command) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["studies"] == {"learnt_from": 3, "held_out": 1}
    assert told["failed"][0]["name"] == str(tmp_path / "bad/x/image.nii.gz")
    assert main(["pretrain", str(tmp_path / "bad"), "-o", str(tmp_path / "n.safetensors"), *options]) == 2
    assert "no scan to learn from" in capsys.readouterr().err
    assert main(["pretrain", str(data), "-o", str(tmp_path / "n.pth"), *options]) == 2
    assert "ends with .safetensors" in capsys.readouterr().err


def test_named_studies_are_held_out(data: Path, tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_text(f"image,labels\n{data}/1/image.nii.gz,{data}/1/labels.nii.gz\n")
    where = files(data, tmp_path, validation=[tmp_path / "held.csv"])
    assert pretrain(where, PretrainConfig(1, 1, 1, 3, 32), device="cpu").studies == (3, 1)
