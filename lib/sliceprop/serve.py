"""Starting the server from the command line: MONAI Label in a process group of its own, which ends as a whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from sliceprop.errors import FileError, InputError

APP_FOLDER = Path(__file__).resolve().parents[2] / "apps" / "labelprop"

SETTINGS = {
    "MONAI_LABEL_TRACKING_ENABLED": "false",
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
}
"""MONAI Label's settings where its defaults do not suit: no experiment tracking, no scoring after each submission."""

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
    _check_address(host, port)
    if not (APP_FOLDER / "main.py").is_file():
        raise FileError(f"{APP_FOLDER}: the server's app is not here; install from a checkout with `pip install -e .`")
    options = ["--app", str(APP_FOLDER), "--studies", studies, "--host", host, "--port", str(port)]
    options += [part for pair in conf for part in ("--conf", *pair)]
    waiting = True

    def watch() -> None:
        nonlocal waiting
        if waiting and _accepts(host, port):
            waiting = False
            ready()

    command = [sys.executable, "-m", "monailabel.main", "start_server", *options]
    return run_group(command, environment=_environment(), watch=watch)


def run_group(
    command: Sequence[str], *, environment: dict[str, str] | None = None, watch: Callable[[], None] = lambda: None
) -> int:
    """Run a command until it ends, or until SIGINT, SIGTERM or SIGHUP; either way nothing that it started is left.

    Args:
        command: program and arguments.
        environment: of the command, that of this process by default.
        watch: called several times per second while it runs.

    Returns:
        the command's exit code, 0 after a signal.
    """
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    process = subprocess.Popen(command, env=environment, process_group=0)
    try:
        while not asked and process.poll() is None:
            watch()
            time.sleep(0.2)
        return 0 if asked else process.returncode
    finally:
        _end_group(process)
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    """With this interpreter's programs first on the path: MONAI Label looks for dcmqi's there before downloading it."""
    programs = str(Path(sys.executable).parent)
    return SETTINGS | os.environ | {"PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])}


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


def _accepts(host: str, port: int) -> bool:
    """Whether the server listens, which it does as soon as the app is ready."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((local, port), timeout=1).close()
    except OSError:
        return False
    return True
