"""Keeps the names of patients out of log files: ids of studies appear there as hashes.

MONAI Label logs whole requests, file names and what it finds in folders; only its warnings get through. In what
remains, also in tracebacks and in uvicorn's lines about requests, every id that the server knows, or knew, is replaced,
whoever logs it.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from threading import Lock
from typing import Any
from urllib.parse import quote, quote_plus, unquote

NOISY = ("monailabel", "dicomweb_client", "urllib3", "watchdog", "filelock", "multipart", "python_multipart")
"""Loggers whose everyday messages hold requests, addresses and file names."""

MAX_REMEMBERED = 10_000
"""Ids that are replaced though their studies are gone."""

SHORTEST = 3
"""Characters of an id that is replaced; a shorter one tells nothing and would tear up every message."""


LONGEST_PATH, LONGEST_METHOD = 400, 20
"""Characters of a request that are logged: strangers can send any number of them."""

_ID_IN_PATH = re.compile(r"(?<=/labelprop/checkpoints/)[^/]+|(?<=/)\d+[.,][\d.,]+(?=/|$)")
"""A checkpoint, which is called as its study, and the UIDs of DICOMweb."""


class Names:
    """Studies that clients used, the latest of them: what is logged of a study may come after the study is gone."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def add(self, *names: str) -> None:
        """Remember some; the oldest ones go if there are too many."""
        with self._lock:
            for name in names:
                self._seen[name] = None
                self._seen.move_to_end(name)
            while len(self._seen) > MAX_REMEMBERED:
                self._seen.popitem(last=False)

    def all(self) -> list[str]:
        """Those that are remembered."""
        with self._lock:
            return list(self._seen)


used_names = Names()
"""Of this process."""


class Redaction:
    """Makes every log record safe as it is created, so that no handler ever sees an id.

    Args:
        ids: the ids of the server's studies.
        key: what stands for an id.
    """

    def __init__(self, ids: Callable[[], Iterable[str]], key: Callable[[str], str]) -> None:
        self._ids, self._key = ids, key

    def __call__(self, text: str) -> str:
        """`text` with hashes in place of ids, also of those that are escaped for an address or as Python text."""
        names = {name for name in (*self._ids(), *used_names.all()) if len(name) >= SHORTEST}
        spelled = {form: name for name in names for form in _spellings(name) if form in text}
        if not spelled:
            return text
        pattern = "|".join(re.escape(form) for form in sorted(spelled, key=len, reverse=True))
        return re.sub(
            f"(?<![^\\W_])(?:{pattern})(?![^\\W_])", lambda found: f"study-{self._key(spelled[found[0]])}", text
        )

    def record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """A log record, in place of `logging.LogRecord`."""
        made = logging.LogRecord(*args, **kwargs)
        try:
            message = made.getMessage()
        except (TypeError, ValueError):
            message = str(made.msg)
        if made.name == "uvicorn.access" and isinstance(made.args, tuple) and len(made.args) == 5:
            address, method, path, version, status = made.args  # which its formatter takes apart
            made.args = (address, str(method)[:LONGEST_METHOD], self._path(str(path)), version, status)
        else:
            made.msg, made.args = self(message), ()
        if made.exc_info and made.exc_info[0] is not None:
            made.exc_text = self(_traceback(made.exc_info))
        return made

    def _path(self, address: str) -> str:
        """Without the query, ids, ends of lines, and all that makes it long."""
        path = unquote(address.partition("?")[0])
        if len(path) > LONGEST_PATH:
            path = f"{path[:LONGEST_PATH].rpartition('/')[0]}/..."
        safe = self(_ID_IN_PATH.sub(lambda found: f"study-{self._key(found[0])}", path))
        return "".join(c if c.isprintable() else "?" for c in safe)

    def install(self) -> None:
        """Make all loggers of this process use it, and Python's warnings go through them."""
        logging.setLogRecordFactory(self.record)
        logging.captureWarnings(True)


def _traceback(raised: Any) -> str:
    """What `logging` would print; formatting itself can fail in Python 3.11 while another thread does the same."""
    try:
        return "".join(traceback.format_exception(*raised)).rstrip()
    except Exception:
        return f"{raised[0].__name__}: {raised[1]}"


def quieten() -> None:
    """Silence everyday messages of the libraries."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


@lru_cache(maxsize=2 * MAX_REMEMBERED)
def _spellings(name: str) -> set[str]:
    """As it is, in addresses, and in Python text; file names may hold bytes that are no UTF-8."""
    addresses = {
        quote(name, safe="", errors="replace"),
        quote(name, errors="replace"),
        quote_plus(name, errors="replace"),
    }
    return {name, *addresses, repr(name)[1:-1], ascii(name)[1:-1]}
