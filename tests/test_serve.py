"""The process tree of the server, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sliceprop.errors import InputError
from sliceprop.serve import _environment, serve

TREE = "sleep 600 & echo $$ $!; wait"
STUBBORN_TREE = f"trap '' TERM; {TREE}; sleep 600"
"""A shell and its child; the stubborn ones ignore polite requests to end."""

SUPERVISOR = """
import sys
from sliceprop.serve import Programs
with Programs() as programs:
    running = [programs.start(["sh", "-c", tree]) for tree in sys.argv[1:]]
    programs.wait(lambda: running[-1].poll() is not None)
    code = 0 if programs.asked_to_end else running[-1].wait()
sys.exit(code)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(pids: list[int], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize(
    ("number", "tree"), [(signal.SIGINT, TREE), (signal.SIGHUP, TREE), (signal.SIGTERM, STUBBORN_TREE)]
)
def test_a_signal_ends_the_whole_tree(number: signal.Signals, tree: str) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, tree, tree], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout
    pids = [int(pid) for _ in range(2) for pid in supervisor.stdout.readline().split()]
    assert all(map(alive, pids))
    os.kill(supervisor.pid, number)
    assert supervisor.wait(30) == 0
    assert gone(pids)


def test_a_server_that_ends_leaves_no_children_and_its_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, "sleep 600 >/dev/null & echo $!; exit 3"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert gone([int(done.stdout)])


def test_a_port_in_use_is_found_before_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}"):
            serve(str(tmp_path), port=port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70_000), ("no.such.host.invalid", 8000)])
def test_an_address_without_meaning_is_refused(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(InputError):
        serve(str(tmp_path), host=host, port=port)


def test_programs_of_the_environment_come_first_and_settings_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_TRACKING_ENABLED", "true")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = _environment()
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert environment["MONAI_LABEL_TRACKING_ENABLED"] == "true"
    assert environment["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"
