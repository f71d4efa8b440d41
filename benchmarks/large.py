"""A volume that does not fit into memory: time and memory of `sliceprop propagate-large`, and what its result is worth.

The synthetic thigh is written as OME-Zarr slice by slice, with few of its slices annotated.

    python benchmarks/large.py                       # 1,000 slices of 1,024x1,024 pixels, some ten minutes to write
    python benchmarks/large.py --shape 100 512 512 --annotated 5 --out try.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import common
from common import RESULTS
from sliceprop.zarr_io import ZarrVolume, new_zarr, open_zarr
from speed import SCRIPTS, run_process
from synthetic import spacing, thigh_slices

SHAPE, LABELS, ANNOTATED = (1000, 1024, 1024), 5, 21
GOAL_GIB = 8
PIECES = 8
"""Labels that the thigh is cut into; what is beyond `LABELS` joins the last one."""


def annotated_slices(n_slices: int, count: int) -> list[int]:
    """Evenly, from the first to the last one."""
    return [int(s) for s in np.linspace(0, n_slices - 1, count).round()]


def write_study(folder: Path, shape: tuple[int, int, int], annotated: Sequence[int]) -> None:
    """`image.zarr`, `sparse.zarr` with the annotated slices, `reference.zarr` with all."""
    like = ZarrVolume(np.broadcast_to(np.uint8(0), shape), spacing(shape))
    with ExitStack() as stack:
        image, sparse, reference = (
            stack.enter_context(new_zarr(folder / f"{name}.zarr", like, dtype, name=name))
            for name, dtype in (("image", "i2"), ("sparse", "u1"), ("reference", "u1"))
        )
        for s, (plane, labels) in enumerate(thigh_slices(shape, PIECES)):
            image[s], reference[s] = plane, np.minimum(labels, LABELS)
            if s in annotated:
                sparse[s] = np.minimum(labels, LABELS)


def mean_dice(folder: Path, annotated: Sequence[int]) -> float:
    """Mean over labels, over the slices that were not annotated."""
    found, truth = open_zarr(folder / "out.zarr"), open_zarr(folder / "reference.zarr")
    both, either = np.zeros(LABELS), np.zeros(LABELS)
    for s in np.setdiff1d(np.arange(truth.shape[0]), annotated).tolist():
        one, other = found.slice(s), truth.slice(s)
        for k in range(LABELS):
            first, second = one == k + 1, other == k + 1
            both[k] += np.count_nonzero(first & second)
            either[k] += np.count_nonzero(first) + np.count_nonzero(second)
    return float(np.mean(2 * both / either))


def measure(folder: Path, shape: tuple[int, int, int], count: int) -> dict[str, Any]:
    """Write the study, run the command, compare."""
    annotated = annotated_slices(shape[0], count)
    write_study(folder, shape, annotated)
    image, sparse, out = (folder / f"{name}.zarr" for name in ("image", "sparse", "out"))
    seconds, peak_gib = run_process(SCRIPTS / "sliceprop", "propagate-large", image, sparse, "-o", out)
    return {
        "shape": shape,
        "labels": LABELS,
        "annotated": count,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_gib, 3),
        "dice": round(mean_dice(folder, annotated), 4),
    }


def report(results: dict[str, Any]) -> str:
    """A table of one row."""
    found = results["found"]
    shape = "x".join(map(str, found["shape"]))
    row = [shape, found["labels"], found["annotated"], found["seconds"], found["peak_gib"], GOAL_GIB, found["dice"]]
    header = ["volume", "labels", "annotated slices", "seconds", "peak GiB", "goal GiB", "Dice"]
    parts = "# Larger than memory", common.describe(results["machine"]), common.markdown_table(header, [row])
    return "\n\n".join(parts)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar="N", help="slices, rows, columns")
    parser.add_argument("--annotated", type=int, default=ANNOTATED, metavar="N", help="slices, default %(default)s")
    parser.add_argument("--folder", type=Path, help="for the volumes, some 4 GiB; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "large.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), tuple(options.shape), options.annotated)
    results = {"machine": common.machine(), "found": found}
    common.write_results(options.out, results, report(results))
    print(found)


if __name__ == "__main__":
    main()
