"""A training as a Dask worker does it, called as the worker calls it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch

pytest.importorskip("monailabel")

from columns import column
from sliceprop.checkpoint import load_checkpoint
from sliceprop.server import training_work
from sliceprop.server.learning import StateFile
from sliceprop.server.trainer import PropagateTrainer
from sliceprop.server.training_work import Job, run_job
from sliceprop.server.workspace import Workspace


@pytest.fixture
def job(workspace: Workspace, submit) -> Job:
    submit(column([2, 7]))
    folder = workspace.record("case").folder
    request = {"image": "case", "budget_s": 600, "init": "none"}
    return PropagateTrainer(workspace, 2.0).job(request, folder / "training-1", folder / "training.json")


def test_a_worker_learns_what_the_training_process_learns(job: Job, workspace: Workspace) -> None:
    assert run_job(job) == {"status": "DONE"}
    by_worker = load_checkpoint(job.checkpoint)
    state = StateFile(job.state).read()
    assert (state["status"], state["image"]) == ("DONE", "case") and 0 < state["epoch"] <= state["total_epochs"]
    job.checkpoint.unlink()
    PropagateTrainer(workspace, 600.0)({"image": "case", "init": "none"}, None)
    by_process = load_checkpoint(job.checkpoint)
    assert by_worker.study_hash == by_process.study_hash
    torch.testing.assert_close(by_worker.fields.velocity, by_process.fields.velocity, rtol=0, atol=0)


def test_it_starts_from_the_checkpoint_of_the_study(job: Job, workspace: Workspace) -> None:
    run_job(job)
    before = load_checkpoint(job.checkpoint)
    again = PropagateTrainer(workspace, 2.0).job({"image": "case"}, job.folder, job.state)
    kept = load_checkpoint(again.folder / "init.safetensors")
    torch.testing.assert_close(kept.fields.velocity, before.fields.velocity, rtol=0, atol=0)
    assert not run_job(again).get("error")


def test_without_its_folder_nothing_is_begun(job: Job) -> None:
    job.discard()
    assert run_job(job) == {"status": "STOPPED"}
    assert not job.checkpoint.exists() and not job.state.exists()


def test_a_stop_before_anything_is_read_is_no_error(job: Job) -> None:
    class Stopped(Job):
        def touched(self) -> int | None:
            answer = super().touched()
            self.discard()  # right after it began
            return answer

    stopped = Stopped(**{each.name: getattr(job, each.name) for each in fields(job)})
    assert run_job(stopped) == {"status": "STOPPED"}
    state = StateFile(job.state).read()
    assert state["status"] == "STOPPED" and "error" not in state


def test_a_server_that_falls_silent_ends_it_and_the_model_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_work, "SILENCE_S", 0.0)
    monkeypatch.setattr(training_work, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert run_job(job) == {"status": "STOPPED"}
    assert StateFile(job.state).read()["status"] == "STOPPED"
    assert load_checkpoint(job.checkpoint).study_hash


def test_what_goes_wrong_is_told_in_words(job: Job) -> None:
    (job.folder / "drawn.npz").unlink()
    assert "same folder of studies" in run_job(job)["error"]
    assert StateFile(job.state).read()["status"] == "ERROR"


def test_workers_need_no_monai_label() -> None:
    code = "import sys, sliceprop.server.training_work; sys.exit(bool({'monailabel', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
