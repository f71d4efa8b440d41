"""How much the server takes on: size of requests, how many work at once and wait, how long they may take.

Requests that compute are let through one per core, those that read a study a few at once, before they take a thread, so
that what is quick (`/info/`, progress) is answered at once however many wait.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any
from weakref import WeakValueDictionary

from anyio import to_thread
from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceprop.errors import InputError, SlicePropError, TooLargeError
from sliceprop.memory import share
from sliceprop.server.errors import BusyError, TooSlowError, refusal
from sliceprop.server.guard import LOOKUPS, route_path, takes_files
from sliceprop.server.requests import number, whole_number

MIB = 1 << 20

ARRIVING = 16
"""Requests with files of one user that may arrive at once; more wait for those."""

READERS, READERS_OF_ONE = 24, 2
"""At once, and of one study; each holds a thread while it waits for its study."""

VIEWERS = 16
"""Requests for what the archive has; each holds a thread while it waits for it."""

QUICK = 32
"""Threads for all that waits for nothing."""

REST_S, REST = 5.0, 1 << 16
"""Of the body of a request that is refused already, a client must send so many bytes in this time to be waited for."""


@dataclass(frozen=True)
class Limits:
    """What the operator allows.

    Attributes:
        upload_mib: size of one request, a scan of 512 x 512 x 2000 by default.
        jobs: requests that compute at the same time; beside them as many that bring files.
        queue: requests that wait for that.
        wait_s: how long one waits.
        upload_s: how long a request may take to arrive.
        request_s: how long one may work; a network is overfitted for 10 minutes at most.
    """

    upload_mib: float = 1024.0
    jobs: int = max(2, os.cpu_count() or 1)
    queue: int = 32
    wait_s: float = 300.0
    upload_s: float = 600.0
    request_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.queue < 0 or any(value <= 0 for name, value in vars(self).items() if name != "queue"):
            raise InputError(f"limits of the server must be positive numbers, not {vars(self)}")

    @classmethod
    def configured(cls, conf: Mapping[str, Any]) -> Limits:
        """From `--conf upload_mib`, `jobs`, `queue`, `wait_s`, `upload_s` and `request_s`.

        Raises:
            InputError: for anything but positive numbers.
        """
        known = cls()
        return cls(
            upload_mib=number(conf, "upload_mib", known.upload_mib),
            jobs=whole_number(conf, "jobs", known.jobs),
            queue=whole_number(conf, "queue", known.queue),
            wait_s=number(conf, "wait_s", known.wait_s),
            upload_s=number(conf, "upload_s", known.upload_s),
            request_s=number(conf, "request_s", known.request_s),
        )


class Queue:
    """Lets a bounded number of requests work and a bounded number wait.

    Args:
        limits: how many, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._slots = limits, asyncio.Semaphore(limits.jobs)
        self.running, self.waiting = 0, 0

    async def enter(self) -> None:
        """Wait for a slot.

        Raises:
            BusyError: if too many wait already, or none becomes free in time.
        """
        if self.running + self.waiting >= self._limits.jobs + self._limits.queue:
            raise BusyError(f"{self._limits.queue} requests wait already; try again", retry_after_s=5)
        self.waiting += 1
        try:
            await asyncio.wait_for(self._slots.acquire(), self._limits.wait_s)
        except TimeoutError as error:
            raise BusyError(f"no slot in {self._limits.wait_s:g} s, the server is busy; try again", 30) from error
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        """Give the slot to the next one."""
        self.running -= 1
        self._slots.release()


@asynccontextmanager
async def turn(queue: Queue, request: Request) -> AsyncIterator[None]:
    """A slot of a queue, for a request that has arrived.

    Raises:
        BusyError: if there is none, or nobody waits for it any more.
    """
    await queue.enter()
    try:
        if await request.is_disconnected():
            raise BusyError("the client hung up while it waited", retry_after_s=1)
        yield
    finally:
        queue.leave()


async def _slot(request: Request) -> AsyncIterator[None]:
    """A slot of the server's queue and a share of its memory, until the answer to what has arrived is computed."""
    async with turn(request.app.state.queue, request):
        with share():
            yield


async def _upload_slot(request: Request) -> AsyncIterator[None]:
    """The same of the queue for files."""
    async with turn(request.app.state.uploads, request):
        with share():
            yield


async def _read_slot(request: Request) -> AsyncIterator[None]:
    """The same of the queue for what is kept of studies; few of one study stand in it."""
    query, reads = request.query_params, request.app.state.reads
    async with reads.of_study(query.get("image") or query.get("id") or ""), turn(reads, request):
        yield


async def _archive_slot(request: Request) -> AsyncIterator[None]:
    """The same of the queue for what the archive has."""
    async with turn(request.app.state.archive, request):
        yield


Slot = Annotated[None, Depends(_slot, scope="function")]
"""Parameter of routes that compute."""

UploadSlot = Annotated[None, Depends(_upload_slot, scope="function")]
"""Parameter of routes that take files: they wait for each other, never for what computes, and none is turned away."""

ReadSlot = Annotated[None, Depends(_read_slot, scope="function")]
"""The same for routes that read or change what is kept of a study, however many ask for the same one at once."""


ArchiveSlot = Annotated[None, Depends(_archive_slot, scope="function")]
"""The same for routes that hand on what the archive has, which may be slow."""


def upload_queue(limits: Limits) -> Queue:
    """For routes that take files: however many come at once, the others have threads left."""
    return Queue(replace(limits, queue=sys.maxsize, wait_s=limits.request_s))


def archive_queue(limits: Limits) -> Queue:
    """For routes that hand on what the archive has; a viewer asks for many slices at once."""
    return upload_queue(replace(limits, jobs=VIEWERS))


class ReadQueue(Queue):
    """For routes that read what is kept: they leave threads, and memory, to the others.

    Args:
        limits: for how long one waits.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(replace(limits, jobs=READERS, queue=sys.maxsize, wait_s=limits.request_s))
        self._studies: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of_study(self, study: str) -> asyncio.Semaphore:
        """To be held in the queue: one study that its archive sends slowly does not take all places."""
        return self._studies.setdefault(study, asyncio.Semaphore(READERS_OF_ONE))


class LimitGuard:
    """ASGI middleware: holds every request to the `Limits` of size and time.

    Args:
        app: what lies behind.
        limits: what is allowed.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self._limits = app, limits
        self._threads = QUICK + 2 * limits.jobs + READERS + VIEWERS + LOOKUPS
        self._arriving: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # by user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 408 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        to_thread.current_default_thread_limiter().total_tokens = self._threads  # 40 before, for all queues
        answer = _OneAnswer(send)
        try:
            self._check_announced(scope)
            async with AsyncExitStack() as arriving:
                if takes_files(scope["method"], route_path(scope)) and _announces_body(scope):
                    await arriving.enter_async_context(self._arriving_of(scope))
                await self._in_time(scope, _Body(receive, self._limits, answer, arriving), answer)
        except SlicePropError as error:
            await answer.instead(refusal(error), scope, receive)

    def _arriving_of(self, scope: Scope) -> asyncio.Semaphore:
        """Lets few bodies of one user arrive at once: what has arrived of a form is kept, in memory and open files."""
        holder = scope.get("state", {}).get("holder")
        return self._arriving.setdefault(holder.name if holder else "", asyncio.Semaphore(ARRIVING))

    def _check_announced(self, scope: Scope) -> None:
        announced = Headers(scope=scope).get("Content-Length", "0")
        if announced.isdecimal() and int(announced) > self._limits.upload_mib * MIB:
            raise _too_large(self._limits)

    async def _in_time(self, scope: Scope, body: _Body, answer: _OneAnswer) -> None:
        """Let the route work; its thread cannot be stopped, but nobody waits for it.

        Raises:
            TooSlowError: when its time is up; what it answers later is dropped.
            SlicePropError: what was wrong with the body, where the route turned that into something else.
        """
        work = asyncio.ensure_future(self.app(scope, body, answer))
        try:
            finished, _ = await asyncio.wait({work}, timeout=self._limits.request_s)
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not finished:
            work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio complains
            raise TooSlowError(f"this took longer than {self._limits.request_s:g} s; ask for less at once")
        if body.error is not None:
            raise body.error
        work.result()


def _announces_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


class HearOut:
    """ASGI middleware, the outermost one: the answer to a refused request ends when the rest of its body has arrived.

    Most clients read nothing while they send, and find a broken connection in place of the reason if it is closed.

    Args:
        app: what lies behind.
        limits: how long a body may take to arrive.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and drop what nobody wants to have of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = complete = answered = False

        async def hear() -> Message:
            nonlocal complete
            if answered:
                return {"type": "http.disconnect"}
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal refused, answered
            refused = refused or message.get("status", 200) >= 400
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            answered = ends and refused and not complete
            await send({**message, "more_body": True} if answered else message)

        await self.app(scope, hear, answer)
        if answered:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.upload_s):
                    await _rest(receive)
            await send({"type": "http.response.body"})


async def _rest(receive: Receive) -> None:
    """Drop what still arrives of a body.

    Raises:
        TimeoutError: if its client sends too little of it.
    """
    more = True
    while more:
        async with asyncio.timeout(REST_S):
            size = 0
            while more and size < REST:
                message = await receive()
                more, size = message.get("more_body", False), size + len(message.get("body", b""))


class _Body:
    """The body of a request as it arrives.

    Attributes:
        error: what is wrong with it, kept because the parser of forms makes something else of it.
    """

    def __init__(self, receive: Receive, limits: Limits, answer: _OneAnswer, arriving: AsyncExitStack) -> None:
        self._receive, self._limits, self._answer, self._arriving = receive, limits, answer, arriving
        self._size, self._complete = 0, False
        self._until = asyncio.get_running_loop().time() + limits.upload_s
        self.error: SlicePropError | None = None

    async def __call__(self) -> Message:
        """The next part.

        Raises:
            TooLargeError: when it becomes longer than allowed.
            TooSlowError: when it takes longer than allowed.
        """
        if self._complete:
            return await self._receive()  # waits for the client to hang up
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError:
            raise self._broken(TooSlowError(f"the request did not arrive within {self._limits.upload_s:g} s")) from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._limits.upload_mib * MIB:
            raise self._broken(_too_large(self._limits))
        if self._complete:
            await self._arriving.aclose()
        return message

    def _broken(self, error: SlicePropError) -> SlicePropError:
        self.error = error
        self._answer.drop()
        return error


class _OneAnswer:
    """Sends one answer and drops what comes after another one was chosen."""

    def __init__(self, send: Send) -> None:
        self._send, self._started, self._dropping = send, False, False

    async def __call__(self, message: Message) -> None:
        if not self._dropping:
            self._started = True
            await self._send(message)

    def drop(self) -> None:
        """Send nothing more of an answer that has not begun."""
        self._dropping = not self._started

    async def instead(self, response: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Answer with `response`, unless an answer is on its way already."""
        self.drop()
        if not self._started:
            await response(scope, receive, self._send)


def _too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(f"a request may have {limits.upload_mib:g} MiB; crop or compress what you send")
