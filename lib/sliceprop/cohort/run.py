"""The run over a cohort: what is done already, what Dask is to do, what came of it, and the report."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceprop.cohort.finding import Entry, Failure
from sliceprop.cohort.pages import review_order, summary, write_cohort_page
from sliceprop.cohort.work import PICTURE, REPORT, CohortConfig, Task, finished, run_study
from sliceprop.cohort.workers import WorkersConfig, most_of, needed, offers, replace_ended, workers
from sliceprop.errors import FileError, InputError, TooLargeError
from sliceprop.files import held
from sliceprop.io import make_folder, write_json
from sliceprop.study import resolve_device

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

COHORT, PAGE = "cohort.json", "index.html"

IN_HAND = 2
"""Studies given to each worker: the one in work and the next, so that none waits for this process."""

LOOK_S = 5.0
"""Seconds after which to look for more workers."""

LOOKS_BEFORE_WORD = 2
"""Looks without any worker before the user is told: one that died is soon replaced."""

GONE = "the scheduler went away; run the same command again"
STOPPED = "interrupted; run the same command again"
DIED = "the worker died again and again on this study; it may need more memory, with --memory and fewer --workers"


Tell = Callable[[Mapping[str, Any] | Failure], None]
"""Takes the report of a study, or why there is none."""


@dataclass(frozen=True)
class Cohort:
    """What came of a cohort.

    Attributes:
        summaries: of the finished studies, what to review first comes first; see `pages.summary`.
        failures: of the others, among them copies of finished ones, in the order of their names.
        resumed: finished studies that an earlier run had done.
    """

    summaries: Sequence[Mapping[str, Any]]
    failures: Sequence[Failure]
    resumed: int


def run_cohort(
    found: tuple[Sequence[Entry], Sequence[Failure]],
    output: Path,
    config: CohortConfig | None = None,
    team: WorkersConfig | None = None,
    *,
    redo: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Cohort:
    """Learn and propagate every study that is not done yet, and write the report of the cohort.

    Results are `output/<id>/labels.nii.gz`, `uncertainty.nii.gz`, `drawn.nii.gz`, `overlay.png`, `report.json`,
    `report.html`, and `output/cohort.json`, `output/index.html`. Each file appears whole or not at all, `report.json`
    last.

    Args:
        found: studies and what could not be one, from `finding.find_studies`.
        output: folder, made if need be; no input may lie in it.
        config: what to do with each study.
        team: who does it.
        redo: also what is done already.
        progress: called with studies done, studies in all, and how many of those done have failed.

    Raises:
        InputError: the output folder cannot be used, or there are no workers.
    """
    config, team, output = config or CohortConfig(), team or WorkersConfig(), output.absolute()
    entries, failures = found
    _check_output(output, entries)
    make_folder(output)
    tasks = [Task(entry, output / entry.id, config) for entry in entries]
    refusal = f"{output}: another run writes there; wait for its end or choose another folder"
    with held(output / ".lock", refusal):
        records = _Records(len(tasks) + len(failures), progress)
        for failure in failures:
            records.add(failure)
        progress(0, len(tasks), 0)
        left = [task for task in tasks if redo or not records.add_finished(task)]
        resumed = frozenset(records.reports)
        if redo:
            for task in left:
                (task.folder / REPORT).unlink(missing_ok=True)
        try:
            if left:
                with workers(team, gpu=_wants_gpu(config.device, team), shared=output) as client:
                    _work_off(client, left, records.add)
        except KeyboardInterrupt:
            records.give_up(left, STOPPED)
            records.write(output, config)
            raise
        records.give_up(left, GONE)
        return records.write(output, config, resumed)


class _Records:
    """What is known of each study so far."""

    def __init__(self, total: int, progress: Callable[[int, int, int], None]) -> None:
        self.reports: dict[str, Mapping[str, Any]] = {}
        self.failures: list[Failure] = []
        self._total, self._progress = total, progress

    def add(self, outcome: Mapping[str, Any] | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.reports[outcome["id"]] = outcome
        self._progress(len(self.reports) + len(self.failures), self._total, len(self.failures))

    def add_finished(self, task: Task) -> bool:
        """Take what an earlier run, or a worker that could not tell, has done."""
        report = finished(task)
        if report is not None:
            self.add(report)
        return report is not None

    def give_up(self, tasks: Iterable[Task], reason: str) -> None:
        """Of what nothing was heard."""
        told = self.reports.keys() | {failure.id for failure in self.failures}
        for task in tasks:
            if task.entry.id not in told and not self.add_finished(task):
                self.add(Failure(str(task.entry.image), reason, task.entry.id))

    def write(self, output: Path, config: CohortConfig, resumed: Collection[str] = ()) -> Cohort:
        """Write the report of the cohort; where that fails, it is one more failure.

        Args:
            output: folder of the results.
            config: what was done with each study.
            resumed: ids of the studies that an earlier run had done.
        """
        copies = _duplicates(self.reports.values())
        counted = self.reports.keys() - {copy.id for copy in copies}
        summaries = review_order([summary(self.reports[each]) for each in counted])
        failures = sorted([*self.failures, *copies], key=lambda failure: failure.name)
        table = {"finished": len(summaries), "failed": [asdict(f) for f in failures], "studies": list(summaries)}
        try:
            write_json(output / COHORT, table)
            write_cohort_page(output / PAGE, summaries, failures, PICTURE if config.pictures else None)
        except FileError as error:
            failures.append(Failure(str(output / COHORT), str(error)))
        return Cohort(summaries, failures, len(counted.intersection(resumed)))


def _duplicates(reports: Iterable[Mapping[str, Any]]) -> list[Failure]:
    """Studies with the voxels and the labels of another one; their results are kept."""
    first, repeated = dict[str, Mapping[str, Any]](), list[Failure]()
    for report in sorted(reports, key=lambda report: str(report["id"])):
        same = first.setdefault(report["study_hash"] + report["annotation_hash"], report)
        if same is not report:
            reason = f"holds the same voxels and labels as {same['image']}; leave one of them out"
            repeated.append(Failure(report["image"], reason, report["id"]))
    return repeated


def _check_output(output: Path, entries: Iterable[Entry]) -> None:
    """Refuse a folder in which a result could replace an input."""
    for entry in entries:
        for file in (entry.image, entry.labels, entry.scribbles):
            if file is not None and file.resolve().is_relative_to(output.resolve()):
                raise InputError(f"{output}: holds {file}, which is to be read; choose another folder for the results")


def _wants_gpu(device: str, team: WorkersConfig) -> bool:
    """Whether workers of our own get a GPU each.

    Raises:
        InputError: for what is not a device of every worker, or not on this machine where the workers are.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, not {device!r}; every worker has a GPU of its own")
    elsewhere = team.slurm or team.scheduler is not None
    return (device if device == "cuda" and elsewhere else resolve_device(device).type) == "cuda"


def _work_off(client: Client, tasks: Sequence[Task], tell: Tell) -> None:
    """Have Dask do the tasks; ends early, without a word on the rest, when the scheduler goes away.

    Who waits in a worker that dies is under suspicion with Dask, like the one that killed it: these are done again at
    the end, one by one.
    """
    with suppress(OSError, CancelledError):
        for suspect in _drain(client, tasks, tell):
            for task in _drain(client, [suspect], tell):
                tell(Failure(str(task.entry.image), DIED, task.entry.id))


def _drain(client: Client, tasks: Sequence[Task], tell: Tell) -> list[Task]:
    """Give every task to Dask, some at a time, and tell what comes back.

    Returns:
        those whose workers died.

    Raises:
        OSError, CancelledError: the scheduler went away.
    """
    waiting, running, killed = deque(tasks), dict[Any, Task](), list[Task]()
    most, absent = dict[str, float](), 0
    try:
        while waiting or running:
            offered = offers(client)
            absent = 0 if offered else absent + 1
            if absent == LOOKS_BEFORE_WORD:
                logger.warning("there is no worker; waiting for one. Ctrl-C ends this, and keeps what is done")
            replace_ended(client)
            if not offered and not running:
                time.sleep(LOOK_S)
                continue
            most = most_of([most, *offered])
            while waiting and len(running) < IN_HAND * len(offered):
                task = waiting.popleft()
                asked = _asked(task, most)
                if isinstance(asked, Failure):
                    tell(asked)
                else:
                    key = f"study-{task.entry.id}-{uuid.uuid4().hex}"
                    running[client.submit(run_study, task, key=key, resources=asked)] = task
            for future in _ended(running):
                _take(future, running.pop(future), tell, killed)
    finally:
        if running and client.status == "running":
            client.cancel(list(running))
    return killed


def _ended(running: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
    """Those that have ended, at the latest after `LOOK_S`."""
    from distributed import wait

    try:
        ended: set[Future[Any]] = wait(list(running), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return ()
    return ended


def _take(future: Future[Any], task: Task, tell: Tell, killed: list[Task]) -> None:
    """Tell what came of a task, unless its workers died.

    Raises:
        OSError: Dask has lost it.
    """
    from distributed import KilledWorker

    if future.cancelled():
        raise ConnectionError
    error = future.exception()
    if error is None:
        tell(future.result())
    elif isinstance(error, KilledWorker):
        killed.append(task)
    else:
        reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        tell(Failure(str(task.entry.image), reason, task.entry.id))


def _asked(task: Task, most: Mapping[str, float]) -> dict[str, float] | Failure:
    """The resources that a study needs of a worker; or why none can do it.

    Args:
        task: the study.
        most: of each resource, the most that a worker was seen to offer.
    """
    name = str(task.entry.image)
    try:
        return needed(task.entry.image, task.config.device, most)
    except TooLargeError as error:
        return Failure(name, f"{error}; run again with more --memory and fewer --workers", task.entry.id)
    except InputError as error:
        return Failure(name, str(error), task.entry.id)
