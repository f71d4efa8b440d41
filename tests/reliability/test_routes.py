"""No request is worked on in the event loop, where everybody waits for it; what is sent lies nowhere afterwards."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

from monailabel.utils.async_tasks import utils
from starlette.routing import BaseRoute, Match, Route
from starlette.testclient import TestClient

from serving import nifti, scan
from sliceprop.server import background, web

QUICK = frozenset({"/favicon.ico"})
"""Hands out one small file of the package."""

SCAN = ("DOE^JOHN.nii", nifti(scan()))


def flat(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """All routes in the order in which they are asked, also those that newer releases of FastAPI keep in routers."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from flat(inner.routes)
        elif isinstance(route, Route):
            yield route


def test_no_coroutine_of_monai_label_answers(client: TestClient) -> None:
    routes, slow = list(flat(client.app.routes)), list[str]()
    for declared in routes:
        for method in declared.methods or ():
            path = re.sub(r"{[^}]*}", "x", declared.path)
            scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
            asked = next(one for one in routes if one.matches(dict(scope))[0] is Match.FULL)
            of_theirs = asked.endpoint.__module__.startswith("monailabel")
            if of_theirs and inspect.iscoroutinefunction(asked.endpoint) and path not in QUICK:
                slow.append(f"{method} {declared.path}")
    assert len(routes) > 50 and slow == []


def test_the_datastore_answers_as_before(client: TestClient) -> None:
    added = {"file": ("passing.nii", nifti(scan(7)))}
    assert client.put("/datastore/image?image=passing", files=added).status_code == 200
    assert client.get("/datastore/image?image=passing").content == added["file"][1]
    assert client.get("/datastore/image/info?image=passing").json()["name"] == "passing.nii"
    assert client.get("/datastore/label?label=case&tag=sparse").content[:2] == b"\x1f\x8b"
    assert client.head("/datastore/label?image=case&tag=sparse").status_code == 200
    assert client.head("/datastore/label?image=passing&tag=sparse").status_code == 404
    assert client.delete("/datastore/image?id=passing").json() == {}
    assert client.get("/datastore/image?image=passing").status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_model_is_refused_before_it_is_received(
    client: TestClient, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answer = client.request(method, "/model/labelprop", files={"file": ("model.pt", b"x" * 100)})
    assert (answer.status_code, list(tmp_path.iterdir())) == (404, [])
    assert "/labelprop/checkpoints" in answer.json()["detail"]


def test_a_session_does_not_tell_where_the_server_keeps_it(client: TestClient, studies: Path) -> None:
    made = client.put("/session/", files={"files": SCAN})
    address = f"/session/{made.json()['session_id']}"
    answers = [made, client.get(address), client.delete(address)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    for answer in answers:
        assert str(studies.parent) not in answer.text and tempfile.gettempdir() not in answer.text
        assert answer.json().get("session_info", answer.json())["image"] == "DOE^JOHN.nii"
    assert client.get(address).status_code == client.delete(address).status_code == 404


@pytest.mark.parametrize("names", [["meta.info"], ["A/0001.dcm", "B/0001.dcm"]])
def test_no_file_of_a_session_takes_the_place_of_another(client: TestClient, names: list[str]) -> None:
    answer = client.put("/session/", files=[("files", (name, SCAN[1])) for name in names])
    assert answer.status_code == 400 and "a name of its own" in answer.json()["detail"]


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_stays_of_a_session_that_cannot_be_kept(
    client: TestClient, studies: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*moved: Any) -> None:
        raise OSError(28, "No space left on device")

    sessions = studies.parent / "sessions"
    before = sorted(sessions.glob("*"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("monailabel.utils.sessions.shutil.move", full)
    files = [("files", (f"{n}.nii", SCAN[1])) for n in range(count)]
    assert client.put("/session/", files=files).status_code == 507
    assert sorted(sessions.glob("*")) == before and not list(tmp_path.iterdir())


def test_a_scan_lies_where_only_its_owner_sees_it(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, save = list[int](), web.save_upload

    def look(upload: Any, folder: Path) -> Path:
        seen.append(folder.parent.stat().st_mode & 0o777)
        return save(upload, folder)

    monkeypatch.setattr("sliceprop.server.routes.save_upload", look)
    made = client.put("/session/", files={"files": SCAN}).json()["session_id"]
    assert seen == [0o700] and (studies.parent / "sessions" / made).stat().st_mode & 0o777 == 0o700


def test_processes_get_their_requests_through_a_pipe(client: TestClient) -> None:
    assert client.get("/info/").status_code == 200
    assert utils._task_func is background.run_task
