"""The server as a program: `python -m sliceprop.server start_server` is `monailabel start_server`, fit for operators.

Connections that neither ask nor take are closed. Log and sessions lie with the studies, so that several servers of one
installation do not share them, and nothing else need be writable. What cannot be used, the configuration for example,
ends it with one line and code 2 before it listens.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import tempfile
from asyncio import constants, sslproto
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.resources import files
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from monailabel.main import Main
from uvicorn.config import HTTP_PROTOCOLS

from sliceprop.errors import FileError, InputError, SlicePropError
from sliceprop.io import FOLDER, make_folder
from sliceprop.server import background
from sliceprop.server.archive import is_archive, studies_folder
from sliceprop.server.connections import HEAD_S
from sliceprop.server.logs import quieten
from sliceprop.versions import SERVER_LOCK

logger = logging.getLogger(__name__)

LOG = "server.log"

TLS_RECORD = 1 << 14
"""Bytes of the largest one: what asyncio holds for a connection, whoever opened it; by default it is 16 times that."""


class Server(Main):  # type: ignore[misc]
    """MONAI Label's command line."""

    def start_server_validate_args(self, args: Any) -> None:
        """Complete and check the arguments; the folder of the studies is made if it is absent.

        Raises:
            FileError: if it cannot be, or would lie in a folder that is not there.
        """
        if args.studies and not is_archive(args.studies):
            folder = Path(args.studies)
            if not os.access(folder.parent, os.X_OK):
                raise FileError(f"{folder}: {folder.parent} cannot be entered; is a drive not mounted?")
            make_folder(folder)
        super().start_server_validate_args(args)

    def start_server_init_settings(self, args: Any) -> None:
        """Make the app, which checks its configuration; MONAI Label would make it when the server has started.

        Raises:
            SlicePropError: if anything that it was given cannot be used.
        """
        settings.MONAI_LABEL_SERVER_PORT = args.port
        settings.MONAI_LABEL_APP_DIR = args.app
        settings.MONAI_LABEL_STUDIES = args.studies
        settings.MONAI_LABEL_APP_CONF = dict(args.conf or ())
        folder = studies_folder(args.studies, settings.MONAI_LABEL_APP_CONF) / FOLDER
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        args.log_config = args.log_config or self._log_config(folder / "logs")
        self._alone(folder)
        if not settings.MONAI_LABEL_SESSION_PATH and _is_private(folder / "sessions"):
            settings.MONAI_LABEL_SESSION_PATH = str(folder / "sessions")
        os.environ.update(_environment())
        logging.config.dictConfig(json.loads(Path(args.log_config).read_text()))
        app_instance()
        with redirect_stdout(StringIO()):  # it says that all origins are allowed, which `access` does not
            import monailabel.app  # noqa: F401

    def _alone(self, folder: Path) -> None:
        """Keep other servers away from these studies until this process ends; not where nothing can be written.

        Raises:
            InputError: if there is one.
        """
        self._lock = FileLock(folder / SERVER_LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{folder.parent}: another server works on these studies; end it first") from error
        except OSError:
            logger.warning("%s cannot be written", folder)

    def _log_config(self, folder: Path) -> str:
        """MONAI Label's, with a file in this folder; without one if it cannot be written, as on a full disk."""
        config: dict[str, Any] = json.loads((files("monailabel") / "logging.json").read_text())
        to_files = {name for name, handler in config["handlers"].items() if "filename" in handler}
        for name in to_files:
            config["handlers"][name]["filename"] = str(folder / LOG)
        if not _is_private(folder):
            config["handlers"] = {n: handler for n, handler in config["handlers"].items() if n not in to_files}
            for log in (config["root"], *config["loggers"].values()):
                log["handlers"] = [name for name in log["handlers"] if name not in to_files]
        file = Path(tempfile.gettempdir()) / "logging.json"
        file.write_text(json.dumps(config))
        return str(file)


def _environment() -> dict[str, str]:
    """MONAI Label's settings for the processes that train and work through batches."""
    known = settings.model_dump().items()
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in known if value is not None}


def _is_private(folder: Path) -> bool:
    """Whether a folder could be made for its owner only, and can be written."""
    try:
        make_folder(folder)
        folder.chmod(0o700)
        tempfile.TemporaryFile(dir=folder).close()
    except (FileError, OSError) as error:
        logger.warning("nothing can be kept in %s: %s", folder, error)
        return False
    return True


def main() -> None:
    """Run it with the arguments of this process, and as many open files as it may have: 1024 are few."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    HTTP_PROTOCOLS["auto"] = "sliceprop.server.connections:Connection"
    constants.SSL_HANDSHAKE_TIMEOUT = HEAD_S
    sslproto.SSLProtocol.max_size = TLS_RECORD
    quieten()
    with _private_temporary_files():
        try:
            _run()
        finally:
            background.stop()


@contextmanager
def _private_temporary_files() -> Iterator[None]:
    """Until the end all of them lie in a folder that only their owner may enter: scans of requests are among them."""
    signal.signal(signal.SIGTERM, _end)  # uvicorn sends it again when it has ended
    with tempfile.TemporaryDirectory(prefix="sliceprop-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        yield


def _end(number: int, frame: FrameType | None) -> None:
    """End as after any error, so that what is to be removed is."""
    sys.exit(128 + number)


def _run() -> None:
    try:
        Server().run()
    except SlicePropError as error:
        sys.stderr.write(f"sliceprop serve: {' '.join(str(error).split())}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
