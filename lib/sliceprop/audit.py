"""Who did what to which study: one line of JSON each, only ever appended, with hashes in place of study ids.

A plain hash of an id could be found out by trying names and numbers of patients, so it is keyed (HMAC) with a secret
that lies beside the log. Who has both can ask for the lines of a study that he knows (`AuditLog.lines`), nobody can
read ids out of the log alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sliceprop.errors import SlicePropError
from sliceprop.io import UNFINISHED

logger = logging.getLogger(__name__)

LOG, KEY = "audit.jsonl", "audit.key"
HASH_LENGTH = 16
"""Hexadecimal digits of a hash: 64 bits, far more than needed to tell the studies of a server apart."""

_KEY_BYTES = 32


class AuditLog:
    """The log of one folder of studies, for several processes at once.

    Args:
        folder: the app's own, `.labelprop` in the studies folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record(self, event: str, **fields: Any) -> None:
        """Append one line; a log that cannot be written is told to the operator, and work goes on.

        Args:
            event: `read`, `write`, `train`, `export`, `erase`, ...
            fields: plain values; `study` is an id, of which only the hash is kept.
        """
        if study := fields.pop("study", ""):
            fields = {"study": self.study_hash(study), **fields}
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        try:
            descriptor = os.open(self._folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, (json.dumps(told) + "\n").encode("ascii"))
            finally:
                os.close(descriptor)
        except (OSError, SlicePropError):
            logger.exception("the audit could not be written: %s", event)

    def study_hash(self, study: str) -> str:
        """What stands for a study's id in log files and audit."""
        digest = hmac.new(self._key, study.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:HASH_LENGTH]

    def lines(self, study: str = "") -> Iterator[dict[str, Any]]:
        """The lines, oldest first; only those of one study if its id is given. Damaged ones are left out."""
        wanted = self.study_hash(study) if study else None
        with suppress(FileNotFoundError), (self._folder / LOG).open(encoding="utf-8", errors="replace") as log:
            for text in log:
                with suppress(ValueError):
                    line = dict(json.loads(text))
                    if wanted in (None, line.get("study")):
                        yield line

    @cached_property
    def _key(self) -> bytes:
        """The secret, made the first time; one that is not kept if the folder cannot be written."""
        file, new = self._folder / KEY, secrets.token_bytes(_KEY_BYTES)
        try:
            temporary = self._folder / f"{UNFINISHED}{secrets.token_hex(8)}"
            temporary.touch(0o600)
            temporary.write_bytes(new)
            try:
                with suppress(FileExistsError):
                    os.link(temporary, file)  # fails if there is one, unlike a rename
            finally:
                temporary.unlink()
        except (OSError, SlicePropError):
            logger.warning("the key of the audit cannot be written; hashes hold until the server ends")
        with suppress(OSError):
            known = file.read_bytes()
            if len(known) == _KEY_BYTES:
                return known
        return new
