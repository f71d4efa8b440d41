"""Connections that do not use the server up: who opens one must ask for something, and take the answer.

uvicorn itself waits for both without an end.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""For the head of a request, from the connection or the end of the answer before; its body has `Limits.upload_s`."""

TAKING_S, TAKEN = 60.0, 1 << 16
"""Of an answer that waits to be taken, a client must take so many bytes in this time."""


FEW_CHUNKS, SHORT_CHUNK = 256, 512
"""So many chunks of a body may have fewer bytes, and three for each longer one, as what separates files of a form:
short ones take as long to read."""

LONGEST_HEAD, MOST_PARTS = 1 << 15, 100
"""Bytes of a request's head, or of what may follow a body in chunks, and lines of it, or parameters of the address."""

READ = 1 << 16
"""Bytes that one connection has read before others have their turn."""

_HEAD_END = re.compile(rb"\n\r?\n")


class _TooMuchError(h11.RemoteProtocolError):
    """A request that takes the event loop too long to read."""


class _Received(ReceiveBuffer):
    """What a client has sent and h11 has not read yet."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head, or of what follows a body; None before all of them are here.

        Raises:
            h11.RemoteProtocolError: if there is more of it than anybody sends.
        """
        end = _HEAD_END.search(self._data, 0, LONGEST_HEAD)
        lines = self._data[: end.end() if end else LONGEST_HEAD].split(b"\n", MOST_PARTS + 1)
        too_long = not end and len(self._data) >= LONGEST_HEAD
        if self._data[:1] not in b"\r\n" and (too_long or max(len(lines), lines[0].count(b"&")) > MOST_PARTS):
            raise _TooMuchError(f"the head of a request has at most {LONGEST_HEAD} bytes and {MOST_PARTS} lines")
        return super().maybe_extract_lines()


class _Messages(h11.Connection):
    """Reads what a client sends, unless it is cut into crumbs: all of it is read in the event loop."""

    def __init__(self, most: int) -> None:
        super().__init__(h11.SERVER, most)
        self._receive_buffer = _Received()
        self._length, self._short = 0, 0  # of this chunk so far; chunks
        self.refusal = ""

    def next_event(self) -> Any:
        """The next part of a request.

        Raises:
            h11.RemoteProtocolError: if it is no HTTP, or more of a head or shorter chunks of a body than anybody sends.
        """
        try:
            event = super().next_event()
            self._count(event)
        except _TooMuchError as error:
            self.refusal = str(error)
            raise
        return event

    def _count(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._length, self._short = 0, 0
        elif isinstance(event, h11.Data):
            self._length += len(event.data)
            if event.chunk_end:
                self._short = self._short + 1 if self._length < SHORT_CHUNK else max(0, self._short - 3)
                self._length = 0
            if self._short > FEW_CHUNKS:
                raise _TooMuchError(f"the body comes in too many chunks of fewer than {SHORT_CHUNK} bytes")


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when its client neither asks nor takes what it asked for."""

    conn: _Messages
    _asking: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = _Messages(self.conn._max_incomplete_event_size)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # not under TLS, whose records are short
            transport.max_size = READ
        self._expect_head()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._expect_head()

    def pause_writing(self) -> None:
        """Watch the client while there is more of an answer than the connection holds."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """Write on: the client has taken enough."""
        super().resume_writing()
        _stop(self._taking)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; behind the beginning of another answer there is nothing to say."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
        else:
            super().send_400_response(self.conn.refusal or msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        _stop(self._asking)
        _stop(self._taking)

    def _expect_head(self) -> None:
        _stop(self._asking)
        self._asking = self.loop.call_later(HEAD_S, self._check_head)

    def _check_head(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()  # when the client has taken what is written
            self._expect_taking()

    def _expect_taking(self) -> None:
        _stop(self._taking)
        left = self.transport.get_write_buffer_size()
        self._taking = self.loop.call_later(TAKING_S, self._check_taking, left)

    def _check_taking(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before - TAKEN:
            self.transport.abort()
        else:
            self._expect_taking()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
