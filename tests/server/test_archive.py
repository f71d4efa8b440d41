"""The folder of an archive's server: its list of images is lost, a series grows; more about archives in `tests/e2e`."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import requests

pytest.importorskip("monailabel")

from monailabel.config import Settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from sliceprop import io
from sliceprop.dicom import write_dicom_series
from sliceprop.erasure import erase_study
from sliceprop.errors import GeometryError, InputError, SlicePropError, StorageError
from sliceprop.orthanc import Orthanc
from sliceprop.server import archive, panel_routes, web
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.errors import ArchiveError, NotFoundError
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace

SCAN = io.Image(np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4), np.diag([-1.0, -1.0, 3.0, 1.0]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As it is after two series were fetched."""
    (tmp_path / "kept").mkdir()
    for name in ("mine", "other"):
        files = write_dicom_series(tmp_path / name, io.Image(SCAN.array + len(name), SCAN.affine), name=name)
        series = tmp_path / "kept" / str(dcmread(files[0]).SeriesInstanceUID)
        series.mkdir()
        for number, file in enumerate(files):
            file.rename(series / f"{number:06}.dcm")
        io.write_image(tmp_path / "kept" / f"{series.name}.nii.gz", SCAN.array, SCAN)
    return tmp_path / "kept"


def opened(folder: Path) -> ArchivedStudies:
    """A server that needs nothing of the archive."""
    return ArchivedStudies(DICOMwebClientX(url="http://127.0.0.1:9"), {}, str(folder))


def ids(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.name[0].isdigit() and one.is_dir())


def test_a_series_is_described_anew_when_the_list_of_images_was_lost(folder: Path) -> None:
    (folder / "datastore_v2.json").write_text("{ damaged")
    store, (image, other) = opened(folder), ids(folder)
    assert store.get_image_uri(image) == str(folder / f"{image}.nii.gz")
    told = opened(folder).get_image_info(image)
    assert (told["SeriesInstanceUID"], told["Modality"]) == (image, "MR")
    assert told["InstanceNumbers"] == [1, 2, 3, 4]
    for file in (folder / other).iterdir():
        file.unlink()
    assert store.get_image_uri(other) and store.get_image_info(other)["SeriesInstanceUID"] == other


@pytest.mark.parametrize("used", [False, True])
def test_an_erased_study_leaves_neither_scan_nor_dicom_files_when_the_list_was_lost(folder: Path, used: bool) -> None:
    image, other = ids(folder)
    if used:
        opened(folder).get_image_uri(image)
    erase_study(folder, image)
    assert not [path for path in folder.rglob("*") if image in path.name]
    assert (folder / f"{other}.nii.gz").is_file() and len(list((folder / other).iterdir())) == 4
    with pytest.raises(InputError, match="nothing is kept"):
        erase_study(folder, image)


def test_a_linked_series_is_erased_and_not_what_it_leads_to(folder: Path, tmp_path: Path) -> None:
    image = ids(folder)[0]
    (folder / image).rename(tmp_path / "elsewhere")
    (folder / image).symlink_to(tmp_path / "elsewhere")
    erase_study(folder, image)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 4 and not (folder / image).is_symlink()


def test_a_folder_of_the_operators_own_stays_beside_a_study(folder: Path) -> None:
    image, other = ids(folder)
    (folder / image / "000009.dcm").touch()
    (folder / other).rename(folder / "other")
    (folder / f"{other}.nii.gz").rename(folder / "other.nii.gz")
    for name in (image, "other"):
        (folder / ".labelprop" / "studies" / name).mkdir(parents=True)
        erase_study(folder, name)
        assert (folder / name).is_dir() and (folder / f"{name}.nii.gz").is_file()


def test_a_file_by_which_orthanc_ends_is_told(folder: Path) -> None:
    orthanc = Orthanc("http://127.0.0.1:9", ("sliceprop", "secret"))
    (file, *_) = (folder / ids(folder)[0]).iterdir()
    with pytest.raises(InputError, match=f"{file.name}: Orthanc does not answer"):
        orthanc.add([file])


class Growing:
    """Stands in for the client of an archive to which a series is still being stored."""

    base_url = "http://127.0.0.1:9"

    def __init__(self, folder: Path) -> None:
        files = write_dicom_series(folder, SCAN, name="growing")
        self.all = sorted(map(dcmread, files), key=lambda one: int(one.InstanceNumber))
        self.stored, self.away = self.all[:2], False
        self.uid = str(self.all[0].SeriesInstanceUID)

    def search_for_series(self, **wanted: Any) -> list[dict[str, Any]]:
        """The one series, whatever is wanted."""
        told = {"0020000E": self.uid, "0020000D": str(self.all[0].StudyInstanceUID), "00201209": len(self.stored)}
        return [{tag: {"Value": [value]} for tag, value in told.items()}]

    def iter_series(self, study: str, series: str) -> Iterator[Dataset]:
        """The series; without its last slice if the archive goes away meanwhile."""
        yield from self.stored[:-1]
        if self.away:
            raise requests.ConnectionError("away")
        yield self.stored[-1]


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    return Growing(tmp_path / "source")


def test_files_of_another_series_are_never_taken_for_the_one_that_was_asked_for(
    growing: Growing, tmp_path: Path
) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    growing.stored = [*growing.all[:2], growing.all[2]]
    growing.all[2].SeriesInstanceUID = "1.2.3"
    with pytest.raises(ArchiveError, match="another series"):
        store.get_image_uri(growing.uid)
    assert not [path for path in (tmp_path / "kept").rglob("*") if growing.uid in path.name]


def test_what_an_archive_sends_that_is_not_dicom_is_its_fault(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    monkeypatch.setattr(growing, "iter_series", Mock(side_effect=InvalidDicomError("an error page")))
    with pytest.raises(ArchiveError, match="not DICOM"):
        store.get_image_uri(growing.uid)
    monkeypatch.setattr(growing, "uid", "../..")
    assert store.has_image(growing.uid) is False
    store.refresh()
    assert store.list_images() == []


@pytest.mark.parametrize(("path", "bound"), [("/series", "LONGEST_LIST"), ("/studies/1", "LONGEST_SERIES")])
def test_an_answer_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, bound: str
) -> None:
    """As of an archive that is broken; what it sends lies in memory, or fills the disk."""
    monkeypatch.setattr(archive, bound, 1 << 20)
    with answering(200 * (1 << 16)) as address:
        store = archive.open_archive(address, str(tmp_path / "kept"))
        with pytest.raises(ArchiveError, match="does not answer"):
            store.has_image("1.2.3") if path == "/series" else b"".join(store.read("studies/1", "")[2])


@pytest.mark.parametrize("there", ["the same one", "another one"])
def test_an_archive_leads_to_no_other_server(tmp_path: Path, there: str) -> None:
    with answering(1 << 16) as other, answering(1 << 16, to=other) as leading:
        address = other.replace("127.0.0.1", "LOCALHOST") if there == "the same one" else leading
        store = archive.open_archive(address, str(tmp_path / "kept"))
        if there == "the same one":
            assert len(b"".join(store.read("studies/1", "")[2])) == 1 << 16
        else:
            with pytest.raises(ArchiveError, match="another one"):
                store.read("studies/1", "")


@contextmanager
def answering(length: int, *, to: str = "") -> Iterator[str]:
    """The address of a server whose answers have so many bytes, or lead to another one; who hangs up before is fine."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if to else 200)
            if to:
                self.send_header("Location", to)
            self.end_headers()
            with suppress(OSError):
                for _ in range(0, length, 1 << 16):
                    self.wfile.write(bytes(1 << 16))

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_series_that_are_not_here_are_fetched_before_requests_wait_for_each_other(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    monkeypatch.setattr(web, "running_app", lambda: SimpleNamespace(datastore=lambda: store))
    request = "GET", "/labelprop/study", {"image": growing.uid}
    progress = "GET", "/labelprop/progress", {"image": growing.uid}
    session = "POST", "/infer/labelprop", {"image": "any", "session_id": "1"}
    assert web.asks_archive(*request)
    for other in (progress, session):  # which name what need not be here
        assert not web.asks_archive(*other)
        web.check_known(*other)
    assert not web.asks_archive("PUT", "/datastore/image", {"image": "new"})
    assert not ids(tmp_path / "kept")
    web.check_known(*request)
    assert ids(tmp_path / "kept") == [growing.uid] and not web.asks_archive(*request)
    with pytest.raises(NotFoundError):
        web.check_known("GET", "/labelprop/study", {"image": "1.2.3"})
    monkeypatch.setattr(store, "get_image_uri", Mock(side_effect=StorageError(f"{tmp_path}: full")))
    store._datastore.objects.clear()
    with pytest.raises(StorageError) as told:
        web.check_known(*request)
    assert str(tmp_path) not in str(told.value)


def slices(folder: Path, image: str) -> tuple[int, int, int]:
    """Of the scan, of the series, and of what the list says."""
    store, scan = opened(folder), io.read_image(folder / f"{image}.nii.gz")
    return (
        scan.array.shape[2],
        len(list((folder / image).iterdir())),
        len(store.get_image_info(image)["InstanceNumbers"]),
    )


def test_a_series_that_has_grown_is_fetched_anew(growing: Growing, tmp_path: Path) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    store.get_image_uri(growing.uid)
    assert slices(tmp_path / "kept", growing.uid) == (2, 2, 2)
    killed = tmp_path / "kept" / ".writing-killed"
    killed.mkdir()
    os.utime(killed, (0, 0))
    growing.stored = growing.all
    store.renew(growing.uid)
    assert slices(tmp_path / "kept", growing.uid) == (4, 4, 4)
    assert not list((tmp_path / "kept").glob(".writing-*"))


@pytest.mark.parametrize("failure", ["away", "full", "list", "gap"])
def test_what_was_fetched_stays_until_all_of_the_grown_series_is_here(
    growing: Growing, tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    store.get_image_uri(growing.uid)
    growing.stored, growing.away = growing.all, failure == "away"
    if failure == "gap":
        growing.stored = [growing.all[n] for n in (0, 1, 3)]
    with monkeypatch.context() as patch:
        if failure in ("full", "list"):
            patch.setattr(*{"full": (Dataset, "save_as"), "list": (store, "_update_datastore_file")}[failure], full)
        expected: dict[str, type[SlicePropError]] = {"away": ArchiveError, "full": StorageError, "gap": GeometryError}
        with pytest.raises(expected.get(failure, InputError)):
            store.renew(growing.uid)
    assert slices(tmp_path / "kept", growing.uid) == (2, 2, 2)
    assert Path(store.get_image_uri(growing.uid)).is_file()
    assert len(store.get_image_info(growing.uid)["InstanceNumbers"]) == 2
    assert not list((tmp_path / "kept").glob(".writing-*"))
    growing.stored, growing.away = growing.all, False
    store.renew(growing.uid)
    assert slices(tmp_path / "kept", growing.uid) == (4, 4, 4)


def test_a_series_on_which_was_drawn_stays_also_when_monai_label_lists_no_label(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    workspace, file = Workspace(store), tmp_path / "upload.nii.gz"
    app = SimpleNamespace(datastore=lambda: store, workspace=workspace, training=lambda image: {})
    monkeypatch.setattr(panel_routes, "running_app", lambda: app)
    labels = np.zeros((6, 5, 2), np.uint8)
    labels[2:4, 1:4, 1] = 1
    nib.save(nib.Nifti1Image(labels, nib.load(store.get_image_uri(growing.uid)).affine), file)
    options = label_options({"label_info": [{"name": "liver", "idx": 1}], "slice_axis": 2})
    workspace.submit(growing.uid, "sparse", file, options)
    store.remove_label(growing.uid, "sparse")
    workspace.record(growing.uid).versions.restore(1)
    growing.stored = growing.all
    told = panel_routes.get_study(growing.uid, SimpleNamespace(username="anna"), slot=None)
    assert told["annotated_slices"] == [1]
    assert slices(tmp_path / "kept", growing.uid)[:2] == (2, 2)


def test_a_series_on_which_nobody_drew_grows_when_it_is_opened(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArchivedStudies(growing, {}, str(tmp_path / "kept"))
    app = SimpleNamespace(datastore=lambda: store, workspace=Workspace(store), training=lambda image: {})
    monkeypatch.setattr(panel_routes, "running_app", lambda: app)
    for stored in (growing.all[:2], growing.all):
        growing.stored = stored
        assert panel_routes.get_study(growing.uid, SimpleNamespace(username="anna"), slot=None)["shape"] == [
            6,
            5,
            len(stored),
        ]


def test_an_archive_that_hangs_holds_up_one_who_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sliceprop.server.archive.PATIENCE_S", 0.05)
    asked, answers, lists = Event(), Event(), list[list[str]]()
    client = DICOMwebClientX(url="http://127.0.0.1:9")

    def search(**options: Any) -> list[Any]:
        asked.set()
        assert answers.wait(60)
        return []

    monkeypatch.setattr(client, "search_for_series", search)
    store = ArchivedStudies(client, {}, str(folder))
    first = Thread(target=lambda: lists.append(store.list_images()), daemon=True)
    first.start()
    assert asked.wait(60)
    assert store.list_images() == ids(folder)
    answers.set()
    first.join(60)
    assert lists == [[]] and store.list_images() == []


@pytest.mark.parametrize("chosen", [None, {"Modality": "PT"}])
def test_processes_beside_the_server_list_the_same_series(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str] | None
) -> None:
    """They have MONAI Label's settings from the environment."""
    name = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
    monkeypatch.setenv(name, json.dumps(chosen) if chosen else "{}")
    if chosen is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(archive, "settings", Settings())
    archive.open_archive("http://127.0.0.1:9", str(folder))
    again = Settings()
    assert name in again.model_fields_set
    assert (chosen or {"Modality": ["CT", "MR"]}) == again.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
