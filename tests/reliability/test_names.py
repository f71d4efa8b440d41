"""Names that try to mean a place elsewhere, at every route and in every position where a client can name something."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("monailabel")

import nibabel as nib
import numpy as np
from fastapi.routing import APIRoute
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from starlette.testclient import TestClient

from serving import AFFINE, nifti, only, scan, truth
from sliceprop.erasure import erase_study
from sliceprop.server import export_routes, operator_routes, panel_routes, routes, version_routes
from sliceprop.server import proxy as own_proxy

STOCK = (activelearning, batch_infer, datastore, infer, info, logs, model, ohif, proxy, scoring, session, train)
OWN = (routes, operator_routes, panel_routes, version_routes, export_routes, own_proxy)
ROUTES = sorted(
    {
        (method, route.path)
        for module in (*STOCK, wsi_infer, *OWN)
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
)
FILES_OF_THE_VIEWER = ("/ohif/", "/proxy/")
NAMELESS = {
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/info/"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/logs/"),
    ("GET", "/labelprop/checkpoints"),
    ("GET", "/labelprop/progress"),
    ("PUT", "/labelprop/labels"),
    ("DELETE", "/train/"),
    ("DELETE", "/scoring/"),
    ("DELETE", "/batch/infer"),
}
"""Routes that name nothing and leave unknown parameters alone."""
SECRET = b"PatientName=DOE^JOHN"

LABEL, IMAGE = nifti(only(truth())), nifti(scan())

EVIL = [
    "..",
    ".",
    "../secret",
    "../secret.nii.gz",
    "....//secret",
    "a/../../secret",
    "..\\secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "/etc/passwd",
    "//server/share/secret",
    "\\\\server\\share\\secret",
    "C:\\secret",
    "C:secret",
    "file:///etc/passwd",
    "~",
    "~root/.bashrc",
    "secret\0.nii.gz",
    "secret\n",
    "\u202esecret",
    "..;/secret",
    "‥/secret",
    "．．／secret",
    "a" * 300,
    "ä" * 150,
    "$(id)",
    "`id`",
    "%s%n",
    "'; drop table x; --",
    "link",
]
STRANGE_NEW = [name for name in EVIL if name != "link"] + [
    "a~b",
    "CON",
    "nul.x",
    " a",
    "a ",
    ".a",
    "a.",
    "a:b",
    "a*",
    "a?b",
]


@pytest.fixture(scope="module")
def guarded(client: TestClient, studies: Path) -> TestClient:
    """The server, with a link out of its folder, a secret beside that, and a file with an old-fashioned name in it."""
    secret = studies.parent / "secret.nii.gz"
    image = nib.Nifti1Image(scan(), AFFINE)
    image.header["descrip"] = SECRET
    nib.save(image, secret)
    (studies.parent / "secret.raw").write_bytes(only(truth()).tobytes(order="F"))
    (studies / "link.nii.gz").symlink_to(secret)
    (studies / "Müller^Jürgen (2)~1.nii").write_bytes(nifti(scan(3)))
    (studies.parent / "elsewhere").mkdir()
    (studies / "labels" / "leak").symlink_to(studies.parent / "elsewhere")
    return client


@pytest.fixture
def unharmed(studies: Path) -> Iterator[None]:
    """Nothing appears, changes or goes outside of the studies folder."""

    def outside() -> dict[str, float]:
        found = {}
        for folder, _, files in os.walk(studies.parent):
            if not Path(folder).is_relative_to(studies) and "sessions" not in folder:
                found |= {str(file): file.stat().st_mtime for file in (Path(folder) / name for name in files)}
        return found

    before = outside()
    yield
    assert outside() == before


def refused(status: int) -> bool:
    return 400 <= status < 500


def filled(path: str, name: str) -> str:
    """The path with a name in it, its dots escaped, which clients would resolve otherwise."""
    return re.sub(r"\{[^}]*\}", quote(name, safe="").replace(".", "%2E"), path)


def forms(name: str) -> dict[str, Any]:
    """Every part of a form that any route takes; only what a name can do is tried, so the label is a good one."""
    return {
        "files": {"label": ("l.nii", LABEL), "file": ("f.nii", IMAGE)},
        "data": {
            "params": json.dumps({"image": name, "init": name, "label_tag": name, "save_label": True}),
            "info": "{}",
        },
    }


def body(method: str, path: str, name: str) -> dict[str, Any]:
    if method in ("GET", "HEAD", "DELETE"):
        return {}
    if any(path.startswith(start) for start in ("/train", "/activelearning", "/scoring", "/batch", "/infer/wsi")):
        return {"json": {"image": name, "id": name, "label_tag": name, "init": name}}
    if path == "/labelprop/labels":
        return {"json": {"labels": [{"name": "x", "id": name}], "id": name}}
    return forms(name)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.usefixtures("unharmed")
def test_no_route_takes_a_name_for_a_place_elsewhere(guarded: TestClient, method: str, path: str) -> None:
    for name in EVIL:
        query = dict.fromkeys(("image", "id", "label", "tag", "session_id", "version", "checkpoint_id"), name)
        answers = [guarded.request(method, filled(path, "x"), params=query, **body(method, path, name))]
        if "{" in path:
            answers.append(guarded.request(method, filled(path, name), **body(method, path, "case")))
        for answer in answers:
            assert SECRET not in answer.content and b"root:x:0" not in answer.content
            assert answer.status_code < 500, (name, answer.text[:300])
            if not path.startswith(FILES_OF_THE_VIEWER) and (method, path) not in NAMELESS:
                assert refused(answer.status_code), (name, answer.status_code, answer.text[:300])


@pytest.mark.parametrize("key", ["image", "id", "label", "tag"])
@pytest.mark.parametrize(("method", "path"), [one for one in ROUTES if one[1].startswith("/datastore")])
@pytest.mark.usefixtures("unharmed")
def test_one_bad_name_among_good_ones_is_enough(guarded: TestClient, method: str, path: str, key: str) -> None:
    if path in ("/datastore/dataset",) or (method, path) == ("GET", "/datastore/"):
        pytest.skip("names nothing")
    good = {"image": "case", "id": "case", "label": "case", "tag": "sparse"}
    if key == "tag" and "label" not in path:
        pytest.skip("takes no tag")
    for name in ["../secret", "/etc/passwd", "~", "C:\\secret", "secret\0.nii.gz", *(["link"] if key != "tag" else [])]:
        answer = guarded.request(method, path, params={**good, key: name}, **body(method, path, "case"))
        assert refused(answer.status_code), (name, answer.status_code, answer.text[:300])
    assert guarded.get("/datastore/image", params={"image": "case"}).status_code == 200
    assert guarded.get("/datastore/label", params={"label": "case", "tag": "sparse"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/datastore/image?image=nope"),
        ("HEAD", "/datastore/image?image=nope"),
        ("GET", "/datastore/image/info?image=nope"),
        ("PUT", "/datastore/image/info?image=nope"),
        ("GET", "/datastore/label?label=nope&tag=final"),
        ("GET", "/datastore/label?label=case&tag=nope"),
        ("HEAD", "/datastore/label?image=case&tag=nope"),
        ("GET", "/datastore/label/info?label=case&tag=nope"),
        ("GET", "/datastore/label/info?label=nope&tag=sparse"),
        ("PUT", "/datastore/label/info?label=case&tag=nope"),
        ("PUT", "/datastore/updatelabelinfo?label=nope&tag=sparse"),
        ("PUT", "/datastore/?id=nope"),
        ("PUT", "/datastore/image?image=fresh&id=nope"),
        ("PUT", "/datastore/image?image=fresh&label=nope"),
        ("DELETE", "/datastore/?id=nope"),
        ("DELETE", "/datastore/image?id=nope"),
        ("DELETE", "/datastore/label?id=nope&tag=sparse"),
        ("DELETE", "/datastore/label?id=case&tag=nope"),
        ("PUT", "/datastore/label?image=nope&tag=sparse"),
        ("GET", "/session/nope"),
        ("DELETE", "/session/nope"),
        ("GET", "/model/nope"),
        ("GET", "/model/info/nope"),
        ("PUT", "/model/labelprop"),
        ("DELETE", "/model/labelprop"),
        ("GET", "/datastore/?output=nope"),
        ("GET", "/datastore/dataset"),
        ("GET", "/datastore/image?image=case&image=../secret"),
        ("GET", "/proxy/dicom/qido/studies"),
        ("POST", "/proxy/dicom/stow/studies"),
        ("POST", "/proxy/dicom/wado/studies"),
        ("GET", "/logs/?lines=-1"),
        ("GET", "/ohif/%2e%2e"),
        ("POST", "/reload"),
    ],
)
def test_what_does_not_exist_is_refused_on_every_method(guarded: TestClient, method: str, address: str) -> None:
    path = address.partition("?")[0]
    answer = guarded.request(method, address, **body(method, path, "case"))
    assert refused(answer.status_code), (answer.status_code, answer.text[:300])


SERVERS = ['{"path": "/etc/passwd"}', '{"InstanceNumbers": "x"}', '{"batch": {"error": null}}']


@pytest.mark.parametrize("info", ["[1]", "3", "{", "[" * 99_999, *SERVERS])
def test_what_the_server_keeps_of_a_study_is_not_for_clients_to_change(guarded: TestClient, info: str) -> None:
    for address, part in (
        ("/datastore/image/info?image=case", "info"),
        ("/datastore/label/info?label=case&tag=sparse", "info"),
        ("/datastore/updatelabelinfo?label=case&tag=sparse", "params"),
    ):
        assert refused(guarded.put(address, data={part: info}).status_code)
        assert guarded.put(address, data={part: '{"reader": "alice"}'}).status_code == 200
    assert guarded.get("/datastore/image/info?image=case").json()["reader"] == "alice"


@pytest.mark.parametrize("address", ["/datastore/image?image=", "/datastore/?image="])
@pytest.mark.usefixtures("unharmed")
def test_new_images_get_ordinary_names(guarded: TestClient, studies: Path, address: str) -> None:
    before = sorted(studies.iterdir())
    for name in STRANGE_NEW:
        upload = {"file": ("f.nii", IMAGE)}
        answer = guarded.put(address + quote(name, safe=""), files=upload)
        assert refused(answer.status_code), (name, answer.status_code)
    assert sorted(studies.iterdir()) == before


@pytest.mark.parametrize("name", ["Schädel 3", "患者-7", "1.2.840.113619", "scan_v2.1", "Иванов", "दर्द"])
def test_letters_and_digits_of_any_script_are_ordinary(guarded: TestClient, name: str) -> None:
    upload = {"file": ("f.nii", IMAGE)}
    assert guarded.put("/datastore/image", params={"image": name}, files=upload).status_code == 200
    assert guarded.head("/datastore/image", params={"image": name}).status_code == 200
    label = {"label": ("l.nii", LABEL)}
    assert guarded.put("/datastore/label", params={"image": name, "tag": name}, files=label).status_code == 200
    assert guarded.get("/datastore/label", params={"label": name, "tag": name}).status_code == 200
    assert guarded.delete("/datastore/label", params={"id": name, "tag": name}).status_code == 200
    assert guarded.delete("/datastore/image", params={"id": name}).status_code == 200


@pytest.mark.parametrize("tag", [*STRANGE_NEW, "leak"])
@pytest.mark.usefixtures("unharmed")
def test_new_tags_get_ordinary_names(guarded: TestClient, studies: Path, tag: str) -> None:
    label = {"label": ("l.nii", LABEL)}
    answer = guarded.put("/datastore/label", params={"image": "case", "tag": tag}, files=label)
    assert refused(answer.status_code)


@pytest.mark.parametrize("tag", STRANGE_NEW)
@pytest.mark.usefixtures("unharmed")
def test_tags_of_results_get_ordinary_names(guarded: TestClient, studies: Path, tag: str) -> None:
    before = sorted((studies / "labels").iterdir())
    params = json.dumps({"method": "nearest", "save_label": True, "label_tag": tag})
    assert refused(guarded.post("/infer/labelprop?image=case", data={"params": params}).status_code)
    batch = {"label_tag": tag, "method": "nearest"}
    assert refused(guarded.post("/batch/infer/labelprop?run_sync=true", json=batch).status_code)
    assert sorted((studies / "labels").iterdir()) == before


@pytest.mark.usefixtures("unharmed")
def test_new_checkpoints_get_ordinary_names(guarded: TestClient) -> None:
    for name in STRANGE_NEW:
        answer = guarded.put(f"/labelprop/checkpoints/{quote(name, safe='')}", content=b"x")
        assert refused(answer.status_code), (name, answer.status_code)


def test_a_file_with_an_old_fashioned_name_can_be_used(guarded: TestClient) -> None:
    image = {"image": "Müller^Jürgen (2)~1"}
    assert guarded.get("/datastore/image", params=image).status_code == 200
    label = {"label": ("l.nii", nifti(only(truth(3))))}
    assert guarded.put("/datastore/label", params={**image, "tag": "sparse"}, files=label).status_code == 200
    told = guarded.post(
        "/infer/labelprop", params={**image, "output": "json"}, data={"params": '{"method": "nearest"}'}
    )
    assert told.status_code == 200, told.text


@pytest.mark.parametrize("name", ["../l.nii", "a/../b.nii", "..\\l.nii", "..", "/tmp/../l.nii"])
@pytest.mark.usefixtures("unharmed")
def test_names_of_uploaded_files_mean_no_place(guarded: TestClient, name: str) -> None:
    for method, address, part, content in (
        ("PUT", "/datastore/label?image=case&tag=sparse", "label", LABEL),
        ("PUT", "/labelprop/scribbles?image=case", "label", LABEL),
        ("PUT", "/datastore/image", "file", IMAGE),
        ("PUT", "/datastore/image?image=fresh", "file", IMAGE),
        ("POST", "/infer/labelprop", "file", IMAGE),
        ("POST", "/infer/labelprop?image=case", "label", LABEL),
        ("PUT", "/session/", "files", IMAGE),
    ):
        answer = guarded.request(method, address, files={part: (name, content)})
        assert refused(answer.status_code), (address, answer.status_code, answer.text[:300])


@pytest.mark.parametrize("count", [1, 2])
def test_a_session_takes_no_files_without_a_name(
    guarded: TestClient, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
    body = b"".join(head % name + IMAGE + b"\r\n" for name in (b"a.nii", b"")[-count:]) + b"--b--\r\n"
    answer = guarded.put("/session/", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert refused(answer.status_code) and not list(tmp_path.iterdir())


def test_a_session_of_several_files_has_no_image_to_hand_out(guarded: TestClient) -> None:
    files = [("files", (f"{n}.dcm", b"x")) for n in range(2)]
    session_id = guarded.put("/session/", files=files).json()["session_id"]
    assert refused(guarded.get(f"/session/{session_id}?image=true").status_code)
    assert guarded.get(f"/session/{session_id}").status_code == 200
    assert guarded.delete(f"/session/{session_id}").status_code == 200


@pytest.mark.parametrize("name", ["C:\\Users\\x y\\AppData\\Slicer\\tmp1.nii", "/var/tmp/Slicer-x/tmp1.nii"])
def test_the_absolute_paths_of_3d_slicer_are_fine(guarded: TestClient, name: str) -> None:
    label = {"label": (name, LABEL)}
    assert guarded.put("/datastore/label?image=case&tag=sparse", files=label).status_code == 200


@pytest.mark.usefixtures("unharmed")
def test_headers_of_images_open_no_other_file(guarded: TestClient, studies: Path) -> None:
    """NRRD and MetaImage can name another file for their voxels; NIfTI can say that they lie in one beside it."""
    secret = studies.parent / "secret.raw"
    nrrd = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 40 36 14\nencoding: raw\ndata file: {secret}\n\n"
    meta = f"ObjectType = Image\nNDims = 3\nDimSize = 40 36 14\nElementType = MET_UCHAR\nElementDataFile = {secret}\n"
    pair = nib.Nifti1Header()
    pair.set_data_shape((40, 36, 14))
    pair["magic"] = b"ni1"
    for name, text in (("h.nrrd", nrrd.encode()), ("h.mha", meta.encode()), ("h.nii", pair.binaryblock + bytes(4))):
        for method, address, part in (
            ("PUT", "/datastore/image?image=opened", "file"),
            ("PUT", "/datastore/label?image=case&tag=sparse", "label"),
            ("POST", "/infer/labelprop", "file"),
        ):
            answer = guarded.request(method, address, files={part: (name, text)})
            assert refused(answer.status_code), (name, address, answer.status_code, answer.text[:300])
    np.testing.assert_equal(guarded.head("/datastore/image?image=opened").status_code, 404)


@pytest.mark.parametrize(
    ("method", "path"), [one for one in ROUTES if one[0] in ("POST", "PUT") and not one[1].startswith("/proxy/")]
)
@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/plain", "multipart/form-data"])
def test_bytes_that_are_no_text_do_no_harm(guarded: TestClient, method: str, path: str, kind: str) -> None:
    headers = {"Content-Type": kind}
    answer = guarded.request(method, filled(path, "case") + "?image=case", content=b"\xff\x00{", headers=headers)
    reads_no_body = f"{method} {path}" in {"POST /labelprop/final", "POST /labelprop/undo", "PUT /datastore/image/info"}
    assert refused(answer.status_code) or (reads_no_body and answer.status_code == 200), answer.text[:300]


def test_masks_of_what_was_drawn_are_the_servers_own(guarded: TestClient) -> None:
    for tag in ("round_drawn", "round_DRAWN"):
        answer = guarded.put(f"/datastore/label?image=case&tag={tag}", files={"label": ("l.nii", LABEL)})
        assert answer.status_code == 400 and "masks" in answer.text


def test_a_scan_that_is_refused_takes_no_results_away(guarded: TestClient, studies: Path) -> None:
    assert guarded.post("/infer/labelprop?image=case", data={"params": '{"method": "nearest"}'}).status_code == 200
    before = guarded.get("/labelprop/result?image=case").content
    (scan_file,) = studies.glob("case.nii*")
    away = scan_file.rename(studies.parent / "away")
    try:
        assert guarded.put("/datastore/image?image=case", files={"file": ("case.nii", b"no scan")}).status_code == 400
    finally:
        away.rename(scan_file)
    assert guarded.get("/labelprop/result?image=case").content == before


def test_another_scan_under_a_name_that_is_taken_is_refused(guarded: TestClient) -> None:
    def send(address: str, seed: int, name: str = "fresh.nii") -> tuple[int, str]:
        answer = guarded.put(address, files={"file": (name, nifti(scan(seed)))})
        return answer.status_code, answer.text

    before = guarded.get("/labelprop/study?image=case").json()
    assert send("/datastore/image?image=case", 0)[0] == 200, "the same one"
    assert send("/datastore/?image=case", 5)[0] == 409
    assert send("/datastore/image", 5, "case.nii")[0] == 409
    status, told = send("/datastore/image", 5, "/home/jürgen/case.nii")
    assert status == 409 and "choose another name" in told and "jürgen" not in told
    assert guarded.get("/labelprop/study?image=case").json() == before
    assert guarded.get("/datastore/image?image=case").content == IMAGE


def test_once_a_study_is_erased_its_name_is_free(guarded: TestClient, studies: Path) -> None:
    def send(seed: int) -> int:
        return guarded.put("/datastore/image?image=again", files={"file": ("f.nii", nifti(scan(seed)))}).status_code

    assert [send(1), send(2)] == [200, 409]
    erase_study(studies, "again", scan=True)
    assert [send(2), send(1)] == [200, 409]
