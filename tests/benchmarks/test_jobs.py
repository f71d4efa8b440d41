"""Processes of their own: failures are rows, runs go on where they ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import accuracy
import table
from jobs import environment, run_all
from sliceprop.errors import FileError
from table import Row

SCRIPT = Path(accuracy.__file__)


def command(data: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--counts", "3", "--placements", "ends", "--out", str(out), *more]


def run(data: Path, out: Path, *more: str) -> dict[str, Row]:
    accuracy.run(accuracy.parse_arguments(command(data, out, *more)))
    return {row.method: row for row in table.read(out)}


def test_every_method_has_a_row_that_says_what_came_of_it(measuring: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    rows = run(measuring, out, "--methods", "nearest", "deep-labelprop", "--jobs", "2")
    assert rows["nearest"].ok and rows["nearest"].jobs == 2
    assert rows["nearest"].peak_mib is not None and 20 < rows["nearest"].peak_mib < 4000
    assert "sliceprop" in rows["nearest"].versions and rows["nearest"].date
    assert rows["deep-labelprop"].status.startswith("cannot run: no Python for it; give --peer-python")
    assert "cannot run" in out.with_suffix(".md").read_text()

    stamp = out.stat().st_mtime_ns  # nothing is missing: nothing is measured or written
    run(measuring, out, "--methods", "nearest", "deep-labelprop")
    assert out.stat().st_mtime_ns == stamp
    assert run(measuring, out, "--methods", "nearest", "--again", "nearest")["nearest"].jobs == 1


def test_a_broken_volume_and_a_slow_one_are_rows(measuring: Path, tmp_path: Path) -> None:
    arguments = accuracy.parse_arguments(command(measuring, tmp_path / "t.csv", "--methods", "auto", "registration"))
    ((slow, also_slow),) = run_all(accuracy.plan(arguments), at_once=1, limit_s=0.01)
    assert slow.status == also_slow.status == "failed: took longer than 0.01 s"
    assert (slow.method, also_slow.method) == ("auto", "registration")

    image = measuring / "phantom" / "image.nii.gz"
    image.write_bytes(image.read_bytes()[:100])
    rows = run(measuring, tmp_path / "t.csv", "--methods", "nearest")
    assert rows["nearest"].status.startswith("failed: exit status 1, ")
    assert "cannot be read as NIfTI" in rows["nearest"].status


def test_only_what_is_missing_is_planned(measuring: Path, tmp_path: Path) -> None:
    arguments = accuracy.parse_arguments(
        command(measuring, tmp_path / "t.csv", "--methods", "nearest", "auto", "registration", "shape")
    )
    jobs = list(accuracy.plan(arguments))
    statuses = {"nearest": "ok", "auto": "failed: x", "shape": "skipped: y"}
    rows = [job.row(name, statuses[name]) for job in jobs for name in job.methods if name in statuses]
    assert [job.methods for job in accuracy.missing(jobs, rows, retry=False)] == [("registration",)]
    assert [job.methods for job in accuracy.missing(jobs, rows, retry=True)] == [("auto", "registration")]


def test_a_killed_run_goes_on_and_leaves_nobody_behind(measuring: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    more = ["--methods", "nearest", "auto:budget_s=60,max_epochs=100000,patience=100000"]
    arguments = [sys.executable, str(SCRIPT), *command(measuring, out, *more)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "nearest" in process.stdout.readline()
        workers = psutil.Process(process.pid).children(recursive=True)
        while not workers:
            workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    (kept,) = table.read(out)
    rows = run(measuring, out, "--methods", "nearest", "shape")
    assert rows["nearest"] == kept and rows["shape"].ok


def test_a_table_holds_one_view_of_the_data(measuring: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    table.write(out, [Row("measuring", "phantom", "axial", 0, 0, "ends", "3", "nearest")])
    with pytest.raises(FileError, match="another layout, axis"):
        run(measuring, out, "--methods", "nearest")


def test_a_subset_sets_what_is_not_given(tmp_path: Path) -> None:
    slow = accuracy.parse_arguments(["--data", str(tmp_path), "--subset", "slow", "--counts", "4"])
    assert len(slow.volumes) == 3 and list(slow.counts) == [4] and list(slow.placements) == ["ends"]


def test_a_wrong_method_is_one_line(measuring: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, str(SCRIPT), *command(measuring, tmp_path / "t.csv", "--methods", "magic")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "unknown method 'magic'" in done.stderr


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert environment(1)["OMP_NUM_THREADS"] == str(cores)
    assert environment(2 * cores)["OMP_NUM_THREADS"] == "1"
