"""Clients that open connections and do nothing with them, on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("monailabel")

import uvicorn

from sliceprop.server import connections
from sliceprop.server.connections import FEW_CHUNKS, LONGEST_HEAD, MOST_PARTS, SHORT_CHUNK, Connection
from sliceprop.server.limits import HearOut, Limits

PATIENCE_S = 30.0
END = b"\r\n0\r\n\r\n"
PART, PARTS = bytes(1 << 20), 64


@contextmanager
def served(app: Callable[..., Any]) -> Iterator[Callable[[bytes], socket.socket]]:
    """Opens connections to an ASGI application, and sends what they begin with."""
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        opened = list[socket.socket]()

        def connect(begin: bytes) -> socket.socket:
            opened.append(socket.create_connection(listening.getsockname(), timeout=PATIENCE_S))
            opened[-1].sendall(begin)
            return opened[-1]

        try:
            yield connect
        finally:
            for one in opened:
                one.close()
            server.should_exit = True
            thread.join(PATIENCE_S)


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


async def answer(send: Callable[..., Any], *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


def received(connection: socket.socket, end: bytes) -> int:
    """How many bytes came until `end`, or until the server hung up."""
    count, last = 0, b""
    while not last.endswith(end) and (part := connection.recv(1 << 20)):
        count, last = count + len(part), last[-len(end) :] + part
    return count


HALF = b"GET /info/ HTTP/1.1\r\nHost: here\r\nX-"


@pytest.mark.parametrize(("before", "begin"), [(b"", b""), (b"", HALF), (request("/"), HALF)])
def test_a_connection_without_a_complete_head_is_closed(
    before: bytes, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"done")

    with served(app) as connect:
        connection = connect(before)
        assert not before or received(connection, END)
        connection.sendall(begin)
        assert received(connection, END) == 0


def test_a_request_that_takes_its_time_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    begun, go = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.to_thread(go.wait, PATIENCE_S)
        await answer(send, b"done")

    with served(app) as connect:
        working = connect(request("/"))
        assert begun.wait(PATIENCE_S)
        assert received(connect(b""), END) == 0
        go.set()
        assert received(working, END)


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"])
def test_a_client_that_still_sends_gets_to_know_why_it_is_refused(
    header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    refused = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"reason"})
        refused.set()

    with served(HearOut(app, Limits())) as connect:
        length = b"Content-Length: %d\r\n\r\n" % (PARTS * len(PART))
        connection, other = connect(b"PUT / HTTP/1.1\r\nHost: here\r\n" + header + length), connect(b"")
        assert refused.wait(PATIENCE_S) and received(other, END) == 0  # which takes as long as a head may
        for _ in range(PARTS):
            connection.sendall(PART)
        assert received(connection, b"reason" + END)


@pytest.mark.parametrize("answered", [True, False])
def test_what_is_no_http_ends_the_connection(answered: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"reason", "more_body": not answered})
        while (await receive())["type"] != "http.disconnect":
            pass

    with served(HearOut(app, Limits())) as connect:
        connection = connect(b"PUT / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert received(connection, b"reason\r\n")
        connection.sendall(b"ZZ\r\n")
        assert received(connection, END) == 0
    assert "LocalProtocolError" not in caplog.text


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/", b"a: %s\r\n" % (b"x" * (LONGEST_HEAD - 100)), b"200"),
        ("/", b"a: %s\r\n" % (b"x" * LONGEST_HEAD), b"400"),
        ("/", b"a: %s" % (b"x" * LONGEST_HEAD), b"400"),
        ("/", b"a:b\r\n" * (MOST_PARTS - 10), b"200"),
        ("/", b"a:b\r\n" * MOST_PARTS, b"400"),
        ("/?" + "a&" * MOST_PARTS, b"", b"200"),
        ("/?" + "a&" * (MOST_PARTS + 1), b"", b"400"),
    ],
    ids=["long", "too long", "without an end", "many lines", "too many lines", "many names", "too many names"],
)
@pytest.mark.parametrize("before", [b"", request("/"), request("/") * 2])
def test_heads_that_nobody_sends_are_not_read(path: str, header: bytes, status: bytes, before: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    with served(app) as connect:
        connection = connect(before + request(path)[:-2] + header + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert answers.count(b"HTTP/1.1 200") == before.count(b"GET") + (status == b"200")
        assert answers.count(b"HTTP/1.1 400") == (status == b"400")


def chunks(length: int, count: int) -> bytes:
    return b"%x\r\n%s\r\n" % (length, bytes(length)) * count


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (chunks(1, FEW_CHUNKS), b"200"),
        (chunks(SHORT_CHUNK, 4 * FEW_CHUNKS), b"200"),
        ((chunks(150, 2) + chunks(1 << 14, 1) + chunks(2, 1)) * 4 * FEW_CHUNKS, b"200"),
        (chunks(1, FEW_CHUNKS + 1), b"400"),
        (chunks(1 << 16, 100) + chunks(SHORT_CHUNK - 1, FEW_CHUNKS + 1), b"400"),
        (b"0\r\n" + b"a: b\r\n" * (MOST_PARTS - 10), b"200"),
        (b"0\r\n" + b"a: b\r\n" * MOST_PARTS, b"400"),
        (b"0\r\na: %s\r\n" % (b"x" * LONGEST_HEAD), b"400"),
    ],
    ids=["few", "long", "files", "crumbs", "crumbs behind", "trailers", "many trailers", "a long trailer"],
)
def test_a_body_in_crumbs_is_refused(body: bytes, status: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(send, b"done")

    head = b"PUT / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(app) as connect:
        connection = connect(head + chunks(1, FEW_CHUNKS) + END[2:])  # one request has nothing to do with the next
        assert received(connection, END)
        connection.sendall(head + body + (b"\r\n" if body.startswith(b"0") else END[2:]))
        answered = b""
        while not answered.endswith(END) and (part := connection.recv(1 << 16)):
            answered += part
        assert answered[9:12] == status and (status == b"200" or b"has at most" in answered or b"chunks" in answered)


def test_an_answer_that_is_not_taken_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TAKING_S", 0.1)
    over = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, *[PART] * PARTS)
        over.set()

    with served(app) as connect:
        connect(request("/"))
        assert over.wait(PATIENCE_S)


def test_an_answer_that_is_taken_arrives_as_a_whole() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, *[PART] * PARTS)

    with served(app) as connect:
        assert received(connect(request("/")), END) > PARTS * len(PART)
