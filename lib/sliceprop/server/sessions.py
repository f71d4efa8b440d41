"""Scans that clients send for a session: MONAI Label's, but what is over goes, whatever is in the folder."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from monailabel.utils.sessions import Sessions

ABOUT = "meta.info"
"""What MONAI Label keeps of a session, beside its scan."""


class ScanSessions(Sessions):  # type: ignore[misc]
    """Sessions in a folder, those of a server that has ended too."""

    def __bool__(self) -> bool:
        """True: without it MONAI Label removes nothing until it has used a session since its start."""
        return True

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> Any:
        """Move a scan into a new session, for its owner only; nothing stays of one that fails, as on a full disk."""
        name = session_id or str(uuid.uuid4())
        folder = Path(self.store_path) / name
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            return super().add_session(data_file, expiry, uncompress, name)
        except BaseException:
            self.remove_session(name)
            raise

    def remove_session(self, session_id: str) -> None:
        """End it, whoever else does at the same time."""
        self.pop(session_id, None)
        rmtree(Path(self.store_path) / session_id, ignore_errors=True)

    def remove_expired(self) -> int:
        """Remove the sessions that are over, broken ones too; how many that were."""
        over = [folder.name for folder in Path(self.store_path).glob("*/") if self._is_over(folder)]
        for name in over:
            self.remove_session(name)
        return len(over)

    def _is_over(self, folder: Path) -> bool:
        """Whether the time is up since something was written there last, as each use of a session does."""
        with suppress(OSError):  # a client has just removed it
            last = max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
            return last + self._kept_s(folder) < time.time()
        return False

    def _kept_s(self, folder: Path) -> float:
        """As long as the client wanted, if that can be read, but never longer than the operator allows."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            return float(min(about["expiry"], self.expiry))
        return float(self.expiry)
