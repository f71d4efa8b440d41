"""No name of a patient in any log, one line of the audit for what was done."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("monailabel")

from monailabel.utils.async_tasks import utils
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from serving import nifti, only, scan, truth
from sliceprop.audit import AuditLog
from sliceprop.server.app import LabelPropApp
from sliceprop.server.audit import KNOWN, Auditor, event_of, study_of
from sliceprop.server.errors import ForbiddenError, refusal
from sliceprop.server.guard import MAX_NAME
from sliceprop.server.health import Counters
from sliceprop.server.logs import Redaction, used_names
from sliceprop.tokens import Holder

PATIENTS = [
    "DOE^JOHN^^DR^",
    "Müller^Jürgen",
    "山田^太郎=ヤマダ^タロウ",
    "O'NEIL^SEAN 1970-01-01",
    "1.2.840.113619.2.55.3.604688.12.1",
    "PAT 00123456",
]


def add_study(client: TestClient, image: str) -> None:
    files = {"file": ("f.nii", nifti(scan()))}
    assert client.put("/datastore/image", params={"image": image}, files=files).status_code == 200
    label = {"label": ("l.nii", nifti(only(truth())))}
    assert client.put("/datastore/label", params={"image": image, "tag": "sparse"}, files=label).status_code == 200


@pytest.fixture
def logged(client: TestClient) -> Iterator[io.StringIO]:
    """Everything that any logger of the process writes, formatted."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client, not the server
    watched = [logging.getLogger(name) for name in ("", "uvicorn", "uvicorn.access", "task_train")]
    levels = [one.level for one in watched]
    for one in watched:
        one.addHandler(handler)
        one.setLevel(logging.DEBUG)
    yield stream
    for one, level in zip(watched, levels, strict=True):
        one.removeHandler(handler)
        one.setLevel(level)


@pytest.mark.parametrize("patient", PATIENTS)
def test_the_work_on_a_study_leaves_no_name_in_the_log(
    client: TestClient, studies: Path, logged: io.StringIO, patient: str
) -> None:
    (studies / f"{patient}.nii").write_bytes((studies / "case.nii").read_bytes())
    image = {"image": patient}
    label = {"label": ("l.nii", nifti(only(truth())))}
    assert client.put("/datastore/label", params={**image, "tag": "sparse"}, files=label).status_code == 200
    client.put("/datastore/label", params=image, files={"label": ("l.nii", b"damaged")})
    client.post("/infer/labelprop", params=image, data={"params": '{"method": "nearest"}'})
    client.post("/infer/labelprop", params=image, data={"params": '{"method": "magic"}'})
    client.post("/activelearning/next_slice", json={**image, "plan": "centres"})
    client.get("/labelprop/result", params=image)
    client.get("/datastore/label/info", params={"label": patient, "tag": "nope"})
    client.get("/datastore/image", params={"image": f"{patient} unknown"})
    client.delete("/datastore/image", params={"id": patient})
    logging.getLogger("anything").error("cannot read %s", studies / f"{patient}.nii")
    try:
        raise OSError(f"{studies / patient}.nii: no such file")
    except OSError:
        logging.getLogger("anything").exception("failed")
    written = logged.getvalue()
    assert "study-" in written and "no such file" in written
    assert patient not in written
    words = [
        word for word in patient.replace("^", " ").replace("=", " ").split() if len(word) > 3 or not word.isascii()
    ]
    assert words and not [word for word in words if word in written]


def test_warnings_of_python_are_logged_without_names(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    with warnings.catch_warnings(action="always"):
        logging.captureWarnings(False)
        Redaction(lambda: ["DOE^JOHN"], lambda name: "0123").install()
        warnings.warn("DOE^JOHN cannot be watched", RuntimeWarning, stacklevel=1)
        logging.captureWarnings(False)
    logging.setLogRecordFactory(before)
    assert "study-0123 cannot be watched" in caplog.text and "DOE" not in caplog.text


def test_lines_about_requests_hide_names_however_they_are_written() -> None:
    redaction = Redaction(lambda: ["DOE^JOHN"], lambda name: "0123")
    line = line_of(redaction, "GET", "/session/DOE%5eJOHN?image=%44%4F%45%5EJOHN")
    assert line == '127.0.0.1:5 - "GET /session/study-0123 HTTP/1.1" 200'


def line_of(redaction: Redaction, method: str, path: str) -> str:
    """What uvicorn logs of a request."""
    about = ("127.0.0.1:5", method, path, "1.1", 200)
    return redaction.record("uvicorn.access", logging.INFO, "x", 1, '%s - "%s %s HTTP/%s" %d', about, None).getMessage()


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/labelprop/checkpoints/R%C3%96E%5eJANE", "/labelprop/checkpoints/study-<RÖE^JANE>"),
        ("/x/proxy/dicom/wado/studies/1.2.34/series/2.25.6/metadata", "/studies/study-<1.2.34>/series/study-<2.25.6>/"),
        ("/static/app.1.js", "/static/app.1.js"),
        (f"/x/{'~' * 60_000}", "/x/... "),
        ("/x%0aINFO:%20all%20is%20well", "/x?INFO: all is well"),
    ],
)
def test_paths_of_requests_are_logged_in_short_and_without_ids_nobody_knows(path: str, logged: str) -> None:
    line = line_of(Redaction(lambda: [], lambda name: f"<{name}>"), "GET" * 20_000, path)
    assert logged in line and len(line) < 200


def test_an_id_like_a_word_of_the_log_falsifies_no_address() -> None:
    redaction = Redaction(lambda: ["127.0.0.1", "GET"], lambda name: "0123")
    assert line_of(redaction, "GET", "/127.0.0.1/x").startswith('127.0.0.1:5 - "GET /study-')


def test_file_names_that_are_no_text_do_no_harm() -> None:
    name = "DOE\udcff"
    assert "DOE" not in Redaction(lambda: [name], lambda name: "0123")(f"{name} and {name!r}")


def test_whole_ids_are_replaced_and_parts_of_words_are_not() -> None:
    redaction = Redaction(lambda: ["scan", "scan 2", "ab"], lambda name: f"<{name}>")
    assert redaction("scan 2 of scan; scanner ab") == "study-<scan 2> of study-<scan>; scanner ab"
    assert redaction("/x/scan_labels.nii") == "/x/study-<scan>_labels.nii"


def test_a_traceback_that_cannot_be_formatted_is_logged_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr("traceback.format_exception", fail)
    raised = (OSError, OSError("DOE^JOHN.nii is missing"), None)
    record = Redaction(lambda: ["DOE^JOHN"], lambda name: "0123").record(
        "x", logging.ERROR, "x", 1, "failed", (), raised
    )
    assert record.exc_text == "OSError: study-0123.nii is missing"


def test_a_message_that_cannot_be_formatted_is_logged_all_the_same() -> None:
    record = Redaction(lambda: [], str).record("x", logging.INFO, "x", 1, "%d of %s", ("many",), None)
    assert record.getMessage() == "%d of %s"


def lines_of(client: TestClient, studies: Path, study: str) -> list[tuple[str, str, int]]:
    found = AuditLog(studies / ".labelprop").lines(study)
    return [(line["event"], line["route"], line["status"]) for line in found]


def test_every_use_of_a_study_is_a_line_of_the_audit(client: TestClient, studies: Path) -> None:
    add_study(client, "audited")
    client.get("/datastore/image?image=audited")
    client.post("/infer/labelprop?image=audited&output=json", data={"params": '{"method": "nearest"}'})
    client.get("/labelprop/export?image=audited&format=.nii.gz")
    client.post("/train/labelprop", json={"image": "audited", "budget_s": -1})
    client.post("/scoring/nope", json={"image": "audited"})
    client.put("/labelprop/labels", json={}, headers={"Origin": "http://evil.example"})
    client.delete("/datastore/image?id=audited")
    assert lines_of(client, studies, "audited") == [
        ("write", "/datastore/image", 200),
        ("write", "/datastore/label", 200),
        ("read", "/datastore/image", 200),
        ("compute", "/infer/{model}", 200),
        ("export", "/labelprop/export", 200),
        ("delete", "/datastore/image", 200),
    ]
    text = (studies / ".labelprop" / "audit.jsonl").read_text()
    last = json.loads(text.splitlines()[-1])
    assert {"time", "event", "user", "client", "method"} <= last.keys() and last["client"] == "127.0.0.1"
    assert '"event": "refused"' in text and "audited" not in text


def knock(log: AuditLog, times: int, address: str = "192.0.2.7", **state: object) -> None:
    """Requests with endless names that are refused, those of `holder` in `state` or of a stranger."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = state
        await refusal(ForbiddenError("no"))(scope, receive, send)

    client = TestClient(Auditor(refuse, lambda: log, Counters()), client=(address, 5))
    for number in range(times):
        client.request("X" * 5000, f"/{'~' * 5000}", params={"image": f"{number} {'!' * 5000}"})


def test_strangers_fill_neither_memory_nor_disk(tmp_path: Path) -> None:
    log, before = AuditLog(tmp_path), used_names.all()
    for address in ("192.0.2.7", "192.0.2.8"):
        knock(log, 20, address)
    lines = list(log.lines())
    assert [(one["event"], one["client"]) for one in lines] == [("refused", "192.0.2.7"), ("refused", "192.0.2.8")]
    assert used_names.all() == before
    knock(log, 2, holder=Holder("alice", "annotate"))
    assert [one["user"] for one in log.lines()] == [None, None, "alice", "alice"]
    assert (tmp_path / "audit.jsonl").stat().st_size < 4 * 500


def test_only_names_of_studies_are_kept_out_of_the_log(client: TestClient) -> None:
    add_study(client, "kept out")
    for image in ("kept out", "token", "127.0.0.1"):
        client.get("/datastore/image", params={"image": image})
        client.post("/infer/labelprop", params={"image": image}, data={"params": '{"method": "magic"}'})
    assert client.delete("/datastore/image", params={"id": "kept out"}).status_code == 200
    assert "kept out" in used_names.all() and not {"token", "127.0.0.1"} & set(used_names.all())
    assert max(len(name.encode()) for name in used_names.all()) <= MAX_NAME


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0 refused", "fe80::1"),
        ("somebody\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_proxy_can_name_addresses_only(tmp_path: Path, told: str, known: str) -> None:
    log = AuditLog(tmp_path)
    knock(log, 1, told)
    assert [line["client"] for line in log.lines()] == [known]


def test_an_upload_is_a_line_of_the_study_that_its_file_names(client: TestClient, studies: Path) -> None:
    for path in ("/datastore/", "/datastore/image"):
        assert client.put(path, files={"file": ("by name.nii", nifti(scan()))}).status_code == 200
    assert lines_of(client, studies, "by name") == [("write", "/datastore/", 200), ("write", "/datastore/image", 200)]


@pytest.mark.parametrize(("model", "status"), [("labelprop", 200), ("threshold_islands", 400)])
def test_a_scan_that_came_with_a_request_goes_with_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, status: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = {"file": ("Doe_John.nii", nifti(scan()))}
    assert client.post(f"/infer/{model}?output=image", files=files, data={"params": "{}"}).status_code == status
    assert not list(tmp_path.iterdir())


def test_every_study_of_a_batch_has_a_line(client: TestClient, studies: Path) -> None:
    for image in ("batch a", "batch b"):
        add_study(client, image)
    params = {"method": "nearest", "label_tag": "round_one", "user": "somebody else"}
    answer = client.post("/batch/infer/labelprop?run_sync=true", json=params)
    assert answer.status_code == 200, answer.text
    for image in ("batch a", "batch b"):
        *_, last = AuditLog(studies / ".labelprop").lines(image)
        assert (last["event"], last["route"], last["done"]) == ("compute", "/batch/infer/{model}", True)
        assert last["user"] == "local"


def test_every_study_of_an_exported_dataset_has_a_line(client: TestClient, studies: Path) -> None:
    for image in ("export a", "export b"):
        add_study(client, image)
        assert client.post("/labelprop/final", params={"image": image}).status_code == 200
    add_study(client, "export c")
    assert client.get("/datastore/dataset").status_code == 200
    exported = ("export", "/datastore/dataset", 200)
    assert [exported in lines_of(client, studies, f"export {name}") for name in "abc"] == [True, True, False]


def test_every_version_says_who_made_it(client: TestClient) -> None:
    add_study(client, "whose")
    image, agent = {"image": "whose"}, {"User-Agent": "viewer\x7f 1.0"}
    client.post("/infer/labelprop", params=image, data={"params": '{"method": "nearest"}'})
    requests = [("POST", "/labelprop/final", image), ("POST", "/labelprop/restore", {**image, "version": 1})]
    requests += [("DELETE", "/datastore/label", {"id": "whose", "tag": "sparse"})]
    requests += [("DELETE", "/datastore/label", {"id": "whose", "tag": "final"})]
    for method, path, query in requests:
        answer = client.request(method, path, params=query, headers=agent)
        assert answer.status_code == 200, answer.text
    versions = client.get("/labelprop/versions", params=image).json()["versions"]
    assert [one["event"] for one in versions] == ["removed", "removed", "restored", "final", "submitted"]
    assert all(one["by"] == {"user": "local", "client": "viewer 1.0"} for one in versions[:-1])
    assert versions[-1]["by"] == {"user": "local", "client": "testclient"}


def test_the_line_of_a_training_names_its_study(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_study(client, "learnt")
    answer = client.post("/train/labelprop?run_sync=true", json={"image": "learnt", "budget_s": 0.1})
    assert answer.status_code == 200, answer.text
    assert ("train", "/train/{model}", 200) in lines_of(client, studies, "learnt")


def test_the_lines_about_a_model_name_the_study_that_it_learnt_on(client: TestClient, studies: Path) -> None:
    add_study(client, "modelled")
    path = "/labelprop/checkpoints/modelled"
    assert client.get(path).status_code == 404 and client.put(path, content=b"none").status_code == 400
    route = "/labelprop/checkpoints/{checkpoint_id}"
    assert lines_of(client, studies, "modelled")[-2:] == [("export", route, 404), ("write", route, 400)]


def test_the_line_of_a_training_that_is_stopped_names_its_study(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"request": {"image": "stopped"}, "status": "STOPPED"}
    monkeypatch.setattr("sliceprop.server.routes.train.stop", lambda: task)
    assert client.delete("/train/").json()["details"] == ["stopped"]
    assert lines_of(client, studies, "stopped") == [("train", "/train/", 200)]


def test_what_a_process_prints_is_for_the_log_only(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of it name the folder of the studies and the file of tokens."""
    request = {"model": "labelprop", "image": "x"}
    for method, path in (("train", "/train/"), ("scoring", "/scoring/"), ("batch_infer", "/batch/infer")):
        task = {"id": method, "status": "ERROR", "request": request, "details": ["/secret/place"]}
        monkeypatch.setitem(utils.background_tasks, method, [task])
        monkeypatch.setitem(utils.background_processes, method, {})
        last, every = (client.get(path, params={"all": one}).json() for one in (False, True))
        assert [last] == every == [{**task, "details": ["error"]}]
        assert client.delete(path).status_code == 200
    monkeypatch.setattr(LabelPropApp, "training", lambda *_: {"error": "the memory is full"})
    assert client.get("/train/").json()["details"] == ["the memory is full"]


def test_paths_that_are_none_leave_no_name_in_the_audit(client: TestClient, studies: Path) -> None:
    for path in ("/Muster_Eva/x", "/Muster_Eva", "/datastore/Muster_Eva/x"):
        assert client.get(path).status_code == 404
    text = (studies / ".labelprop" / "audit.jsonl").read_text()
    assert "Muster" not in text
    assert [json.loads(line)["route"] for line in text.splitlines()[-3:]] == ["other", "other", "/datastore"]
    assert {path.split("/")[1] for path in client.app.openapi()["paths"]} - {""} <= KNOWN


@pytest.mark.parametrize(
    ("method", "path", "event"),
    [
        ("GET", "/datastore/image", "read"),
        ("HEAD", "/datastore/label", "read"),
        ("GET", "/labelprop/export", "export"),
        ("GET", "/labelprop/checkpoints/a", "export"),
        ("POST", "/activelearning/next_slice", "compute"),
        ("DELETE", "/train/", "train"),
        ("DELETE", "/datastore/label", "delete"),
        ("POST", "/sign-in", "sign-in"),
    ],
)
def test_events_have_few_names(method: str, path: str, event: str) -> None:
    assert event_of(method, path) == event


def test_what_a_viewer_reads_is_a_study_too() -> None:
    assert study_of("/proxy/dicom/wado/studies/1.2/series/1.3/instances/1.4/frames/1", "") == "1.3"
    assert study_of("/datastore/label", "label=a%5Eb&tag=x") == "a^b"
    assert study_of("/info/", "") == ""
    assert study_of("/info/", f"image={'x' * 5000}") == "x" * MAX_NAME


def test_hashes_are_stable_and_keyed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first, again, other = AuditLog(tmp_path / "a"), AuditLog(tmp_path / "a"), AuditLog(tmp_path / "b")
    assert first.study_hash("DOE^JOHN") == again.study_hash("DOE^JOHN") != other.study_hash("DOE^JOHN")
    assert (tmp_path / "a" / "audit.key").stat().st_mode & 0o077 == 0


def test_lines_are_appended_and_damaged_ones_do_no_harm(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.record("read", study="a", tag="x")
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"event": "wri\n')
    AuditLog(tmp_path).record("erase", study="b")
    assert [line["event"] for line in log.lines()] == ["read", "erase"]
    assert [line["event"] for line in log.lines("b")] == ["erase"]
    assert "tag" in next(log.lines("a"))


def test_work_goes_on_when_the_audit_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    AuditLog(tmp_path / "file").record("read", study="a")
    assert "could not be written" in caplog.text


def test_operators_see_health_and_figures(client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (200, "ok")
    client.get("/datastore/image?image=nope")
    figures = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(figures['sliceprop_requests_total{method="GET",status="4xx"}']) >= 1
    assert float(figures["sliceprop_jobs_running"]) == 0 and float(figures["sliceprop_studies"]) >= 1
    assert (
        figures["sliceprop_request_duration_seconds_count"]
        == figures['sliceprop_request_duration_seconds_bucket{le="+Inf"}']
    )
    audit = studies / ".labelprop" / "audit.jsonl"
    kept = audit.rename(studies / "kept")
    audit.mkdir()
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (503, "the audit cannot be written")
    audit.rmdir()
    kept.rename(audit)
    away = (studies / "labels").rename(studies / "away")
    assert client.get("/healthz").text == "the folder of the studies is out of reach"
    away.rename(studies / "labels")
    monkeypatch.setattr("sliceprop.server.health.LEAST_FREE_BYTES", 1 << 80)
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (503, "the disk is full")
