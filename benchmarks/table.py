"""The table of results: one row per case and method, kept as CSV, the one source of every report and plot."""

from __future__ import annotations

import csv
import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from sliceprop.errors import FileError

OK = "ok"


@dataclass(frozen=True)
class Row:
    """What one method did with one case. Empty cells are None for numbers and an empty string for text.

    Attributes:
        layout: of the data set.
        volume: name of the scan.
        axis: as it was asked for.
        pad_px: of the padded and cropped volumes, 0 for whole ones.
        seed: of crops and random placements.
        placement: rule for the annotated slices.
        amount: `5` or `20%`.
        method: with its settings, as it was given.
        status: `ok`, else why there is no result: `skipped: ...`, `failed: ...`, `cannot run: ...`.
        shape: `SxHxW`.
        n_labels: in the reference.
        annotated: slices, separated by spaces.
        dice: mean over the labels, over the slices of the labelled range that were not annotated.
        dice_volume: the same over the whole volume, annotated slices included.
        average_hausdorff_mm: mean over the labels that the result holds, whole volume.
        hausdorff95_mm: the same.
        lost_labels: labels of the reference that the result lacks, which have no distance.
        overshoot: predicted past a label's true ends, relative to its size; mean over the labels.
        dice_labels: JSON, `dice` of each label.
        train_s: learning before the propagation.
        propagate_s: the rest.
        total_s: both; imports, reading and scoring are left out. None where the clock says nothing, see `note`.
        peak_mib: largest resident memory of learning and propagation, children included.
        note: what stood in for what was asked for.
        settings: JSON, all of them.
        device: where it ran.
        jobs: processes that ran at the same time, at most.
        cores: that the process could use.
        cpu: its model.
        versions: of Python and the packages that matter.
        date: UTC, when it was finished.
    """

    layout: str
    volume: str
    axis: str
    pad_px: int
    seed: int
    placement: str
    amount: str
    method: str
    status: str = OK
    shape: str = ""
    n_labels: int | None = None
    annotated: str = ""
    dice: float | None = None
    dice_volume: float | None = None
    average_hausdorff_mm: float | None = None
    hausdorff95_mm: float | None = None
    lost_labels: int | None = None
    overshoot: float | None = None
    dice_labels: str = ""
    train_s: float | None = None
    propagate_s: float | None = None
    total_s: float | None = None
    peak_mib: float | None = None
    note: str = ""
    settings: str = ""
    device: str = ""
    jobs: int = 1
    cores: int | None = None
    cpu: str = ""
    versions: str = ""
    date: str = ""

    @property
    def view(self) -> tuple[Any, ...]:
        """What all rows of a table have in common."""
        return self.layout, self.axis, self.pad_px, self.seed

    @property
    def case(self) -> tuple[Any, ...]:
        """All that tells one case from another."""
        return self.layout, self.volume, self.axis, self.pad_px, self.seed, self.placement, self.amount

    @property
    def key(self) -> tuple[Any, ...]:
        """Case and method: a table holds one row of each."""
        return *self.case, self.method

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status == OK

    @property
    def skipped(self) -> bool:
        """Whether the case has too little to score."""
        return self.status.startswith("skipped")


def read(path: Path, kind: type = Row) -> list[Any]:
    """The rows of a table, each a dataclass of a kind; none without a file.

    Raises:
        FileError: a table with other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(field.name for field in fields(kind)):
            raise FileError(f"{path}: its columns are not those of this version; remove it or give another --out")
        kinds = get_type_hints(kind)
        return [kind(**{name: _value(kinds[name], text) for name, text in record.items()}) for record in reader]


def write(path: Path, rows: Iterable[Any], kind: type = Row) -> None:
    """Write a whole table, a row for each dataclass of a kind; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    partial.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a second run away from the same table, since each would lose the other's rows.

    Raises:
        FileError: if another run has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(f"{path}: another run writes this table; wait for it or give another --out") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _value(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if not text:
        return None
    return float(text) if kind in (float, float | None) else int(text)
