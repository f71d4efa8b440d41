import json
import os
import subprocess
import sys

import psutil
import pytest

pytest.importorskip("monailabel")

from sliceprop.server.trainer import TrainingState
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
