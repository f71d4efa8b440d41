"""Dask workers in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("distributed")

from distributed import LocalCluster


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with two workers that are threads of this process."""
    options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0", "silence_logs": False}
    with LocalCluster(n_workers=2, **options) as cluster:
        yield cluster.scheduler_address
