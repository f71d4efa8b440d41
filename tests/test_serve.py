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

from certificates import write_certificate
from sliceprop.cli import main
from sliceprop.errors import FileError, InputError
from sliceprop.serve import Security, _environment, address_of, serve
from sliceprop.tokens import Holder, TokenFile, add_token, digest_of

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_programs_end_with_a_supervisor_that_is_killed() -> None:
    program = "echo $$; exec sleep 600"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, program, program], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout
    pids = [int(supervisor.stdout.readline()) for _ in range(2)]
    assert all(map(alive, pids))
    supervisor.kill()
    supervisor.wait()
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key."""
    return write_certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    add_token(tmp_path / "tokens", "alice", "annotate")
    return tmp_path / "tokens"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "scans.example"])
def test_others_get_in_only_with_tokens_and_tls(
    host: str, tokens: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for half in (Security(), Security(tokens), Security(None, *certificate)):
        with pytest.raises(InputError, match="--token-file, --tls-cert and --tls-key"):
            half.check(host)
    Security(tokens, *certificate).check(host)
    Security(insecure=True).check(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_neither(host: str, tokens: Path) -> None:
    Security().check(host)
    Security(tokens).check(host)


def test_files_that_cannot_be_used_are_named_before_the_start(
    tmp_path: Path, tokens: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    with pytest.raises(InputError, match="belong together"):
        Security(tokens, tls_cert=cert).check("0.0.0.0")
    for wrong in ((key, cert), (cert, tmp_path / "absent"), (cert, tokens)):
        with pytest.raises(FileError, match="PEM"):
            Security(tokens, *wrong).check("127.0.0.1")
    with pytest.raises(FileError, match="sliceprop token"):
        Security(cert).check("127.0.0.1")


def test_a_certificate_that_is_over_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Security(None, *write_certificate(tmp_path, "127.0.0.1")).check("127.0.0.1")
    assert not caplog.messages
    Security(None, *write_certificate(tmp_path, "127.0.0.1", days_ago=2)).check("127.0.0.1")
    assert "programs that look at it will not connect" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", f"http://{socket.getfqdn()}:8000"),
    ],
)
def test_the_address_of_a_server_can_be_opened_elsewhere(host: str, address: str) -> None:
    assert address_of("http", host, 8000) == address


def test_what_the_operator_chose_reaches_the_server(tokens: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    chosen = ["--ssl_certfile", cert, "--ssl_keyfile", key, "--conf", "token_file", str(tokens)]
    assert Security(tokens, *certificate).options() == chosen
    assert Security(insecure=True).options() == ["--conf", "insecure", "true"]
    assert Security().options() == []


def test_dask_is_missed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="pip install"):
        serve(str(tmp_path), port=port, conf=[("scheduler", "local")])


def test_an_open_server_does_not_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--studies", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert main(["ohif", "--folder", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.count("0.0.0.0 can be reached from other machines") == 2


def test_the_command_shows_a_token_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    assert main(["token", str(file), "--name", "bob", "--role", "train"]) == 0
    token = capsys.readouterr().out.strip()
    assert TokenFile(file).holder(digest_of(token)) == Holder("bob", "train")
    assert main(["token", str(file), "--name", "b o b"]) == 2
