"""Accuracy from few annotated slices: {methods} x {placements} x {counts or percentages} x {volumes}.

Writes a table (CSV), a report (Markdown) and plots (PNG). README.md tells the protocol. A run that was stopped, by
whatever, goes on where it ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import common
import layouts
import report
import table
from jobs import Job, run_all
from methods import PEERS, parse, together
from placements import PLACEMENTS
from sliceprop.errors import FileError

COUNTS = (3, 5, 7)
METHODS = ("nearest", "shape", "contour", "registration", "auto")
SUBSETS = {
    "slow": {
        "volumes": ("hippocampus_mr_014", "lumbar_disc_mr_11", "thorax_aorta_ct_ts"),
        "counts": (3, 5),
        "placements": ("ends",),
    },
}
"""Cases for methods that take minutes to hours; README.md says why these. What is given beside --subset wins."""


def plan(arguments: argparse.Namespace) -> Iterator[Job]:
    """A job for each case and group of methods that share a process."""
    sources = layouts.sources(arguments.layout, arguments.data, arguments.volumes, arguments.first)
    amounts = [f"{p:g}%" for p in arguments.percentages] or [str(count) for count in arguments.counts]
    groups = together(parse(name) for name in arguments.methods)
    for source, placement, amount, group in product(sources, arguments.placements, amounts, groups):
        yield Job(
            arguments.layout,
            source,
            arguments.axis,
            arguments.pad_and_crop,
            arguments.seed,
            placement,
            amount,
            tuple(method.name for method in group),
            arguments.device,
            arguments.jobs,
            arguments.peer_python,
            arguments.keep,
        )


def missing(jobs: Iterable[Job], rows: Iterable[table.Row], *, retry: bool) -> Iterator[Job]:
    """The jobs without the methods that have a row; with `retry` only results and skipped cases count as rows."""
    done = {row.key for row in rows if row.ok or row.skipped or not retry}
    for job in jobs:
        left = tuple(name for name in job.methods if job.row(name).key not in done)
        if left:
            yield replace(job, methods=left)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is missing; the table is whole after every job, the report at the end."""
    if arguments.download:
        layouts.download_decathlon(arguments.data)
    with table.locked(arguments.out):
        rows = {row.key: row for row in table.read(arguments.out) if row.method not in arguments.again}
        planned = list(plan(arguments))
        _check_same_view(arguments.out, rows.values(), planned)
        if arguments.again:
            table.write(arguments.out, rows.values())
        jobs = list(missing(planned, rows.values(), retry=arguments.retry))
        for number, answers in enumerate(run_all(jobs, arguments.jobs, arguments.limit_s), start=1):
            rows |= {row.key: row for row in answers}
            table.write(arguments.out, rows.values())
            for row in answers:
                print(f"{number}/{len(jobs)}", *_line(row), sep="\t", flush=True)
        report.write(arguments.out, list(rows.values()))


def _check_same_view(path: Path, rows: Iterable[table.Row], jobs: Iterable[Job]) -> None:
    """A table holds one view of one data set, lest means run over volumes that were cut or broken in different ways."""
    views = {row.view for row in rows} | {job.row("").view for job in jobs}
    if len(views) > 1:
        raise FileError(f"{path}: holds another layout, axis, padding or seed; give another --out")


def _line(row: table.Row) -> Iterator[str]:
    yield from (row.volume, row.placement, row.amount, row.method)
    yield f"Dice {row.dice:.3f}, {row.total_s:.1f} s, {row.peak_mib:.0f} MiB" if row.ok else row.status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(result)
    result.add_argument("--layout", choices=layouts.LAYOUTS, default="measuring", help="how the data set is laid out")
    result.add_argument("--download", action="store_true", help="fetch the task of the Decathlon that --data names")
    result.add_argument("--subset", choices=SUBSETS, help="volumes, counts and placements for slow methods")
    result.add_argument("--volumes", nargs="+", default=(), help="names; default all")
    result.add_argument("--first", type=int, help="only so many volumes, in the order of their names")
    result.add_argument("--axis", choices=layouts.AXES, default="auto", help="across the slices; default %(default)s")
    result.add_argument(
        "--pad-and-crop", type=int, default=0, metavar="PX", help="pad every slice, crop it back at a random place"
    )
    result.add_argument("--seed", type=int, default=0, help="of crops and random placements")
    result.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=("ends", "centres"))
    amount = result.add_mutually_exclusive_group()
    amount.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="of annotated slices")
    amount.add_argument("--percentages", nargs="+", type=float, default=(), help="of all slices of the volume")
    result.add_argument("--methods", nargs="+", default=METHODS, help="METHOD[:FIELD=VALUE,...]; default %(default)s")
    result.add_argument(
        "--peer-python",
        nargs="+",
        type=_peer_python,
        default={},
        action=_Collect,
        metavar="PEER=PYTHON",
        help=f"interpreter with a peer installed: {', '.join(PEERS)}",
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default %(default)s")
    result.add_argument("--jobs", type=int, default=1, help="processes at the same time; times suffer above 1")
    result.add_argument("--limit-s", type=float, default=7200, help="for a process; default %(default)s")
    result.add_argument("--keep", type=Path, metavar="FOLDER", help="for what auto found, which quality.py reads")
    result.add_argument("--retry", action="store_true", help="try again what failed or could not run")
    result.add_argument("--again", nargs="+", default=(), help="methods to forget first and measure anew")
    result.add_argument("--out", type=Path, default=common.RESULTS / "accuracy.csv", help="the table")
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line; a subset sets what is not given."""
    command_line = parser()
    subset = command_line.parse_known_args(arguments)[0].subset
    command_line.set_defaults(**SUBSETS.get(subset, {}))
    return command_line.parse_args(arguments)


class _Collect(argparse.Action):
    """Pairs as a dictionary."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        setattr(namespace, self.dest, getattr(namespace, self.dest) | dict(values))


def _peer_python(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not equals or name not in PEERS:
        raise argparse.ArgumentTypeError(f"{text!r}: give PEER=PYTHON, with one of {', '.join(PEERS)}")
    return name, python


def main() -> None:
    """Run; what a user can mend is one line."""
    common.run_command(lambda: run(parse_arguments()))


if __name__ == "__main__":
    main()
