"""The program that `sliceprop serve` starts, in a process of its own: it changes how the whole process logs."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("monailabel")

from sliceprop.serve import APP_FOLDER

ENDED = 128 + signal.SIGTERM

UP_TO_LISTENING = """
import json, os, resource, signal, tempfile, uvicorn
from uvicorn.config import HTTP_PROTOCOLS
import sliceprop.server.__main__ as program

def listen(app, log_config, **options):
    config = uvicorn.Config("monailabel.app:app", log_config=log_config)
    config.load()
    place = tempfile.gettempdir()
    print(json.dumps([config.http_protocol_class.__module__, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
    print(json.dumps([place, os.environ["TMPDIR"], os.stat(place).st_mode & 0o777]), flush=True)
    signal.raise_signal(signal.SIGTERM)

uvicorn.run = listen
program.main()
"""


def start(studies: Path, *conf: str) -> subprocess.CompletedProcess[str]:
    options = ["start_server", "--app", str(APP_FOLDER), "--studies", str(studies), *conf]
    return subprocess.run(
        [sys.executable, "-c", UP_TO_LISTENING, *options], capture_output=True, text=True, check=False
    )


def test_it_logs_beside_the_studies_and_only_there(tmp_path: Path) -> None:
    kept = sorted(path.name for path in APP_FOLDER.iterdir())
    ended = start(tmp_path / "studies", "--conf", "target", "0.9")
    assert ended.returncode == ENDED, ended.stderr
    module, *limits = json.loads(ended.stdout.splitlines()[-2])
    place, told, mode = json.loads(ended.stdout.splitlines()[-1])
    assert place == told and mode == 0o700 and not Path(place).exists()
    assert module == "sliceprop.server.connections" and limits[0] == limits[1]
    log = tmp_path / "studies" / ".labelprop" / "logs" / "server.log"
    assert log.is_file() and stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "studies" / ".labelprop" / "sessions").stat().st_mode) == 0o700
    assert sorted(path.name for path in APP_FOLDER.iterdir()) == kept
    assert "Allow Origins" not in ended.stdout


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        (("tokenfile", "tokens"), "there is no --conf tokenfile"),
        (("jobs", "0"), "limits of the server must be positive"),
        (("workers", "many", "scheduler", "local"), "workers must be"),
    ],
)
def test_what_cannot_be_used_ends_it_with_a_line(tmp_path: Path, conf: tuple[str, ...], said: str) -> None:
    pairs = [part for at in range(0, len(conf), 2) for part in ("--conf", *conf[at : at + 2])]
    ended = start(tmp_path, *pairs)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("sliceprop serve: ") and said in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_is_no_folder_of_studies(tmp_path: Path, below: str) -> None:
    file = tmp_path / "scans.zip"
    file.touch()
    ended = start(file / below if below else file)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert str(file) in ended.stderr.splitlines()[-1]


def test_studies_beside_which_nothing_can_be_kept_are_served(tmp_path: Path) -> None:
    (tmp_path / ".labelprop").touch()
    ended = start(tmp_path)
    assert ended.returncode == ENDED, ended.stderr
    assert "nothing can be kept in" in ended.stderr


def test_two_servers_do_not_work_on_the_same_studies(tmp_path: Path) -> None:
    lock = tmp_path / ".labelprop" / ".server.lock"
    lock.parent.mkdir()
    with FileLock(lock):
        ended = start(tmp_path)
    assert ended.returncode == 2 and "another server works on these studies" in ended.stderr.splitlines()[-1]
