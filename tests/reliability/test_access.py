"""Who gets in: tokens, roles, addresses, pages of other sites."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("monailabel")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from sliceprop.errors import FileError, InputError
from sliceprop.server import access, sign_in
from sliceprop.server.access import Access, Policy, current_user, needed_role
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import TooSlowError
from sliceprop.server.health import problem
from sliceprop.server.sign_in import local_address, small_form
from sliceprop.tokens import ROLES, TokenFile, add_token, digest_of

METHODS = ["GET", "POST", "PUT", "DELETE"]


async def answer(request: Request) -> JSONResponse:
    return JSONResponse({"user": (await current_user(request)).username})


Opener = Callable[..., TestClient]


@pytest.fixture
def behind() -> Opener:
    """A client of a small application behind `Access`."""

    def opened(policy: Policy, address: str = "127.0.0.1", url: str = "http://127.0.0.1:8000") -> TestClient:
        api = Starlette(routes=[Route("/{path:path}", answer, methods=METHODS)])
        return TestClient(Access(api, policy), base_url=url, client=(address, 5), follow_redirects=False)

    return opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_without_tokens_this_machine_gets_in(behind: Opener, address: str) -> None:
    assert behind(Policy(), address).get("/info/").json() == {"user": "local"}


@pytest.mark.parametrize("address", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "2001:db8::1", "nonsense"])
def test_without_tokens_others_are_told_why_they_do_not(behind: Opener, address: str) -> None:
    refused = behind(Policy(), address).get("/info/")
    assert refused.status_code == 403 and "--token-file" in refused.json()["detail"]
    assert behind(Policy(insecure=True), address).get("/info/").status_code == 200


def test_a_name_that_only_points_here_is_refused(behind: Opener) -> None:
    assert behind(Policy(), url="http://evil.example:8000").get("/info/").status_code == 403
    for url in ("http://localhost:8000", "http://[::1]:8000", "http://192.0.2.7"):
        assert behind(Policy(), url=url).get("/info/").status_code == 200
    named = Policy.configured({"hosts": "scans.example, Other.example"}, frozenset())
    assert behind(named, url="http://other.example").get("/info/").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://127.0.0.1:8000.evil.example"]
)
def test_pages_of_other_sites_cannot_make_a_browser_write(behind: Opener, method: str, origin: str) -> None:
    client = behind(Policy(origins=frozenset({"https://viewer.example"})))
    assert client.request(method, "/train/labelprop", headers={"Origin": origin}).status_code == 403
    for own in ("http://127.0.0.1:8000", "https://viewer.example"):
        assert client.request(method, "/session/1", headers={"Origin": own}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("mode", ["navigate", "no-cors"])
def test_a_form_of_another_site_is_refused_also_by_a_browser_that_hides_where_it_comes_from(
    behind: Opener, site: str, mode: str
) -> None:
    told = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert behind(Policy()).post("/train/labelprop", headers=told).status_code == 403
    for own in ("same-origin", "none"):
        assert behind(Policy()).post("/train/labelprop", headers={**told, "Sec-Fetch-Site": own}).status_code == 200


def test_a_page_that_came_without_tls_is_none_of_a_server_with_it(behind: Opener) -> None:
    server = behind(Policy(insecure=True), "192.0.2.7", "https://scans.example")
    for scheme, status in (("http", 403), ("https", 200)):
        origin = {"Origin": f"{scheme}://scans.example"}
        assert server.post("/train/labelprop", headers=origin).status_code == status
    behind_proxy = behind(Policy(insecure=True), "192.0.2.7", "http://scans.example")
    assert behind_proxy.post("/train/labelprop", headers=origin).status_code == 200, "it need not tell that it has TLS"


def test_pages_of_other_sites_cannot_load_anything_but_be_followed(behind: Opener) -> None:
    fetched = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert behind(Policy()).get("/datastore/image", headers=fetched).status_code == 403
    assert behind(Policy()).get("/ohif/", headers={**fetched, "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("name", ["Origin", "Host"])
@pytest.mark.parametrize("strange", ["http://[", "[", "http://[::1", "http://[x]", "a]"])
def test_addresses_that_are_none_do_not_make_the_server_fail(
    behind: Opener, file: Path, name: str, strange: str
) -> None:
    add_token(file, "alice", "annotate")
    for policy in (Policy(), Policy(TokenFile(file))):
        for method in ("GET", "POST"):
            headers = {name: strange, "Accept": "text/html"}
            assert behind(policy).request(method, "/info/", headers=headers).status_code < 500


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_origin_or_a_host_that_is_no_address_is_refused(behind: Opener, method: str) -> None:
    for name, strange in (("Origin", "http://["), ("Host", "[")):
        refused = behind(Policy()).request(method, "/info/", headers={name: strange})
        assert refused.status_code == 403 and strange in refused.json()["detail"]


def test_a_token_is_asked_for_and_names_its_holder(behind: Opener, file: Path) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)), "192.0.2.7", "https://scans.example")
    missing = client.get("/info/")
    assert missing.status_code == 401 and missing.headers["WWW-Authenticate"] == "Bearer"
    for wrong in ("", "x", token[:-1], token + "x", "é", digest_of(token)):
        headers = {"Authorization": f"Bearer {wrong}".encode()}
        assert client.get("/info/", headers=headers).status_code == 401
    assert client.get("/info/", headers=bearer(token)).json() == {"user": "alice"}
    assert client.get("/healthz").status_code == 200


def test_what_is_stored_lets_nobody_in(behind: Opener, file: Path) -> None:
    token = add_token(file, "alice", "train")
    assert token not in file.read_text() and digest_of(token) in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_tokens_that_are_taken_away_or_added_count_at_once(behind: Opener, file: Path) -> None:
    first = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)))
    second = add_token(file, "bob", "annotate")
    assert client.get("/info/", headers=bearer(second)).json() == {"user": "bob"}
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n# alice left\n")
    assert client.get("/info/", headers=bearer(first)).status_code == 401
    file.write_text("damaged")
    assert client.get("/info/", headers=bearer(second)).status_code == 401


@pytest.mark.parametrize("harm", ["mistyped", "others may write", "gone"])
def test_a_file_that_is_damaged_meanwhile_is_told_of_and_blamed_on_no_token(
    behind: Opener, file: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = bearer(add_token(file, "alice", "annotate"))
    policy = Policy(TokenFile(file))
    client, before = behind(policy), file.read_text()
    (tmp_path / "studies").mkdir()
    store = LocalStudies(str(tmp_path / "studies"), watch=False)
    assert client.get("/info/", headers=token).status_code == 200 and not problem(store, policy)
    if harm == "mistyped":
        file.write_text(f"{before}bob annotat\n")
    elif harm == "others may write":
        file.chmod(0o622)
    else:
        file.unlink()
    for _ in range(access.MAX_FAILURES + 1):
        refused = client.get("/info/", headers=token)
        assert refused.status_code == 401 and "operator" in refused.json()["detail"]
    assert problem(store, policy) == "the file of tokens cannot be used"
    assert [record.exc_info for record in caplog.records if str(file) in record.message] == [None]
    file.write_text(before)
    file.chmod(0o600)
    assert client.get("/info/", headers=token).status_code == 200 and not problem(store, policy)


def test_a_token_gets_a_line_of_its_own(file: Path) -> None:
    tokens = {"alice": add_token(file, "alice", "train")}
    file.write_text(file.read_text().rstrip("\n"))
    tokens["bob"] = add_token(file, "bob", "annotate")
    file.write_text(file.read_text() + "# no newline behind this remark")
    tokens["carol"] = add_token(file, "carol", "annotate")
    holders = {name: TokenFile(file).holder(digest_of(token)) for name, token in tokens.items()}
    assert {name: holder and holder.name for name, holder in holders.items()} == {name: name for name in tokens}
    assert "\n\n" not in file.read_text()


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "alice annotate secret", "alice king sha256:" + "0" * 64, "alice sha256:" + "0" * 64]
)
def test_a_file_without_usable_tokens_is_refused_at_the_start(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(FileError, match="sliceprop token"):
        TokenFile(file)


def test_a_file_that_others_may_write_or_that_is_missing_is_refused(file: Path) -> None:
    with pytest.raises(FileError):
        TokenFile(file)
    add_token(file, "alice", "annotate")
    file.chmod(0o622)
    with pytest.raises(FileError, match="chmod"):
        TokenFile(file)


@pytest.mark.parametrize(("name", "role"), [("a b", "train"), ("", "train"), ("a\n", "train"), ("alice", "king")])
def test_holders_have_a_word_as_name_and_a_known_role(file: Path, name: str, role: str) -> None:
    with pytest.raises(InputError):
        add_token(file, name, role)
    assert not file.exists()


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/metrics", "watch"),
        ("GET", "/info/", "annotate"),
        ("PUT", "/datastore/label", "annotate"),
        ("POST", "/infer/labelprop", "annotate"),
        ("DELETE", "/session/1", "annotate"),
        ("GET", "/train/", "annotate"),
        ("POST", "/train/labelprop", "train"),
        ("DELETE", "/train/", "train"),
        ("POST", "/batch/infer/labelprop", "train"),
        ("PUT", "/labelprop/checkpoints/x", "train"),
        ("GET", "/labelprop/checkpoints/x", "annotate"),
        ("DELETE", "/datastore/", "administer"),
        ("DELETE", "/datastore/label", "administer"),
        ("DELETE", "/anything/new", "administer"),
        ("GET", "/logs/", "administer"),
        ("PUT", "/model/x", "administer"),
        ("POST", "/reload", "administer"),
    ],
)
def test_each_role_may_do_what_those_below_may(behind: Opener, file: Path, method: str, path: str, role: str) -> None:
    assert needed_role(method, path) == role
    tokens = {name: add_token(file, name, name) for name in ROLES}
    client = behind(Policy(TokenFile(file)))
    for name, token in tokens.items():
        status = client.request(method, path, headers=bearer(token)).status_code
        assert status == (200 if ROLES.index(name) >= ROLES.index(role) else 403)


def test_a_prefix_of_a_proxy_does_not_hide_the_role(file: Path) -> None:
    token = add_token(file, "alice", "annotate")
    api = Starlette(routes=[Route("/{path:path}", answer, methods=METHODS)])
    client = TestClient(Access(api, Policy(TokenFile(file))), root_path="/scans")
    assert client.post("/scans/train/labelprop", headers=bearer(token)).status_code == 403


def test_wrong_tokens_are_counted_per_address(behind: Opener, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)), "192.0.2.7")
    with caplog.at_level(logging.WARNING):
        wrong = [client.get("/info/", headers=bearer("guess")).status_code for _ in range(12)]
    assert wrong == [401] * access.MAX_FAILURES + [429] * (12 - access.MAX_FAILURES)
    assert "192.0.2.7" in caplog.text and "guess" not in caplog.text
    waiting = client.get("/info/", headers=bearer(token))
    assert waiting.status_code == 429 and int(waiting.headers["Retry-After"]) > 0


def test_wrong_tokens_of_one_do_not_keep_out_those_who_work_at_the_same_address(behind: Opener, file: Path) -> None:
    alice, bob, carol = (add_token(file, name, "annotate") for name in ("alice", "bob", "carol"))
    client = behind(Policy(TokenFile(file)), "192.0.2.7", "https://scans.example")
    assert client.get("/info/", headers=bearer(alice)).status_code == 200
    assert client.post("/sign-in", data={"token": bob}).status_code == 303
    client.cookies.clear()
    for _ in range(access.MAX_FAILURES):
        assert client.get("/info/", headers=bearer("guess")).status_code == 401
    for token in ("guess", carol):
        assert client.get("/info/", headers=bearer(token)).status_code == 429
    assert client.get("/info/", headers=bearer(alice)).json() == {"user": "alice"}
    assert client.post("/auth/token", data={"password": bob}).status_code == 200
    assert client.post("/sign-in", data={"token": alice}).status_code == 303

    file.write_text("".join(line for line in file.read_text().splitlines(True) if "alice" not in line))
    statuses = [client.get("/info/", headers=bearer(alice)).status_code for _ in range(2)]
    assert statuses == [401, 429], "a token that is taken away is a wrong one"


def test_cookies_of_strangers_are_not_unquoted(behind: Opener, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own way to read one may take seconds for its backslashes, during which nobody else is served."""
    monkeypatch.setattr("http.cookies._unquote", Mock(side_effect=AssertionError))
    token, quoted = add_token(file, "alice", "annotate"), 'a="{}"; b=1'.format("\\" * 60_000)
    client = behind(Policy(TokenFile(file)), "192.0.2.7", "https://scans.example")
    assert client.get("/info/", headers={"Cookie": quoted}).status_code == 401
    signed_in = client.post("/sign-in", data={"token": token}).headers["Set-Cookie"].partition(";")[0]
    client.cookies.clear()
    assert client.get("/info/", headers={"Cookie": f"{quoted};  {signed_in} ; c=2"}).json() == {"user": "alice"}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(access, "MAX_SIGNED_IN", 3)
    monkeypatch.setattr(access, "MAX_LET_IN", 3)
    failures, signed_in = access.Failures(), access.SignedIn()
    for number in range(10):
        failures.add(str(number), "digest", 0.0)
        failures.let_in("address", str(number))
        signed_in.add(str(number), 0.0)
    assert len(failures._times) == len(failures._let_in) == len(signed_in._known) == 3


def test_who_signs_in_again_and_again_signs_nobody_else_out() -> None:
    signed_in = access.SignedIn()
    alice, *bob = (signed_in.add(name, 0.0) for name in ("alice", *["bob"] * 2 * access.MAX_SIGNED_IN))
    assert signed_in.digest(alice, 1.0) == "alice"
    assert [signed_in.digest(one, 1.0) for one in bob[-access.MAX_BROWSERS :]] == ["bob"] * access.MAX_BROWSERS
    assert signed_in.digest(bob[-access.MAX_BROWSERS - 1], 1.0) is None


def test_a_browser_signs_in_once(behind: Opener, file: Path) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)), "192.0.2.7", "https://scans.example")
    sent = client.get("/ohif/viewer?StudyInstanceUIDs=1.2", headers={"Accept": "text/html"})
    assert sent.status_code == 303
    page = client.get(sent.headers["Location"])
    assert page.status_code == 200 and "<form" in page.text and "<script" not in page.text
    again = client.post(sent.headers["Location"], data={"token": "wrong"})
    assert again.status_code == 401 and "not known" in again.text and "Set-Cookie" not in again.headers

    done = client.post(sent.headers["Location"], data={"token": f" {token} "})
    assert (done.status_code, done.headers["Location"]) == (303, "/ohif/viewer?StudyInstanceUIDs=1.2")
    cookie = done.headers["Set-Cookie"].lower()
    assert {"httponly", "samesite=strict", "secure"} <= {part.strip() for part in cookie.split(";")}
    assert token not in done.headers["Set-Cookie"]
    assert client.get("/info/").json() == {"user": "alice"}

    file.write_text(file.read_text().replace("alice", "bob"))
    assert client.get("/info/").json() == {"user": "bob"}
    assert client.post("/sign-out", headers={"Origin": "https://evil.example"}).status_code == 403
    stolen = dict(client.cookies)
    assert client.post("/sign-out").status_code == 303
    assert client.get("/info/", cookies=stolen).status_code == 401


def test_clients_of_monai_label_give_the_token_as_password(
    behind: Opener, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)), "192.0.2.7", "https://scans.example")
    assert client.get("/auth/").json() == {"enabled": True}
    assert client.get("/auth/token/valid").status_code == 401
    for wrong in ({}, {"username": "alice"}, {"password": ""}, {"password": "guess"}, {"token": token}):
        refused = client.post("/auth/token", data=wrong)
        assert refused.status_code == 401 and token not in refused.text

    given = client.post("/auth/token", data={"username": "anybody", "password": f"{token}\n", "grant_type": "password"})
    assert given.json() == {"token_type": "Bearer", "access_token": token}
    assert given.headers["Cache-Control"] == "no-store" and "Set-Cookie" not in given.headers
    known = client.get("/auth/token/valid", headers=bearer(token)).json()
    assert (known["username"], known["roles"]) == ("alice", ["annotate"])
    assert "guess" not in caplog.text and token not in caplog.text


def test_passwords_are_not_guessed_faster_than_tokens(behind: Opener, file: Path) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)), "192.0.2.7")
    ways = [
        lambda: client.post("/auth/token", data={"password": "guess"}),
        lambda: client.post("/sign-in", data={"token": "guess"}),
        lambda: client.get("/info/", headers=bearer("guess")),
    ]
    assert [ways[n % 3]().status_code for n in range(access.MAX_FAILURES)] == [401] * access.MAX_FAILURES
    assert client.post("/auth/token", data={"password": token}).status_code == 429
    assert client.post("/auth/token", headers={"Origin": "https://evil.example"}).status_code == 403


def test_without_tokens_there_is_no_login(behind: Opener, client: TestClient) -> None:
    assert behind(Policy()).get("/auth/").json() == {"user": "local"}
    for path in ("/auth/", "/auth/token/valid"):
        assert client.get(path).status_code == 404, "which MONAI Label's clients take for no login"


@pytest.mark.parametrize("path", ["/auth/token", "/sign-in"])
def test_forms_of_strangers_are_short(behind: Opener, file: Path, path: str) -> None:
    token = add_token(file, "alice", "annotate")
    client = behind(Policy(TokenFile(file)))
    field = {"/auth/token": "password", "/sign-in": "token"}[path]
    assert client.post(path, data={field: "x" * sign_in.MAX_FORM_BYTES}).status_code == 413
    for strange in (b"", b"\xff=\0&&==", b"{}", field.encode(), b"&" * 9000):
        assert client.post(path, content=strange).status_code == 401
    many = {f"field {n}": "" for n in range(50)} | {field: token}
    assert client.post(path, data=many).status_code in (200, 303)


def test_forms_of_strangers_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(sign_in, "FORM_S", 0.01)
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(TooSlowError):
        asyncio.run(small_form(request))


def test_a_cookie_grows_old() -> None:
    signed_in = access.SignedIn()
    cookie = signed_in.add("digest", now=0.0)
    assert signed_in.digest(cookie, now=access.SIGNED_IN_S - 1) == "digest"
    assert signed_in.digest(cookie, now=access.SIGNED_IN_S) is None
    assert signed_in.digest("other", now=0.0) is None


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil", "evil", "", "/a\r\nSet-Cookie: x"],
)
def test_signing_in_leads_nowhere_else(target: str) -> None:
    assert local_address(target) == "/ohif/"


def test_every_answer_forbids_frames_of_others_what_other_hosts_send_and_guessing_types(behind: Opener) -> None:
    for answer in (behind(Policy()).get("/info/"), behind(Policy(), "192.0.2.7").get("/info/")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        allowed = answer.headers["Content-Security-Policy"]
        assert allowed.startswith("default-src 'self'") and "frame-ancestors 'self'" in allowed
        assert "http" not in allowed and "*" not in allowed


def test_the_whole_server_lets_no_page_of_another_site_in(client: TestClient) -> None:
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
    for answer in (client.options("/info/", headers=preflight), client.get("/info/", headers=preflight)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert client.put("/labelprop/labels", json={}, headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_no_page_about_the_requests_loads_scripts_from_elsewhere(client: TestClient, path: str) -> None:
    told = client.get(path)
    assert "html" not in told.headers["Content-Type"] and "http" not in told.text
    assert (told.status_code == 200 and "POST    /infer/{model}" in told.text) or path == "/redoc"
    assert "/infer/{model}" in client.get("/openapi.json").json()["paths"]
