"""Pretraining from files to a checkpoint: on one process and two, put down and taken up, with scans of all kinds."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cohorts import write_study
from phantoms import moving_disc
from sliceprop.checkpoint import load_checkpoint
from sliceprop.cli import main
from sliceprop.cohort.finding import find_studies
from sliceprop.cohort.pretrain import MLFLOW_FILE, Pretrained, PretrainFiles, _split, pretrain
from sliceprop.cohort.scans import CachedScans, cache_file, prepare
from sliceprop.engine.pretraining import PretrainConfig
from sliceprop.engine.threads import one_thread
from sliceprop.errors import FileError, InputError
from sliceprop.io import Image, read_image, write_image
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
    where = files(data, tmp_path, "models/any", licence="CC0", tracking=tmp_path / "runs", kind=Kind("MR"))
    result = pretrain(where, SMALL, device="cpu")
    assert result.studies == (3, 1)
    assert not result.failures
    assert [event.epoch for event in result.events] == [1, 2]
    card = json.loads(where.card.read_text())
    told = {"sources": [data.name], "learnt_from": 3, "held_out": 1, "licence": "CC0"}
    assert card["data"] == {**told, "modality": "MR", "anatomy": ""}
    assert card["metrics"]["held_out_squared_local_correlation"] == pytest.approx(result.events[-1].best, abs=1e-4)
    assert any((tmp_path / "runs").iterdir())
    models = str(tmp_path / "models")
    assert WarmStart(models, Kind("MR", "KNEE")).checkpoint() == where.output
    assert WarmStart(models, Kind("CT")).checkpoint() != where.output
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


def test_a_run_with_nothing_left_to_do_is_not_tracked(data: Path, tmp_path: Path) -> None:
    where = files(data, tmp_path, tracking=tmp_path / "board", mlflow=str(tmp_path / "flow"))
    pretrain(where, SMALL, device="cpu")
    assert pretrain(where, SMALL, device="cpu").events == []
    assert len(MlflowClient(f"sqlite:///{tmp_path}/flow/{MLFLOW_FILE}").search_runs(["0"])) == 1
    assert len(list((tmp_path / "board").iterdir())) == 1


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_told_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes when the first epoch is shown."""
    pressed = list[str]()

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            if "similarity" in text and not pressed:
                pressed.append(text)
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    options = ["--epochs", "500", "--patience", "500", "--steps", "1", "--batch", "1", "--device", "cpu"]
    options += ["--cache", str(tmp_path / "cache")]
    assert main(["pretrain", str(data), "-o", str(tmp_path / "model.safetensors"), *options]) == 130
    assert terminal.getvalue().splitlines()[-1] == "sliceprop pretrain: interrupted"
    assert pressed and not [line for line in caplog.records if line.name.startswith("ignite")]
    assert (tmp_path / "model.state.safetensors").is_file()


def test_a_store_that_cannot_be_used_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing://x: cannot be used to track \(.+\)"):
        pretrain(files(data, tmp_path, mlflow="nothing://x"), SMALL, device="cpu")


def test_a_server_that_does_not_answer_is_told_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        store = f"http://127.0.0.1:{place.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"{store}: nobody answers there \(.+\)"):
        pretrain(files(data, tmp_path, mlflow=store), SMALL, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_store_that_was_interrupted_when_new_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "flow").mkdir()
    with closing(sqlite3.connect(tmp_path / "flow" / MLFLOW_FILE)) as store:
        store.execute("CREATE TABLE metrics (step BIGINT)")  # without a word on how far MLflow was
    with pytest.raises(InputError, match=rf"flow/{MLFLOW_FILE}: cannot be used to track \(.*duplicate.*remove it"):
        pretrain(files(data, tmp_path, mlflow=str(tmp_path / "flow")), SMALL, device="cpu")


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


def test_scans_that_were_moved_are_taken_up(data: Path, tmp_path: Path) -> None:
    """Under other names, so that they are found in another order, and with another cache."""
    whole, parts = files(data, tmp_path, "whole"), files(data, tmp_path, "parts")
    pretrain(whole, SMALL, device="cpu")
    pretrain(parts, PretrainConfig(1, 2, 2, 3, 32), device="cpu")
    for old, new in zip(sorted(data.iterdir()), "dcba", strict=True):
        shutil.copytree(old, tmp_path / "moved" / new)
    moved = PretrainFiles([tmp_path / "moved"], parts.output, cache=tmp_path / "other")
    assert [event.epoch for event in pretrain(moved, SMALL, device="cpu").events] == [2]
    torch.testing.assert_close(weights(whole.output), weights(parts.output), rtol=0, atol=0)
    for name in "abcd":  # three of them are learnt from
        (tmp_path / "moved" / name / "labels.nii.gz").unlink(missing_ok=True)
    with pytest.raises(InputError, match="--redo"):
        pretrain(moved, SMALL, device="cpu")


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    """A scan that cannot be read is told, but is no crash, of which torchrun would say more than of the scan."""
    (tmp_path / "bad/x").mkdir(parents=True)
    (tmp_path / "bad/x/image.nii.gz").write_text("no scan")
    program = [str(ROOT / "main.py"), "pretrain", str(data), f"{tmp_path}/bad", "-o", f"{tmp_path}/two.safetensors"]
    options = ["--epochs", "2", "--steps", "2", "--batch", "3", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = subprocess.run([*start, *program, *options], check=True, capture_output=True, text=True, timeout=300).stdout
    assert told.count(f"left out: {tmp_path}/bad/x/image.nii.gz: ") == 1
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
    (tmp_path / "empty").mkdir()
    assert main(["pretrain", str(tmp_path / "empty"), "-o", str(tmp_path / "n.safetensors"), *options]) == 2
    assert not list(tmp_path.glob("n.*"))


def test_named_studies_are_held_out(data: Path, tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_text(f"image,labels\n{data}/1/image.nii.gz,{data}/1/labels.nii.gz\n")
    where = files(data, tmp_path, validation=[tmp_path / "held.csv"])
    assert pretrain(where, PretrainConfig(1, 1, 1, 3, 32), device="cpu").studies == (3, 1)


def test_copies_are_told_and_learnt_from_once(data: Path, tmp_path: Path) -> None:
    once, copies = files(data, tmp_path), tmp_path / "copies"
    assert pretrain(once, PretrainConfig(1, 2, 2, 3, 32), device="cpu").studies == (3, 1)
    for name in ("x", "y"):
        shutil.copytree(data / "0", copies / name)
    (copies / "y/labels.nii.gz").unlink()
    again = PretrainFiles([data, copies, data], once.output, cache=once.cache)
    result = pretrain(again, SMALL, device="cpu")
    assert [event.epoch for event in result.events] == [2]  # copies change nothing, so that the run goes on
    assert result.studies == (3, 1)
    told = {failure.name: failure.reason for failure in result.failures}
    assert len(result.failures) == 6
    for name in ("x", "y"):
        assert told[f"{copies}/{name}/image.nii.gz"] == (
            f"holds the same voxels as {data}/0/image.nii.gz; its first place counts"
        )
    assert told[f"{data}/bare/image.nii.gz"] == "is listed more than once; its first place counts"


def test_of_copies_the_one_with_painted_slices_is_learnt_from(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(data / "0", tmp_path / "copies" / name)
    (tmp_path / "copies/a/labels.nii.gz").unlink()
    empty = read_image(tmp_path / "copies/b/labels.nii.gz")
    write_image(tmp_path / "copies/b/labels.nii.gz", np.zeros_like(empty.array), empty)
    found = Pretrained()
    (learn,), () = _split(files(tmp_path / "copies", tmp_path), found)
    assert CachedScans([learn])[0].anchors
    told = {Path(failure.name).parent.name: failure.reason for failure in found.failures}
    assert told == {
        "a": f"holds the same voxels as {tmp_path}/copies/c/image.nii.gz; the one with painted slices counts",
        "b": f"holds the same voxels as {tmp_path}/copies/a/image.nii.gz; its first place counts",
    }


def test_what_is_held_out_does_not_depend_on_where_the_scans_lie(data: Path, tmp_path: Path) -> None:
    held_out = list[torch.Tensor]()
    for n in range(6):
        shutil.copytree(data, tmp_path / f"{n}/scans")
        learn, judge = _split(files(tmp_path / f"{n}/scans", tmp_path), Pretrained())
        assert (len(learn), len(judge)) == (3, 1)
        held_out.append(CachedScans(judge)[0].half)
    assert all(torch.equal(half, held_out[0]) for half in held_out)


def test_a_copy_of_what_is_held_out_is_not_learnt_from(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "1", tmp_path / "held/other")
    where = files(data, tmp_path, validation=[tmp_path / "held"])
    result = pretrain(where, PretrainConfig(1, 1, 1, 3, 32), device="cpu")
    assert result.studies == (3, 1)
    assert [failure.name for failure in result.failures] == [f"{data}/1/image.nii.gz"]


def test_a_run_that_has_ended_by_itself_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    where = files(data, tmp_path)
    config = PretrainConfig(30, 1, 1, 3, 32, patience=1, learning_rate=1e-12)
    assert len(pretrain(where, config, device="cpu").events) < 10
    before = where.state.read_bytes()
    assert pretrain(where, config, device="cpu").events == []
    assert where.state.read_bytes() == before
    longer = PretrainConfig(30, 1, 1, 3, 32, patience=2, learning_rate=1e-12)
    assert pretrain(where, longer, device="cpu").events


def test_a_prepared_scan_that_is_damaged_is_prepared_anew(data: Path, tmp_path: Path) -> None:
    entry = find_studies(data)[0][0]
    voxels, file = prepare(entry, tmp_path), cache_file(entry, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert prepare(entry, tmp_path) == voxels
    assert file.read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="tells memory of its own from mapped files")
def test_prepared_scans_are_mapped_not_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 100, (400, 192, 192), np.uint8)
    (tmp_path / "large").mkdir()
    write_image(tmp_path / "large/image.nii", image, Image(image, np.eye(4)))
    (entry,), _ = find_studies(tmp_path)
    assert isinstance(prepare(entry, tmp_path), str)
    file, before = cache_file(entry, tmp_path), own_memory()
    scans = [CachedScans([file])[0] for _ in range(20)]
    assert own_memory() - before < 5 * file.stat().st_size
    assert all(torch.equal(scan.half[7], scans[0].half[7]) for scan in scans)


def own_memory() -> int:
    """Bytes of this process without files that are mapped."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
