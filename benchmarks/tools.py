"""What the semi-automatic tools are worth: Dice from simulated seeds, and time.

A simulated user marks each label by a stroke through its middle on `STROKED` slices, and what is outside on the same
slices and just beyond the label's ends; or paints slices, or clicks six points. The largest volume for Fast marching is
the reference's, which a user finds by moving a slider. Time is that of the processor, of one thread, and by the clock.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import cases
import common
import layouts
from cases import Case
from marks import centre_line
from placements import annotated_slices
from sliceprop.engine.contour import interpolate_contours
from sliceprop.engine.metrics import dice
from sliceprop.tools.boundary_points import boundary_points
from sliceprop.tools.fast_marching import MarchConfig, fast_marching
from sliceprop.tools.fill_between_slices import fill_between_slices
from sliceprop.tools.grow_from_seeds import grow_from_seeds
from sliceprop.tools.seeds import BACKGROUND, Range
from sliceprop.tools.threshold_islands import threshold_islands
from sliceprop.volume import voxel_spacing
from synthetic import thigh

NAMES = ("spine_ct_tpt", "thorax_aorta_ct_ts", "abdomen_ct_ts")
STROKED = (0.25, 0.5, 0.75)
"""Places of the stroked slices within a label's range."""

AWAY_PX = 3
"""Of the background's strokes from any label."""

PAINTED = "5"
"""Slices that are painted for Fill between slices."""

TAILS = 2.5
"""Percent of a label's intensities under its strokes that each threshold leaves out."""

SIZE, N_LABELS = (29, 400, 400), 4
IN_CHILD = {"fill_between_slices"}
"""Tools that work in another process."""

GOALS_S = {"grow_from_seeds": 10, "fast_marching": 5, "threshold_islands": 2}

Labels = NDArray[np.int32]
Tool = Callable[[Case, Labels], Labels]


def strokes(case: Case) -> Labels:
    """Seeds `(i, j, k)` that a user would draw."""
    reference = case.slices(case.reference)
    seeds = np.zeros_like(reference)
    for label in range(1, case.n_labels + 1):
        held = np.flatnonzero((reference == label).any(axis=(1, 2)))
        if not len(held):
            continue
        for s in {int(held[round(share * (len(held) - 1))]) for share in STROKED}:
            away = ndimage.distance_transform_edt(reference[s] == 0)
            seeds[s][(away >= AWAY_PX) & (away < AWAY_PX + 1)] = BACKGROUND
            seeds[s][centre_line(_largest(reference[s] == label))] = label
        for end, beyond in ((held[0], held[0] - 2), (held[-1], held[-1] + 2)):
            if 0 <= beyond < len(reference):
                line = centre_line(_largest(reference[end] == label))
                seeds[beyond][line & (reference[beyond] == 0)] = BACKGROUND
    return np.moveaxis(seeds, 0, case.slice_axis)


def _largest(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    numbers, _ = ndimage.label(region, np.ones((3, 3)))
    largest: NDArray[np.bool_] = numbers == np.bincount(numbers.ravel())[1:].argmax() + 1
    return largest


def _grow(case: Case, seeds: Labels) -> Labels:
    return grow_from_seeds(case.image.array, seeds, affine=case.image.affine)


def _march(case: Case, seeds: Labels) -> Labels:
    voxel_ml = float(np.prod(case.spacing)) / 1000
    counts = np.bincount(case.reference.ravel())
    volumes = {label: counts[label] * voxel_ml for label in range(1, len(counts)) if counts[label]}
    return fast_marching(case.image.array, seeds, affine=case.image.affine, config=MarchConfig(volumes))


def _threshold(case: Case, seeds: Labels) -> Labels:
    ranges = {}
    for label in np.unique(seeds[seeds > 0]):
        ranges[int(label)] = Range(*np.percentile(case.image.array[seeds == label], (TAILS, 100 - TAILS)).tolist())
    spacing = voxel_spacing(case.image.affine)
    return threshold_islands(case.image.array, ranges, keep="selected", seeds=seeds, spacing=spacing)


def _fill(case: Case, seeds: Labels) -> Labels:
    painted = annotated_slices(case.image.array, case.labelled_range, "ends", PAINTED)
    return np.moveaxis(fill_between_slices(case.study(painted).annotation), 0, case.slice_axis)


def _points(case: Case, seeds: Labels) -> Labels:
    points = {}
    for label in range(1, case.n_labels + 1):
        held = np.argwhere(case.reference == label)
        ends = [(axis, pick(held[:, axis])) for axis in range(3) for pick in (np.min, np.max)]
        if len(held) and np.ptp(held, axis=0).all():
            points[label] = np.array([_middle(held[held[:, axis] == end]) for axis, end in ends], float)
    return boundary_points(case.image.array, points, affine=case.image.affine)


def _middle(voxels: NDArray[np.intp]) -> NDArray[np.intp]:
    nearest: NDArray[np.intp] = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
    return nearest


TOOLS: dict[str, Tool] = {
    "grow_from_seeds": _grow,
    "fast_marching": _march,
    "threshold_islands": _threshold,
    "fill_between_slices": _fill,
    "boundary_points": _points,
}


def measure(case: Case, names: list[str]) -> list[dict[str, object]]:
    """One row per tool: Dice of each label over the whole volume, and seconds; loading is not counted.

    Fill between slices works in a child process, whose processor time is not known here.
    """
    seeds, rows = strokes(case), []
    for name in names:
        cpu, wall = time.process_time(), time.perf_counter()
        found = TOOLS[name](case, seeds)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        scores = [dice(found, case.reference, label) for label in range(1, case.n_labels + 1)]
        known = [score for score in scores if np.isfinite(score)]
        rows.append(
            {
                "volume": case.name,
                "tool": name,
                "dice": fmean(known),
                "labels": known,
                "cpu_s": None if name in IN_CHILD else cpu,
                "s": wall,
            }
        )
        print(
            f"{case.name:24} {name:22} Dice {fmean(known):.3f}  {cpu:6.2f} s of the processor, {wall:6.2f} s",
            flush=True,
        )
    return rows


def report(results: dict[str, object]) -> str:
    """Tables of Dice and of time."""
    rows = list(results["rows"])  # type: ignore[call-overload]
    volumes, tools = (
        list(dict.fromkeys(row["volume"] for row in rows)),
        list(dict.fromkeys(row["tool"] for row in rows)),
    )
    found = {(row["volume"], row["tool"]): row for row in rows}
    scores = [[volume, *(found[volume, tool]["dice"] for tool in tools)] for volume in volumes]
    seconds = [[volume, *(found[volume, tool]["cpu_s"] for tool in tools)] for volume in volumes]
    goals = ["goal", *(GOALS_S.get(tool) for tool in tools)]
    return (
        f"# Semi-automatic tools\n\n{common.describe(results['machine'])}\n\n"  # type: ignore[arg-type]
        f"Mean Dice over the labels, whole volume; `benchmarks/tools.py` tells how the seeds are made.\n\n"
        f"{common.markdown_table(['volume', *tools], scores)}\n"
        f"Seconds of the processor, one thread; goals are for {'x'.join(map(str, SIZE))} with {N_LABELS} labels.\n\n"
        f"{common.markdown_table(['volume', *tools], [*seconds, goals])}"
    )


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(parser)
    parser.add_argument("--volumes", nargs="*", default=NAMES)
    parser.add_argument("--tools", nargs="*", choices=tuple(TOOLS), default=list(TOOLS))
    parser.add_argument("--output", type=Path, default=common.RESULTS / "tools.json")
    chosen = parser.parse_args()
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    _warm_up()
    rows: list[dict[str, object]] = []
    found = layouts.sources("measuring", chosen.data, chosen.volumes) if chosen.volumes else []
    for load in [*(partial(cases.load, source) for source in found), partial(thigh, SIZE, N_LABELS)]:
        rows += measure(load(), chosen.tools)
        results: dict[str, object] = {"machine": common.machine(), "rows": rows}
        common.write_results(chosen.output, results, report(results))


def _warm_up() -> None:
    """Load ITK's classes and the contour worker, which takes seconds the first time."""
    small = thigh((6, 24, 24), N_LABELS)
    seeds = np.zeros(small.reference.shape, np.int32)
    seeds[2, 2, 2], seeds[3, 20, 20] = 1, BACKGROUND
    _grow(small, seeds)
    interpolate_contours(small.reference)


if __name__ == "__main__":
    main()
