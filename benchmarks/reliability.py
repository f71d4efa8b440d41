"""Faults on purpose, many times over: what is lost, what is given out damaged. Nothing must be.

    python benchmarks/reliability.py                    # everything: 200 kills, 400 damaged files, 200 full disks
    python benchmarks/reliability.py writer --count 20  # one part of it

Parts: `writer` (SIGKILL while it submits, propagates, accepts and restores, at random moments and before single
operations on files), `trainer` (SIGKILL while it learns), `server` (SIGKILL of a real server under requests), `disk`
(operations that run out of space), `damage` (flipped bits, cut, emptied and overwritten files). Results are written
beside those of the other parts, and as a table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

import common
import faults
from load import server

COUNTS = {"writer": 120, "trainer": 50, "server": 30, "disk": 200, "damage": 400}
WHAT = {
    "writer": "a process that submits, propagates, accepts and restores is killed (SIGKILL)",
    "trainer": "a process that learns is killed (SIGKILL)",
    "server": "a server under requests is killed (SIGKILL)",
    "disk": "an operation runs out of space",
    "damage": "a file is damaged: a bit flipped, cut off, emptied, overwritten",
}
DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"

Result = dict[str, Any]
"""`count` of faults, `acknowledged` versions, and what was `lost` or wrong, as sentences."""


def writer(folder: Path, count: int) -> Result:
    """Kill writers, half at a random moment and half before a random operation on files."""
    studies, victims = faults.make_studies(folder / "studies"), faults.Victims()
    acknowledged: faults.Acknowledged = {}
    lost = list[str]()
    for seed in range(count):
        operations = random.Random(seed).randrange(1, 250) if seed % 2 else None
        acknowledged |= victims.kill(faults.write_for_ever, studies, seed, longest_s=0.8, operations=operations)
        lost += [f"kill {seed}: {what}" for what in faults.lost(studies, acknowledged)]
    return {"count": count, "acknowledged": len(acknowledged), "lost": lost}


def trainer(folder: Path, count: int) -> Result:
    """Kill trainings; the checkpoint before or a newer one must be there, and good."""
    studies, victims = faults.make_studies(folder / "studies"), faults.Victims()
    faults.submit(faults.open_workspace(studies), 66)
    file = studies / faults.CHECKPOINT
    lost, before = list[str](), None
    for seed in range(count):
        operations = random.Random(seed).randrange(20, 300) if seed % 2 else None
        victims.kill(faults.train_for_ever, studies, seed, longest_s=3.0, operations=operations)
        lost += [f"kill {seed}: {what}" for what in faults.lost_model(studies, before)]
        before = file.read_bytes() if file.is_file() else None
    return {"count": count, "acknowledged": int(before is not None), "lost": lost}


def servers(folder: Path, count: int) -> Result:
    """Kill servers with all that they started, while two clients submit and propagate; the next one must know all."""
    studies = faults.make_studies(folder / "studies")
    acknowledged: dict[int, int] = {}
    lost = list[str]()
    for seed in range(count):
        with server(studies) as (address, process):
            acknowledged |= kill_under_requests(address, process, seed)
        lost += [f"kill {seed}: {what}" for what in faults.lost_drawings(studies, acknowledged)]
    return {"count": count, "acknowledged": len(acknowledged), "lost": lost}


def kill_under_requests(address: str, process: psutil.Process, seed: int) -> dict[int, int]:
    """Submit and propagate from two threads until the server is killed; number of the drawing by version."""
    acknowledged: dict[int, int] = {}

    def annotate() -> None:
        with suppress(requests.RequestException):
            for number in range(seed * 1000, seed * 1000 + 1000):
                acknowledged[faults.submit_to(address, number)] = number

    def propagate() -> None:
        with suppress(requests.RequestException):
            while True:
                path = f"{address}/infer/labelprop?image={faults.STUDY}&output=json"
                requests.post(path, files={"params": (None, "{}")}, timeout=faults.READY_S)

    threads = [threading.Thread(target=work, daemon=True) for work in (annotate, propagate)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + faults.READY_S
    while not acknowledged and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 2))
    for one in [process, *process.children(recursive=True)]:
        one.kill()
    for thread in threads:
        thread.join()
    return acknowledged


def disk(folder: Path, count: int) -> Result:
    """Let operations fail for want of space."""
    studies, victims = faults.make_studies(folder / "studies"), faults.Victims()
    acknowledged = dict([faults.submit(faults.open_workspace(studies), 66)])
    lost, refused, seed = list[str](), 0, 0
    while refused < count:
        for said in victims.run(faults.work_with_little_space, studies, seed):
            if isinstance(said, tuple):
                acknowledged[said[0]] = said[1]
            refused += isinstance(said, str) and bool(said)
        lost += [f"disk {seed}: {what}" for what in faults.lost(studies, acknowledged)]
        seed += 1
    return {"count": refused, "acknowledged": len(acknowledged), "lost": lost}


def damage(folder: Path, count: int) -> Result:
    """Damage a copy of a folder with a history, one file at a time, and ask a server about everything."""
    good, chance, lost = folder / "good", random.Random(0), list[str]()
    numbers = faults.make_history(good)
    files = faults.kept_files(good)
    for number in range(count):
        copy = faults.copied(good, folder / "copy")
        place = files[number % len(files)].relative_to(good)
        kind = faults.damage(copy / place, chance)
        lost += [f"{place} {kind}: {what}" for what in faults.served_wrongly(copy, good, numbers)]
    return {"count": count, "acknowledged": len(numbers), "lost": lost}


PARTS: dict[str, Callable[[Path, int], Result]] = {
    "writer": writer,
    "trainer": trainer,
    "server": servers,
    "disk": disk,
    "damage": damage,
}


def report(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    header = ("fault", "times", "acknowledged versions", "lost or given out wrong", "seconds", "command")
    rows = [
        (WHAT[name], one["count"], one["acknowledged"], len(one["lost"]), round(one["seconds"]), _command(name, one))
        for name, one in results["parts"].items()
    ]
    cells = [[str(cell) for cell in row] for row in rows]
    return f"{common.markdown_table(header, cells)}\n{common.describe(results['machine'])}.\n"


def _command(name: str, one: Result) -> str:
    return f"`python benchmarks/reliability.py {name} --count {one['asked']}`"


def keep(name: str, result: Result, file: Path) -> None:
    """Write a result beside those of the other parts, and the table into the documentation."""
    before = json.loads(file.read_text())["parts"] if file.is_file() else {}
    parts = {**before, name: result}
    results = {"machine": common.machine(), "parts": {part: parts[part] for part in PARTS if part in parts}}
    text = report(results)
    common.write_results(file, results, f"# Faults on purpose\n\n{text}")
    if DOCS.is_file() and file == common.RESULTS / "reliability.json":
        head, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        DOCS.write_text(f"{head}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    """Parse the arguments, do it, write what came of it; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="of faults (default: those of the full form)")
    parser.add_argument("--results", type=Path, default=common.RESULTS / "reliability.json")
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; choose from {', '.join(PARTS)}")
    logging.disable(logging.CRITICAL)  # what is damaged on purpose is told by the hundred
    lost = list[str]()
    for name in chosen.parts or PARTS:
        began, count = time.monotonic(), chosen.count or COUNTS[name]
        with tempfile.TemporaryDirectory() as folder:
            result = PARTS[name](Path(folder), count)
        keep(name, {**result, "asked": count, "seconds": time.monotonic() - began}, chosen.results)
        print(f"{name}: {result['count']} faults, {result['acknowledged']} acknowledged, {len(result['lost'])} lost")
        lost += result["lost"]
    print("\n".join(lost), file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
