"""A DICOMweb archive for people who have none: Debian's Orthanc, unprivileged, on this machine only."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sliceprop.errors import FileError, InputError
from sliceprop.io import make_folder, write_json
from sliceprop.serve import Programs, Security, accepts, check_server, run_server

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_S = 60.0

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Requests that no proxy sees, whatever the environment says."""

_PROGRAMS = os.pathsep.join(["/usr/sbin", "/usr/local/sbin"])
"""Where Debian puts Orthanc, though only root has it on the path."""

_PLUGINS = "*/orthanc/plugins/libOrthancDicomWeb.so*", "*/*/orthanc/plugins/libOrthancDicomWeb.so*"
"""Below /usr."""


@dataclass(frozen=True)
class Orthanc:
    """An Orthanc that is running.

    Attributes:
        url: of its own pages.
        login: the only user and the password; another one with each start.
    """

    url: str
    login: tuple[str, str] = field(repr=False)

    @property
    def dicomweb(self) -> str:
        """The address to give as studies."""
        return f"{self.url}/dicom-web"

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of a server on it must hold."""
        user, password = self.login
        return {"MONAI_LABEL_DICOMWEB_USERNAME": user, "MONAI_LABEL_DICOMWEB_PASSWORD": password}

    def is_empty(self) -> bool:
        """Whether it holds nothing yet."""
        return bool(self._ask("/statistics")["CountInstances"] == 0)

    def add(self, files: Iterable[Path]) -> int:
        """Store DICOM files and say how many; those that are there already do no harm, other files are left out.

        Raises:
            InputError: if Orthanc ends by one.
        """
        stored = 0
        for file in files:
            content = file.read_bytes()
            try:
                self._ask("/instances", content)
                stored += 1
            except urllib.error.HTTPError:
                logger.info("%s: Orthanc does not take it as DICOM", file)
            except OSError as error:
                raise InputError(f"{file}: Orthanc does not answer any more when it gets this file") from error
        return stored

    def _ask(self, path: str, content: bytes | None = None) -> Any:
        login = b64encode(":".join(self.login).encode()).decode()
        request = urllib.request.Request(self.url + path, content, {"Authorization": f"Basic {login}"})
        with _DIRECT.open(request, timeout=60) as answer:
            return json.load(answer)


def find_orthanc() -> tuple[str, str]:
    """Orthanc and its DICOMweb plugin.

    Raises:
        FileError: if one of them is not installed.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path=_PROGRAMS)
    plugins = sorted(file for pattern in _PLUGINS for file in Path("/usr").glob(pattern))
    if program is None or not plugins:
        missing = "Orthanc" if program is None else "Orthanc's DICOMweb plugin"
        raise FileError(f"{missing} is not installed; `make ohif` does it, or apt-get install orthanc orthanc-dicomweb")
    return program, str(plugins[-1])


def start_orthanc(programs: Programs, folder: Path) -> Orthanc:
    """Start Orthanc among `programs`, on loopback and a free port, for who knows the password of this start.

    Args:
        programs: it ends with them.
        folder: for its database, log and settings with the password; only its owner gets in from now on.

    Raises:
        FileError: if it is not installed, or the folder cannot be written.
        InputError: if it does not start, with the end of its log.
    """
    program, plugin = find_orthanc()
    make_folder(folder)
    folder.chmod(0o700)
    port, log, settings = _free_port(), folder / "orthanc.log", folder / "orthanc.json"
    login = "sliceprop", secrets.token_urlsafe()
    write_json(settings, _settings(folder, plugin, port, login))
    settings.chmod(0o600)
    log.unlink(missing_ok=True)
    process = programs.start([program, str(settings)], log=log)
    up = programs.wait(lambda: accepts(HOST, port) or process.poll() is not None, START_S)
    if process.poll() is not None or not (up or programs.asked_to_end):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise InputError(f"Orthanc did not start; see {log} ({' '.join(last)})")
    return Orthanc(f"http://{HOST}:{port}", login)


def serve_ohif(
    folder: Path,
    *,
    dicom: Path | None = None,
    host: str = HOST,
    port: int = 8000,
    security: Security | None = None,
    conf: Iterable[tuple[str, str]] = (),
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Run Orthanc and the server on it until the server ends, or until a signal ends both.

    Args:
        folder: for the archive and the labels; what is there from before is used again.
        dicom: file or folder to load; without it the synthetic scan is loaded into an empty archive.
        host: address for the server to listen on.
        port: for the server to listen on.
        security: who is let in to the server, and how.
        conf: pairs of key and value for the app.
        ready: called once, when both accept connections.

    Returns:
        the server's exit code, 0 after a signal.

    Raises:
        InputError: or a subclass, if one of them cannot run, or the folder is in use.
    """
    check_server(host, port, security)
    files = _dicom_files(dicom) if dicom else []
    make_folder(folder)
    with _alone(folder), Programs() as programs:
        orthanc = start_orthanc(programs, folder / "orthanc")
        if not programs.asked_to_end:
            _load(programs, orthanc, files)
        kept = ("folder", str(folder.resolve() / "labels"))  # the archive's address changes with its port
        return run_server(
            programs,
            orthanc.dicomweb,
            host=host,
            port=port,
            security=security,
            conf=[kept, *conf],
            environment=orthanc.environment,
            ready=ready,
        )


def _load(programs: Programs, orthanc: Orthanc, files: list[Path]) -> None:
    """Put files into the archive, and the sample into an empty one.

    Raises:
        FileError: if there are files and none of them is DICOM.
    """
    stored = orthanc.add(takewhile(lambda _: not programs.asked_to_end, files))
    if programs.asked_to_end:
        return
    if files and not stored:
        raise FileError(f"{files[0].parent}: holds no DICOM files")
    if orthanc.is_empty():
        with tempfile.TemporaryDirectory() as folder:
            orthanc.add(_sample_series(Path(folder)))


def _sample_series(folder: Path) -> list[Path]:
    from sliceprop.dicom import write_dicom_series
    from sliceprop.io import Image
    from sliceprop.phantom import make_phantom

    phantom = make_phantom()
    return write_dicom_series(folder, Image(phantom.image, phantom.affine))


def _dicom_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileError(f"{path}: no such file or folder")
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not found:
        raise FileError(f"{path}: holds no files")
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs away from a folder.

    Raises:
        InputError: if there is one.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder}: is in use by another `sliceprop ohif`; end that, or give --folder") from error
    try:
        yield
    finally:
        lock.release()


def _settings(folder: Path, plugin: str, port: int, login: tuple[str, str]) -> dict[str, Any]:
    """Orthanc's configuration: no DICOM network, no remote access; a version that can bind to one address does so.

    The password keeps out other users of this machine, and web pages: Orthanc looks neither at Host nor at Origin.
    """
    database = str(folder.resolve() / "database")
    return {
        "Name": "sliceprop",
        "StorageDirectory": database,
        "IndexDirectory": database,
        "Plugins": [plugin],
        "HttpServerEnabled": True,
        "HttpPort": port,
        "HttpBindAddresses": [HOST],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([login]),
        "DicomServerEnabled": False,
        "OverwriteInstances": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False, "Ssl": False},
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
