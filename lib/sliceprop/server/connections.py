"""Connections that do not use the server up: who opens one must ask for something, and take the answer.

uvicorn itself waits for both without an end.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""For the head of a request, from the connection or the end of the answer before; its body has `Limits.upload_s`."""

TAKING_S, TAKEN = 60.0, 1 << 16
"""Of an answer that waits to be taken, a client must take so many bytes in this time."""


FEW_CHUNKS, SHORT_CHUNK = 256, 64
"""A body may be sent in chunks of fewer bytes only if they are few: each takes as long to read as a long one."""


LONGEST_HEAD, MOST_PARTS = 1 << 15, 100
"""Bytes of a request's head, and lines of it, or parameters of the address."""

_HEAD_END = re.compile(rb"\n\r?\n")


class _Messages(h11.Connection):
    """Reads what a client sends, unless it is cut into crumbs: all of it is read in the event loop."""

    _chunks, _bytes = 0, 0

    def next_event(self) -> Any:
        """The next part of a request.

        Raises:
            h11.RemoteProtocolError: if it is no HTTP, or more of a head or shorter chunks of a body than anybody sends.
        """
        if self.their_state is h11.IDLE:
            self._check_head()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks, self._bytes = 0, 0
        elif isinstance(event, h11.Data):
            self._chunks, self._bytes = self._chunks + event.chunk_end, self._bytes + len(event.data)
            if self._chunks > FEW_CHUNKS and self._bytes < SHORT_CHUNK * self._chunks:
                raise h11.RemoteProtocolError("the body comes in too short chunks")
        return event

    def _check_head(self) -> None:
        arrived, _ = self.trailing_data
        end = _HEAD_END.search(arrived, 0, LONGEST_HEAD)
        lines = arrived[: end.end() if end else None].split(b"\n", MOST_PARTS + 1)
        if (not end and len(arrived) >= LONGEST_HEAD) or len(lines) > MOST_PARTS or lines[0].count(b"&") > MOST_PARTS:
            raise h11.RemoteProtocolError("the head of the request is too long")


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when its client neither asks nor takes what it asked for."""

    _asking: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = _Messages(h11.SERVER, self.conn._max_incomplete_event_size)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
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
            super().send_400_response(msg)

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
