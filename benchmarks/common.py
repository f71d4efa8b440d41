"""What the benchmarks share: the measuring volumes, the placement of annotated slices, the machine, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.study import Study, open_study

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """A scan with its dense reference: labels renumbered 1..K, everything else background.

    Attributes:
        name: of its folder.
        image: the scan.
        reference: `(i, j, k)` int32.
        slice_axis: axis that counts slices.
    """

    name: str
    image: io.Image
    reference: NDArray[np.int32]
    slice_axis: int

    @property
    def labelled_range(self) -> tuple[int, int]:
        """First and last slice that holds a label."""
        others = tuple(axis for axis in range(3) if axis != self.slice_axis)
        labelled = np.flatnonzero(self.reference.any(axis=others))
        return int(labelled[0]), int(labelled[-1])

    def study(self, annotated: Sequence[int], reference: NDArray[np.int32] | None = None) -> Study:
        """The scan with these slices annotated completely."""
        labels = self.reference if reference is None else reference
        return open_study(self.image, labels, slice_axis=self.slice_axis, annotated_slices=annotated)

    def slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """`(i, j, k)` as `(S, H, W)`."""
        return np.moveaxis(array, self.slice_axis, 0)


def load_case(folder: Path) -> Case:
    """Read `image.nii.gz`, `label.nii.gz` and `meta.json`."""
    meta = json.loads((folder / "meta.json").read_text())
    labels = io.read_image(folder / "label.nii.gz").array
    reference = np.zeros(labels.shape, np.int32)
    for number, value in enumerate(meta["recommended_labels"], start=1):
        reference[labels == value] = number
    return Case(folder.name, io.read_image(folder / "image.nii.gz"), reference, meta["propagation_axis"])


def folders(data: Path, names: Sequence[str] | None = None) -> list[Path]:
    """The measuring volumes below `data`, or those of these names."""
    found = sorted(path.parent for path in data.glob("*/meta.json"))
    return [folder for folder in found if not names or folder.name in names]


def annotated_slices(labelled_range: tuple[int, int], count: int, placement: str) -> list[int]:
    """Slices to annotate: `ends` runs evenly from first to last, `centres` are the middles of `count` equal bins."""
    first, last = labelled_range
    if placement == "ends":
        where = np.linspace(first, last, count)
    else:
        where = first - 0.5 + (np.arange(count) + 0.5) * (last - first + 1) / count
    return sorted({int(s) for s in np.round(where)})


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next((line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def describe(machine: dict[str, Any]) -> str:
    """One line for a reader."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return f"{machine['cores']} cores of {machine['cpu']}{gpu}; Python {machine['python']}, torch {machine['torch']}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers with three decimals, None as a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def earlier(path: Path, settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list `name` of results written before, none without a file.

    Raises:
        SystemExit: if they were made with other settings, such as another machine.
    """
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    if {key: results.get(key) for key in settings} != settings:
        raise SystemExit(f"{path}: made on another machine or with other settings; remove it or give another --out")
    return list(results[name])


def write_results(path: Path, results: dict[str, Any], report: str) -> None:
    """Write `path` (JSON) and the report beside it (Markdown)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(report)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """`--data`, from the environment when it is not given."""
    data = os.environ.get("SLICEPROP_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="folder of measuring volumes")


def _cpu_info() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
