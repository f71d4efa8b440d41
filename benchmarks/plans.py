"""Time of each plan for a scan without annotation, on a scan of BraTS' size and on the measuring volumes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cases
import common
import layouts
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans import PLANS, plan_slices
from sliceprop.engine.plans.weights import ALEXNET_SHAPES
from sliceprop.volume import FloatArray, normalise_intensity
from synthetic import thigh

BRATS_SHAPE = (155, 240, 240)
SHARE = 0.2
"""Of the slices that are chosen: the least that Payer et al. chose on BraTS."""

PAYER_S = {"random": 0.76, "kmeans": 7.3, "histogram": 1.8, "perceptual": 64.0, "ssim": 143.0}
"""Seconds per BraTS volume as published, on their machine."""


@dataclass(frozen=True)
class Measurement:
    """How long a plan took.

    Attributes:
        plan: one of `PLANS`.
        means: what judges `perceptual`, else empty.
        volume: name of the scan.
        shape: slices, rows, columns.
        n: slices chosen.
        seconds: of each repeat.
    """

    plan: str
    means: str
    volume: str
    shape: tuple[int, int, int]
    n: int
    seconds: list[float]


def measure(name: str, slices: FloatArray, repeats: int, folder: Path) -> Iterator[Measurement]:
    """Every plan on one scan.

    Networks have random weights, on which their time does not depend; learning the study's own is not part of it.

    Args:
        name: of the volume.
        slices: `(S, H, W)` in [0, 1].
        repeats: of each plan.
        folder: for the files of weights.
    """
    shape = (len(slices), *slices.shape[1:])
    n = max(1, round(SHARE * len(slices)))
    for plan in PLANS:
        for means, arguments in perceptual_means(folder).items() if plan == "perceptual" else [("", {})]:
            seconds = [_timed(slices, n, plan, **arguments) for _ in range(repeats)]
            yield Measurement(plan, means, name, shape, n, seconds)


def perceptual_means(folder: Path) -> dict[str, dict[str, Any]]:
    """What may judge how alike slices look: arguments of `plan_slices` by name."""
    file = folder / "alexnet.pth"
    if not file.exists():
        kernels = {f"features.{layer}.weight": torch.randn(shape) for layer, shape in ALEXNET_SHAPES.items()}
        biases = {f"features.{layer}.bias": torch.zeros(shape[0]) for layer, shape in ALEXNET_SHAPES.items()}
        torch.save(kernels | biases, file)
    return {
        "fixed filters": {},
        "the study's network": {"network": RegistrationNet()},
        "AlexNet": {"perceptual_weights": file},
    }


def _timed(slices: FloatArray, n: int, plan: str, **arguments: Any) -> float:
    start = time.perf_counter()
    plan_slices(slices, n, plan, **arguments)
    return time.perf_counter() - start


def volumes(arguments: argparse.Namespace) -> Iterator[tuple[str, FloatArray]]:
    """The synthetic thigh, then the measuring volumes."""
    yield "synthetic thigh", normalise_intensity(thigh(BRATS_SHAPE, 1).image.array)
    for source in layouts.sources("measuring", arguments.data, arguments.volumes):
        case = cases.load(source)
        yield case.name, normalise_intensity(case.slices(case.image.array))


def report(results: dict[str, Any]) -> str:
    """The median of each plan, one row per volume, and what is published."""
    measured = [Measurement(**m) for m in results["measurements"]]
    columns = list(dict.fromkeys((m.plan, m.means) for m in measured))
    published = [f"{PAYER_S[plan]:g}" if plan in PAYER_S else None for plan, _ in columns]
    rows = [["BraTS, Payer et al.", "x".join(map(str, BRATS_SHAPE)), None, *published]]
    for name in dict.fromkeys(m.volume for m in measured):
        found = {(m.plan, m.means): m for m in measured if m.volume == name}
        one = next(iter(found.values()))
        cells = [_seconds(found[column].seconds) if column in found else None for column in columns]
        rows.append([name, "x".join(map(str, one.shape)), one.n, *cells])
    header = ["volume", "shape", "slices chosen", *(", ".join(filter(None, column)) for column in columns)]
    notes = (
        "Median seconds, without reading the scan and importing. The first row is as published, on another machine. "
        "Networks have random weights, on which their time does not depend; learning the study's own is not part of it."
    )
    machine = f"{common.describe(results['machine'])}; {results['threads']} threads"
    return "\n\n".join(["# Plans", machine, notes, common.markdown_table(header, rows).strip()]) + "\n"


def _seconds(repeats: list[float]) -> str:
    median = statistics.median(repeats)
    return f"{median:.2f}" if median >= 0.005 else "< 0.01"


def main() -> None:
    """Parse the arguments, measure, write after every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(parser)
    parser.add_argument("--volumes", nargs="+", default=(), help="of the measuring ones; default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "plans.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": common.machine(), "threads": torch.get_num_threads(), "measurements": []}
    plan_slices(np.random.default_rng(0).random((4, 8, 8), np.float32), 2, "perceptual")  # imports what it needs
    with tempfile.TemporaryDirectory() as folder:
        for name, slices in volumes(arguments):
            for measurement in measure(name, slices, arguments.repeats, Path(folder)):
                results["measurements"].append(asdict(measurement))
                common.write_results(arguments.out, results, report(results))
                print(*asdict(measurement).values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
