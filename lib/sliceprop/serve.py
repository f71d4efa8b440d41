"""Starting the server from the command line: MONAI Label in a process group of its own, which ends as a whole."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from sliceprop.errors import FileError, InputError

APP_FOLDER = Path(__file__).resolve().parents[2] / "apps" / "labelprop"

SETTINGS = {
    "MONAI_LABEL_TRACKING_ENABLED": "false",
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
}
"""MONAI Label's settings where its defaults do not suit: no experiment tracking, no scoring after each submission."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_S = 5.0
"""Between asking the processes to end and ending them."""


def serve(
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    conf: Iterable[Sequence[str]] = (),
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Run `monailabel start_server` until it ends, or until a signal ends it with all that it started.

    Args:
        studies: folder, made if absent, or DICOMweb address.
        host: address to listen on; MONAI Label has no login by default, so keep it local.
        port: to listen on.
        conf: pairs of key and value for the app.
        ready: called once, when the server accepts connections.

    Returns:
        the server's exit code, 0 after a signal.

    Raises:
        InputError: if the address cannot be listened on.
        FileError: if the app's folder is not there.
    """
    check_server(host, port)
    with Programs() as programs:
        return run_server(programs, studies, host=host, port=port, conf=conf, ready=ready)


def check_server(host: str, port: int) -> None:
    """Find out before anything is started that the server could not run.

    Raises:
        InputError: if the address cannot be listened on.
        FileError: if the app's folder is not there.
    """
    _check_address(host, port)
    if not (APP_FOLDER / "main.py").is_file():
        raise FileError(f"{APP_FOLDER}: the server's app is not here; install from a checkout with `pip install -e .`")


def run_server(
    programs: Programs,
    studies: str,
    *,
    host: str,
    port: int,
    conf: Iterable[Sequence[str]] = (),
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Start the server among `programs` and wait for its end; arguments and answer as those of `serve`."""
    options = ["--app", str(APP_FOLDER), "--studies", studies, "--host", host, "--port", str(port)]
    options += [part for pair in conf for part in ("--conf", *pair)]
    server = programs.start([sys.executable, "-m", "monailabel.main", "start_server", *options], _environment())
    if programs.wait(lambda: accepts(host, port) or server.poll() is not None) and server.poll() is None:
        ready()
    programs.wait(lambda: server.poll() is not None)
    return 0 if programs.asked_to_end else server.wait()


class Programs:
    """Programs that end with this one, each with all that it started: a context, entered before the first one starts.

    Meanwhile SIGINT, SIGTERM and SIGHUP only set `asked_to_end`, so that none can come between a start and its record.
    """

    def __init__(self) -> None:
        self.asked_to_end = False
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._running):
            _end_group(process)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked_to_end = True

    def start(
        self, command: Sequence[str], environment: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own.

        Args:
            command: program and arguments.
            environment: that of this process by default.
            log: file for what the program prints; printed by this one by default.
        """
        with log.open("ab") if log else nullcontext() as output:
            process = subprocess.Popen(command, env=environment, process_group=0, stdout=output, stderr=output)
        self._running.append(process)
        return process

    def wait(self, condition: Callable[[], bool], patience_s: float = math.inf) -> bool:
        """Wait until `condition` holds; False if a signal asked to end before, or it took longer than `patience_s`."""
        deadline = time.monotonic() + patience_s
        while not self.asked_to_end and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.2)
        return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the processes of a group to end, then make them; the first one may be gone and have left children."""
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _environment() -> dict[str, str]:
    """With this interpreter's programs first on the path, since MONAI Label calls some, and no proxy to loopback."""
    known = os.environ
    path = os.pathsep.join([str(Path(sys.executable).parent), known.get("PATH", os.defpath)])
    direct = ",".join(filter(None, [known.get("no_proxy") or known.get("NO_PROXY"), "127.0.0.1,localhost"]))
    return SETTINGS | known | {"PATH": path, "no_proxy": direct, "NO_PROXY": direct}


def _check_address(host: str, port: int) -> None:
    """Find out before the long start that another program listens there.

    Raises:
        InputError: naming the reason.
    """
    if not 0 < port < 65_536:
        raise InputError(f"port must lie in 1..65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from error


def accepts(host: str, port: int) -> bool:
    """Whether a program listens there, as the server does as soon as the app is ready."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((local, port), timeout=1).close()
    except OSError:
        return False
    return True
