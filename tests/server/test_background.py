"""Processes beside the server: what they get, what the machine's other users see of it, and how they end."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

from monailabel.utils.async_tasks import utils

from serving import eventually
from sliceprop.errors import StorageError
from sliceprop.server import background
from sliceprop.server.datastore import LocalStudies, Studies
from sliceprop.server.workspace import Workspace

REQUEST = {"image": "DOE^JOHN", "budget_s": f"{' ' * 200_000}5"}
"""Longer than an argument of a program may be."""

ANSWERS = """import json, sys
print(sys.argv)
print(json.loads(sys.stdin.read())["image"])
"""
WAITS = "import sys, time; sys.stdin.read(); print('here', flush=True); time.sleep(600)"
DIES = "raise SystemExit(3)"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a task whose process runs a program of the test."""
    monkeypatch.setattr(utils, "_task_func", background.run_task)
    for name in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(utils, name, {})

    def start(program: str) -> dict[str, Any]:
        python = tmp_path / "python"
        if program:
            python.write_text(f"#!{sys.executable}\n{program}")
            python.chmod(0o755)
        monkeypatch.setattr(background.sys, "executable", str(python))
        task: dict[str, Any] = utils.run_background_task(dict(REQUEST), "train")
        return task

    return start


def ended(task: dict[str, Any]) -> str:
    eventually(lambda: "end_ts" in task, "the task to end")
    return str(task["status"])


def test_the_request_is_not_on_the_command_line_however_long_it_is(start: Any) -> None:
    task = start(ANSWERS)
    assert ended(task) == "DONE"
    arguments, image = task["details"]
    assert "-m', 'train'" in arguments and "DOE" not in arguments
    assert image == "DOE^JOHN"
    assert not utils.processes("train")


@pytest.mark.parametrize("program", [DIES, ""], ids=["ends at once", "cannot be started"])
def test_a_process_that_fails_ends_the_task(start: Any, program: str) -> None:
    task = start(program)
    assert ended(task) == "ERROR" and not utils.processes("train")


def test_a_task_can_be_stopped(start: Any) -> None:
    task = start(WAITS)
    eventually(lambda: task.get("details"), "the process to run")
    assert task["status"] == "RUNNING"
    assert utils.stop_background_task("train") is task
    assert ended(task) == "STOPPED" and not utils.processes("train")


def test_a_server_that_ends_waits_for_nothing(start: Any) -> None:
    running, waiting = start(WAITS), start("")  # the second one has its turn when the first one has ended
    eventually(lambda: running.get("details"), "the process to run")
    background.stop()
    assert ended(running) == "ERROR" and waiting["status"] == "SUBMITTED"
    utils.background_executors["train"].shutdown()


def test_the_process_reads_its_request_and_makes_no_folder_of_studies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is not there went out of reach since the server looked."""
    called = list[list[str]]()
    monkeypatch.setattr(Studies, "may_begin", True)
    monkeypatch.setattr(background, "run_main", lambda: called.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["background.py", "-m", "train"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    background.main()
    assert called == [["background.py", "-m", "train", "-r", "{}"]]
    with pytest.raises(StorageError, match="out of reach"):
        LocalStudies(str(tmp_path))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Studies, "may_begin", True)
    Workspace(LocalStudies(str(tmp_path)))
    monkeypatch.setattr(Studies, "may_begin", False)
    folder = Workspace(LocalStudies(str(tmp_path))).folder
    assert folder.is_dir()
    folder.rename(tmp_path / "away")
    folder.mkdir()  # where another disk is mounted else
    with pytest.raises(StorageError, match="out of reach"):
        LocalStudies(str(tmp_path))
    assert not list(folder.iterdir())
