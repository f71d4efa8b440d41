"""Accuracy from few annotated slices: every method on every measuring volume, as JSON and as Markdown tables.

README.md tells the protocol. A run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from sliceprop import study as use_cases
from sliceprop.config import PropagateConfig, TrainConfig
from sliceprop.engine.interpolation import INTERPOLATIONS, interpolate
from sliceprop.engine.metrics import dice

COUNTS = (3, 5, 7)
PLACEMENTS = ("ends", "centres")
LABELPROP = "registration:similarity=mse,fusion=distance"
METHODS = (*INTERPOLATIONS, LABELPROP, "registration", "auto")
MIN_SCORED = 3

Record = dict[str, Any]
Cases = dict[tuple[Any, ...], dict[str, Record]]
"""Records by volume, placement and count, then by method."""


@dataclass(frozen=True)
class Recipe:
    """A method with its settings, under the name it was given."""

    name: str
    train: TrainConfig
    propagate: PropagateConfig


class Runner:
    """One case under several recipes; the registration is learnt once for all recipes that train alike."""

    def __init__(self, case: common.Case, annotated: Sequence[int]) -> None:
        self._study = case.study(annotated)
        self._learnt: dict[TrainConfig, tuple[Any, float]] = {}

    def __call__(self, recipe: Recipe) -> tuple[NDArray[np.int32], dict[str, float]]:
        """Labels `(S, H, W)`, and the seconds of learning and of propagation."""
        if recipe.propagate.method in INTERPOLATIONS:
            start = time.perf_counter()
            return self._interpolated(recipe.propagate), {"propagate_s": time.perf_counter() - start}
        model, train_s = self._learn(recipe.train)
        start = time.perf_counter()
        labels = use_cases.propagate(self._study, model, recipe.propagate).labels
        return self._study.volume.to_canonical(labels), {"train_s": train_s, "propagate_s": time.perf_counter() - start}

    def _interpolated(self, config: PropagateConfig) -> NDArray[np.int32]:
        """The classical method alone; beyond the outermost annotated slices these are held, or nothing with `none`."""
        labels = interpolate(self._study.annotation, config.method).labels
        if config.extrapolate == "none":
            first, *_, last = self._study.annotation.annotated_slices
            labels[:first], labels[last + 1 :] = 0, 0
        return labels

    def _learn(self, config: TrainConfig) -> tuple[Any, float]:
        if config not in self._learnt:
            start = time.perf_counter()
            self._learnt[config] = use_cases.train(self._study, config), time.perf_counter() - start
        return self._learnt[config]


def parse_recipe(text: str, budget_s: float) -> Recipe:
    """`METHOD[:FIELD=VALUE,...]` with fields of both configurations: `registration:fusion=distance,similarity=mse`."""
    method, _, settings = text.partition(":")
    given = {"budget_s": str(budget_s)} | dict(pair.split("=") for pair in settings.split(",") if pair)
    unknown = given.keys() - {f.name for kind in (TrainConfig, PropagateConfig) for f in fields(kind)}
    if unknown:
        raise SystemExit(f"{text}: no such setting: {', '.join(sorted(unknown))}")
    return Recipe(text, _configure(TrainConfig, given), _configure(PropagateConfig, given | {"method": method}))


def score(case: common.Case, predicted: NDArray[np.int32], annotated: Sequence[int]) -> Record:
    """Dice over the slices of the labelled range that were not annotated, and overshoot over the whole volume.

    Overshoot is what was predicted on slices before the first or after the last one of a label, relative to the label's
    true size; both are means over the labels.
    """
    reference, (first, last) = case.slices(case.reference), case.labelled_range
    scored = sorted(set(range(first, last + 1)) - set(annotated))
    labels = range(1, int(reference.max()) + 1)
    per_label = {str(v): dice(predicted[scored], reference[scored], v) for v in labels}
    return {
        "dice": float(np.nanmean(list(per_label.values()))),
        "overshoot": float(np.mean([_overshoot(predicted == v, reference == v) for v in labels])),
        "labels": {value: round(x, 4) for value, x in per_label.items() if not np.isnan(x)},
    }


def run(arguments: argparse.Namespace, records: list[Record]) -> Iterator[Record]:
    """The records that are still missing."""
    recipes = [parse_recipe(text, arguments.budget_s) for text in arguments.methods]
    done = {_key(record) for record in records}
    for folder in common.folders(arguments.data, arguments.volumes):
        case = common.load_case(folder)
        first, last = case.labelled_range
        for placement, count in product(arguments.placements, arguments.counts):
            annotated = common.annotated_slices((first, last), count, placement)
            if last - first + 1 - len(annotated) < MIN_SCORED:
                continue
            runner = Runner(case, annotated)
            for recipe in recipes:
                where = {"volume": case.name, "placement": placement, "count": count, "method": recipe.name}
                if _key(where) not in done:
                    labels, seconds = runner(recipe)
                    times = {name: round(value, 3) for name, value in seconds.items()}
                    yield where | {"annotated": annotated} | times | score(case, labels, annotated)


def report(results: dict[str, Any]) -> str:
    """The tables: means per placement and count, the margin over the best classical method, overshoot, each volume."""
    cases: Cases = {}
    for record in results["records"]:
        cases.setdefault(_key(record)[:3], {})[record["method"]] = record
    methods = list(dict.fromkeys(record["method"] for record in results["records"]))
    sections = {
        "Mean Dice over the volumes": _mean_table(cases, methods, "dice"),
        "Margin of auto over the best classical method": _margin_table(cases),
        "Overshoot past the true ends, share of the label's size": _mean_table(cases, methods, "overshoot"),
        "Dice of each volume": _volume_table(cases, methods),
    }
    settings = f"{common.describe(results['machine'])}; training budget {results['budget_s']:g} s"
    return f"# Accuracy\n\n{settings}\n\n" + "\n".join(f"## {title}\n\n{table}" for title, table in sections.items())


def _configure(kind: type[Any], given: dict[str, str]) -> Any:
    return kind(**{f.name: type(f.default)(given[f.name]) for f in fields(kind) if f.name in given})


def _overshoot(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    slices = np.flatnonzero(true.any(axis=(1, 2)))
    past = int(predicted[: slices[0]].sum()) + int(predicted[slices[-1] + 1 :].sum())
    return past / int(true.sum())


def _key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("volume", "placement", "count", "method"))


def _means(cases: Cases, methods: Sequence[str], measure: str) -> dict[tuple[str, int], tuple[int, list[float]]]:
    """Number of volumes and mean per method, for each placement and count, over volumes that have every method."""
    means = {}
    for where in product(PLACEMENTS, COUNTS):
        complete = [found for case, found in cases.items() if case[1:] == where and found.keys() >= set(methods)]
        if complete:
            means[where] = len(complete), [float(np.mean([found[m][measure] for found in complete])) for m in methods]
    return means


def _mean_table(cases: Cases, methods: Sequence[str], measure: str) -> str:
    rows = [[*where, volumes, *values] for where, (volumes, values) in _means(cases, methods, measure).items()]
    return common.markdown_table(["placement", "slices", "volumes", *methods], rows)


def _margin_table(cases: Cases) -> str:
    rows = []
    for where, (volumes, (auto, *classical)) in _means(cases, ["auto", *INTERPOLATIONS], "dice").items():
        best = max(classical)
        rows.append([*where, volumes, f"{auto - best:+.3f}", INTERPOLATIONS[classical.index(best)]])
    return common.markdown_table(["placement", "slices", "volumes", "margin", "best classical"], rows)


def _volume_table(cases: Cases, methods: Sequence[str]) -> str:
    rows = [
        [*where, *(cases[where][m]["dice"] if m in cases[where] else None for m in methods)]
        for where in sorted(cases, key=lambda where: (where[0], PLACEMENTS.index(where[1]), where[2]))
    ]
    return common.markdown_table(["volume", "placement", "slices", *methods], rows)


def main() -> None:
    """Parse the arguments, run what is missing, write after every record."""
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(parser)
    parser.add_argument("--volumes", nargs="+", help="names of folders; default all")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="METHOD[:FIELD=VALUE,...]; default %(default)s")
    parser.add_argument("--budget-s", type=float, default=TrainConfig().budget_s, help="of each training")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "accuracy.json")
    arguments = parser.parse_args()
    settings = {"machine": common.machine(), "budget_s": arguments.budget_s}
    records = common.earlier(arguments.out, settings, "records")
    for record in run(arguments, list(records)):
        records.append(record)
        results = settings | {"records": records}
        common.write_results(arguments.out, results, report(results))
        print(*_key(record), f"Dice {record['dice']:.3f}", f"overshoot {record['overshoot']:.3f}", sep="\t", flush=True)


if __name__ == "__main__":
    main()
