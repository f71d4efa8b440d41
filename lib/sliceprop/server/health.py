"""For operators: whether the server is well (`/healthz`), and figures for Prometheus (`/metrics`)."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil

from sliceprop.audit import LOG
from sliceprop.errors import StorageError
from sliceprop.io import FOLDER
from sliceprop.server.access import DAMAGED, Policy
from sliceprop.server.datastore import Studies

LEAST_FREE_BYTES = 64 << 20
"""Free space under which a submission may fail."""

DURATIONS_S = (0.05, 0.2, 1.0, 5.0, 30.0, 120.0)
"""Upper bounds of the histogram of how long requests take."""


class Counters:
    """What the server did since it started; used by the event loop's thread only."""

    def __init__(self) -> None:
        self._started, self._open = time.time(), 0
        self._requests: Counter[tuple[str, str]] = Counter()
        self._took: Counter[float] = Counter()
        self._seconds = 0.0

    def begin(self) -> None:
        """A request came in."""
        self._open += 1

    def end(self, method: str, status: int, seconds: float) -> None:
        """It was answered."""
        self._open -= 1
        self._requests[method if method.isalpha() and len(method) < 10 else "other", f"{status // 100}xx"] += 1
        self._seconds += seconds
        self._took.update(bound for bound in (*DURATIONS_S, float("inf")) if seconds <= bound)

    def text(self, now: Mapping[str, float]) -> str:
        """All figures in Prometheus' text format.

        Args:
            now: further ones, by name without prefix.
        """
        process = psutil.Process()
        gauges = {
            "start_time_seconds": self._started,
            "requests_open": self._open,
            "resident_memory_bytes": process.memory_info().rss,
            "open_files": process.num_fds() if hasattr(process, "num_fds") else 0,
            "threads": process.num_threads(),
            **now,
        }
        lines = [line for name, value in gauges.items() for line in _metric(name, "gauge", {"": value})]
        counts = {f'{{method="{m}",status="{s}"}}': count for (m, s), count in sorted(self._requests.items())}
        lines += _metric("requests_total", "counter", counts)
        name = "request_duration_seconds"
        buckets = {f'_bucket{{le="{_bound(b)}"}}': self._took[b] for b in (*DURATIONS_S, float("inf"))}
        lines += _metric(name, "histogram", {**buckets, "_sum": self._seconds, "_count": self._took[float("inf")]})
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, values: Mapping[str, float]) -> list[str]:
    full = f"sliceprop_{name}"
    return [f"# TYPE {full} {kind}", *(f"{full}{suffix} {value:.15g}" for suffix, value in values.items())]


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else f"{bound:g}"


def problem(store: Studies, policy: Policy) -> str:
    """What keeps the server from letting people in, and from storing what they submit; empty if nothing does."""
    if policy.tokens is not None and policy.tokens.damaged:
        return DAMAGED
    try:
        store.check_reach()
    except StorageError:
        return "the folder of the studies is out of reach"
    folder = Path(store._datastore_path)
    if not os.access(folder, os.W_OK):
        return "the folder of the studies cannot be written"
    audit = folder / FOLDER / LOG
    if audit.exists() and not (audit.is_file() and os.access(audit, os.W_OK)):
        return "the audit cannot be written"
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        return "the disk is full"
    return ""
