"""What a cohort costs beside its studies: one worker against two, the way to a worker, a worker that is killed.

The studies are synthetic thighs of different seeds. Every worker has one thread, so that two workers on two cores do
not share any.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

import common
from memory import PeakMemory
from sliceprop.cohort.finding import Entry, find_studies
from sliceprop.cohort.run import Cohort, run_cohort
from sliceprop.cohort.work import CohortConfig
from sliceprop.cohort.workers import WorkersConfig, workers
from sliceprop.io import Image, make_folder, write_image
from sliceprop.phantom import make_phantom

SIZE, SLICES, STUDIES = 64, 10, 8
LARGE_SIZE, LARGE_SLICES = 400, 29
"""Of the study from which the plan is made: the yardstick's of `speed.py`."""

MISSING = 300
"""Studies without a file: what remains of each is the way to a worker and back."""

PLAN_STUDIES, PLAN_NODES, PLAN_CORES = 10_000, 20, 16
"""The cohort of the plan, its nodes, and the cores of each that are used, one worker on each."""

CONFIG = CohortConfig(device="cpu")


@dataclass(frozen=True)
class Run:
    """One run over a cohort.

    Attributes:
        name: of what was done.
        workers: processes, of one thread each.
        studies: in the cohort.
        failed: of them.
        seconds: for the whole run, less the start and the end of the workers.
        busy_s: the sum over the studies of their own seconds.
    """

    name: str
    workers: int
    studies: int
    failed: int
    seconds: float
    busy_s: float

    @property
    def lost_s(self) -> float:
        """Seconds of a worker per study that went into something else than the study."""
        return (self.workers * self.seconds - self.busy_s) / self.studies


def write_studies(folder: Path, n: int, size: int, slices: int) -> Path:
    """A folder per study with its scan and three annotated slices."""
    for seed in range(n):
        phantom, place = make_phantom(size, slices, seed=seed), folder / f"thigh{seed}"
        image = Image(phantom.image, phantom.affine)
        make_folder(place)
        write_image(place / "image.nii.gz", phantom.image, image)
        write_image(place / "labels.nii.gz", phantom.sparse, image)
    return folder


def team(n: int) -> WorkersConfig:
    """Workers of one thread each."""
    return WorkersConfig(n=n, threads=1)


def start_and_end_s(n: int, folder: Path) -> float:
    """Seconds for workers that do nothing to come and go."""
    began = time.monotonic()
    with workers(team(n), gpu=False, shared=folder) as client:
        client.wait_for_workers(n)
    return time.monotonic() - began


def measure(
    name: str,
    n: int,
    entries: Sequence[Entry],
    output: Path,
    idle_s: float,
    progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> tuple[Run, Cohort]:
    """One run of `n` workers over studies that none has seen."""
    began = time.monotonic()
    result = run_cohort((entries, []), output, CONFIG, team(n), progress=progress)
    seconds = time.monotonic() - began - idle_s
    busy = math.fsum(each["seconds"] for each in result.summaries)
    return Run(name, n, len(entries), len(result.failures), round(seconds, 2), round(busy, 2)), result


def kill_a_worker(done: int, total: int, failed: int) -> None:
    """Kill the worker that holds most memory, when two studies are done."""
    if done == 2:
        found = dict[int, int]()
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                found[child.pid] = child.memory_info().rss
        os.kill(max(found, key=found.__getitem__), signal.SIGKILL)


def measure_large(folder: Path) -> dict[str, Any]:
    """Seconds of each stage of a study of the usual size with one thread, memory of its worker, and its files."""
    source = write_studies(folder / "large", 1, LARGE_SIZE, LARGE_SLICES)
    entries, _ = find_studies(source)
    with PeakMemory() as peak:
        run_cohort((entries, []), folder / "large_out", CONFIG, team(1))
    (report,) = (folder / "large_out").glob("*/report.json")
    return {
        "shape": [LARGE_SIZE, LARGE_SIZE, LARGE_SLICES],
        "seconds": json.loads(report.read_text())["seconds"],
        "worker_gib": round(peak.children_mib / 1024, 2),
        "read_mib": round(_mib(source), 2),
        "written_mib": round(_mib(report.parent), 2),
    }


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def plan(large: dict[str, Any], lost_s: float, idle_s: float) -> dict[str, float]:
    """What the constants make of a cohort of `PLAN_STUDIES` on `PLAN_NODES`, without any help of the GPUs."""
    per_study = math.fsum(large["seconds"].values()) + lost_s
    in_parallel = PLAN_NODES * PLAN_CORES
    rounds = math.ceil(PLAN_STUDIES / in_parallel)
    seconds = rounds * per_study + idle_s
    return {
        "seconds_per_study": round(per_study, 2),
        "hours": round(seconds / 3600, 2),
        "memory_per_node_gib": round(PLAN_CORES * large["worker_gib"], 1),
        "read_gib": round(PLAN_STUDIES * large["read_mib"] / 1024, 1),
        "written_gib": round(PLAN_STUDIES * large["written_mib"] / 1024, 1),
        "studies_per_second": round(PLAN_STUDIES / seconds, 2),
        "learning_share": round(large["seconds"]["learn"] / per_study, 3),
    }


def report(results: dict[str, Any]) -> str:
    """The tables."""
    runs = [Run(**each) for each in results["runs"]]
    rows = [(r.name, r.workers, r.studies, r.failed, r.seconds, r.busy_s, r.lost_s) for r in runs]
    header = ["run", "workers", "studies", "failed", "seconds", "seconds in studies", "lost per study, s"]
    large, planned = results["large"], results["plan"]
    one, two = runs[0], runs[1]
    lines = [
        "# Cohorts",
        common.describe(results["machine"]),
        f"{STUDIES} synthetic studies of {SLICES} slices of {SIZE}x{SIZE}; workers of one thread; their start and end "
        f"({results['idle_s']:.1f} s for two) is not in the seconds.",
        common.markdown_table(header, rows),
        f"Two workers are {one.seconds / two.seconds:.2f} times as fast as one. A study that fails at once costs "
        f"{results['dispatch_s'] * 1000:.0f} ms: the way to a worker and back, and the records.",
        f"A study of {LARGE_SLICES} slices of {LARGE_SIZE}x{LARGE_SIZE} with one thread:",
        common.markdown_table(
            [*large["seconds"], "worker, GiB", "read, MiB", "written, MiB"],
            [[*large["seconds"].values(), large["worker_gib"], large["read_mib"], large["written_mib"]]],
        ),
        f"{PLAN_STUDIES} such studies on {PLAN_NODES} nodes with {PLAN_CORES} workers each, on paper:",
        common.markdown_table([name.replace("_", " ") for name in planned], [list(planned.values())]),
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Measure and write `results/cohort.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=common.RESULTS / "cohort.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries, _ = find_studies(write_studies(folder / "in", STUDIES, SIZE, SLICES))
        idle = {n: start_and_end_s(n, folder) for n in (1, 2)}
        runs = [measure(f"{n} workers", n, entries, folder / f"out{n}", idle[n])[0] for n in (1, 2)]
        killed, result = measure("2 workers, one killed", 2, entries, folder / "killed", idle[2], kill_a_worker)
        if len(result.summaries) != STUDIES:
            raise SystemExit(f"lost a study: {result.failures}")
        missing = [Entry(f"missing{n}", folder / f"missing{n}.nii.gz", folder / "no.nii.gz") for n in range(MISSING)]
        dispatched, _ = measure("no files", 1, missing, folder / "missing", idle[1])
        large = measure_large(folder)
        results = {
            "machine": common.machine(),
            "idle_s": round(idle[2], 2),
            "runs": [asdict(run) for run in (*runs, killed)],
            "dispatch_s": round(dispatched.seconds / MISSING, 4),
            "large": large,
            "plan": plan(large, runs[1].lost_s, idle[2]),
        }
        common.write_results(chosen.output, results, report(results))


if __name__ == "__main__":
    main()
