"""What the benchmarks share: the machine, tables, files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sliceprop.errors import InputError

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

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


def write_results(path: Path, results: dict[str, Any], report: str) -> None:
    """Write `path` (JSON) and the report beside it (Markdown)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(report)


def run_command(run: Callable[[], None]) -> None:
    """Run a benchmark that can go on where it was stopped; what a user can mend is one line."""
    program = Path(sys.argv[0]).name
    try:
        run()
    except InputError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped; the same command goes on where it ended")


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
