import json
import os
import subprocess
import sys

import psutil
import pytest

pytest.importorskip("monailabel")

from columns import column
from sliceprop.server.trainer import PropagateTrainer, TrainingState
from sliceprop.study import Progress

HALFWAY = Progress(5, 10, 0.5, 3.0, 3.0)


@pytest.fixture
def state(tmp_path):
    return TrainingState(tmp_path / "folder" / "training.json")


def pretend(state, process, started=None):
    """As if `process` had written the state."""
    content = json.loads(state._file.read_text())
    content["process"] = {"pid": process.pid, "started": started or psutil.Process(process.pid).create_time()}
    state._file.write_text(json.dumps(content))


@pytest.fixture
def other():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_before_any_training_there_are_zeros(state):
    assert state.read() == {
        "status": "NONE",
        "epoch": 0,
        "total_epochs": 0,
        "best_metric": 0.0,
        "seconds_left": 0.0,
        "total_time": 0.0,
    }


def test_a_training_that_runs_is_reported(state, other):
    state.write("case", "RUNNING", HALFWAY)
    pretend(state, other)
    assert state.read() == {
        "image": "case",
        "status": "RUNNING",
        "epoch": 5,
        "total_epochs": 10,
        "best_metric": 0.5,
        "seconds_left": 3.0,
        "total_time": 3.0,
    }


def test_a_killed_training_does_not_run_for_ever(state, other):
    state.write("case", "RUNNING", HALFWAY)
    pretend(state, other)
    other.kill()
    other.wait()
    assert state.read()["status"] == "STOPPED"


def test_a_process_that_reuses_the_number_is_not_the_training(state):
    state.write("case", "RUNNING", HALFWAY)
    pretend(state, psutil.Process(os.getpid()), started=1.0)
    assert state.read()["status"] == "STOPPED"


def test_a_training_that_never_started_is_not_waited_for(state):
    state.write("case", "SUBMITTED", HALFWAY)
    assert state.read()["status"] == "STOPPED"


@pytest.mark.parametrize("status", ["DONE", "ERROR"])
def test_the_end_is_reported_as_it_was(state, status):
    state.write("case", status, HALFWAY, error="why")
    assert state.read()["status"] == status
    assert state.read()["error"] == "why"


@pytest.fixture
def trained(workspace, submit):
    """The checkpoint file after a training, and what trains again from nothing."""
    submit(column([2, 7]))
    trainer = PropagateTrainer(workspace, 2.0)

    def train():
        return trainer({"image": "case", "init": "none"}, None)

    assert train()["status"] == "DONE"
    return workspace.checkpoints.file("case"), train


def test_a_training_whose_server_is_gone_leaves_a_better_checkpoint_alone(trained, monkeypatch):
    file, train = trained
    before = file.read_bytes()
    parents = iter([os.getppid()])
    monkeypatch.setattr("os.getppid", lambda: next(parents, 1))
    train()
    assert file.read_bytes() == before


def test_a_training_that_ends_by_itself_replaces_the_checkpoint_before(trained):
    file, train = trained
    before = file.stat().st_mtime_ns
    assert "note" not in train()
    assert file.stat().st_mtime_ns > before


def test_a_damaged_checkpoint_is_left_out_and_said_so(trained, workspace):
    file, _ = trained
    file.write_bytes(file.read_bytes()[:-50])
    stats = PropagateTrainer(workspace, 2.0)({"image": "case"}, None)
    assert stats["status"] == "DONE" and "afresh" in stats["note"]
    assert workspace.checkpoints.load("case").study_hash
