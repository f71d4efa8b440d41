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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

import cases
import common
import layouts
import marks
import placements
import scale
from cases import Case
from memory import KIB_PER_MIB, PeakMemory
from scribbles import scribbled_study
from sliceprop import io
from sliceprop.config import TrainConfig
from sliceprop.engine.contour import ContourWorker
from sliceprop.engine.interpolation import INTERPOLATIONS, interpolate
from sliceprop.study import Study, propagate, train
from synthetic import split_labels, thigh

YARDSTICK = "lumbar_muscle_water_tum01"
COUNT = 5
LARGE, LARGE_LABELS, LARGE_COUNT = (200, 512, 512), 20, 7
GOAL_S, LARGE_GOAL_S, INSTANT_GOAL_S = 60, 300, 1
GOAL_GIB, LARGE_GOAL_GIB = 3, 8
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
        goal_gib: at most, None where none is set.
    """

    name: str
    volume: str
    seconds: list[float]
    goal_s: float | None = None
    peak_gib: float | None = None
    goal_gib: float | None = None


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


def annotated_slices(case: Case, count: int = COUNT) -> list[int]:
    """Some slices, from the first to the last labelled one."""
    return placements.annotated_slices(case.image.array, case.labelled_range, "ends", str(count))


def write_files(case: Case, folder: Path, reference: NDArray[np.int32], count: int = COUNT) -> Files:
    """The scan, and the reference on the annotated slices only."""
    folder.mkdir()
    annotated = annotated_slices(case, count)
    sparse = np.zeros_like(reference)
    case.slices(sparse)[annotated] = case.slices(reference)[annotated]
    files = Files(folder / "image.nii.gz", folder / "labels.nii.gz", annotated, case.slice_axis)
    io.write_image(files.image, case.image.array, case.image)
    io.write_image(files.labels, sparse, case.image)
    return files


def run_process(*command: str | Path) -> tuple[float, float]:
    """Wall-clock seconds of a process and the peak resident memory of it and its children in GiB."""
    start = time.perf_counter()
    with PeakMemory() as memory:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}: {' '.join(map(str, command))}")
    return seconds, memory.children_mib / KIB_PER_MIB


def repeat_process(
    name: str, volume: str, goal_s: float | None, repeats: int, *command: str | Path, goal_gib: float | None = None
) -> Measurement:
    """The same process several times."""
    runs = [run_process(*command) for _ in range(repeats)]
    peak_gib = max(peak for _, peak in runs)
    return Measurement(name, volume, [seconds for seconds, _ in runs], goal_s, peak_gib, goal_gib)


def repeat(action: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of several calls."""
    return [_timed(action) for _ in range(repeats)]


def measure_command_line(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """Learning and propagating as one process."""
    files = write_files(case, folder / case.name, case.reference)
    command = [SCRIPTS / "sliceprop", "propagate", *files.arguments(), "-o", folder / "out.nii.gz"]
    goal_gib = GOAL_GIB if case.name == YARDSTICK else None
    yield repeat_process("propagate with learning", case.name, GOAL_S, repeats, *command, goal_gib=goal_gib)


def measure_large(folder: Path, repeats: int) -> Iterator[Measurement]:
    """The command line on a synthetic study as large as they come; with a model, and as it learns and propagates."""
    case = replace(thigh(LARGE, LARGE_LABELS), name=f"thigh {'x'.join(map(str, LARGE))}, {LARGE_LABELS} labels")
    files = write_files(case, folder / "large", case.reference, LARGE_COUNT)
    program, out, model = SCRIPTS / "sliceprop", folder / "out.nii.gz", folder / "model.safetensors"
    command = [program, "propagate", *files.arguments(), "-o", out]
    goals = {"goal_gib": LARGE_GOAL_GIB}
    yield repeat_process("propagate with learning", case.name, LARGE_GOAL_S, repeats, *command, **goals)
    run_process(program, "train", *files.arguments(), "-o", model)
    yield repeat_process("propagate with a model", case.name, None, repeats, *command, "--model", model, **goals)


def measure_yardstick(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """The command line with many labels and with a model."""
    many = write_files(case, folder / "many", split_labels(case, 15))
    few = write_files(case, folder / "few", case.reference)
    program, out, model = SCRIPTS / "sliceprop", folder / "out.nii.gz", folder / "model.safetensors"
    learning = [program, "propagate", *many.arguments(), "-o", out]
    yield repeat_process("propagate with learning, 60 labels", case.name, GOAL_S, repeats, *learning, goal_gib=GOAL_GIB)
    run_process(program, "train", *few.arguments(), "-o", model)
    for name, files in ("propagate with a model", few), ("propagate with a model, 60 labels", many):
        command = [program, "propagate", *files.arguments(), "-o", out, "--model", model]
        yield repeat_process(name, case.name, 10, repeats, *command)


def measure_in_process(case: Case, repeats: int, config: TrainConfig) -> Iterator[Measurement]:
    """Corrections in a running process: the study opened anew and propagated again with the model learnt before."""
    annotated = annotated_slices(case)
    model = train(case.study(annotated), config)
    before = case.slices(propagate(case.study(annotated), model).labels)
    for name, study in corrections(case, annotated, before).items():
        seconds = repeat(lambda study=study: propagate(study(), model), repeats)
        yield Measurement(f"after a correction, model learnt before: {name}", case.name, seconds, INSTANT_GOAL_S)


def corrections(case: Case, annotated: list[int], before: NDArray[np.int32]) -> dict[str, Callable[[], Study]]:
    """How to open the study with a correction of each kind, where it changes most.

    Args:
        case: with the reference.
        annotated: slices that were given before; the new one is in the middle of the longest stretch between them.
        before: the result, `(S, H, W)`; the scribble goes through its largest mistake.
    """
    steps, reference = np.diff(annotated), case.slices(case.reference)
    more = sorted({*annotated, annotated[int(steps.argmax())] + int(steps.max()) // 2})
    scribbles, _ = marks.draw(marks.find_mistakes(before, reference, marks.PLANES["slices"], 1), reference)
    return {
        "one more annotated slice": lambda: case.study(more),
        "one scribble": lambda: scribbled_study(case, annotated, scribbles),
    }


def measure_previews(case: Case, repeats: int) -> Iterator[Measurement]:
    """The classical interpolators, the contour worker warm and cold."""
    annotation = case.study(annotated_slices(case)).annotation
    labels = annotation.labels
    yield Measurement("contour worker, first volume", case.name, repeat(lambda: ContourWorker()(labels), repeats))
    for method in INTERPOLATIONS:
        interpolate(annotation, method)
        seconds = repeat(lambda method=method: interpolate(annotation, method), repeats)
        yield Measurement(f"preview, {method}", case.name, seconds, INSTANT_GOAL_S)


def measure_server(case: Case, folder: Path, repeats: int) -> Iterator[Measurement]:
    """A fresh server each time: its start, a submission, a training with the defaults, an inference."""
    runs = [_session(case, folder / f"{case.name}{index}") for index in range(repeats)]
    goals = _SERVER_GOALS_S | {_PANEL: _PANEL_GOALS_S.get(case.slices(case.image.array).shape)}
    for name, goal_s in goals.items():
        yield Measurement(name, case.name, [run[name] for run in runs], goal_s)


_PANEL = "propagation in OHIF after training: request and voxels"
_PANEL_GOALS_S: dict[tuple[int, ...], float] = {(24, 96, 112): 3, (29, 400, 400): 10}
SMALL = 24, 96, 112


_SERVER_GOALS_S: dict[str, float | None] = {
    "server start to ready": 15,
    "submission of a label file": 1,
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
        moments["submission of a label file"] = _timed(lambda: _submit(address, labels))
        start = time.perf_counter()
        _post(f"{address}/train/labelprop", json={"image": "image"})
        moments["training request to first epoch"] = _wait(lambda: _epoch(address) > 0, start)
        running = f"{address}/train/?check_if_running=true"
        moments["training request to done"] = _wait(lambda: _get(running) is None, start)
        infer, suggest = f"{address}/infer/labelprop?image=image", f"{address}/activelearning/next_slice"
        moments["infer after training"] = _timed(lambda: _post(infer))
        moments[_PANEL] = _timed(lambda: _propagate_in_panel(address))
        moments["next slice"] = _timed(lambda: _post(suggest, json={"image": "image"}))
    return moments


def _submit(address: str, labels: Path) -> None:
    with labels.open("rb") as file:
        requests.put(
            f"{address}/datastore/label",
            params={"image": "image", "tag": "sparse"},
            files={"label": (labels.name, file)},
            timeout=DEADLINE_S,
        ).raise_for_status()


def _propagate_in_panel(address: str) -> None:
    """The requests of the panel, without what the browser draws."""
    _post(f"{address}/infer/labelprop?image=image&output=json")
    for route in ("study", "voxels"):
        requests.get(f"{address}/labelprop/{route}?image=image", timeout=DEADLINE_S).raise_for_status()


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


def report(results: dict[str, Any], name: str) -> str:
    """The tables; `name` is that of the files."""
    rows = [
        [
            m["name"],
            m["volume"],
            *(f"{x:.2f}" for x in _summary(m["seconds"])),
            m["goal_s"],
            m["peak_gib"],
            m["goal_gib"],
        ]
        for m in results["measurements"]
    ]
    header = ["measurement", "volume", "median s", "min s", "max s", "goal s", "peak GiB", "goal GiB"]
    parts = ["# Speed", common.describe(results["machine"])]
    if results["measurements"]:
        parts.append(common.markdown_table(header, rows).strip())
    points = [scale.Point(**point) for point in results["points"]]
    if points:
        parts += [scale.markdown(points).strip(), f"![growth]({name}.png)"]
    return "\n\n".join(parts) + "\n"


def _summary(seconds: list[float]) -> tuple[float, float, float]:
    return statistics.median(seconds), min(seconds), max(seconds)


PARTS = ("previews", "in-process", "command-line", "yardstick", "server", "large", "scale")
SLOW_PARTS = ("large", "scale")


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[Measurement]:
    """All the parts that were asked for."""
    yardstick = _load(arguments, [YARDSTICK])[0]
    if "previews" in arguments.parts:
        yield from measure_previews(yardstick, arguments.repeats)
    if "in-process" in arguments.parts:
        yield from measure_in_process(yardstick, arguments.repeats, TrainConfig())
    if "command-line" in arguments.parts:
        for case in _load(arguments, arguments.volumes):
            yield from measure_command_line(case, folder, arguments.repeats)
    if "yardstick" in arguments.parts:
        yield from measure_yardstick(yardstick, folder, arguments.repeats)
    if "server" in arguments.parts:
        for case in (yardstick, replace(thigh(SMALL, 4), name="thigh_24x96x112")):
            yield from measure_server(case, folder, arguments.repeats)
    if "large" in arguments.parts:
        yield from measure_large(folder, arguments.repeats)


def _load(arguments: argparse.Namespace, names: Sequence[str]) -> list[Case]:
    return [cases.load(source) for source in layouts.sources("measuring", arguments.data, names)]


def main() -> None:
    """Parse the arguments, measure, write after every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(parser)
    usual = [part for part in PARTS if part not in SLOW_PARTS]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=usual, help="default: all but large and scale")
    parser.add_argument("--volumes", nargs="+", default=[YARDSTICK], help="for the command line; default %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "speed.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": common.machine(), "measurements": [], "points": []}
    with tempfile.TemporaryDirectory() as folder:
        for measurement in measure(arguments, Path(folder)):
            _keep(arguments.out, results, "measurements", measurement)
    if "scale" in arguments.parts:
        points = []
        for point in scale.measure():
            points.append(point)
            _keep(arguments.out, results, "points", point)
        scale.draw(points, arguments.out.with_suffix(".png"))


def _keep(path: Path, results: dict[str, Any], kind: str, found: Measurement | scale.Point) -> None:
    """Write what is there so far, and say what is new."""
    results[kind].append(asdict(found))
    common.write_results(path, results, report(results, path.stem))
    print(*asdict(found).values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
