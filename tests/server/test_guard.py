import asyncio
from threading import Event

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sliceprop.errors import InputError
from sliceprop.server import guard
from sliceprop.server.guard import (
    LOOKUPS,
    NameGuard,
    check_body,
    check_names,
    check_unlike,
    inside,
    new_name,
    plain_filename,
    plain_name,
    route_path,
)


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "a\\b", "/etc/passwd", "../x", "a\0b", "a\nb", "x" * 201, "ä" * 101]
)
def test_names_that_could_leave_a_folder_are_refused(name):
    for check in (plain_name, new_name):
        with pytest.raises(InputError):
            check(name, "tag")


@pytest.mark.parametrize("name", ["final", "Schädel 3", "1.2.840.113619", "scan.v2", "a..b"])
def test_plain_names_pass(name):
    assert plain_name(name, "tag") == new_name(name, "tag") == name


@pytest.mark.parametrize(
    "name", ["DOE^JOHN", "scan (2)", "a~1", "a+b", "a:b", "a*", "$x", "con", "LPT1.x", ".a", "a.", " a", "a "]
)
def test_only_what_exists_may_be_called_strangely(name):
    assert plain_name(name, "image") == name
    with pytest.raises(InputError):
        new_name(name, "image")


@pytest.mark.parametrize(
    "code", [0x034F, 0x115F, 0x1160, 0x17B4, 0x180B, 0x180F, 0x3164, 0xFFA0, 0xFE0F, 0xE0100, 0x200B, 0xAD]
)
def test_nothing_new_is_called_by_what_nobody_sees(code):
    with pytest.raises(InputError):
        new_name(f"case3{chr(code)}", "image")


def test_invisible_letters_are_told_by_their_number():
    with pytest.raises(InputError, match=r"holds U\+3164;"):
        new_name("case3\u3164", "image")


@pytest.mark.parametrize(
    "name", ["../a.nii.gz", "a/../b.nii.gz", "/tmp/../etc/x.nii", "..\\b.nrrd", "..", "lab/b\0.nii"]
)
def test_file_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(InputError):
        plain_filename(name)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        *[("/var/Slicer-x/tmp1.nrrd", "tmp1.nrrd"), ("C:\\Temp\\t.nrrd", "t.nrrd"), ("l.bin", "l.bin"), (None, "")],
        *[("lab/disc.nii.gz", "disc.nii.gz"), ("./disc.nii.gz", "disc.nii.gz"), ("lab\\l.nrrd", "l.nrrd")],
    ],
)
def test_the_paths_of_stock_clients_are_cut_to_the_name(name, last):
    assert plain_filename(name) == last


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/datastore/image", "image=%2Fetc%2Fpasswd"),
        ("/datastore/label", "label=a&tag=..%2F..%2Fx"),
        ("/infer/labelprop", "image=..&x=1"),
        ("/datastore/image", "image=a&image=b"),
        ("/session/../x", ""),
        ("/session/a\\b", ""),
        ("/infer/labelprop", "session_id=..%2Fa"),
    ],
)
def test_requests_with_paths_as_names_are_refused(path, query):
    with pytest.raises(InputError):
        check_names(path, query)


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [
        ("/info/", "", {}),
        ("/proxy/dicom/qido/x", "id=a/b", {}),
        ("/datastore/label", "label=a%5Eb&tag=sparse&x=1", {"label": "a^b", "tag": "sparse"}),
    ],
)
def test_other_requests_pass_with_what_they_name(path, query, names):
    assert check_names(path, query) == names


@pytest.mark.parametrize(
    "body",
    [
        b'{"image": "../x"}',
        b'{"labelprop": {"image": "a/b"}}',
        b'{"init": ["a/b"]}',
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"a": ' * 33 + b"1" + b"}" * 33,
    ],
)
def test_bodies_with_paths_as_names_and_no_json_are_refused(body):
    with pytest.raises(InputError):
        check_body(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[1]", b"[" * 32 + b"1" + b"]" * 32, b'{"image": "a", "n": 3, "labels": [{"name": "L4/5"}]}'],
)
def test_other_bodies_pass(body):
    check_body(body)


def test_a_link_to_elsewhere_is_not_inside(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(folder / "file")
    assert inside(folder, folder / "in") == folder / "in"
    with pytest.raises(InputError, match="link"):
        inside(folder, folder / "out")


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        ("/train/", "", "/train/"),
        ("/x/train/", "/x", "/train/"),
        ("/xtrain/", "/x", "/xtrain/"),
        ("/train/", "/x", "/train/"),
    ],
)
def test_paths_are_seen_without_the_prefix_of_a_proxy(path, root, seen):
    assert route_path({"path": path, "root_path": root}) == seen


def test_an_archive_that_is_slow_holds_few_threads_and_nobody_who_does_not_ask_it():
    asked, answers, served = [], Event(), []

    def check(method, path, names):
        if names["image"] == "far":
            asked.append(names)
            assert answers.wait(60)

    async def app(scope, receive, send):
        served.append(scope["query_string"])

    async def ask():
        named = NameGuard(app, check, lambda method, path, names: names["image"] == "far")
        scope = {"type": "http", "method": "GET", "path": "/datastore/image", "headers": []}
        far = [asyncio.create_task(named({**scope, "query_string": b"image=far"}, None, None)) for _ in range(100)]
        while len(asked) < LOOKUPS:
            await asyncio.sleep(0)
        await named({**scope, "query_string": b"image=near"}, None, None)
        assert served == [b"image=near"] and len(asked) == LOOKUPS
        answers.set()
        await asyncio.gather(*far)
        assert len(served) == len(far) + 1

    asyncio.run(ask())


@pytest.mark.parametrize(("method", "waited_for"), [("GET", False), ("HEAD", False), ("POST", True), ("DELETE", False)])
def test_json_that_is_announced_with_get_is_not_waited_for(method, waited_for):
    """MONAI Label's client, once logged in, sends the headers of its last POST with the next GET or DELETE."""
    asked = []

    async def receive():
        asked.append("body")
        return {"type": "http.request", "body": b"{}"}

    async def app(scope, receive, send):
        asked.append("app")

    scope = {"type": "http", "method": method, "path": "/info/", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    asyncio.run(NameGuard(app, lambda *known: None)(scope, receive, None))
    assert asked == ["body", "app"][not waited_for :]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 413),
        ("application/x+json", 413),
        ("Application/GeoJSON+JSON ;x", 413),
        ("text/json", 413),
        ("application/octet-stream", 200),
        ("multipart/form-data; boundary=x+json", 200),
    ],
)
def test_json_by_any_name_is_small_and_names_plain_things(monkeypatch, kind, status):
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 20)

    async def answer(request):
        return PlainTextResponse(await request.body())

    client = TestClient(NameGuard(Starlette(routes=[Route("/infer/x", answer, methods=["POST"])]), lambda *known: None))
    headers = {"Content-Type": kind}
    assert client.post("/infer/x", content=b'{"n": 1}', headers=headers).text == '{"n": 1}'
    assert client.post("/infer/x", content=b'{"n": %s}' % (b"1" * 20), headers=headers).status_code == status
    assert client.post("/infer/x", content=b'{"image": "../x"}', headers=headers).status_code == min(status, 400)
    assert client.post("/train/x", content=b"x" * 21, headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("charset", "status"),
    [
        ("", 200),
        ("; charset=utf-8", 200),
        ('; charset="UTF-8"', 200),
        ("; charset=iso-8859-1", 200),
        ("; charset=punycode", 400),
        ('; CHARSET="Punycode"', 400),
        ("; charset=idna", 400),
        ("; charset=utf-7", 400),
    ],
)
def test_the_client_chooses_no_strange_encoding(charset, status):
    """In some a field of a megabyte takes minutes, in the event loop."""

    async def answer(request):
        return PlainTextResponse(str((await request.form()).get("a")))

    client = TestClient(NameGuard(Starlette(routes=[Route("/infer/x", answer, methods=["POST"])]), lambda *known: None))
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nok\r\n--b--\r\n'
    told = client.post("/infer/x", content=body, headers={"Content-Type": f"multipart/form-data; boundary=b{charset}"})
    assert told.status_code == status and (status == 400 or told.text == "ok")


@pytest.mark.parametrize("kind", [b"application/json", b"application/x-www-form-urlencoded", b""])
def test_of_a_request_whose_client_hangs_up_nothing_is_done(kind):
    done, answers = [], []
    messages = iter([{"type": "http.request", "body": b"a=b", "more_body": True}, {"type": "http.disconnect"}])

    async def app(scope, receive, send):
        done.append(await receive())

    async def receive():
        return next(messages)

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/batch/infer/labelprop", "query_string": b""}
    scope["headers"] = [(b"content-type", kind)]
    asyncio.run(NameGuard(app, lambda *known: None)(scope, receive, send))
    assert not done and answers[0]["status"] == 400


@pytest.mark.parametrize(("name", "other"), [("Knee", "knee"), ("M\u00fcller", "Mu\u0308ller"), ("ﬁn", "fin")])
def test_ids_that_look_alike_are_not_both_taken(name: str, other: str) -> None:
    for new, there in ((name, other), (other, name)):
        with pytest.raises(InputError, match="looks like"):
            check_unlike(new, ["arm", there])
    check_unlike(name, ["arm", name])


def test_a_folder_that_cannot_be_looked_at_is_told_of():
    def unreadable(*known):
        raise PermissionError(13, "Permission denied")

    client = TestClient(NameGuard(Starlette(), unreadable))
    answer = client.get("/", params={"image": "case"})
    assert answer.status_code == 507 and "Permission denied" in answer.json()["detail"]
