"""Which slice to annotate next: a simulation that starts from nothing, against fixed plans and a greedy oracle.

An oracle annotates what a contestant asks for, the product propagates, again and again. Writes a table (CSV), a report
(Markdown) and a plot (PNG). README.md tells the protocol. With --keep, a run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import torch

import cases
import common
import layouts
import suggestions_plots
import suggestions_report
import table
from annotating import Session, learnt, suggestion_s
from contestants import CANDIDATES, CONTESTANTS, OURS, Step, simulate
from curves import Curves
from jobs import environment
from sliceprop.config import SuggestConfig, TrainConfig
from sliceprop.errors import InputError
from worker import PACKAGES, versions


@dataclass(frozen=True)
class Task:
    """One volume under all contestants.

    Attributes:
        source: its files.
        contestants: their names.
        most: slices to annotate.
        keep: folder for what is learnt and measured.
        learning: settings of the registration.
        target: Dice above which a slice needs no annotation.
        oracle: method by whose result the oracle chooses.
    """

    source: layouts.Source
    contestants: tuple[str, ...]
    most: int
    keep: Path
    learning: TrainConfig
    target: float
    oracle: str

    def run(self) -> list[Step]:
        """Simulate every contestant, every seed."""
        case = cases.load(self.source)
        session = Session(case, self.keep, learning=self.learning, target=self.target, oracle=self.oracle)
        steps = []
        for name in self.contestants:
            for seed in range(CONTESTANTS[name].seeds):
                found = list(simulate(session, name, self.most, seed))
                print(case.name, name, seed, f"Dice {found[0].dice:.3f} to {found[-1].dice:.3f}", sep="\t", flush=True)
                steps += found
        return steps

    def timed(self, steps: Sequence[Step]) -> list[Step]:
        """The product's steps with the seconds of each suggestion; to be called when nothing else runs."""
        case = cases.load(self.source)
        model = learnt(case, self.keep, self.learning)
        before = [(), *(step.slices for step in steps[:-1])]
        suggestion_s(case, model, before[-1])  # imports what it needs
        return [
            replace(step, suggest_s=round(suggestion_s(case, model, annotated), 3))
            for step, annotated in zip(steps, before, strict=True)
        ]


def run(arguments: argparse.Namespace) -> list[str]:
    """Simulate, time, report; the table is whole after every volume.

    Returns:
        a line for each volume that failed.
    """
    with ExitStack() as stack:
        stack.enter_context(table.locked(arguments.out))
        keep = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = plan(arguments, keep)
        found, failures = dict[str, list[Step]](), list[str]()
        for name, steps in simulated(tasks, arguments.jobs):
            if isinstance(steps, str):
                failures.append(f"{name}: {steps}")
                print(failures[-1], flush=True)
            else:
                found[name] = steps
                write_table(arguments.out, found)
        for task in tasks if OURS in arguments.contestants else ():
            steps = found.get(task.source.name, [])
            ours = [step for step in steps if step.contestant == OURS]
            if ours:
                found[task.source.name] = task.timed(ours) + [step for step in steps if step.contestant != OURS]
        write_table(arguments.out, found)
        write_report(arguments, found, failures)
    return failures


def plan(arguments: argparse.Namespace, keep: Path) -> list[Task]:
    """A task for each volume, the largest file first, since it takes longest.

    Raises:
        InputError: a target or a budget that cannot be.
    """
    target = SuggestConfig(target=arguments.target).target
    sources = layouts.sources("measuring", arguments.data, arguments.volumes)
    return [
        Task(
            source,
            tuple(name for name in CONTESTANTS if name in arguments.contestants),
            arguments.slices,
            keep,
            TrainConfig(budget_s=arguments.budget_s),
            target,
            arguments.oracle,
        )
        for source in sorted(sources, key=lambda source: -source.image.stat().st_size)
    ]


def simulated(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, list[Step] | str]]:
    """The steps of each volume as it ends, or why there are none."""
    if jobs == 1:
        for task in tasks:
            yield task.source.name, _outcome(task)
        return
    os.environ.update(environment(jobs))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        running = {pool.submit(_outcome, task): task.source.name for task in tasks}
        for future in as_completed(running):
            error = future.exception()  # a process that was killed
            yield running[future], future.result() if error is None else _told(error)


def _outcome(task: Task) -> list[Step] | str:
    """What goes wrong with one volume must not take the others down."""
    try:
        return task.run()
    except Exception as error:
        return _told(error)


def _told(error: BaseException) -> str:
    """On one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _end_with_parent() -> None:
    """A process that nobody waits for any more ends."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_table(path: Path, found: dict[str, list[Step]]) -> None:
    """A row for each step."""
    table.write(path, (step for name in sorted(found) for step in found[name]), Step)


def write_report(arguments: argparse.Namespace, found: dict[str, list[Step]], failures: Sequence[str]) -> None:
    """The report and the plot beside the table."""
    if not found:
        return
    curves = Curves([step for name in sorted(found) for step in found[name]], arguments.target)
    picture = arguments.out.with_suffix(".png")
    suggestions_plots.write(curves, picture)
    text = suggestions_report.markdown(curves, list(_settings(arguments)), picture.name, failures)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")


def _settings(arguments: argparse.Namespace) -> Iterator[str]:
    at_once = "one process" if arguments.jobs == 1 else f"{arguments.jobs} processes at a time"
    yield f"{common.describe(common.machine())}; {versions(PACKAGES)}; {datetime.now(UTC):%Y-%m-%d}; {at_once}"
    yield f"the registration learns once per volume, from the image alone, {arguments.budget_s:g} s; then `auto`"
    yield (
        "`next_slice` sees the whole volume and is not told where labels are; the others are placed within the "
        "labelled range, those called `-volume` in the whole volume; plans are made anew for every number of slices"
    )
    yield (
        f"`oracle` tries at most {CANDIDATES} slices a step and takes the one with the highest true Dice of "
        f"`{arguments.oracle}`; it is greedy, so that it can be beaten"
    )
    seeded = {name: CONTESTANTS[name].seeds for name in arguments.contestants if CONTESTANTS[name].seeds > 1}
    if seeded:
        yield f"means over seeds: {', '.join(f'{name} {seeds}' for name, seeds in seeded.items())}"
    threads = torch.get_num_threads()
    yield f"suggestions are timed at the end, one after the other, on {threads} thread{'s' * (threads != 1)}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    common.add_data_argument(result)
    result.add_argument("--volumes", nargs="+", default=(), help="names; default all")
    result.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=tuple(CONTESTANTS))
    result.add_argument("--slices", type=_positive, default=12, help="to annotate, at most; default %(default)s")
    result.add_argument("--target", type=float, default=SuggestConfig.target, help="Dice of a slice that needs no more")
    result.add_argument("--budget-s", type=float, default=TrainConfig.budget_s, help="of learning, once per volume")
    result.add_argument(
        "--oracle", choices=("auto", "registration"), default="auto", help="by whose result the oracle chooses"
    )
    result.add_argument("--keep", type=Path, metavar="FOLDER", help="for what is learnt and measured, to go on from")
    result.add_argument("--jobs", type=_positive, default=1, help="volumes at the same time")
    result.add_argument("--out", type=Path, default=common.RESULTS / "suggestions.csv", help="the table")
    return result


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"give a number of at least 1, not {text!r}")
    return int(text)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run; what a user can mend is one line."""
    try:
        failures = run(parser().parse_args(None if arguments is None else list(arguments)))
    except InputError as error:
        sys.exit(f"suggestions.py: {error}")
    except KeyboardInterrupt:
        sys.exit("suggestions.py: stopped; the same command with --keep goes on where it ended")
    if failures:
        sys.exit(f"suggestions.py: {len(failures)} volumes without a result")


if __name__ == "__main__":
    main()
