"""How much the server takes on: size, number at once, time."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

import nibabel as nib
import numpy as np
from fastapi import FastAPI, Request, UploadFile
from fastapi.routing import APIRoute
from monailabel.config import settings
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from serving import nifti, only, scan, truth
from sliceprop.checkpoint import save_checkpoint
from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model
from sliceprop.errors import InputError
from sliceprop.memory import check_memory
from sliceprop.server import limits as module
from sliceprop.server import proxy, routes
from sliceprop.server.errors import BusyError
from sliceprop.server.guard import BODILESS, FOREIGN, MAX_BODY_BYTES, takes_files
from sliceprop.server.limits import (
    ARRIVING,
    READERS,
    READERS_OF_ONE,
    HearOut,
    LimitGuard,
    Limits,
    Queue,
    ReadQueue,
    Slot,
    UploadSlot,
    _archive_slot,
    _read_slot,
    _slot,
    _upload_slot,
    upload_queue,
)
from sliceprop.tokens import Holder

MEMORY, PIXELS = 1 << 40, 1000
"""Of a machine, far more than this process takes; asked for in parts of it."""

SLOTS = {_slot, _upload_slot, _read_slot, _archive_slot}


def test_the_operator_chooses_the_limits() -> None:
    limits = Limits.configured({"jobs": "3", "queue": "0", "upload_mib": "0.5", "labels": "a,b"})
    assert (limits.jobs, limits.queue, limits.upload_mib) == (3, 0, 0.5)
    for wrong in ({"jobs": "0"}, {"jobs": "many"}, {"upload_mib": "-1"}, {"jobs": "1.5"}, {"request_s": "nan"}):
        with pytest.raises(InputError):
            Limits.configured(wrong)


@contextmanager
def working(**limits: Any) -> Iterator[tuple[TestClient, threading.Event, threading.Event]]:
    """A server whose `/work` begins, says so, and goes on until it is let go."""
    begun, go = threading.Event(), threading.Event()
    chosen = Limits(**limits)

    def counted(queue: Queue) -> dict[str, int]:
        return {"running": queue.running, "waiting": queue.waiting}

    api = FastAPI(middleware=[Middleware(LimitGuard, limits=chosen)])
    api.state.queue, api.state.uploads = Queue(chosen), upload_queue(chosen)

    @api.post("/work")
    def work(slot: Slot) -> str:
        begun.set()
        assert go.wait(30)
        return "done"

    @api.post("/memory/{part}")
    def memory(part: float, slot: Slot) -> str:
        check_memory((int(part * PIXELS), 1), bytes_per_voxel=MEMORY // PIXELS)
        return work(slot)

    @api.get("/quick")
    def quick(request: Request) -> dict[str, int]:
        return counted(request.app.state.queue)

    @api.put("/file")
    def file(slot: UploadSlot) -> str:
        begun.set()
        assert go.wait(30)
        return "stored"

    @api.get("/uploads")
    def uploads(request: Request) -> dict[str, int]:
        return counted(request.app.state.uploads)

    @api.put("/upload")
    def upload(file: UploadFile) -> int:
        return len(file.file.read())

    @api.put("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    with TestClient(api) as client:
        try:
            yield client, begun, go
        finally:
            go.set()


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Start a call; the answer is what the returned function gives."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()

    def answer() -> Any:
        thread.join(30)
        return found[0]

    return answer


def until(client: TestClient, path: str = "/quick", **state: int) -> None:
    """Wait for a state of the queue; the time limit of the test run bounds it."""
    while not state.items() <= client.get(path).json().items():
        threading.Event().wait(0.005)


def test_one_works_one_waits_and_the_third_is_told_to_come_back() -> None:
    with working(jobs=1, queue=1) as (client, begun, go):
        first = in_thread(lambda: client.post("/work"))
        assert begun.wait(30)
        second = in_thread(lambda: client.post("/work"))
        until(client, running=1, waiting=1)
        third = client.post("/work")
        assert third.status_code == 429 and int(third.headers["Retry-After"]) > 0 and third.json()["detail"]
        go.set()
        assert first().json() == second().json() == "done"
        assert client.get("/quick").json() == {"running": 0, "waiting": 0}
        assert client.post("/work").status_code == 200


def test_no_more_wait_than_may_though_they_come_at_once() -> None:
    async def come() -> list[Any]:
        queue = Queue(Limits(jobs=2, queue=3))
        entering = [asyncio.ensure_future(queue.enter()) for _ in range(10)]
        while queue.running < 2:
            await asyncio.sleep(0)
        assert queue.waiting == 3
        for one in entering[2:5]:
            one.cancel()
        return await asyncio.gather(*entering, return_exceptions=True)

    ended = asyncio.run(come())
    assert ended[:2] == [None, None] and [type(one) for one in ended[5:]] == [BusyError] * 5


def test_scans_that_do_not_fit_into_memory_at_once_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sliceprop.memory.free_and_total_bytes", lambda: (MEMORY, MEMORY))
    with working(jobs=3) as (client, begun, go):
        first = in_thread(lambda: client.post("/memory/0.5"))
        assert begun.wait(30)
        second = client.post("/memory/0.7")
        assert second.status_code == 429 and int(second.headers["Retry-After"]) > 0
        assert client.post("/memory/1.1").status_code == 413
        go.set()
        assert first().status_code == 200
        assert client.post("/memory/0.7").status_code == 200


def test_files_wait_for_each_other_and_leave_threads_for_the_rest() -> None:
    """None is turned away, however few may wait to compute."""
    with working(jobs=1, queue=0) as (client, begun, go):
        answers = [in_thread(lambda: client.put("/file")) for _ in range(50)]
        assert begun.wait(30)
        until(client, "/uploads", running=1, waiting=49)
        begun.clear()
        computed = in_thread(lambda: client.post("/work"))
        assert begun.wait(30)
        go.set()
        assert {answer().json() for answer in answers} == {"stored"} and computed().json() == "done"


def our_routes(client: TestClient) -> list[APIRoute]:
    routes = [route for route in client.app.routes if isinstance(route, APIRoute)]
    return [route for route in routes if route.endpoint.__module__.startswith("sliceprop")]


def brings_files(route: APIRoute) -> bool:
    return any("UploadFile" in str(field.field_info.annotation) for field in route.dependant.body_params)


READING = {
    *(f"/labelprop/{name}" for name in ("export", "result", "voxels", "study", "final", "undo", "labels")),
    *(f"/labelprop/{name}" for name in ("versions", "version", "restore")),
    "/proxy/dicom/{path:path}",
}


def test_every_route_that_takes_a_file_or_waits_for_a_study_waits_without_a_thread(client: TestClient) -> None:
    waiting = {
        (route.path, *route.methods): {one.call for one in route.dependant.dependencies} & SLOTS
        for route in our_routes(client)
        if brings_files(route) or (route.path in READING and route.endpoint is not proxy.write_archive)
    }
    assert len(waiting) >= 5 + len(READING) and all(waiting.values())


def test_a_few_read_at_once_and_the_others_wait_without_a_thread() -> None:
    async def read() -> tuple[int, int]:
        queue = ReadQueue(Limits(jobs=1, queue=0))
        for _ in range(READERS):
            await queue.enter()
        others = [asyncio.create_task(queue.enter()) for _ in range(50)]
        await asyncio.wait(others, timeout=0)
        found = queue.running, queue.waiting
        for _ in range(50):
            queue.leave()
        await asyncio.gather(*others)
        return found

    assert asyncio.run(read()) == (READERS, 50)


def test_readers_of_one_study_do_not_stand_in_the_way_of_those_of_another() -> None:
    async def read() -> tuple[int, int]:
        api = FastAPI()
        api.state.reads = ReadQueue(Limits())

        async def reader(study: str) -> None:
            scope = {"type": "http", "query_string": f"image={study}".encode(), "app": api, "headers": []}
            slot = _read_slot(Request(scope, asyncio.Future))
            await anext(slot)
            entered.append(study)
            await asyncio.Future()  # its archive sends slowly

        entered = list[str]()
        asked = [asyncio.create_task(reader(study)) for study in ["slow"] * 100 + ["other"]]
        while "other" not in entered:
            await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
        return entered.count("slow"), entered.count("other")

    assert asyncio.run(read()) == (READERS_OF_ONE, 1)


def test_only_bodies_with_files_may_be_long(client: TestClient) -> None:
    """FastAPI reads all others whole, whatever kind they say to be."""
    for route in our_routes(client):
        path = re.sub(r"{[^}]*}", "x", route.path)
        if not path.startswith(FOREIGN):
            stored = route.path == "/labelprop/checkpoints/{checkpoint_id}"
            for method in route.methods - BODILESS:
                assert takes_files(method, path) == (brings_files(route) or stored), route.path
    long = b"[" * (MAX_BODY_BYTES + 1)
    for kind in ("text/plain", "multipart/form-data; boundary=b", "application/x-www-form-urlencoded"):
        assert client.put("/labelprop/labels", content=long, headers={"Content-Type": kind}).status_code == 413
    fields, slow = b"&" * (MAX_BODY_BYTES + 1), {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/datastore/label?image=case", "/session/", "/datastore/image/info?image=case"):
        assert client.put(path, content=fields, headers=slow).status_code == 413
    assert client.put("/labelprop/checkpoints/x", content=fields, headers=slow).status_code == 400  # read, but none


def test_little_of_a_form_lies_in_memory(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, check = list[bool](), routes.check_upload
    monkeypatch.setattr(routes, "check_upload", lambda file: (seen.append(file._in_memory), check(file))[1])
    content = nifti(np.random.default_rng(0).integers(0, 255, scan().shape).astype(np.uint8))
    assert len(content) > 1 << 14
    assert client.put("/datastore/image?image=little", files={"file": ("little.nii", content)}).status_code == 200
    assert seen == [False]
    fields = {f"field{number}": "x" for number in range(9)}
    label = {"label": ("label.nii.gz", nifti(truth()))}
    assert client.put("/datastore/label?image=case&tag=mine", files=label, data=fields).status_code == 400


def test_whoever_waits_too_long_is_told_so() -> None:
    with working(jobs=1, wait_s=0.05) as (client, begun, go):
        first = in_thread(lambda: client.post("/work"))
        assert begun.wait(30)
        assert client.post("/work").status_code == 429
        go.set()
        assert first().status_code == 200


def test_a_request_that_takes_too_long_is_answered_and_keeps_its_slot_until_it_ends() -> None:
    with working(jobs=1, queue=0, request_s=0.2) as (client, _, go):
        late = client.post("/work")
        assert late.status_code == 408 and "0.2 s" in late.json()["detail"]
        assert client.get("/quick").json() == {"running": 1, "waiting": 0}
        assert client.post("/work").status_code == 429
        go.set()
        until(client, running=0)


@pytest.mark.parametrize("path", ["/upload", "/raw"])
def test_too_large_a_body_is_refused_announced_or_not(path: str) -> None:
    with working(upload_mib=0.01) as (client, _, _):
        body = {"files": {"file": ("f", b"x" * 20_000)}} if path == "/upload" else {"content": b"x" * 20_000}
        told = client.put(path, **body)
        assert told.status_code == 413 and "0.01 MiB" in told.json()["detail"]
        assert client.put(path, **({"files": {"file": ("f", b"x")}} if path == "/upload" else {})).status_code == 200

        boundary = {"Content-Type": "multipart/form-data; boundary=b"}
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        parts = iter([head, *[b"x" * 1000] * 20, b"\r\n--b--\r\n"])
        assert client.put(path, content=parts, headers=boundary).status_code == 413


def test_of_one_user_only_some_files_arrive_at_once_and_nobody_else_waits_for_them() -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        begun.append(scope["state"]["holder"].name)
        await receive()
        await asyncio.Future()  # works for long, with nothing more to arrive

    async def ask(guard: LimitGuard, name: str, arrived: asyncio.Event) -> None:
        async def receive() -> Message:
            await arrived.wait()
            return {"type": "http.request"}

        headers = [(b"content-length", b"5")]
        scope = {"type": "http", "method": "PUT", "path": "/datastore/label", "headers": headers}
        await guard({**scope, "state": {"holder": Holder(name, "annotate")}}, receive, None)

    async def run() -> None:
        guard, arrived, asked = LimitGuard(app, Limits()), asyncio.Event(), list[asyncio.Task[None]]()
        for name in ["ben"] * (ARRIVING + 5) + ["anna"]:
            asked.append(asyncio.create_task(ask(guard, name, arrived)))
        while "anna" not in begun:
            await asyncio.sleep(0)
        assert begun.count("ben") == ARRIVING
        arrived.set()
        while begun.count("ben") < ARRIVING + 5:
            await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)

    asyncio.run(run())


def test_requests_without_a_body_do_not_wait_for_those_that_arrive() -> None:
    begun = list[bool]()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        begun.append(True)
        await asyncio.Future()  # works for long, and reads nothing

    async def run() -> None:
        guard = LimitGuard(app, Limits())
        scope = {"type": "http", "method": "POST", "path": "/infer/labelprop", "headers": []}
        asked = [asyncio.create_task(guard(scope, asyncio.Future, None)) for _ in range(2 * ARRIVING)]
        while len(begun) < len(asked):
            await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)

    asyncio.run(run())


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await receive()

    async def never() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/", "headers": []}
    asyncio.run(LimitGuard(app, Limits(upload_s=0.05))(scope, never, send))
    assert sent[0]["status"] == 408


def heard_out(status: int, parts: Iterator[Message], **limits: Any) -> list[str]:
    """What happens, in its order, when a request is answered at once while its body still arrives, in these parts."""
    events = list[str]()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"reason"})

    async def receive() -> Message:
        await asyncio.sleep(0)
        message = next(parts, None) or await asyncio.Future()
        events.append("part" if message["more_body"] else "last part")
        return message

    async def send(message: Message) -> None:
        events.append("end" if "start" not in message["type"] and not message.get("more_body") else message["type"])

    asyncio.run(HearOut(app, Limits(**limits))({"type": "http", "method": "PUT", "path": "/"}, receive, send))
    return events


def parts_of(size: int, count: int | None = None) -> Iterator[Message]:
    """Of a body that never ends, or has so many."""
    for number in itertools.count(1):
        yield {"type": "http.request", "body": bytes(size), "more_body": number != count}


def test_a_request_that_is_refused_is_heard_out_and_only_such_a_one() -> None:
    begun = ["http.response.start", "http.response.body"]
    assert heard_out(413, parts_of(10, 3)) == [*begun, "part", "part", "last part", "end"]
    assert heard_out(200, parts_of(10, 3)) == ["http.response.start", "end"]


def test_whoever_sends_without_end_or_nothing_is_not_heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard_out(413, parts_of(1 << 20), upload_s=0.1)[-2:] == ["part", "end"]
    monkeypatch.setattr(module, "REST_S", 0.1)
    assert heard_out(413, itertools.islice(parts_of(10), 2))[-3:] == ["part", "part", "end"]


def header_of(*shape: int) -> bytes:
    """The beginning of a file that claims to be an image of this shape."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    return bytes(header.binaryblock) + bytes(4)


@pytest.mark.parametrize("kind", ["upload", "infer", "label", "session"])
@pytest.mark.parametrize("shape", [(30_000, 30_000, 30_000), (20_000, 3, 3), (2, 2, 9_000)])
def test_images_of_absurd_sizes_are_refused_before_they_are_read(
    client: TestClient, kind: str, shape: tuple[int, ...]
) -> None:
    bomb = gzip.compress(header_of(*shape) + bytes(1 << 20))
    where, part = {
        "upload": ("/datastore/image?image=bomb", "file"),
        "infer": ("/infer/labelprop", "file"),
        "label": ("/datastore/label?image=case&tag=sparse", "label"),
        "session": ("/session/", "files"),
    }[kind]
    method = "POST" if kind == "infer" else "PUT"
    answer = client.request(method, where, files={part: ("b.nii.gz", bomb)})
    if kind == "session":
        answer = client.post(f"/infer/labelprop?session_id={answer.json()['session_id']}")
    assert answer.status_code in (400, 413), answer.text


def test_a_bomb_of_zeros_is_not_unpacked(client: TestClient) -> None:
    """A few kilobytes that unpack to much more than the header says, or than there is memory."""
    image = nifti(scan())
    bomb = gzip.compress(image + bytes(200 << 20), 1)
    assert client.put("/datastore/image?image=bomb", files={"file": ("b.nii.gz", bomb)}).status_code == 400


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_archives_are_not_unpacked(client: TestClient, name: str) -> None:
    answer = client.put("/session/?uncompress=true", files={"files": (name, b"PK\5\6" + bytes(18))})
    assert answer.status_code == 400 and "archives" in answer.json()["detail"]


def test_labels_are_not_invented_without_end(client: TestClient) -> None:
    before = client.get("/info/").json()["labels"]
    names = [{"name": f"label {n}", "idx": n} for n in range(1, 3000)]
    labels = {"label": ("l.nii", nifti(np.ones(scan().shape, np.uint8)))}
    answer = client.put(
        "/datastore/label?image=case&tag=sparse", files=labels, data={"params": json.dumps({"label_info": names})}
    )
    assert answer.status_code in (400, 413), answer.text
    assert client.get("/info/").json()["labels"] == before
    long = [{"name": "x" * 1000, "idx": 1}]
    answer = client.put(
        "/datastore/label?image=case&tag=sparse", files=labels, data={"params": json.dumps({"label_info": long})}
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/datastore/image/info?image=noted", "info"),
        ("/datastore/label/info?label=noted&tag=sparse", "info"),
        ("/datastore/updatelabelinfo?label=noted&tag=sparse", "params"),
    ],
)
def test_what_clients_note_of_a_study_does_not_grow_without_end(client: TestClient, path: str, field: str) -> None:
    files = {"file": ("f.nii", nifti(scan())), "label": ("l.nii", nifti(only(truth())))}
    assert client.put("/datastore/image?image=noted", files=files).status_code == 200
    assert client.put("/datastore/label?image=noted&tag=sparse", files=files).status_code == 200

    def note(key: str, value: str) -> int:
        return client.put(path, data={field: json.dumps({key: value})}).status_code

    statuses = [note(f"note {n}", "x" * 20_000) for n in range(5)]
    assert statuses == [200, 200, 200, 413, 413]
    assert [note(f"note {n}", "") for n in range(3)] == [200] * 3 and note("note 3", "x" * 20_000) == 200
    assert client.delete("/datastore/image?id=noted").status_code == 200


def test_what_comes_with_an_image_is_no_second_scan(client: TestClient) -> None:
    files, data = {"file": ("f.nii", nifti(scan()))}, {"params": json.dumps({"note": "x" * 70_000})}
    assert client.put("/datastore/image?image=noted", files=files, data=data).status_code == 413
    assert client.get("/datastore/image/info?image=noted").status_code == 404


def test_a_training_of_years_is_refused(client: TestClient) -> None:
    answer = client.post("/train/labelprop", json={"image": "case", "budget_s": 1e9})
    assert answer.status_code == 400 and "budget_s" in answer.json()["detail"]


CHECKPOINT = "/labelprop/checkpoints/sent"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/octet-stream", b"x"),
        ("application/x-www-form-urlencoded", b"a=b"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data", b"x"),
        ("", b""),
    ],
)
def test_what_is_no_checkpoint_is_refused(client: TestClient, kind: str, content: bytes) -> None:
    answer = client.put(CHECKPOINT, content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text


def test_a_checkpoint_comes_as_the_body_or_in_a_form(client: TestClient, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", Model(RegistrationNet().state_dict(), TrainConfig()))
    content = (tmp_path / "m.safetensors").read_bytes()
    for body in ({"content": content}, {"files": {"file": ("m.safetensors", content)}}):
        assert client.put(CHECKPOINT, **body).json() == {"id": "sent"}
        assert client.get(CHECKPOINT).status_code == 200


def test_a_session_lasts_no_longer_than_the_server_keeps_sessions(client: TestClient) -> None:
    expiry = {"expiry": 10**20}
    made = client.put("/session/", params=expiry, files={"files": ("a.nii", nifti(scan()))}).json()
    assert made["session_info"]["expiry"] == settings.MONAI_LABEL_SESSION_EXPIRY
