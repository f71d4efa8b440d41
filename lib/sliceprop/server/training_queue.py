"""Trainings of several studies at once, on Dask workers; users who wait take turns.

A training waits here until a worker is free, so that whoever comes later with one request does not wait for all of
another one's. With Dask it waits only where others keep the same workers busy. What waits lies on the disk too, so that
it still waits when the server was ended and is back.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sliceprop.cohort.workers import WorkersConfig, check_installed, has_died, most_of, needed, offers, workers
from sliceprop.errors import FileError, InputError, SlicePropError, TooLargeError
from sliceprop.files import read_json
from sliceprop.io import make_folder, write_json
from sliceprop.server.errors import BusyError
from sliceprop.server.learning import NOTHING, OPEN, StateFile
from sliceprop.server.requests import whole_number
from sliceprop.server.trainer import PropagateTrainer
from sliceprop.server.training_work import Job, Outcome, run_job
from sliceprop.study import resolve_device

logger = logging.getLogger(__name__)

LOCAL = "local"
"""In place of a scheduler's address: workers on this machine, which end with the server."""

STATE, WAITING, FOLDERS = "training.json", "training_waits.json", "training-*"
"""In the folder of each study: how far its training is, the request as long as it waits, and what workers read."""

MAX_OPEN, MAX_ENDED = 100, 100
"""Trainings that a user may have waiting and running, and that are remembered when they are over."""

LOOK_S = 1.0
"""Between looking for more workers, and for a scheduler that is gone."""

LOOKS_BEFORE_WORD = 30
"""Looks without any worker before the operator is told: one that died is soon replaced."""

SOON = 100
"""Priority with Dask: somebody waits for it, unlike for the studies of a cohort."""

GONE = "the Dask scheduler went away; the best model so far is kept; train again when it is back"
DIED = "the Dask worker died again and again; the best model so far is kept; the study may need more memory than it has"
UNEXPECTED = "training failed unexpectedly; the server's log says why"


@dataclass(eq=False)
class Ticket:
    """One request for a training.

    Attributes:
        number: ascending, in the order in which they came.
        user: who wants it.
        request: of `PropagateTrainer.prepare`.
        id: for clients.
        began: when it came, as MONAI Label writes it.
        finished: when it ended; empty until then.
        job: what the worker got; None while it waits here.
        future: Dask's; None while it waits here, and when it is over.
        outcome: how it ended; empty until then.
        over: set when it has ended.
    """

    number: int
    user: str
    request: Mapping[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: str = field(default_factory=lambda: _now())
    finished: str = ""
    job: Job | None = None
    future: Any = None
    outcome: Outcome = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def image(self) -> str:
        """Id of the study."""
        return str(self.request["image"])


def next_in_turn(waiting: Iterable[Ticket], running: Sequence[Ticket], served: Mapping[str, int]) -> Ticket | None:
    """The ticket that comes next: of the user with the fewest running, of those whose last turn is longest ago.

    Args:
        waiting: tickets to choose from.
        running: those that workers have.
        served: number of each user's last turn.
    """

    def rank(ticket: Ticket) -> tuple[int, int, int]:
        busy = sum(other.user == ticket.user for other in running)
        return busy, served.get(ticket.user, 0), ticket.number

    return min(waiting, key=rank, default=None)


def workers_of(conf: Mapping[str, Any]) -> WorkersConfig | None:
    """From `--conf scheduler` (an address, or `local`) and `workers`; None without the first.

    Raises:
        InputError: for numbers that make no sense.
    """
    address = str(conf.get("scheduler") or "")
    if not address:
        return None
    n = whole_number(conf, "workers", 0) if conf.get("workers") is not None else None
    return WorkersConfig(n, scheduler=None if address == LOCAL else address)


class TrainingQueue:
    """Hands trainings to Dask; connects when the first one comes, and again when the scheduler was gone.

    Args:
        trainer: checks requests and makes jobs of them.
        studies: holds the folder of each study; shared with the workers.
        team: who works.
    """

    def __init__(self, trainer: PropagateTrainer, studies: Path, team: WorkersConfig) -> None:
        self._trainer, self._studies, self._team = trainer, studies.absolute(), team
        self._tickets, self._served = list[Ticket](), dict[str, int]()
        self._changed, self._closed, self._count = threading.Condition(), False, 0
        self._without_worker = 0
        check_installed()
        for left in self._studies.glob(f"*/{FOLDERS}"):  # workers that a server before this one left behind stop
            shutil.rmtree(left, ignore_errors=True)
        self._take_up()
        self._thread = threading.Thread(target=self._run, name="trainings", daemon=True)
        self._thread.start()
        threading.Thread(target=self._show_life, name="trainings-life", daemon=True).start()
        atexit.register(self.close)  # before Dask's own, which were registered when it was imported

    @classmethod
    def configured(cls, conf: Mapping[str, Any], trainer: PropagateTrainer, studies: Path) -> TrainingQueue | None:
        """That of `workers_of`; None without a scheduler.

        Raises:
            InputError: as of `workers_of`, or where Dask is not installed.
        """
        team = workers_of(conf)
        return None if team is None else cls(trainer, studies, team)

    def add(self, request: Mapping[str, Any], user: str) -> Ticket:
        """Take on a training.

        Args:
            request: from `PropagateTrainer.prepare`.
            user: who wants it.

        Raises:
            BusyError: if one of the study is not over, the user has too many, or the server is ending.
            FileError: if the folder of the study is read-only or full.
        """
        with self._changed:
            if self._closed:
                raise BusyError("the server is ending; train again when it is back", 60)
            self._count += 1
            ticket = Ticket(self._count, user, request)
            if any(other.image == ticket.image for other in self._open()):
                raise BusyError(f"a training of {ticket.image} is not over yet; wait for its end or stop it", 10)
            if sum(other.user == user for other in self._open()) >= MAX_OPEN:
                raise BusyError(f"{MAX_OPEN} of your trainings wait already; try again later", 60)
            make_folder(self._studies / ticket.image)
            self._trainer.submitted(request, self._state(ticket.image))
            self._park(ticket)
            self._tickets.append(ticket)
            self._changed.notify_all()
        return ticket

    def stop(self, user: str, image: str = "") -> dict[str, Any] | None:
        """Stop the training of a study, without `image` the user's latest; the best model so far is kept.

        Returns:
            it, as `tasks` tells it; None if there is none.
        """
        with self._changed:
            found = [one for one in self._open() if (one.image == image if image else one.user == user)]
            ticket = _latest(found)
            if ticket is None:
                return None
            if self._state(ticket.image).read()["status"] == "RUNNING" and ticket.job is not None:
                ticket.job.discard()  # the worker keeps its model, then tells that it has stopped
            else:
                self._end(ticket, {"status": "STOPPED"})
            return self.task(ticket)

    def state(self, image: str = "", user: str | None = None) -> dict[str, Any]:
        """How far the last training of a study is, without `image` the user's latest, without both anybody's."""
        with self._changed:
            ticket = _latest([one for one in self._tickets if _concerns(one, image, user)])
            if ticket is None and not image:
                return dict(NOTHING)
            told = self._state(ticket.image if ticket else image).read()
            if ticket is not None and ticket.outcome:
                return told | ticket.outcome
            if told["status"] in OPEN:
                return told if ticket else {**told, "status": "STOPPED"}
            return {**told, "status": "RUNNING"} if ticket else told  # the worker is about to end

    def tasks(self, user: str | None = None) -> list[dict[str, Any]]:
        """The trainings of a user, or of all, as MONAI Label tells of its tasks; the latest comes last."""
        with self._changed:
            found = [one for one in self._tickets if _concerns(one, "", user)]
            return [self.task(one) for one in sorted(found, key=_rank)]

    def task(self, ticket: Ticket) -> dict[str, Any]:
        """A training as MONAI Label tells of a task."""
        with self._changed:
            status = ticket.outcome.get("status") or self._state(ticket.image).read()["status"]
            if not ticket.outcome and status not in OPEN:
                status = "RUNNING"
        told = {"id": ticket.id, "status": status, "request": {**ticket.request, "user": ticket.user}}
        ended = {"end_ts": ticket.finished} if ticket.finished else {}
        return {**told, "start_ts": ticket.began, **ended, "details": [ticket.outcome.get("error", status.lower())]}

    @property
    def running(self) -> int:
        """How many trainings workers have."""
        return sum(ticket.future is not None for ticket in self._open())

    def close(self) -> None:
        """Stop all trainings and end the workers of this machine.

        The best models so far are kept; what waits is taken up when the server is back.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(LOOK_S)
        for ticket in self._open():
            self._end(ticket, {"status": "STOPPED"}, parked=ticket.future is None)
        self._thread.join(10 * LOOK_S)

    def _open(self) -> list[Ticket]:
        return [ticket for ticket in self._tickets if not ticket.outcome]

    def _take_up(self) -> None:
        """Have those wait again that waited when a server before this one ended, in their order."""
        for file in sorted(self._studies.glob(f"*/{WAITING}"), key=lambda file: file.stat().st_mtime_ns):
            told = read_json(file)
            try:
                self.add(told["request"], told["user"])
            except (InputError, KeyError, TypeError):
                logger.warning("a training that waited when the server ended cannot be taken up", exc_info=True)

    def _park(self, ticket: Ticket) -> None:
        write_json(self._waiting(ticket.image), {"user": ticket.user, "request": dict(ticket.request)})

    def _waiting(self, image: str) -> Path:
        return self._studies / image / WAITING

    def _state(self, image: str) -> StateFile:
        return StateFile(self._studies / image / STATE)

    def _end(self, ticket: Ticket, outcome: Outcome, *, parked: bool = False) -> None:
        """Remember how a training ended, and clear up after it; a `parked` one goes on when the server is back."""
        if trace := outcome.pop("trace", ""):
            logger.error("a training failed on a worker:\n%s", trace)
        with self._changed:
            if ticket.outcome:
                return  # stopped while something else went wrong
            ticket.outcome, ticket.finished = outcome, _now()
            if ticket.future is not None:
                ticket.future.release()
            if ticket.job is not None:
                ticket.job.discard()
            ticket.future = ticket.job = None
            if not parked:
                self._waiting(ticket.image).unlink(missing_ok=True)
                with suppress(FileError):  # a full disk; or the study was erased
                    self._state(ticket.image).end(**outcome)
            ended = [one for one in self._tickets if one.outcome]
            self._tickets = [one for one in self._tickets if one not in ended[:-MAX_ENDED]]
            ticket.over.set()

    def _run(self) -> None:
        """What the thread does: connect when there is something to do, hand it over, and tell when that fails."""
        gpu = self._team.scheduler is None and resolve_device("auto").type == "cuda"
        while self._wait_for_work():
            try:
                with workers(self._team, gpu=gpu, shared=self._studies) as client:
                    self._serve(client)
            except InputError as error:
                self._give_up(f"{error}; nothing new was learnt; tell the server's operator, then train again")
            except Exception:
                logger.exception("trainings cannot be handed to Dask")
                self._give_up(UNEXPECTED)

    def _wait_for_work(self) -> bool:
        """Wait for a training; False when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._open())
            return not self._closed

    def _give_up(self, reason: str) -> None:
        for ticket in self._open():
            self._end(ticket, {"status": "ERROR", "error": reason})

    def _serve(self, client: Any) -> None:
        """Hand trainings over until the scheduler goes away or the server ends."""
        try:
            with suppress(OSError, CancelledError):
                while not self._closed and client.status == "running":
                    self._collect()
                    self._hand_over(client)
                    with self._changed:
                        self._changed.wait(LOOK_S)
        finally:
            for ticket in [one for one in self._open() if one.future is not None]:
                self._lose(ticket)

    def _show_life(self) -> None:
        """What another thread does, so that workers hear of the server also while a scan is slow to read."""
        while not self._closed:
            for job in [ticket.job for ticket in self._open()]:
                if job is not None:
                    job.touch()
            with self._changed:
                self._changed.wait_for(lambda: self._closed, LOOK_S)

    def _collect(self) -> None:
        """Take what workers have finished."""
        with self._changed:
            done = [ticket for ticket in self._open() if ticket.future is not None and ticket.future.done()]
        for ticket in done:
            future = ticket.future
            if future is None:
                continue  # stopped meanwhile
            try:
                self._end(ticket, _outcome(future))
            except CancelledError:
                self._lose(ticket)

    def _lose(self, ticket: Ticket) -> None:
        """Of what Dask knows nothing any more: what has begun ends, what has not waits again."""
        with self._changed:
            if ticket.outcome:
                return  # stopped meanwhile, so that its future was let go
            begun = self._state(ticket.image).read()["status"] != "SUBMITTED"
            if self._closed or begun:
                self._end(ticket, {"status": "STOPPED"} if self._closed else {"status": "ERROR", "error": GONE})
            elif ticket.job is not None:
                ticket.job.discard()
                ticket.future = ticket.job = None
                with suppress(FileError):  # it waits all the same
                    self._park(ticket)

    def _hand_over(self, client: Any) -> None:
        """Give each free worker the ticket whose turn it is; one is always handed over, for clusters that grow."""
        offered = offers(client)
        waits = any(ticket.future is None for ticket in self._open())
        self._without_worker = self._without_worker + 1 if waits and not offered else 0
        if self._without_worker == LOOKS_BEFORE_WORD:
            logger.warning("trainings wait: the scheduler has no worker; start one, they end with their scheduler")
        most, held = most_of(offered), list[Ticket]()
        while ticket := self._next(max(1, len(offered)), held):
            if not self._submit(client, ticket, most):
                held.append(ticket)

    def _next(self, n_workers: int, held: Sequence[Ticket]) -> Ticket | None:
        with self._changed:
            running = [ticket for ticket in self._open() if ticket.future is not None]
            waiting = [ticket for ticket in self._open() if ticket.future is None and ticket not in held]
            return next_in_turn(waiting, running, self._served) if len(running) < n_workers else None

    def _submit(self, client: Any, ticket: Ticket, most: Mapping[str, float]) -> bool:
        """Hand one over, or end it where that cannot be; False if it has to wait for other work on the study."""
        folder = self._studies / ticket.image / FOLDERS.replace("*", ticket.id)
        try:
            job = self._trainer.job(ticket.request, folder, self._studies / ticket.image / STATE)
            asked = _asked(job, most)
        except BusyError:
            return False
        except SlicePropError as error:
            self._fail(ticket, folder, str(error))
            return True
        except Exception:
            logger.exception("a training cannot be prepared")
            self._fail(ticket, folder, UNEXPECTED)
            return True
        with self._changed:
            if ticket.outcome:
                job.discard()
                return True
            self._served[ticket.user] = max(self._served.values(), default=0) + 1
            options = {"key": f"training-{ticket.id}-{uuid.uuid4().hex}", "resources": asked, "priority": SOON}
            ticket.job, ticket.future = job, client.submit(run_job, job, pure=False, **options)
            ticket.future.add_done_callback(self._notice)
            self._waiting(ticket.image).unlink(missing_ok=True)
        return True

    def _fail(self, ticket: Ticket, folder: Path, reason: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._end(ticket, {"status": "ERROR", "error": reason})

    def _notice(self, future: Any) -> None:
        with self._changed:
            self._changed.notify_all()


def _asked(job: Job, most: Mapping[str, float]) -> dict[str, float]:
    """The resources that a training needs of a worker.

    Raises:
        TooLargeError: if no worker has as much memory.
    """
    try:
        return needed(job.image, "auto", most)
    except TooLargeError as error:
        raise TooLargeError(f"learning on this scan {error}; tell the server's operator, or crop it") from error


def _outcome(future: Any) -> Outcome:
    """What a worker told of its training, or why it could not.

    Raises:
        CancelledError: if Dask knows nothing of it any more.
    """
    if future.status == "finished":
        return dict(future.result())
    if future.status == "error":
        return {"status": "ERROR", "error": _reason(future.exception())}
    raise CancelledError


def _reason(error: BaseException) -> str:
    if has_died(error):
        return DIED
    text = " ".join(str(error).split())
    return f"the worker cannot do it ({type(error).__name__}: {text}); it needs the same release as the server"


def _rank(ticket: Ticket) -> tuple[bool, bool, int]:
    """What is over comes first, then what waits, then what runs; of these the latest comes last."""
    return not ticket.outcome, ticket.future is not None, ticket.number


def _latest(tickets: Sequence[Ticket]) -> Ticket | None:
    return max(tickets, key=_rank, default=None)


def _concerns(ticket: Ticket, image: str, user: str | None) -> bool:
    return ticket.image == image if image else user is None or ticket.user == user


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
