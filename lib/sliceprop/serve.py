"""Starting the server from the command line: MONAI Label in a process group of its own, which ends as a whole."""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Self

from cryptography.x509 import load_pem_x509_certificate

from sliceprop.errors import FileError, InputError
from sliceprop.tokens import TokenFile

logger = logging.getLogger(__name__)

APP_FOLDER = Path(__file__).resolve().parents[2] / "apps" / "labelprop"

SETTINGS = {
    "MONAI_LABEL_TRACKING_ENABLED": "false",
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
}
"""MONAI Label's settings where its defaults do not suit: no experiment tracking, no scoring after each submission."""

_PR_SET_PDEATHSIG = 1
"""Of Linux: prctl(2), `linux/prctl.h`."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for all of this machine's, and where programs on it find what listens there."""

GRACE_S, SERVER_GRACE_S = 5.0, 20.0
"""Between asking a program to end and ending it; the server first finishes the requests that it works on."""


@dataclass(frozen=True)
class Security:
    """Who is let in, and how.

    Attributes:
        token_file: hashes of tokens, written by `sliceprop token`; without it nobody is asked for one.
        tls_cert: certificate, PEM.
        tls_key: its key, PEM.
        insecure: listen on other addresses than this machine's own without tokens or TLS.
    """

    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    @property
    def scheme(self) -> str:
        """Of the server's address."""
        return "https" if self.tls_cert else "http"

    def check(self, host: str) -> None:
        """Refuse to be open to others who are not asked for anything, or who could be listened to.

        Raises:
            InputError: saying what is missing.
            FileError: if a file cannot be used.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key belong together; give both")
        if self.token_file:
            TokenFile(self.token_file)
        if self.tls_cert and self.tls_key:
            _check_certificate(self.tls_cert, self.tls_key)
        if not (is_local(host) or self.insecure or (self.token_file and self.tls_cert)):
            raise InputError(
                f"{host} can be reached from other machines: give --token-file, --tls-cert and --tls-key, "
                "or --insecure if something else protects it"
            )

    def options(self) -> list[str]:
        """For `monailabel start_server`."""
        options = []
        if self.tls_cert and self.tls_key:
            options += ["--ssl_certfile", str(self.tls_cert), "--ssl_keyfile", str(self.tls_key)]
        if self.token_file:
            options += ["--conf", "token_file", str(self.token_file.absolute())]
        elif self.insecure:
            options += ["--conf", "insecure", "true"]
        return options


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_certificate(cert: Path, key: Path) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"{cert}, {key}: not a certificate and its key without a password, both PEM ({reason})"
        ) from error
    known = load_pem_x509_certificate(cert.read_bytes())
    if not known.not_valid_before_utc <= datetime.now(UTC) <= known.not_valid_after_utc:
        dates = f"{known.not_valid_before_utc:%Y-%m-%d} to {known.not_valid_after_utc:%Y-%m-%d}"
        logger.warning("%s is valid from %s; programs that look at it will not connect", cert, dates)


def address_of(scheme: str, host: str, port: int) -> str:
    """What a user of a server types in that listens on `host`."""
    name = socket.getfqdn() if host in _LOCAL else host
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def serve(
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    security: Security | None = None,
    conf: Iterable[Sequence[str]] = (),
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Run `monailabel start_server` until it ends, or until a signal ends it with all that it started.

    Args:
        studies: folder, made if absent, or DICOMweb address.
        host: address to listen on.
        port: to listen on.
        security: who is let in, and how; without it whoever is on this machine.
        conf: pairs of key and value for the app.
        ready: called once, when the server accepts connections.

    Returns:
        the server's exit code, 0 after a signal.

    Raises:
        InputError: if the address cannot be listened on, or is open to others who are not asked for anything; or if
            trainings are to go to Dask, which is not installed.
        FileError: if the app's folder is not there, or a file of `security` cannot be used.
    """
    check_server(host, port, security)
    with Programs() as programs:
        return run_server(programs, studies, host=host, port=port, security=security, conf=conf, ready=ready)


def check_server(host: str, port: int, security: Security | None = None) -> None:
    """Find out before anything is started that the server could not run, or should not.

    Raises:
        InputError: if the address cannot be listened on, or is open to others who are not asked for anything.
        FileError: if the app's folder is not there, or a file of `security` cannot be used.
    """
    (security or Security()).check(host)
    _check_address(host, port)
    if not (APP_FOLDER / "main.py").is_file():
        raise FileError(f"{APP_FOLDER}: the server's app is not here; install from a checkout with `pip install -e .`")


def run_server(
    programs: Programs,
    studies: str,
    *,
    host: str,
    port: int,
    security: Security | None = None,
    conf: Iterable[Sequence[str]] = (),
    environment: Mapping[str, str] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Start the server among `programs` and wait for its end; arguments and answer as those of `serve`.

    `environment` holds variables for the server alone: the archive's password, which no other user can read there.
    """
    conf = list(conf)
    if any(key == "scheduler" for key, _ in conf):
        from sliceprop.cohort.workers import check_installed

        check_installed()
    options = ["--app", str(APP_FOLDER), "--studies", studies, "--host", host, "--port", str(port)]
    options += [part for pair in conf for part in ("--conf", *pair)]
    options += (security or Security()).options()
    command = [sys.executable, "-m", "sliceprop.server", "start_server", *options]
    server = programs.start(command, _environment() | dict(environment or {}), grace_s=SERVER_GRACE_S)
    if programs.wait(lambda: accepts(host, port) or server.poll() is not None) and server.poll() is None:
        ready()
    programs.wait(lambda: server.poll() is not None)
    return 0 if programs.asked_to_end else server.wait()


class Programs:
    """Programs that end with this one, each with all that it started: a context, entered before the first one starts.

    Meanwhile SIGINT, SIGTERM and SIGHUP only set `asked_to_end`, so that none can come between a start and its record.
    If this one is killed, Linux asks them to end.
    """

    def __init__(self) -> None:
        self.asked_to_end = False
        self._running: list[tuple[subprocess.Popen[bytes], float]] = []

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for process, grace_s in reversed(self._running):
            _end_group(process, grace_s)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked_to_end = True

    def start(
        self,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        grace_s: float = GRACE_S,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own.

        Args:
            command: program and arguments.
            environment: that of this process by default.
            log: file for what the program prints; printed by this one by default.
            grace_s: between asking it to end and ending it.
        """
        with log.open("ab") if log else nullcontext() as output:
            process = subprocess.Popen(
                command,
                env=environment,
                process_group=0,
                stdout=output,
                stderr=output,
                preexec_fn=_ending_with_this_process(),
            )
        self._running.append((process, grace_s))
        return process

    def wait(self, condition: Callable[[], bool], patience_s: float = math.inf) -> bool:
        """Wait until `condition` holds; False if a signal asked to end before, or it took longer than `patience_s`."""
        deadline = time.monotonic() + patience_s
        while not self.asked_to_end and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.2)
        return False


def _ending_with_this_process() -> Callable[[], None] | None:
    """For a new program to call first: it gets SIGTERM when this process is gone, however that came; on Linux only."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # which was killed before this
            os._exit(1)

    return ask


def _end_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the processes of a group to end, then make them; the first one may be gone and have left children."""
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
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
    try:
        socket.create_connection((_LOCAL.get(host, host), port), timeout=1).close()
    except OSError:
        return False
    return True
