"""How soon the server answers small requests while it computes, and that long use under load loses and leaks nothing.

    python benchmarks/load.py latency              # GET /info/ while studies are propagated and a training runs
    python benchmarks/load.py soak --minutes 30    # ten clients draw, propagate, ask and read back; restart, read again
    python benchmarks/load.py studies --count 200  # as many different studies, one after the other
    python benchmarks/load.py latency soak studies # all of them

Each part starts a server of its own on a free port, works on synthetic studies in a temporary folder, measures from a
process beside those of the server and the clients, and writes its results beside those of the other parts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import psutil
import requests
from numpy.typing import NDArray

import common
from common import RESULTS
from sliceprop.phantom import Phantom, make_phantom
from synthetic import thigh

ROOT = Path(__file__).parents[1]
PATIENCE_S = 600.0
POLL_S = 0.05
"""Between the answer to one small request and the next one."""

GOAL_MS, GROWTH_GOAL = 200.0, 0.05
"""95th percentile of `GET /info/`, and growth of memory from the second to the last quarter of a long run, a share."""

PRINTED_BYTES = 1 << 16
"""Of what a server printed last, told where it fails."""

SOAK, STUDIES = "soak", "different studies, one after the other"
"""Names of rows."""

FULL = (29, 400, 400)
SMALL = {"size": 64, "n_slices": 12}


@contextmanager
def server(studies: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server on a folder, and its process; where it fails a client, what it printed last is told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = str(ROOT / "apps" / "labelprop")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app, "--studies", str(studies)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as printed:
        environment = os.environ | {"PATH": path}
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _await(lambda: _well(address), "the server")
            yield address, psutil.Process(process.pid)
        except requests.HTTPError as error:
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - PRINTED_BYTES))
            sys.stderr.write(f"{error.response.text}\n{printed.read().decode(errors='replace')}\n")
            raise
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _well(address: str) -> bool:
    try:
        return requests.get(f"{address}/healthz", timeout=PATIENCE_S).ok
    except requests.ConnectionError:
        return False


def _await(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.1)


@dataclass
class Client:
    """One of several clients of a server; counts what it is answered.

    Attributes:
        address: of the server.
        statuses: answers by status.
    """

    address: str
    statuses: Counter[int] = field(default_factory=Counter)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request, again while the server says that it is busy.

        Raises:
            requests.HTTPError: for every other refusal.
        """
        while True:
            answer = requests.request(method, self.address + path, timeout=PATIENCE_S, **options)
            self.statuses[answer.status_code] += 1
            if answer.status_code != 429:
                answer.raise_for_status()
                return answer
            time.sleep(float(answer.headers["Retry-After"]) / 10)

    def upload(self, image: str, array: NDArray[Any], affine: NDArray[Any]) -> None:
        """Add a study."""
        content = nib.Nifti1Image(array, affine).to_bytes()
        self.ask("PUT", f"/datastore/image?image={image}", files={"file": ("scan.nii", content)})

    def submit(self, image: str, labels: NDArray[Any], slices: list[int], axis: int) -> str:
        """Annotate slices completely; the version that the server acknowledges."""
        raw = labels.astype(np.uint8).tobytes(order="F")
        params = json.dumps({"slice_axis": axis, "annotated_slices": slices})
        files = {"label": ("label.bin", raw), "params": (None, params)}
        told = self.ask("PUT", f"/datastore/label?image={image}&tag=sparse", files=files).json()
        return str(told["annotation_version"])

    def propagate(self, image: str, **options: Any) -> None:
        """Fill the volume."""
        files = {"params": (None, json.dumps(options))}
        self.ask("POST", f"/infer/labelprop?image={image}&output=json", files=files)

    def voxels(self, image: str, kind: str) -> NDArray[Any]:
        """What the server holds of a study."""
        answer = self.ask("GET", f"/labelprop/voxels?image={image}&kind={kind}")
        shape = [int(size) for size in answer.headers["X-Shape"].split(",")]
        return np.frombuffer(answer.content, answer.headers["X-Dtype"]).reshape(shape, order="F")


class Sample(NamedTuple):
    """How long one `GET /info/` took, and what the server held then."""

    milliseconds: float
    memory_mib: float
    open_files: int
    threads: int


def watch(address: str, pid: int, pipe: Connection) -> None:
    """Ask `GET /info/` until the pipe says that it is enough, then send the samples back."""
    session, process, samples = requests.Session(), psutil.Process(pid), list[Sample]()
    pipe.send("ready")
    while not pipe.poll(POLL_S):
        start = time.perf_counter()
        session.get(f"{address}/info/", timeout=PATIENCE_S).raise_for_status()
        took = (time.perf_counter() - start) * 1000
        with process.oneshot():
            held = process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()
        samples.append(Sample(took, *held))
    pipe.send(samples)


class Watch:
    """Watches a server from a process of its own while the context lasts.

    Args:
        address: of the server.
        process: of the server.
    """

    def __init__(self, address: str, process: psutil.Process) -> None:
        spawn = get_context("spawn")
        self._pipe, self._other = spawn.Pipe()
        self._watcher = spawn.Process(target=watch, args=(address, process.pid, self._other), daemon=True)
        self._samples: list[Sample] = []

    def __enter__(self) -> Watch:
        self._watcher.start()
        self._other.close()  # or its end would not be noticed here
        self._pipe.recv()
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.send("enough")
        self._samples = self._pipe.recv()
        self._watcher.join()

    def told(self) -> dict[str, Any]:
        """Percentiles, and what was held in the second and the last quarter of the time, medians."""
        took, *held = zip(*self._samples, strict=True)
        quarter = max(1, len(took) // 4)
        medians = {
            name: [float(np.median(values[quarter : 2 * quarter])), float(np.median(values[-quarter:]))]
            for name, values in zip(Sample._fields[1:], held, strict=True)
        }
        p50, p95, p99 = np.percentile(took, [50, 95, 99])
        return {"requests": len(took), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "worst_ms": max(took), **medians}


def measure_latency(folder: Path) -> dict[str, dict[str, Any]]:
    """`GET /info/` while nothing happens, while studies are propagated one after the other, and while one is learnt."""
    case, found = thigh(FULL, 4), {}
    drawn = [2, 8, 14, 20, 26]
    sparse = np.zeros_like(case.reference)
    sparse[drawn] = case.reference[drawn]
    with server(folder) as (address, process):
        client = Client(address)
        for image in ("a", "b"):
            client.upload(image, case.image.array, case.image.affine)
            client.submit(image, sparse, drawn, case.slice_axis)
        client.propagate("a", method="nearest")
        with Watch(address, process) as watched:
            time.sleep(5)
        found["idle"] = watched.told()
        with Watch(address, process) as watched, ThreadPoolExecutor() as pool:
            start = time.perf_counter()
            list(pool.map(client.propagate, ["a", "b"] * 2))
        found["4 propagations, 2 at once"] = {"seconds": time.perf_counter() - start, **watched.told()}
        with Watch(address, process) as watched, ThreadPoolExecutor() as pool:
            list(pool.map(lambda image: client.ask("POST", "/activelearning/next_slice", json={"image": image}), "ab"))
        found["2 suggestions at once"] = watched.told()
        with Watch(address, process) as watched:
            client.ask("POST", "/train/labelprop", json={"image": "a", "budget_s": 20})
            _await(lambda: client.ask("GET", "/train/").json()["status"] == "DONE", "the training")
        found["a training"] = watched.told()
    return found


@dataclass
class Annotator(Client):
    """A client that draws on studies of its own, and knows what the server must hold of them.

    Attributes:
        number: of the client, the seed of what it does.
        acknowledged: what was last submitted, by study.
        wrong: what the server held instead of that.
    """

    number: int = 0
    acknowledged: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def work(self, until: float) -> None:
        """Draw, propagate, ask, read back, on one study after the other."""
        rng, phantom = np.random.default_rng(self.number), make_phantom(**SMALL, seed=self.number)
        images = [f"client {self.number} study {n}" for n in range(2)]
        for image in images:
            self.upload(image, phantom.image, phantom.affine)
        while time.monotonic() < until:
            image = str(rng.choice(images))
            self._draw(image, phantom, rng)
            self.propagate(image, method=str(rng.choice(["nearest", "shape", "auto"], p=[0.4, 0.4, 0.2])))
            self.ask("POST", "/activelearning/next_slice", json={"image": image, "plan": "centres", "n": 3})
            self.check(image)

    def _draw(self, image: str, phantom: Phantom, rng: np.random.Generator) -> None:
        labels = np.zeros_like(phantom.reference)
        slices = sorted(rng.choice(labels.shape[2], size=3, replace=False).tolist())
        shift = int(rng.integers(-3, 4))
        labels[..., slices] = np.roll(phantom.reference[..., slices], shift, axis=0)
        self.submit(image, labels, slices, axis=2)
        self.acknowledged[image] = labels

    def check(self, image: str) -> None:
        """Compare what was acknowledged with what the server holds, and with the drawn slices of its result."""
        drawn = self.acknowledged[image]
        if not np.array_equal(self.voxels(image, "annotation"), drawn):
            self.wrong.append(f"{image}: the annotation")
        if not np.array_equal(self.voxels(image, "labels")[drawn > 0], drawn[drawn > 0]):
            self.wrong.append(f"{image}: drawn voxels of the result")


def measure_soak(folder: Path, clients: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Clients at once for a long time; afterwards the server starts anew and must hold what it acknowledged."""
    with server(folder) as (address, process), Watch(address, process) as watched, ThreadPoolExecutor(clients) as pool:
        workers = [Annotator(address, number=number) for number in range(clients)]
        list(pool.map(lambda worker: worker.work(time.monotonic() + seconds), workers))
    with server(folder) as (address, _):
        for worker in workers:
            worker.address = address
            for image in worker.acknowledged:
                worker.check(image)
    statuses = sum((worker.statuses for worker in workers), Counter[int]())
    told = {
        "clients": clients,
        "minutes": seconds / 60,
        "answers": sum(statuses.values()),
        "busy": statuses[429],
        "failed": sum(count for status, count in statuses.items() if status >= 500),
        "lost_or_changed": [what for worker in workers for what in worker.wrong],
    }
    return {SOAK: {**told, **watched.told()}}


def measure_studies(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Different studies one after the other, each uploaded, drawn on, propagated and exported."""
    with server(folder) as (address, process), Watch(address, process) as watched:
        client = Client(address)
        for number in range(count):
            image, phantom = f"study {number}", make_phantom(**SMALL, seed=number)
            client.upload(image, phantom.image, phantom.affine)
            slices = list(phantom.annotated_slices)
            client.submit(image, phantom.sparse, slices, axis=2)
            client.propagate(image, method="auto" if number % 5 == 0 else "shape")
            client.ask("GET", f"/labelprop/export?image={image}&format=.seg.nrrd")
    return {STUDIES: {"studies": count, **watched.told()}}


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = results["parts"]
    header = ["while", "requests", "p50 ms", "p95 ms", "p99 ms", "worst ms", "memory MiB", "open files", "threads"]
    rows = [
        [name, str(one["requests"])]
        + [f"{one[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "worst_ms")]
        + [" to ".join(f"{value:.0f}" for value in one[key]) for key in ("memory_mib", "open_files", "threads")]
        for name, one in parts.items()
    ]
    soak, studies = parts.get(SOAK), parts.get(STUDIES)
    told = (
        f"\n{soak['clients']} clients for {soak['minutes']:g} minutes: {soak['answers']} answers, {soak['busy']} "
        f"times 429, {soak['failed']} failures, {len(soak['lost_or_changed'])} annotations lost or "
        "drawn voxels changed, also after a restart.\n"
        if soak
        else ""
    )
    told += f"\n{studies['studies']} different studies.\n" if studies else ""
    return (
        "# The server under load\n\n"
        f"`GET /info/` from another process (goal: p95 below {GOAL_MS:g} ms); memory, files and threads of the server "
        f"are medians of the second and of the last quarter of the time.\n\n{common.describe(results['machine'])}.\n\n"
        + common.markdown_table(header, rows)
        + told
    )


def measure(part: str, chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One part, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        if part == "latency":
            return measure_latency(studies)
        if part == "soak":
            return measure_soak(studies, chosen.clients, chosen.minutes * 60)
        return measure_studies(studies, chosen.count)


def keep(part: str, found: dict[str, dict[str, Any]], file: Path) -> None:
    """Write the results of a part beside those of the others."""
    before = json.loads(file.read_text())["parts"] if file.is_file() else {}
    others = {name: one for name, one in before.items() if one.get("part") != part}
    results = {"machine": common.machine(), "parts": others | {n: {"part": part, **one} for n, one in found.items()}}
    common.write_results(file, results, report(results))


def bad(found: dict[str, dict[str, Any]]) -> list[str]:
    """What of the results is not as it should be."""
    problems = [f"{name}: p95 {one['p95_ms']:.0f} ms" for name, one in found.items() if one["p95_ms"] > GOAL_MS]
    for name in found.keys() & {SOAK, STUDIES}:
        second, last = found[name]["memory_mib"]
        problems += [f"{name}: {second:.0f} to {last:.0f} MiB"] if last > second * (1 + GROWTH_GOAL) else []
    for name, one in found.items():
        problems += [f"{name}: {one['failed']} requests failed"] if one.get("failed") else []
        problems += [f"{name}: {what}" for what in one.get("lost_or_changed", ())]
    return problems


def main() -> int:
    """Parse the arguments, measure, write, and tell what is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("latency", "soak", "studies"), metavar="part")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak (default: 30)")
    parser.add_argument("--clients", type=int, default=10, help="of the soak (default: 10)")
    parser.add_argument("--count", type=int, default=200, help="studies (default: 200)")
    parser.add_argument("--results", type=Path, default=RESULTS / "load.json")
    chosen, problems = parser.parse_args(), list[str]()
    for part in chosen.parts:
        found = measure(part, chosen)
        keep(part, found, chosen.results)
        problems += bad(found)
    print(chosen.results.with_suffix(".md").read_text())
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
