"""What it buys to start learning a study from a pretrained network: Dice after few steps and after all.

Budgets are steps, not seconds, so that the figures do not depend on how busy the machine is. Writes a table (CSV) and a
report (Markdown); a run that was stopped goes on when the same command is given again. README.md tells the protocol.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cases
import common
import table
from cases import Case
from layouts import Source, sources
from placements import annotated_slices
from refinements import unseen
from scores import score, scored_slices
from sliceprop import study as use_cases
from sliceprop.checkpoint import load_checkpoint
from sliceprop.cohort.pretrain import PretrainFiles, pretrain
from sliceprop.config import PropagateConfig, TrainConfig
from sliceprop.engine.pretraining import PretrainConfig
from sliceprop.engine.registration import Model
from sliceprop.io import Image, write_image
from sliceprop.phantom import make_phantom
from sliceprop.study import Progress, Study
from sliceprop.warm_start import Kind
from worker import MIN_SCORED

PLACEMENT = "centres"

NOTHING, PHANTOM, OTHERS = "nothing", "phantom", "others"
STARTS = {
    NOTHING: "random weights, as with `--init none`",
    PHANTOM: "pretrained on synthetic thighs alone, the network that comes with the package",
    OTHERS: "pretrained on all other volumes but those of the same patient",
}

NETWORK, REFINING = TrainConfig.max_epochs, TrainConfig.refine_steps
FULL = NETWORK + REFINING
BUDGETS = (0, 11, 34, FULL)
"""Steps of learning, an eighth of them epochs of the network: none, a sixth, half and all of what `train` does."""

THIGHS = ((128, 24), (192, 24), (160, 12), (128, 40), (192, 16), (160, 32), (128, 12), (192, 36))
"""Pixels and slices of the synthetic thighs, with the seeds 1, 2, ...; seed 0 is that of `sample-data`."""

HARM = 0.005
"""Dice that no volume may lose if a start is to be the default."""


@dataclass(frozen=True)
class Row:
    """One study learnt from one start with one budget.

    Attributes:
        volume: name of the scan.
        annotated: number of annotated slices.
        start: a key of `STARTS`.
        steps: budget, one of `BUDGETS`.
        similarity: highest mean squared local correlation while learning.
        level: steps after which it was at least that of the full run from nothing; None if never, or if not known.
        registration: Dice of that method, over the slices of the labelled range that were not annotated.
        auto: Dice of that method.
    """

    volume: str
    annotated: int
    start: str
    steps: int
    similarity: float
    level: int | None
    registration: float
    auto: float

    @property
    def key(self) -> tuple[str, int, str, int]:
        """A table holds one row of each."""
        return self.volume, self.annotated, self.start, self.steps


# ---------------------------------------------------------------------- networks to start from


def pretrained_on_thighs(work: Path, config: PretrainConfig) -> Path:
    """The checkpoint pretrained on `THIGHS`; made, or taken up again, where it is not finished."""
    entries = []
    for seed, (size, n_slices) in enumerate(THIGHS, start=1):
        file = work / "thighs" / f"{seed}.nii.gz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            thigh = make_phantom(size, n_slices, seed=seed)
            write_image(file, thigh.image, Image(thigh.image, thigh.affine))
        entries.append((file, 2))
    kind, licence = Kind("MR", "THIGH"), "synthetic, Apache-2.0 as this program"
    return _pretrained(work, PHANTOM, entries, config, kind, licence)


def pretrained_on_others(work: Path, given: Sequence[Source], left_out: frozenset[str], config: PretrainConfig) -> Path:
    """The checkpoint pretrained on the scans of all volumes but some; labels are not looked at."""
    entries = [(source.image, source.slice_axis) for source in given if source.name not in left_out]
    return _pretrained(work, f"without_{'_'.join(sorted(left_out))}", entries, config, Kind(), "see the data set")


def _pretrained(
    work: Path,
    name: str,
    entries: Sequence[tuple[Path, int | None]],
    config: PretrainConfig,
    kind: Kind,
    licence: str,
) -> Path:
    listed = work / f"{name}.csv"
    with listed.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("image", "labels", "slice_axis"))
        lines.writerows((image.absolute(), "", "auto" if axis is None else axis) for image, axis in entries)
    files = PretrainFiles([listed], work / f"{name}.safetensors", cache=work / "cache", licence=licence, kind=kind)

    def tell(event: Any) -> None:
        print(f"{name}: epoch {event.epoch}, held-out similarity {event.similarity:.4f}", flush=True)

    pretrain(files, config, device="cpu", progress=tell)
    return files.output


# ---------------------------------------------------------------------- measuring


def learnt(study: Study, start: Model | None, steps: int) -> tuple[Model, list[Progress]]:
    """What a study learns in so many steps, without regard to the clock."""
    epochs = round(steps * NETWORK / FULL)
    config = TrainConfig(budget_s=1e6, max_epochs=epochs, refine_steps=steps - epochs)
    events: list[Progress] = []
    return use_cases.train(study, config, init=start, device="cpu", progress=events.append), events


def steps_to(level: float, events: Sequence[Progress]) -> int | None:
    """Steps after which the similarity is at least `level`; None if it never is."""
    return next((event.epoch for event in events if event.best_metric >= level), None)


def measured(
    case: Case, annotated: Sequence[int], start: Model | None, steps: int
) -> tuple[dict[str, Any], list[Progress]]:
    """The measures of a `Row` but `level`, and the events of learning."""
    study = case.study(annotated)
    model, events = learnt(study, start, steps)
    dice = {}
    for method in ("registration", "auto"):
        result = use_cases.propagate(study, model, unseen(case.name, PropagateConfig(method)))
        dice[method] = score(case, case.slices(result.labels), annotated)["dice"]
    return {"similarity": round(model.metric, 5), **dice}, events


def rows_of(
    case: Case, count: int, start: str, load: Callable[[], Model | None], known: Sequence[Row], budgets: Sequence[int]
) -> Iterator[Row]:
    """The rows of a volume and start that are not in the table yet.

    Args:
        case: the volume.
        count: of annotated slices.
        start: a key of `STARTS`.
        load: gives the network.
        known: the table so far; the full run from nothing sets the level that the others are to reach.
        budgets: in steps.
    """
    annotated = annotated_slices(case.slices(case.image.array), case.labelled_range, PLACEMENT, str(count))
    if len(scored_slices(case, annotated)) < MIN_SCORED:
        return
    keys = {row.key for row in known}
    level = next((row.similarity for row in known if row.key == (case.name, count, NOTHING, FULL)), None)
    for steps in budgets:
        if (case.name, count, start, steps) not in keys:
            found, events = measured(case, annotated, load(), steps)
            goal = found["similarity"] if (start, steps) == (NOTHING, FULL) else level
            reached = None if goal is None else steps_to(goal - 1e-5, events)
            yield Row(case.name, count, start, steps, level=reached, **found)


# ---------------------------------------------------------------------- report


def report(rows: Sequence[Row], settings: str) -> str:
    """Means, what is gained over learning from nothing, and each volume."""
    parts = ["# Warm start", settings, "\n".join(f"- {name}: {text}" for name, text in STARTS.items())]
    parts += ["## Means over the cases that every start has", common.markdown_table(_HEADER, _means(rows))]
    parts += ["## Each volume, change of the Dice of `auto` against nothing", _volumes(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_HEADER = (
    "start", "steps", "cases", "registration", "change", "auto", "change", "worst volume", "cases worse by .005",
    "level reached", "steps to it",
)  # fmt: skip


def _means(rows: Sequence[Row]) -> Iterator[list[Any]]:
    table_of = {row.key: row for row in rows}
    starts = [start for start in STARTS if any(row.start == start for row in rows)]
    for start, steps in product(starts, BUDGETS):
        pairs = [
            (row, table_of[row.volume, row.annotated, NOTHING, steps])
            for row in rows
            if (row.start, row.steps) == (start, steps)
            and all((row.volume, row.annotated, other, steps) in table_of for other in starts)
        ]
        if pairs:
            yield [start, steps, len(pairs), *_change(pairs, "registration"), *_change(pairs, "auto"), *_harm(pairs)]


def _change(pairs: Sequence[tuple[Row, Row]], method: str) -> tuple[float, str]:
    """Mean Dice, and how much more that is than from nothing."""
    mean, before = (fmean(getattr(pair[n], method) for pair in pairs) for n in (0, 1))
    return mean, f"{mean - before:+.3f}"


def _harm(pairs: Sequence[tuple[Row, Row]]) -> tuple[str, int, str, float | None]:
    """Largest loss of a volume, cases that lose, and how soon the full run from nothing is caught up with."""
    changes = {row.volume: list[float]() for row, _ in pairs}
    for row, before in pairs:
        changes[row.volume].append(row.auto - before.auto)
    worst = min(fmean(values) for values in changes.values())
    worse = sum(change < -HARM for values in changes.values() for change in values)
    reached = [row.level for row, _ in pairs if row.level is not None]
    return f"{worst:+.3f}", worse, f"{len(reached)}/{len(pairs)}", float(median(reached)) if reached else None


def _volumes(rows: Sequence[Row]) -> str:
    """A line per volume and number of slices: Dice from nothing in full, and the change by each start and budget."""
    found = {row.key: row for row in rows}
    measured_at = {(row.start, row.steps) for row in rows}
    others = [(start, steps) for start, steps in product((PHANTOM, OTHERS), BUDGETS) if (start, steps) in measured_at]
    header = ["volume", "slices", "from nothing", *(f"{start} {steps}" for start, steps in others)]
    lines = []
    for volume, count in sorted({(row.volume, row.annotated) for row in rows}):
        full = found.get((volume, count, NOTHING, FULL))
        changes = [
            _difference(found.get((volume, count, start, steps)), found.get((volume, count, NOTHING, steps)))
            for start, steps in others
        ]
        lines.append([volume, count, None if full is None else full.auto, *changes])
    return common.markdown_table(header, lines)


def _difference(row: Row | None, before: Row | None) -> str | None:
    return None if row is None or before is None else f"{row.auto - before.auto:+.3f}"


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_argument(result)
    result.add_argument("--volumes", nargs="+", default=(), help="to measure; default all, which also teach")
    result.add_argument("--counts", nargs="+", type=int, default=(3, 5), help="of annotated slices")
    result.add_argument("--starts", nargs="+", choices=STARTS, default=tuple(STARTS))
    result.add_argument("--budgets", nargs="+", type=int, choices=BUDGETS, default=BUDGETS, help="in steps")
    result.add_argument("--same-patient", nargs="+", default=[], help="volumes to leave out together, a,b c,d")
    result.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps networks and prepared scans")
    result.add_argument("--epochs", type=int, default=8, help="of pretraining; default %(default)s")
    result.add_argument("--steps", type=int, default=50, help="per epoch; default %(default)s")
    result.add_argument("--batch", type=int, default=4, help="samples per step; default %(default)s")
    result.add_argument("--out", type=Path, default=common.RESULTS / "warm_start.csv", help="the table")
    return result


def run(arguments: argparse.Namespace) -> None:
    """Pretrain and measure, start after start; the table is written after every row."""
    given = sources("measuring", arguments.data)
    chosen = sources("measuring", arguments.data, arguments.volumes)
    patients = [frozenset(group.split(",")) for group in arguments.same_patient]
    config = PretrainConfig(arguments.epochs, arguments.steps, arguments.batch, patch_px=96, patience=arguments.epochs)
    arguments.work.mkdir(parents=True, exist_ok=True)
    with table.locked(arguments.out):
        for start, source in product(arguments.starts, chosen):
            left_out = frozenset({source.name}).union(*(group for group in patients if source.name in group))

            def load(start: str = start, left_out: frozenset[str] = left_out) -> Model | None:
                if start == NOTHING:
                    return None
                if start == PHANTOM:
                    return load_checkpoint(pretrained_on_thighs(arguments.work, config))
                return load_checkpoint(pretrained_on_others(arguments.work, given, left_out, config))

            case = cases.load(source)
            for count in arguments.counts:
                for row in rows_of(case, count, start, load, table.read(arguments.out, Row), arguments.budgets):
                    write(arguments.out, [*table.read(arguments.out, Row), row], _settings(config))
                    print(*row.key, row.registration, row.auto, sep="\t", flush=True)


def write(path: Path, rows: Sequence[Row], settings: str) -> None:
    """The table and the report beside it."""
    table.write(path, rows, Row)
    path.with_suffix(".md").write_text(report(rows, settings), encoding="utf-8")


def _settings(config: PretrainConfig) -> str:
    learning = f"pretraining {config.epochs} x {config.steps} steps of {config.batch} samples"
    return f"{common.describe(common.machine())}; {learning}; {datetime.now(UTC):%Y-%m-%d}"


def main() -> None:
    """Run; what a user can mend is one line."""
    common.run_command(lambda: run(parser().parse_args()))


if __name__ == "__main__":
    main()
