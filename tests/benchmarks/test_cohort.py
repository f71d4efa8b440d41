"""The cohort's benchmark: what it makes of its measurements."""

from __future__ import annotations

from typing import Any

import pytest

import cohort

LARGE: dict[str, Any] = {
    "seconds": {"open": 1.0, "learn": 60.0, "propagate": 18.0, "write": 1.0},
    "worker_gib": 1.5,
    "read_mib": 10.24,
    "written_mib": 5.12,
}


def test_what_is_lost_is_what_the_workers_did_not_spend_in_studies() -> None:
    run = cohort.Run("two", workers=2, studies=8, failed=0, seconds=50.0, busy_s=92.0)
    assert run.lost_s == pytest.approx(1.0)


def test_the_plan_fills_every_core_of_every_node() -> None:
    plan = cohort.plan(LARGE, lost_s=1.0, idle_s=9.0)
    assert plan["seconds_per_study"] == 81.0
    rounds = 32  # 10,000 studies on 20 nodes with 16 workers: 31.25
    assert plan["hours"] == pytest.approx((rounds * 81 + 9) / 3600, abs=0.01)
    assert plan["memory_per_node_gib"] == 24.0
    assert plan["read_gib"] == 100.0
    assert plan["written_gib"] == 50.0
    assert plan["learning_share"] == pytest.approx(60 / 81, abs=1e-3)


def test_the_report_has_every_run() -> None:
    runs = [
        {"name": f"{n} workers", "workers": n, "studies": 8, "failed": 0, "seconds": 80.0 / n, "busy_s": 76.0}
        for n in (1, 2)
    ]
    results = {
        "machine": {"cpu": "a", "cores": 2, "gpu": None, "python": "3", "torch": "2", "numpy": "1"},
        "idle_s": 4.0,
        "runs": runs,
        "dispatch_s": 0.012,
        "large": LARGE,
        "plan": cohort.plan(LARGE, 1.0, 4.0),
    }
    text = cohort.report(results)
    assert "2.00 times as fast" in text
    assert "12 ms" in text
