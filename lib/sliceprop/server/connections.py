"""Connections that do not use the server up: who opens one must ask for something, and take the answer.

uvicorn itself waits for both without an end.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""For the head of a request, from the connection or the end of the answer before; its body has `Limits.upload_s`."""

TAKING_S, TAKEN = 60.0, 1 << 16
"""Of an answer that waits to be taken, a client must take so many bytes in this time."""


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when its client neither asks nor takes what it asked for."""

    _asking: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

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
