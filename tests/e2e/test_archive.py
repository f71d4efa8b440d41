"""The server on a real DICOMweb archive: Debian's Orthanc with series that this test writes."""

from __future__ import annotations

import io
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
import requests

from odd_series import ODD
from serving import (
    AFFINE,
    DRAWN,
    ROOT,
    SHAPE,
    Client,
    Server,
    eventually,
    free_port,
    only,
    running_orthanc,
    scan,
    truth,
)
from sliceprop.client import Client as PluginClient
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError
from sliceprop.io import LPS_TO_RAS, Image
from sliceprop.orthanc import Orthanc, find_orthanc

try:
    find_orthanc()
except FileError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = pytest.mark.e2e

LATE = "late"
"""A series that is not in the archive from the start."""

LEANING = np.array([[0.0, 0.2, 4, -30], [0.96, -0.28 * 0.9, 0, 10], [0.28, 0.96 * 0.9, 0.3, 20], [0, 0, 0, 1]])
"""A sagittal acquisition, its axes nearly at right angles; `right_angled` makes them so."""


def right_angled(affine: np.ndarray) -> np.ndarray:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    return np.block([[(u @ v) * spacing, affine[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]])


def write(folder: Path, name: str, affine: np.ndarray = AFFINE, edit: Callable[[Any, int], None] | None = None) -> str:
    """A series of the synthetic study; its UID."""
    files = write_dicom_series(folder / name, Image(scan(), affine), name=name)
    for index, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        if edit:
            edit(dataset, index)
            dataset.save_as(file)
    return str(dataset.SeriesInstanceUID)


def count_down(dataset: Any, index: int) -> None:
    dataset.InstanceNumber = SHAPE[2] - index


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Folder of DICOM files, and UIDs by name."""
    folder = tmp_path_factory.mktemp("dicom")
    uids = {name: write(folder, name) for name in ("axial", "other", "together", "third", "unopened", "saved", LATE)}
    uids["descending"] = write(folder, "descending", edit=count_down)
    uids["sagittal"] = write(folder, "sagittal", right_angled(LEANING))
    uids |= {name: write(folder, name, edit=edit) for name, (edit, _) in ODD.items()}
    return folder, uids


@pytest.fixture(scope="module")
def orthanc(series: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        orthanc.add(file for file in sorted(series[0].rglob("*.dcm")) if file.parent.name != LATE)
        yield orthanc


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(orthanc: Orthanc, work: Path) -> Iterator[Client]:
    conf = {"folder": str(work / "kept")}
    with Server(orthanc.dicomweb, work, conf, environment=orthanc.environment) as client:
        yield client


@pytest.fixture
def uids(series: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return series[1]


def asked(orthanc: Orthanc, path: str, method: str = "GET") -> requests.Response:
    return requests.request(method, orthanc.url + path, auth=orthanc.login, timeout=60)


def segmentations(orthanc: Orthanc) -> list[Any]:
    """The DICOM SEG objects in the archive."""
    files = [asked(orthanc, f"/instances/{one}/file").content for one in asked(orthanc, "/instances").json()]
    found = [pydicom.dcmread(io.BytesIO(file)) for file in files]
    return [one for one in found if one.Modality == "SEG"]


def of_series(segmentation: Any) -> str:
    return str(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID)


def voxels_of(segmentation: Any, affine_lps: np.ndarray) -> np.ndarray:
    """The label map in a DICOM SEG on the grid of a scan, each frame where its own position says."""
    labels, to_grid = np.zeros(SHAPE, np.uint8), np.linalg.inv(affine_lps)
    for pixels, frame in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        corner = to_grid @ [*map(float, position), 1]
        np.testing.assert_allclose(corner[:2], 0, atol=0.01)
        index = round(corner[2])
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        labels[..., index][pixels.T > 0] = number
    return labels


def test_series_are_listed_before_anybody_opened_them(client: Client, uids: dict[str, str]) -> None:
    assert {uids[name] for name in ("axial", "descending", "sagittal")} <= set(PluginClient(client.url).studies())


@pytest.mark.parametrize("name", ["axial", "descending", "sagittal"])
def test_annotated_saved_and_found_again(client: Client, orthanc: Orthanc, uids: dict[str, str], name: str) -> None:
    image, labels = uids[name], truth()
    study = client.study(image)
    affine = right_angled(LEANING) if name == "sagittal" else AFFINE
    np.testing.assert_allclose(study["affine_lps"], LPS_TO_RAS @ affine, atol=1e-4)
    assert (study["shape"], study["slice_axis"], study["annotated_slices"]) == (list(SHAPE), 2, [])
    assert study["dicom_seg"] and study["result"] is None and not study["undo"]

    answer = client.paint(image, only(labels), annotated_slices=[*DRAWN, 13], slice_axis=2).json()
    assert answer["annotated_slices"] == [*DRAWN, 13]
    params = client.ok("POST", f"/infer/labelprop?image={image}&output=json", files={"params": (None, "{}")})
    shown, study = client.voxels(image), client.study(image)
    np.testing.assert_array_equal(shown[..., list(DRAWN)], labels[..., list(DRAWN)])
    assert not shown[..., 13].any() and study["result"]["version"] == params["version"]
    assert study["result"]["quality"].keys() == {"disc", "core"}
    assert client.voxels(image, "uncertainty").any()

    before = len(segmentations(orthanc))
    client.paint(image, only(labels), tag="draft", annotated_slices=[*DRAWN])
    assert len(segmentations(orthanc)) == before
    saved = client.ok("POST", f"/labelprop/final?image={image}")
    assert saved["saved"] and saved["dicom_seg"] and orthanc.dicomweb in saved["sentence"]
    (stored,) = (one for one in segmentations(orthanc) if of_series(one) == image)
    np.testing.assert_array_equal(voxels_of(stored, np.array(study["affine_lps"])), shown)
    assert [one.SegmentLabel for one in stored.SegmentSequence] == ["disc", "core"]
    assert client.study(image)["annotated_slices"] == [*DRAWN, 13]


def test_each_change_that_is_saved_is_a_series_of_its_own(
    client: Client, orthanc: Orthanc, uids: dict[str, str]
) -> None:
    image, labels = uids["saved"], truth()
    told, shown = [], []
    for slices in (DRAWN, DRAWN, (*DRAWN, 5)):
        client.paint(image, only(labels, slices), annotated_slices=list(slices), slice_axis=2)
        told.append(client.ok("POST", f"/labelprop/final?image={image}"))
        shown.append(client.voxels(image))
    assert all(one["dicom_seg"] for one in told)
    assert ["Nothing has changed" in one["sentence"] for one in told] == [False, True, False]
    stored = {int(one.SeriesNumber): one for one in segmentations(orthanc) if of_series(one) == image}
    assert sorted(stored) == [300, 301]
    affine = np.array(client.study(image)["affine_lps"])
    for number, then in ((300, 0), (301, 2)):
        np.testing.assert_array_equal(voxels_of(stored[number], affine), shown[then])
        assert f"series {number}, {stored[number].SeriesDescription}" in told[then]["sentence"]
    for one in asked(orthanc, "/series").json():
        about = asked(orthanc, f"/series/{one}").json()["MainDicomTags"]
        if about["SeriesInstanceUID"] == stored[301].SeriesInstanceUID:
            asked(orthanc, f"/series/{one}", "DELETE")  # an administrator of the archive
    assert client.ok("POST", f"/labelprop/final?image={image}")["dicom_seg"]
    assert sorted(int(one.SeriesNumber) for one in segmentations(orthanc) if of_series(one) == image) == [300, 302]


def test_a_series_that_was_still_being_stored_is_fetched_anew(
    client: Client, orthanc: Orthanc, series: tuple[Path, dict[str, str]]
) -> None:
    folder, uids = series
    image, files = uids[LATE], sorted((folder / LATE).iterdir())
    orthanc.add(files[:9])
    assert client.study(image)["shape"] == [*SHAPE[:2], 9]
    orthanc.add(files[10:])
    refused = client.call("GET", f"/labelprop/study?image={image}")
    assert refused.status_code == 400 and "missing" in refused.json()["detail"]
    orthanc.add(files[9:10])
    assert client.study(image)["shape"] == list(SHAPE)
    np.testing.assert_array_equal(client.voxels(image), np.zeros(SHAPE))
    answer = client.paint(image, only(truth()), annotated_slices=list(DRAWN), slice_axis=2)
    assert answer.ok and client.study(image)["annotated_slices"] == list(DRAWN)


def test_orthanc_answers_only_who_knows_the_password_of_this_start(
    orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for method, path in (
        ("GET", "/dicom-web/studies"),
        ("GET", "/app/explorer.html"),
        ("POST", "/tools/reset"),
        ("POST", "/tools/bulk-delete"),
        ("POST", "/instances"),
    ):
        for login in (None, (orthanc.login[0], "orthanc")):
            answer = requests.request(method, orthanc.url + path, auth=login, data="{}", timeout=60)
            assert answer.status_code == 401, (path, answer.text)
    assert asked(orthanc, "/dicom-web/studies").ok and orthanc.login[1] not in repr(orthanc)
    settings = tmp_path_factory.getbasetemp() / "orthanc0" / "orthanc.json"
    assert orthanc.login[1] in settings.read_text()
    assert [stat.S_IMODE(one.stat().st_mode) for one in (settings, settings.parent)] == [0o600, 0o700]


def test_the_dialog_of_next_sample_names_the_slice_as_the_viewer_counts(client: Client, uids: dict[str, str]) -> None:
    for name, count in (("other", lambda k: k + 1), ("descending", lambda k: SHAPE[2] - k)):
        answer = client.ok("POST", "/activelearning/random", json={"image": uids[name]})
        assert answer["Modality"].startswith(f"MR: annotate axial slice {count(answer['slice'])} of {SHAPE[2]} (")
        assert answer["PatientID"] == name and answer["StudyInstanceUID"]
        assert "InstanceNumbers" not in answer


def test_users_who_open_a_series_at_once_get_the_same(client: Client, uids: dict[str, str]) -> None:
    names = ["together", "third"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        studies = list(pool.map(lambda name: client.study(uids[name]), names))
    assert [study["image"] for study in studies] == [uids[name] for name in names]
    assert all(study["shape"] == list(SHAPE) for study in studies)


@pytest.mark.parametrize("name", ODD)
def test_a_series_that_is_no_volume_is_refused_in_a_sentence(client: Client, uids: dict[str, str], name: str) -> None:
    image = uids[name]
    for method, path, content in (
        ("GET", f"/labelprop/study?image={image}", None),
        ("POST", f"/infer/labelprop?image={image}", None),
        ("POST", "/train/labelprop", {"image": image}),
        ("POST", "/activelearning/next_slice", {"image": image}),
    ):
        response = client.call(method, path, json=content)
        assert response.status_code == 400, response.text
        assert ODD[name][1] in response.json()["detail"]


def test_the_viewer_reads_the_archive_through_the_server(client: Client, uids: dict[str, str]) -> None:
    found = client.ok("GET", f"/proxy/dicom/qido/series?SeriesInstanceUID={uids['axial']}")
    assert [one["0020000E"]["Value"] for one in found] == [[uids["axial"]]]
    plain = client.call("GET", "/proxy/dicom/qido/series", headers={"Accept-Encoding": "identity"}, stream=True)
    assert "Content-Encoding" not in plain.headers and plain.raw.read(1) == b"["
    assert client.call("GET", "/proxy/dicom/qido/../../system").status_code in (400, 404)
    assert client.call("GET", "/proxy/dicom/servers").status_code == 400
    assert client.call("GET", "/proxy/dicom/qido/studies?PatientID=nobody").json() == []
    file = client.call("GET", f"/proxy/dicom/wado/studies/{found[0]['0020000D']['Value'][0]}")
    assert file.ok and file.content.count(b"DICM") >= SHAPE[2]
    page = client.call("GET", "/ohif/app-config.js")
    assert page.ok and page.text.startswith("window.config") and "javascript" in page.headers["Content-Type"]
    for path, kind in (("", "text/html"), ("app.bundle.css", "text/css")):
        part = client.call("GET", f"/ohif/{path}")
        assert part.headers["Content-Type"].startswith(kind) and len(part.text) > 1000
        assert "fonts.googleapis.com" not in part.text


def test_a_label_that_dicom_cannot_hold_is_kept_here(client: Client, orthanc: Orthanc, uids: dict[str, str]) -> None:
    image, before = uids["other"], len(segmentations(orthanc))
    client.paint(image, np.zeros(SHAPE, np.uint8), annotated_slices=[3])
    saved = client.ok("POST", f"/labelprop/final?image={image}")
    assert saved["saved"] and not saved["dicom_seg"] and "empty" in saved["sentence"]
    assert len(segmentations(orthanc)) == before
    assert client.call("GET", f"/datastore/label?label={image}&tag=final").ok


def test_everything_survives_a_restart_and_the_end_of_the_archive(
    series: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    image, labels, conf = series[1]["axial"], truth(), {"folder": str(tmp_path / "kept")}
    with (
        running_orthanc(tmp_path / "orthanc") as short,
        Server(short.dicomweb, tmp_path, conf, environment=short.environment) as client,
    ):
        short.add(sorted((series[0] / "axial").iterdir()))
        client.paint(image, only(labels), annotated_slices=list(DRAWN), slice_axis=2)
        client.ok("POST", f"/infer/labelprop?image={image}&output=json", files={"params": (None, "{}")})
        before, shown = client.study(image), client.voxels(image)
    with Server(short.dicomweb, tmp_path, conf) as client:
        assert client.ok("GET", "/info/")["datastore"]["total"] == 1
        assert client.study(image) == before
        np.testing.assert_array_equal(client.voxels(image), shown)
        more = client.paint(image, only(labels, (*DRAWN, 5)), annotated_slices=[*DRAWN, 5], slice_axis=2)
        assert more.json()["annotated_slices"] == [2, 5, 7, 11]
        saved = client.ok("POST", f"/labelprop/final?image={image}")
        assert saved["saved"] and not saved["dicom_seg"] and short.dicomweb in saved["sentence"]
        np.testing.assert_array_equal(client.voxels(image)[..., 5], labels[..., 5])
        for path in (f"/labelprop/study?image={series[1]['unopened']}", "/proxy/dicom/qido/studies"):
            response = client.call("GET", path)
            assert response.status_code == 502 and short.dicomweb in response.json()["detail"]


def test_an_export_that_fails_keeps_the_label_and_says_so(
    client: Client, orthanc: Orthanc, uids: dict[str, str], work: Path
) -> None:
    image = uids["descending"]
    client.paint(image, only(truth(), (4,)), annotated_slices=[4], slice_axis=2)
    for file in (work / "kept" / image).iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.SOPClassUID
        dataset.save_as(file)
    saved = client.ok("POST", f"/labelprop/final?image={image}")
    assert saved["saved"] and not saved["dicom_seg"] and "NIfTI" in saved["sentence"]


def test_ohif_with_an_archive_of_its_own_ends_as_a_whole(tmp_path: Path) -> None:
    image = write(tmp_path / "dicom", "mine", AFFINE)
    (tmp_path / "dicom" / "notes.txt").write_text("not DICOM")
    folder, port, log = tmp_path / "own", free_port(), tmp_path / "log"
    command = [sys.executable, str(ROOT / "main.py"), "ohif", "--folder", str(folder), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--dicom", str(tmp_path / "dicom")], stdout=output, stderr=output)
    try:
        eventually(lambda: b"in a browser" in log.read_bytes() or process.poll() is not None, "the address to open")
        client = Client(f"http://127.0.0.1:{port}", tmp_path)
        assert client.study(image)["shape"] == list(SHAPE)
        assert client.call("GET", "/ohif/").ok
        again = subprocess.run([*command, "--port", str(free_port())], capture_output=True, text=True, check=False)
        assert again.returncode == 2 and "in use" in again.stderr
        running = psutil.Process(process.pid).children(recursive=True)
        assert {"Orthanc"} < {one.name() for one in running}
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not psutil.wait_procs(running, timeout=20)[1]
