"""Who may use a server: a file with the hashes of tokens, each with a name and a role.

A line of the file is `name role sha256:digest`; empty lines and those that start with # count for nothing. A token
holds 256 random bits, so that a plain hash of it tells nothing and need not be slow, as that of a password must be.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sliceprop.errors import FileError, InputError

logger = logging.getLogger(__name__)

ROLES = ("watch", "annotate", "train", "administer")
"""Each may do what those before it may: read figures of the server; read studies, draw; start and stop trainings;
delete, read logs."""

_NAME = re.compile(r"[\w.@-]{1,64}")
_LINE = re.compile(r"(?P<name>\S+)\s+(?P<role>\S+)\s+sha256:(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Holder:
    """Somebody who may use the server.

    Attributes:
        name: for the audit.
        role: one of `ROLES`.
    """

    name: str
    role: str

    def may(self, role: str) -> bool:
        """Whether this role is included."""
        return ROLES.index(role) <= ROLES.index(self.role)


class _Entry(NamedTuple):
    digest: str
    holder: Holder


def digest_of(token: str) -> str:
    """What is stored of a token: its SHA-256, as hexadecimal text."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def add_token(file: Path, name: str, role: str) -> str:
    """Make a token and append its hash to a file, which only its owner may read.

    Args:
        file: made if absent.
        name: of the holder; a name that is there already gets a further token.
        role: one of `ROLES`.

    Returns:
        the token, which is not stored anywhere.

    Raises:
        InputError: for a name that is no single word, or an unknown role.
        FileError: if the file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"the name {name!r} must be one word of letters, digits and . _ @ -")
    if role not in ROLES:
        raise InputError(f"the role must be one of {', '.join(ROLES)}, not {role!r}")
    token = secrets.token_urlsafe(32)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a+b") as lines:
            lines.seek(0)
            ended = lines.read()[-1:] in (b"", b"\n")  # a line written by hand may not be
            lines.write((b"" if ended else b"\n") + f"{name} {role} sha256:{digest_of(token)}\n".encode())
    except OSError as error:
        raise FileError(f"{file}: cannot be written ({error.strerror})") from error
    return token


class TokenFile:
    """The tokens of a server; a line that is added or taken away counts at once.

    Args:
        file: written by `add_token`.

    Raises:
        FileError: if it cannot be read, holds no token, is damaged, or others than its owner may write it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read_at, self._entries = self._version(), _read(file)

    def holder(self, digest: str) -> Holder | None:
        """Whose token has this digest; every line is compared, each in constant time."""
        found = None
        for entry in self._current():
            if hmac.compare_digest(entry.digest, digest):
                found = entry.holder
        return found

    @property
    def damaged(self) -> bool:
        """Whether the file cannot be used any more, so that nobody gets in until it is mended."""
        return not self._current()

    def _current(self) -> list[_Entry]:
        """The entries as they are now; none while the file is damaged, so that nobody gets in."""
        version = self._version()
        if version != self._read_at:
            try:
                self._entries = _read(self._file)
            except FileError as error:
                logger.error("nobody is let in: %s", error)
                self._entries = []
            self._read_at = version
        return self._entries

    def _version(self) -> tuple[int, ...]:
        try:
            known = self._file.stat()
        except OSError:
            return ()
        return (known.st_ino, known.st_mtime_ns, known.st_ctime_ns, known.st_size, known.st_mode)


def _read(file: Path) -> list[_Entry]:
    advice = f"make one with `sliceprop token {file} --name NAME --role annotate`"
    try:
        if file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FileError(f"{file}: others than its owner may write it; chmod 600 it")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{file}: cannot be read as a file of tokens; {advice}") from error
    entries = [_entry(file, number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not entries:
        raise FileError(f"{file}: holds no token; {advice}")
    return entries


def _entry(file: Path, number: int, line: str) -> _Entry:
    match = _LINE.fullmatch(line)
    if match is None or match["role"] not in ROLES:
        raise FileError(
            f"{file}: line {number} is not `name role sha256:...`; tokens are stored as hashes, by `sliceprop token`"
        )
    return _Entry(match["digest"], Holder(match["name"], match["role"]))
