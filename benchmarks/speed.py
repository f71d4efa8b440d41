"""Time and memory of what a user waits for, as JSON and as a Markdown table: whole processes, previews, the server.

README.md tells what each line measures.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

import cases
import common
import layouts
import placements
from cases import Case
from sliceprop import io
from sliceprop.config import TrainConfig
from sliceprop.engine.contour import ContourWorker
from sliceprop.engine.interpolation import INTERPOLATIONS, interpolate
from sliceprop.study import propagate, train

YARDSTICK = "lumbar_muscle_water_tum01"
COUNT = 5
ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
DEADLINE_S = 180


@dataclass(frozen=True)
class Measurement:
    """What was waited for, how long in each repeat, and the goal.

    Attributes:
        name: of the measurement.
        volume: name of the scan.
        seconds: of each repeat.
        goal_s: at most, None where none is set.
        peak_gib: largest resident memory of the process over all repeats, None where it was not a process of its own.
    """

    name: str
    volume: str
    seconds: list[float]
    goal_s: float | None = None
    peak_gib: float | None = None


@dataclass(frozen=True)
class Files:
    """A scan and its sparse annotation on disk, as a user has them."""

    image: Path
    labels: Path
    annotated: list[int]
    slice_axis: int

    def arguments(self) -> list[str]:
        """Of the command line."""
        slices = ",".join(map(str, self.annotated))
        axis = str(self.slice_axis)
        return [str(self.image), str(self.labels), "--slice-axis", axis, "--annotated-slices", slices]


def annotated_slices(case: Case) -> list[int]:
    """Some slices, from the first to the last labelled one."""
    return placements.annotated_slices(case.image.array, case.labelled_range, "ends", str(COUNT))


def split_labels(case: Case, pieces: int) -> NDArray[np.int32]:
    """Cut each label of each slice into `pieces` bands of equal size along the rows: many labels on a real scan."""
    split = np.zeros_like(case.reference)
    for source, target in zip(case.slices(case.reference), case.slices(split), strict=True):
        for value in range(1, int(case.reference.max()) + 1):
            rows, columns = np.nonzero(source == value)
            band = np.arange(rows.size) * pieces // max(rows.size, 1)
            target[rows, columns] = (value - 1) * pieces + band + 1
    return split


def write_files(case: Case, folder: Path, reference: NDArray[np.int32]) -> Files:
    """The scan, and the reference on the annotated slices only."""
    folder.mkdir()
    annotated = annotated_slices(case)
    sparse = np.zeros_like(reference)
    case.slices(sparse)[annotated] = case.slices(reference)[annotated]
    files = Files(folder / "image.nii.gz", folder / "labels.nii.gz", annotated, case.slice_axis)
    io.write_image(files.image, case.image.array, case.image)
    io.write_image(files.labels, sparse, case.image)
    return files


def run_process(*command: str | Path) -> tuple[float, float]:
    """Wall-clock seconds of a process and its peak resident memory in GiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(map(str, command))}")
    return seconds, usage.ru_maxrss / 2**20


def repeat_process(name: str, volume: str, goal_s: float, repeats: int, *command: str | Path) -> Measurement:
    """The same process several times."""
    runs = [run_process(*command) for _ in range(repeats)]
    return Measurement(name, volume, [seconds for seconds, _ in runs], goal_s, max(peak for _, peak in runs))


def repeat(action: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of several calls."""
    return [_timed(action) for _ in range(repeats)]


def measure_command_line(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """Learning and propagating as one process."""
    files = write_files(case, folder / case.name, case.reference)
    command = [SCRIPTS / "sliceprop", "propagate", *files.arguments(), "-o", folder / "out.nii.gz"]
    yield repeat_process("propagate with learning", case.name, 60, repeats, *command)


def measure_yardstick(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """The command line with many labels and with a model."""
    many = write_files(case, folder / "many", split_labels(case, 15))
    few = write_files(case, folder / "few", case.reference)
    program, out, model = SCRIPTS / "sliceprop", folder / "out.nii.gz", folder / "model.safetensors"
    learning = [program, "propagate", *many.arguments(), "-o", out]
    yield repeat_process("propagate with learning, 60 labels", case.name, 60, repeats, *learning)
    run_process(program, "train", *few.arguments(), "-o", model)
    for name, files in ("propagate with a model", few), ("propagate with a model, 60 labels", many):
        command = [program, "propagate", *files.arguments(), "-o", out, "--model", model]
        yield repeat_process(name, case.name, 10, repeats, *command)


def measure_in_process(case: Case, repeats: int) -> Iterator[Measurement]:
    """One more annotated slice in a running process, without learning again."""
    annotated = annotated_slices(case)
    model = train(case.study(annotated), TrainConfig())
    propagate(case.study(annotated), model)
    more = sorted({*annotated, annotated[0] + 1})
    seconds = repeat(lambda: propagate(case.study(more), model), repeats)
    yield Measurement("propagate again after one more slice, in process", case.name, seconds, 1)


def measure_previews(case: Case, repeats: int) -> Iterator[Measurement]:
    """The classical interpolators, the contour worker warm and cold."""
    annotation = case.study(annotated_slices(case)).annotation
    labels = annotation.labels
    yield Measurement("contour worker, first volume", case.name, repeat(lambda: ContourWorker()(labels), repeats))
    for method in INTERPOLATIONS:
        interpolate(annotation, method)
        seconds = repeat(lambda method=method: interpolate(annotation, method), repeats)
        yield Measurement(f"preview, {method}", case.name, seconds, 1)


def measure_server(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """A fresh server each time: its start, a training with the defaults, an inference."""
    runs = [_session(case, folder / f"server{index}") for index in range(repeats)]
    for name, goal_s in _SERVER_GOALS_S.items():
        yield Measurement(name, case.name, [run[name] for run in runs], goal_s)


_SERVER_GOALS_S: dict[str, float | None] = {
    "server start to ready": 15,
    "training request to first epoch": 10,
    "training request to done": 60,
    "infer after training": None,
    "next slice": None,
}


def _session(case: Case, folder: Path) -> dict[str, float]:
    files = write_files(case, folder, case.reference)
    labels = files.labels.rename(folder.with_suffix(".nii.gz"))
    start = time.perf_counter()
    with _server(folder) as (address, server):
        ready = _wait(lambda: _get(f"{address}/info/") is not None or server.poll() is not None, start)
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}")
        moments = {"server start to ready": ready}
        with labels.open("rb") as file:
            answer = requests.put(
                f"{address}/datastore/label",
                params={"image": "image", "tag": "sparse"},
                files={"label": (labels.name, file)},
                timeout=DEADLINE_S,
            )
        answer.raise_for_status()
        start = time.perf_counter()
        _post(f"{address}/train/labelprop", json={"image": "image"})
        moments["training request to first epoch"] = _wait(lambda: _epoch(address) > 0, start)
        running = f"{address}/train/?check_if_running=true"
        moments["training request to done"] = _wait(lambda: _get(running) is None, start)
        infer, suggest = f"{address}/infer/labelprop?image=image", f"{address}/activelearning/next_slice"
        moments["infer after training"] = _timed(lambda: _post(infer))
        moments["next slice"] = _timed(lambda: _post(suggest, json={"image": "image"}))
    return moments


@contextmanager
def _server(studies: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["start_server", "--app", ROOT / "apps" / "labelprop", "--studies", studies, "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [SCRIPTS / "monailabel", *command, "--port", str(port)],
        env=os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _epoch(address: str) -> int:
    stats = (_get(f"{address}/info/") or {}).get("train_stats", {}).get("labelprop", {})
    return int(stats.get("epoch") or 0)


def _get(url: str) -> Any:
    """The answer, or None while there is none."""
    try:
        answer = requests.get(url, timeout=DEADLINE_S)
    except requests.ConnectionError:
        return None
    return answer.json() if answer.ok else None


def _post(url: str, **arguments: Any) -> None:
    requests.post(url, timeout=DEADLINE_S, **arguments).raise_for_status()


def _wait(condition: Callable[[], bool], start: float) -> float:
    """Seconds from `start` until the condition holds, to a twentieth of a second."""
    while not condition():
        if time.perf_counter() - start > DEADLINE_S:
            raise SystemExit("the server did not get there in time")
        time.sleep(0.05)
    return time.perf_counter() - start


def _timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(results: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [m["name"], m["volume"], *(f"{x:.2f}" for x in _summary(m["seconds"])), m["goal_s"], m["peak_gib"]]
        for m in results["measurements"]
    ]
    header = ["measurement", "volume", "median s", "min s", "max s", "goal s", "peak GiB"]
    return f"# Speed\n\n{common.describe(results['machine'])}\n\n{common.markdown_table(header, rows)}"


def _summary(seconds: list[float]) -> tuple[float, float, float]:
    return statistics.median(seconds), min(seconds), max(seconds)


PARTS = ("previews", "in-process", "command-line", "yardstick", "server")


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[Measurement]:
    """All the parts that were asked for."""
    yardstick = _load(arguments, [YARDSTICK])[0]
    if "previews" in arguments.parts:
        yield from measure_previews(yardstick, arguments.repeats)
    if "in-process" in arguments.parts:
        yield from measure_in_process(yardstick, arguments.repeats)
    if "command-line" in arguments.parts:
        for case in _load(arguments, arguments.volumes):
            yield from measure_command_line(case, folder, arguments.repeats)
    if "yardstick" in arguments.parts:
        yield from measure_yardstick(yardstick, folder, arguments.repeats)
    if "server" in arguments.parts:
        yield from measure_server(yardstick, folder, arguments.repeats)


def _load(arguments: argparse.Namespace, names: Sequence[str]) -> list[Case]:
    return [cases.load(source) for source in layouts.sources("measuring", arguments.data, names)]


def main() -> None:
    """Parse the arguments, measure, write after every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--volumes", nargs="+", default=[YARDSTICK], help="for the command line; default %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "speed.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": common.machine(), "measurements": []}
    with tempfile.TemporaryDirectory() as folder:
        for measurement in measure(arguments, Path(folder)):
            results["measurements"].append(asdict(measurement))
            common.write_results(arguments.out, results, report(results))
            print(
                measurement.name, measurement.volume, *(f"{s:.2f}" for s in measurement.seconds), sep="\t", flush=True
            )


if __name__ == "__main__":
    main()
