"""What corrective scribbles are worth: Dice before and after, where they were drawn, nearby, and far away.

Each volume is learnt and propagated once; then a simulated user (`marks.py`) scribbles through the worst mistakes, and
it is propagated again. Writes a table (CSV) and a report (Markdown). README.md tells the protocol.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cases
import common
import layouts
import marks
import table
from cases import Case
from placements import annotated_slices
from refinements import unseen
from scores import scored_slices
from sliceprop import study as use_cases
from sliceprop.config import TrainConfig
from sliceprop.engine.metrics import dice
from sliceprop.errors import InputError
from sliceprop.study import Study, open_study
from worker import MIN_SCORED

PLACEMENT = "centres"
NEAR, FAR = 2, 5
"""Slices: up to so far from a scribble is near, more than so far is far."""

MODES = {
    "scribbles": "propagated again with the model learnt before, which has not seen the scribbles",
    "learning": "for comparison, no scribbles, but learning goes on",
    "both": "learning goes on with the scribbles",
}
SCOPES = {
    "scribble": "the scribbled voxels",
    "region": "the wrong regions that the scribbles run through",
    "slices": "the slices that hold scribbles",
    "near": f"slices up to {NEAR} from one of these",
    "range": "the labelled range",
    "far": f"slices more than {FAR} from any scribble",
}
"""Never an annotated slice, and without the scribbled voxels in all but the first."""

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One correction in one scope.

    Attributes:
        volume: name of the scan.
        annotated: number of annotated slices.
        planes: a key of `marks.PLANES`.
        marks: scribbles that were asked for.
        drawn: scribbles that were drawn; fewer where no more mistakes lie apart from each other.
        mode: a key of `MODES`.
        scope: a key of `SCOPES`.
        voxels: in the scope.
        wrong_before: of these voxels.
        wrong_after: of these voxels.
        spoilt: voxels that were right before and are wrong after.
        dice_before: mean over the labels that the reference holds in the scope, None without any.
        dice_after: the same.
        learn_s: of learning for this correction.
        propagate_s: of opening the study with the scribbles and propagating again.
    """

    volume: str
    annotated: int
    planes: str
    marks: int
    drawn: int
    mode: str
    scope: str
    voxels: int
    wrong_before: int
    wrong_after: int
    spoilt: int
    dice_before: float | None
    dice_after: float | None
    learn_s: float
    propagate_s: float


class Session:
    """A volume with a model and a first result, which is corrected in several ways, always from that result."""

    def __init__(self, case: Case, annotated: Sequence[int], config: TrainConfig, more: TrainConfig) -> None:
        """Learn and propagate.

        Args:
            case: with the reference.
            annotated: slices that are given.
            config: of learning.
            more: of learning that goes on.
        """
        self.case, self.annotated, self._more = case, list(annotated), more
        self._config = unseen(case.name)
        self._nothing = np.zeros(case.slices(case.reference).shape, np.int32)
        self._model = use_cases.train(self._study(self._nothing), config)
        self.before, _ = self._propagated(self._nothing, self._model)
        model, learn_s = self._learnt_on(self._nothing)
        self._without = *self._propagated(self._nothing, model), learn_s

    def rows(self, planes: str, count: int) -> Iterator[Row]:
        """Correct once, in every mode."""
        reference = self.case.slices(self.case.reference)
        mistakes = marks.find_mistakes(self.before, reference, marks.PLANES[planes], count)
        scribbles, regions = marks.draw(mistakes, reference)
        masks = scopes(scribbles > 0, regions, self.annotated, self.case.labelled_range)
        for mode in MODES:
            after, propagate_s, learn_s = self._corrected(mode, scribbles)
            for scope, mask in masks.items():
                yield Row(
                    self.case.name,
                    len(self.annotated),
                    planes,
                    count,
                    len(mistakes),
                    mode,
                    scope,
                    **compare(self.before, after, reference, mask),
                    learn_s=round(learn_s, 3),
                    propagate_s=round(propagate_s, 3),
                )

    def _corrected(self, mode: str, scribbles: Labels) -> tuple[Labels, float, float]:
        """Labels `(S, H, W)`, seconds of propagating and of learning."""
        if mode == "learning":
            return self._without
        model, learn_s = self._learnt_on(scribbles) if mode == "both" else (self._model, 0.0)
        return *self._propagated(scribbles, model), learn_s

    def _learnt_on(self, scribbles: Labels) -> tuple[Any, float]:
        return _timed(lambda: use_cases.train(self._study(scribbles), self._more, init=self._model))

    def _propagated(self, scribbles: Labels, model: Any) -> tuple[Labels, float]:
        result, seconds = _timed(lambda: use_cases.propagate(self._study(scribbles), model, self._config))
        return self.case.slices(result.labels), seconds

    def _study(self, scribbles: Labels) -> Study:
        return scribbled_study(self.case, self.annotated, scribbles)


def scribbled_study(case: Case, annotated: Sequence[int], scribbles: Labels) -> Study:
    """The scan with these slices annotated completely, and scribbles `(S, H, W)`."""
    return open_study(
        case.image,
        case.reference,
        scribbles=np.moveaxis(scribbles, 0, case.slice_axis),
        slice_axis=case.slice_axis,
        annotated_slices=annotated,
    )


def scopes(
    scribbled: Mask, regions: Mask, annotated: Sequence[int], labelled_range: tuple[int, int]
) -> dict[str, Mask]:
    """The voxels of each of `SCOPES`, all `(S, H, W)`.

    Args:
        scribbled: voxels.
        regions: the mistakes that were marked.
        annotated: slices that were given.
        labelled_range: first and last slice that holds a label.
    """
    index, touched = np.arange(len(scribbled)), np.flatnonzero(scribbled.any(axis=(1, 2)))
    distance = np.abs(index[:, None] - touched).min(axis=1, initial=len(index))
    chosen = {
        "slices": distance == 0,
        "near": (distance > 0) & (distance <= NEAR),
        "range": (index >= labelled_range[0]) & (index <= labelled_range[1]),
        "far": distance > FAR,
    }
    rest = ~scribbled & ~np.isin(index, annotated)[:, None, None]
    whole = {name: slices[:, None, None] & rest for name, slices in chosen.items()}
    return {"scribble": scribbled, "region": regions & rest, **whole}


def compare(before: Labels, after: Labels, reference: Labels, counted: Mask) -> dict[str, Any]:
    """The measures of a `Row` over some voxels; all `(S, H, W)`."""
    was, now, true = before[counted], after[counted], reference[counted]
    return {
        "voxels": true.size,
        "wrong_before": int((was != true).sum()),
        "wrong_after": int((now != true).sum()),
        "spoilt": int(((was == true) & (now != true)).sum()),
        "dice_before": _mean_dice(was, true),
        "dice_after": _mean_dice(now, true),
    }


def _mean_dice(predicted: Labels, true: Labels) -> float | None:
    values = [int(value) for value in np.unique(true[true > 0])]
    return round(fmean(dice(predicted, true, value) for value in values), 5) if values else None


def report(rows: Sequence[Row], settings: str) -> str:
    """Means over the volumes, what became worse, and each volume."""
    parts = ["# Corrective scribbles", settings]
    parts += ["\n".join(f"- {name}: {text}" for name, text in (MODES | SCOPES).items())]
    parts += ["## Means over the volumes", _table(rows, ("annotated", "planes", "marks", "mode"))]
    parts += ["## Each volume", _table(rows, ("volume", "annotated", "planes", "marks", "mode"))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in columns), []).append(row)
    header = [*columns, "volumes", "scribbled voxels right", "region right"]
    header += [f"Dice {scope}" for scope in _DICE_SCOPES] + ["spoilt far", "again s", "learning s"]
    return common.markdown_table(header, ([*where, *_summary(group)] for where, group in groups.items()))


_DICE_SCOPES = ("slices", "near", "range", "far")


def _summary(rows: Sequence[Row]) -> list[Any]:
    """One line of a table: shares over all voxels, Dice as means over the volumes."""
    of = {scope: [row for row in rows if row.scope == scope and row.voxels] for scope in SCOPES}
    return [
        len({row.volume for row in rows}),
        *(_right(of[scope]) for scope in ("scribble", "region")),
        *(_change(of[scope]) for scope in _DICE_SCOPES),
        sum(row.spoilt for row in of["far"]),
        f"{fmean(row.propagate_s for row in rows):.2f}",
        f"{fmean(row.learn_s for row in rows):.1f}",
    ]


def _right(rows: Sequence[Row]) -> str | None:
    voxels = sum(row.voxels for row in rows)
    return f"{1 - sum(row.wrong_after for row in rows) / voxels:.1%}" if voxels else None


def _change(rows: Sequence[Row]) -> str | None:
    pairs = [(row.dice_before, row.dice_after) for row in rows if row.dice_before is not None]
    if not pairs:
        return None
    before, after = (fmean(column) for column in zip(*pairs, strict=True))
    return f"{before:.3f} {after - before:+.3f}"


def write(path: Path, rows: Sequence[Row], settings: str) -> None:
    """The table and the report beside it."""
    table.write(path, rows, Row)
    path.with_suffix(".md").write_text(report(rows, settings), encoding="utf-8")


def measure(arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of each correction."""
    config, more = TrainConfig(budget_s=arguments.budget_s), TrainConfig(budget_s=arguments.more_s)
    sources = layouts.sources("measuring", arguments.data, arguments.volumes)
    for source, count in product(sources, arguments.counts):
        case = cases.load(source)
        annotated = annotated_slices(case.slices(case.image.array), case.labelled_range, PLACEMENT, str(count))
        if len(scored_slices(case, annotated)) < MIN_SCORED:
            continue
        session = Session(case, annotated, config, more)
        for planes, wanted in product(marks.PLANES, arguments.marks):
            yield list(session.rows(planes, wanted))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(result)
    result.add_argument("--volumes", nargs="+", default=(), help="names; default all")
    result.add_argument("--counts", nargs="+", type=int, default=(3, 5), help="of annotated slices")
    result.add_argument("--marks", nargs="+", type=int, default=(1, 3, 6), help="scribbles of a correction")
    result.add_argument("--budget-s", type=float, default=TrainConfig.budget_s, help="of learning at first")
    result.add_argument("--more-s", type=float, default=10, help="of learning that goes on")
    result.add_argument("--out", type=Path, default=common.RESULTS / "scribbles.csv", help="the table")
    return result


def run(arguments: argparse.Namespace) -> None:
    """Measure, write after every correction."""
    rows: list[Row] = []
    for found in measure(arguments):
        rows += found
        write(arguments.out, rows, _settings(arguments))
        for row in found:
            if row.scope == "range":
                print(row.volume, row.annotated, row.planes, row.marks, row.mode, _change([row]), sep="\t", flush=True)


def _settings(arguments: argparse.Namespace) -> str:
    learning = f"learning {arguments.budget_s:g} s, going on for {arguments.more_s:g} s"
    return f"{common.describe(common.machine())}; {learning}; {datetime.now(UTC):%Y-%m-%d}"


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def main() -> None:
    """Run; what a user can mend is one line."""
    try:
        run(parser().parse_args())
    except InputError as error:
        sys.exit(f"scribbles.py: {error}")


if __name__ == "__main__":
    main()
