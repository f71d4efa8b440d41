"""Whole volumes leave the server in small parts, which wait on disk for slow clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

from fastapi.responses import FileResponse
from starlette.testclient import TestClient
from starlette.types import Message

from sliceprop.server import web
from sliceprop.server.errors import BusyError, NotFoundError

CHUNK = 100


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CHUNK", CHUNK)


def sent(client: TestClient, method: str, path: str, query: str) -> list[Message]:
    """What the server sends for a request without a body."""
    messages: list[Message] = []

    async def ask() -> None:
        begun: Iterator[Message] = iter([{"type": "http.request"}])

        async def receive() -> Message:
            return next(begun, None) or await asyncio.Future()

        async def send(message: Message) -> None:
            messages.append(message)

        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
        who = {"client": ("127.0.0.1", 50_000), "headers": [(b"host", b"127.0.0.1")]}
        await client.app(scope | who, receive, send)

    assert client.portal
    client.portal.call(ask)
    return messages


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/labelprop/voxels", "image=case&kind=annotation"),
        ("GET", "/labelprop/export", "image=case&format=.nii.gz"),
        ("POST", "/infer/labelprop", "image=case"),
    ],
)
def test_a_volume_is_sent_in_parts(client: TestClient, method: str, path: str, query: str) -> None:
    start, *rest = sent(client, method, path, query)
    headers, bodies = dict(start["headers"]), [message.get("body", b"") for message in rest]
    assert start["status"] == 200, bodies
    assert max(map(len, bodies)) == CHUNK
    assert int(headers[b"content-length"]) == sum(map(len, bodies))


def test_an_answer_whose_client_hangs_up_leaves_no_file() -> None:
    answer = web.StoredResponse([bytes(10 * CHUNK)], {})
    begun = asyncio.Event()

    async def receive() -> Message:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        begun.set()
        await asyncio.Future()  # the client does not read

    asyncio.run(answer({"type": "http"}, receive, send))
    assert answer.file.closed


def test_a_file_is_sent_as_it_was_whatever_takes_its_place(tmp_path: Path) -> None:
    file, parts = tmp_path / "labels.nii.gz", list[bytes]()
    file.write_bytes(b"old" * CHUNK)
    answer = web.opened(FileResponse(file, filename=file.name, media_type="application/gzip"))
    (tmp_path / "new").write_bytes(b"newer" * CHUNK)
    (tmp_path / "new").replace(file)

    async def send(message: Message) -> None:
        parts.append(message.get("body", b""))

    asyncio.run(answer({"type": "http"}, asyncio.Future, send))
    assert b"".join(parts) == b"old" * CHUNK and answer.headers["Content-Length"] == str(3 * CHUNK)
    assert "labels.nii.gz" in answer.headers["Content-Disposition"] and answer.media_type == "application/gzip"


def test_a_file_that_is_gone_by_now_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        web.opened(FileResponse(tmp_path / "gone", filename="gone"))


def test_only_so_much_waits_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(answer: web.StoredResponse) -> None:
        async def send(message: Message) -> None:
            pass

        await answer({"type": "http"}, asyncio.Future, send)

    monkeypatch.setattr(web, "MAX_STORED", 10)
    given, dropped = web.StoredResponse([bytes(4)], {}), web.StoredResponse([bytes(4)], {})
    with pytest.raises(BusyError):
        web.StoredResponse([bytes(4)], {})
    asyncio.run(answered(given))
    more = web.StoredResponse([bytes(4)], {})
    with pytest.raises(BusyError):
        web.StoredResponse([bytes(4)], {})
    del dropped, more
    web.StoredResponse([bytes(100)], {})  # alone it may be as large as it is
