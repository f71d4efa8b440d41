"""`sliceprop cohort` with worker processes of its own, and what it asks of SLURM."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cohorts import write_study
from sliceprop.cli import main
from sliceprop.cohort.workers import WorkersConfig, needed, slurm_cluster, workers
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import InputError, TooLargeError
from sliceprop.io import Image, write_image


def test_some_studies_done_some_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in/labels/sparse").mkdir(parents=True)
    for seed, name in enumerate("ab"):
        write_study(tmp_path / name, seed=seed)
        (tmp_path / name / "image.nii.gz").rename(tmp_path / f"in/{name}.nii.gz")
        (tmp_path / name / "labels.nii.gz").rename(tmp_path / f"in/labels/sparse/{name}.nii.gz")
    (tmp_path / "in/labels/sparse/b.nii.gz").write_text("no labels")
    options = ["--method", "shape", "--device", "cpu", "--workers", "1", "--threads", "1", "--memory", "3"]
    command = ["cohort", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "1 studies finished, 1 failed" in out
    assert f"failed: {tmp_path}/in/b.nii.gz: {tmp_path}/in/labels/sparse/b.nii.gz: cannot be read" in out
    assert (tmp_path / "out/a/overlay.png").is_file()
    (tmp_path / "in/b.nii.gz").unlink()
    (tmp_path / "in/labels/sparse/b.nii.gz").unlink()
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["finished"], told["resumed"], told["failed"]) == (1, 1, [])


def test_a_study_starts_from_the_pretrained_model_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The models are damaged, so that the one that is taken is told."""
    write_study(tmp_path / "in/a")
    (tmp_path / "in/a/image.json").write_text('{"Modality": "CT"}')
    (tmp_path / "models").mkdir()
    for modality in ("CT", "MR"):
        (tmp_path / f"models/{modality}.safetensors").write_bytes(b"")
        card = {"date": modality, "data": {"modality": modality}}
        (tmp_path / f"models/{modality}.card.json").write_text(json.dumps(card))
    options = ["--device", "cpu", "--workers", "1", "--threads", "1", "--memory", "3", "--no-pictures", "--json"]
    command = ["cohort", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--init", str(tmp_path / "models")]
    assert main([*command, *options]) == 1
    assert "models/CT.safetensors" in json.loads(capsys.readouterr().out)["failed"][0]["reason"]
    assert main([*command[:-1], str(tmp_path / "in"), *options]) == 2
    assert "holds no pretrained model" in capsys.readouterr().err


def test_a_study_too_large_for_every_worker_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "in/a")
    options = ["--device", "cpu", "--workers", "1", "--memory", "0.5"]
    assert main(["cohort", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options, "--json"]) == 1
    (failed,) = json.loads(capsys.readouterr().out)["failed"]
    assert "the largest worker has 0.5; run again with more --memory" in failed["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "more than 0"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "leave out"),
        (["--device", "cuda:1"], "auto, cpu or cuda"),
        (["--device", "cuda"], "is not on this machine"),
        (["--slurm", "--workers", "1", "--memory", "2"], "there is no sbatch here"),
        (["--target", "2"], "target"),
        (["--budget-s", "0"], "budget_s"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    write_study(tmp_path / "in/a")
    assert main(["cohort", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cohort", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "holds no studies" in capsys.readouterr().err


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program to submit jobs with, which no test submits."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


def test_slurm_jobs_offer_one_gpu_and_their_memory(tmp_path: Path, sbatch: None) -> None:
    config = WorkersConfig(n=3, memory_gib=6, threads=8, slurm=True)
    with slurm_cluster(config, True, tmp_path) as cluster:
        script = cluster.job_script()
    assert "#SBATCH --gres=gpu:1" in script
    assert "#SBATCH --cpus-per-task=8" in script
    assert "#SBATCH --mem=6G" in script
    assert "export OMP_NUM_THREADS=8" in script
    assert f"--resources MEMORY={6 * 2**30},GPU=1" in script
    assert script.rindex("--nthreads 1") > script.rindex("--nthreads 8")
    assert "tls://" in script


def test_ctrl_c_stays_ctrl_c_with_slurm(tmp_path: Path, sbatch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.getsignal(signal.SIGINT)
    with slurm_cluster(WorkersConfig(slurm=True), False, tmp_path):
        assert signal.getsignal(signal.SIGINT) is before


def test_slurm_without_its_package_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    with (
        pytest.raises(InputError) as told,
        workers(WorkersConfig(slurm=True), gpu=False, shared=tmp_path),
    ):
        pass
    assert str(told.value).startswith("SLURM needs dask-jobqueue")


def test_what_a_series_needs_is_known_from_one_header(tmp_path: Path) -> None:
    array = np.zeros((200, 180, 30), np.int16)
    write_image(tmp_path / "scan.nii.gz", array, Image(array, np.eye(4)))
    write_dicom_series(tmp_path / "series", Image(array, np.eye(4)))
    asked = [needed(tmp_path / name, "cpu", {"MEMORY": 2.0**40}) for name in ("scan.nii.gz", "series")]
    assert asked[0] == asked[1] and asked[0]["MEMORY"] > array.size
    with pytest.raises(TooLargeError, match="may need"):
        needed(tmp_path / "scan.nii.gz", "cpu", {"MEMORY": 1.0})
    assert needed(tmp_path / "series", "cpu", {"MEMORY": 1.0}) == {"MEMORY": 1.0}  # it may hold other series too
    (tmp_path / "empty").mkdir()
    assert needed(tmp_path / "empty", "cpu", {"MEMORY": 1.0}) == {}


def test_a_running_scheduler_has_its_own_workers() -> None:
    with pytest.raises(InputError, match="its own workers"):
        WorkersConfig(scheduler="tcp://x", slurm=True)
