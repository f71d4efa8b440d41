"""Annotating in OHIF: a real browser with a mouse, the real server, a real archive."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import BrowserContext, expect

from browsing import CHROMIUM, Tab, artefacts, browser_context
from odd_series import ODD
from serving import AFFINE, AXIS, SHAPE, Client, Server, eventually, running_orthanc, scan
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError
from sliceprop.files import read_json
from sliceprop.io import LPS_TO_RAS, Image
from sliceprop.orthanc import Orthanc, find_orthanc

try:
    find_orthanc()
except FileError as missing:
    pytestmark = [pytest.mark.e2e, pytest.mark.skip(reason=str(missing))]
else:
    pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

SAGITTAL_LPS = np.array([[0, 0, 4.0, -28], [1, 0, 0, -20], [0, -1, 0, 18], [0, 0, 0, 1]])
CORONAL_LPS = np.array([[1.0, 0, 0, -20], [0, 0, -4, 30], [0, -1, 0, 18], [0, 0, 0, 1]])
GRIDS = {
    "ascending": AFFINE,
    "descending": AFFINE,
    "sagittal": LPS_TO_RAS @ SAGITTAL_LPS,
    "coronal": LPS_TO_RAS @ CORONAL_LPS,
    **dict.fromkeys(("careless", "shared", "named", "crashed", *ODD), AFFINE),
}
CENTRES = {"disc": lambda k: (13 + 0.3 * k, 18), "core": lambda k: (28, 12 + 0.4 * k)}
"""Where `serving.truth` has the two structures, in voxels."""

AFFINE_LPS = LPS_TO_RAS @ AFFINE

RADII, VALUES = {"disc": 6, "core": 4}, {"disc": 1, "core": 2}


class Series:
    """A study of one series in the archive."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.files = write_dicom_series(folder / name, Image(scan(), GRIDS[name]), name=name)
        for index, file in enumerate(self.files):
            dataset = pydicom.dcmread(file)
            if name == "descending":
                dataset.InstanceNumber = SHAPE[AXIS] - index
            if name in ODD:
                ODD[name][0](dataset, index)
            dataset.save_as(file)
        self.study, self.image = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    folder = tmp_path_factory.mktemp("dicom")
    return {name: Series(folder, name) for name in GRIDS}


@pytest.fixture(scope="module")
def orthanc(series: dict[str, Series], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        orthanc.add(file for one in series.values() for file in one.files)
        yield orthanc


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(orthanc: Orthanc, work: Path) -> Iterator[Client]:
    conf = {"folder": str(work / "kept"), "budget_s": "300"}
    with Server(orthanc.dicomweb, work, conf, environment=orthanc.environment) as client:
        yield client


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    with browser_context() as context:
        yield context


@pytest.fixture
def tab(context: BrowserContext, client: Client, tmp_path: Path) -> Iterator[Tab]:
    tab = Tab(context, client.url, artefacts(tmp_path))
    yield tab
    assert tab.errors == []
    assert tab.other_hosts() == set()


class Annotator:
    """Paints the two structures of the study, slice by slice, and checks what the server made of it."""

    def __init__(self, tab: Tab, client: Client, series: Series) -> None:
        self.tab, self._client, self.image = tab, client, series.image
        self._written = LPS_TO_RAS @ GRIDS[series.name]
        study = client.study(series.image)
        self._affine, self._axis = np.array(study["affine_lps"]), study["slice_axis"]
        self.painted: dict[int, np.ndarray] = {}

    def paint(self, number: int, names: tuple[str, ...] = ("disc", "core"), *, wider: int = 0) -> int:
        """Paint structures on the slice with this number, so many pixels wider; its index on the server."""
        self.tab.go(number)
        focus = np.array([*self.tab.focus(), 1])
        index, k = (round((np.linalg.inv(grid) @ focus)[AXIS]) for grid in (self._affine, self._written))
        for name in names:
            self.tab.page.locator(f"[data-label={name}]").click()
            self.tab.set_radius(RADII[name] + wider)
            self.tab.dab((self._written @ [*CENTRES[name](k), k, 1])[:3])
        self.painted[index] = self._slice(self.voxels(), index)
        assert set(names) <= {name for name, value in VALUES.items() if value in self.painted[index]}
        return index

    def voxels(self, layer: str = "Labels") -> np.ndarray:
        """What the viewer shows, on the server's grid."""
        return self.tab.voxels(layer, SHAPE, self._affine)

    def _slice(self, labels: np.ndarray, index: int) -> np.ndarray:
        return labels.take(index, self._axis)

    def check(self) -> np.ndarray:
        """Viewer and server hold the same, and on the painted slices what was painted; the labels."""
        stored = self._client.voxels(self.image)
        np.testing.assert_array_equal(self.voxels(), stored)
        assert self._client.study(self.image)["annotated_slices"] == sorted(self.painted) == self.tab.listed()
        for index, painted in self.painted.items():
            np.testing.assert_array_equal(self._slice(stored, index), painted)
        return stored

    def filled(self) -> int:
        """How many slices of the result hold anything."""
        return sum(bool(self._slice(self.check(), index).any()) for index in range(SHAPE[AXIS]))


def begin(tab: Tab, client: Client, series: Series) -> Annotator:
    """The panel with both labels."""
    tab.wait_ready()
    for name in VALUES:
        if not tab.page.locator(f"[data-label={name}]").count():
            tab.add_label(name)
    return Annotator(tab, client, series)


def hold_training(work: Path) -> None:
    """Suspend a training once it has learnt something, so that it cannot end by itself; it takes less than a second."""

    def reported() -> dict[str, Any] | None:
        state = read_json(work / "kept" / ".labelprop" / "training.json") or {}
        return state if state.get("status") == "RUNNING" and state["epoch"] else None

    os.kill(eventually(reported, "the first epoch", every_s=0.005)["process"]["pid"], signal.SIGSTOP)


def segmentations_of(orthanc: Orthanc, image: str) -> list[pydicom.Dataset]:
    """The DICOM SEG objects of a series in the archive."""
    ids = requests.get(f"{orthanc.url}/instances", auth=orthanc.login, timeout=60).json()
    files = [requests.get(f"{orthanc.url}/instances/{one}/file", auth=orthanc.login, timeout=60).content for one in ids]
    found = [pydicom.dcmread(BytesIO(file)) for file in files]
    return [
        one for one in found if one.Modality == "SEG" and image in one.ReferencedSeriesSequence[0].SeriesInstanceUID
    ]


def test_annotates_from_the_list_to_the_segmentation(
    tab: Tab, client: Client, orthanc: Orthanc, series: dict[str, Series], work: Path
) -> None:
    tab.open_from_list("ascending")
    annotator = begin(tab, client, series["ascending"])
    tab.shot("1_opened")

    annotator.paint(3)
    annotator.paint(11)
    expect(tab.button("submit")).to_have_text("Submit 2 slices")
    tab.press("submit")
    expect(tab.button("submit")).to_have_text("All submitted")
    annotator.check()
    tab.shot("2_submitted")

    tab.button("train").click()
    hold_training(work)
    expect(tab.page.locator("[data-training=RUNNING]")).to_contain_text(re.compile(r"epoch \d+ of \d+: .* left"))
    tab.shot("3_training")
    tab.button("cancel").click()
    expect(tab.notice("best model so far is kept")).to_be_visible()
    expect(tab.page.locator("[data-training]")).to_have_count(0)
    assert client.study(annotator.image)["model"]

    tab.press("propagate")
    assert annotator.filled() > 9
    expect(tab.part("labels").locator(".labelprop-quality")).to_have_count(2)
    tab.shot("4_propagated")
    plain = tab.picture()
    tab.press("uncertainty")
    assert annotator.voxels("Uncertainty").any()
    eventually(lambda: tab.picture() != plain, "the uncertainty to be shown")
    tab.shot("4_uncertainty")
    tab.press("uncertainty")
    eventually(lambda: tab.picture() == plain, "the uncertainty to be hidden")

    expect(tab.part("suggestion")).to_contain_text("Expected gain")
    before = set(annotator.painted)
    assert annotator.paint(tab.go_to_suggestion(), wider=2) not in before  # else it is as the result has it
    tab.shot("5_corrected")
    tab.press("propagate")
    annotator.check()

    tab.press("final")
    expect(tab.notice("DICOM SEG")).to_be_visible()
    tab.shot("6_saved")
    (segmentation,) = segmentations_of(orthanc, series["ascending"].image)
    assert {segment.SegmentLabel for segment in segmentation.SegmentSequence} == set(VALUES)

    tab.reload()
    tab.wait_ready()
    annotator.check()
    expect(tab.button("submit")).to_have_text("All submitted")
    tab.shot("7_reloaded")
    tab.page.locator("[data-slice-index]").first.click()
    expect(tab.page.locator("[data-slice-index].current")).to_have_count(1)
    tab.press("final")
    expect(tab.notice("Nothing has changed")).to_be_visible()
    assert len(segmentations_of(orthanc, series["ascending"].image)) == 1


@pytest.mark.parametrize("name", ["descending", "sagittal", "coronal"])
def test_order_and_plane_of_the_slices_do_not_matter(
    name: str, tab: Tab, client: Client, series: dict[str, Series]
) -> None:
    tab.open(series[name].study)
    annotator = begin(tab, client, series[name])
    annotator.paint(4)
    annotator.paint(10)
    tab.press("submit")
    annotator.check()
    tab.press("propagate")
    assert annotator.filled() > 6
    tab.shot(name)
    normals = tab.normals()
    np.testing.assert_allclose(np.abs(np.linalg.det(normals)), 1, atol=0.02)  # three views, three planes


def test_scribbles_correct_between_slices_and_a_propagation_can_be_undone(
    tab: Tab, client: Client, series: dict[str, Series]
) -> None:
    tab.open(series["careless"].study)
    annotator, image = begin(tab, client, series["careless"]), series["careless"].image
    annotator.paint(3)
    annotator.paint(12)
    tab.press("propagate")
    before = annotator.check()

    tab.page.locator("[data-tool=scribble]").click()
    tab.page.locator("[data-mark=background]").click()
    tab.activate(1)
    tab.drag(1, (0.45, 0.45), (0.55, 0.5))
    expect(tab.button("submit")).to_have_text("Submit scribbles")
    tab.page.locator("[data-tool=brush]").click()
    tab.drag(1, (0.7, 0.5), (0.8, 0.55))  # painted across slices, in a view of another plane
    expect(tab.notice("kept as scribbles")).to_be_visible()
    tab.shot("scribbled")
    tab.press("propagate")
    marks = client.voxels(image, "scribbles")
    assert {0, 255} < set(np.unique(marks))
    assert not (annotator.check()[marks == 255]).any()
    assert (client.voxels(image) != before).any()

    tab.press("undo")
    np.testing.assert_array_equal(annotator.check(), before)
    tab.press("undo")
    assert annotator.filled() == len(annotator.painted)
    expect(tab.button("undo")).to_be_disabled()


def test_no_stroke_is_lost(tab: Tab, context: BrowserContext, client: Client, series: dict[str, Series]) -> None:
    tab.open(series["shared"].study)
    annotator = begin(tab, client, series["shared"])
    annotator.paint(5)
    context.set_offline(True)
    tab.press("submit")
    expect(tab.notice("does not answer")).to_be_visible()
    annotator.paint(6)
    tab.shot("offline")
    tab.page.wait_for_timeout(600)  # the draft is written a moment after the stroke
    context.set_offline(False)

    tab.reload()
    tab.wait_ready()
    expect(tab.notice("was restored")).to_be_visible()
    expect(tab.button("submit")).to_have_text("Submit 2 slices")
    tab.press("submit")
    annotator.check()

    other = Tab(context, client.url, artefacts(Path(tab.folder)))
    other.open(series["shared"].study)
    other.wait_ready()
    for one in (tab, other):
        expect(one.notice("another tab")).to_be_visible()
    second = Annotator(other, client, series["shared"])
    annotator.paint(9)
    second.paint(2)
    other.press("submit")
    tab.press("submit")
    expect(tab.notice("their slices were taken over")).to_be_visible()
    annotator.painted |= second.painted
    annotator.check()
    assert other.errors == []


def test_strokes_and_slices_can_be_taken_back(tab: Tab, client: Client, series: dict[str, Series]) -> None:
    tab.open(series["sagittal"].study)
    annotator = begin(tab, client, series["sagittal"])
    before, listed = annotator.voxels(), tab.listed()
    annotator.paint(7, ("core",))
    tab.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(annotator.voxels(), before)
    eventually(lambda: tab.listed() == listed, "the list to lose the slice")
    tab.page.keyboard.press("d")
    expect(tab.button("complete")).to_have_attribute("aria-pressed", "true")
    eventually(lambda: len(tab.listed()) == len(listed) + 1, "the list to have the slice")
    tab.page.keyboard.press("d")
    expect(tab.page.locator("[data-slice-index].unfinished")).to_have_count(1)


def test_a_stroke_has_no_gaps_however_fast_it_is(tab: Tab, client: Client, series: dict[str, Series]) -> None:
    tab.open(series["careless"].study)
    annotator = begin(tab, client, series["careless"])
    tab.go(6)
    tab.page.locator("[data-label=disc]").click()
    tab.set_radius(2)
    k = round((np.linalg.inv(AFFINE_LPS) @ [*tab.focus(), 1])[AXIS])
    before = annotator.voxels()
    tab.jump(*((AFFINE_LPS @ [i, 18, k, 1])[:3] for i in (8, 32)))
    painted = (annotator.voxels() != before).any(axis=AXIS)
    assert painted[7:34, 17:20].all()
    assert not painted[:, :15].any() and not painted[:, 22:].any()


def test_server_and_archive_may_end_in_the_middle(
    context: BrowserContext, series: dict[str, Series], tmp_path: Path
) -> None:
    with ExitStack() as archive:
        orthanc = archive.enter_context(running_orthanc(tmp_path / "orthanc"))
        orthanc.add(series["crashed"].files)
        conf = {"folder": str(tmp_path / "kept"), "budget_s": "300"}
        server = Server(orthanc.dicomweb, tmp_path, conf, environment=orthanc.environment)
        with server as client:
            tab = Tab(context, client.url, artefacts(tmp_path))
            tab.open(series["crashed"].study)
            annotator = begin(tab, client, series["crashed"])
            annotator.paint(3)
            tab.button("train").click()
            hold_training(tmp_path)
            annotator.paint(7)
            server.kill()
            expect(tab.page.locator("[data-training]")).to_contain_text("does not answer")
            tab.press("submit")
            expect(tab.notice("does not answer")).to_be_visible()
            annotator.paint(11)
            tab.shot("server_gone")

            server.__enter__()
            expect(tab.page.locator("[data-training]")).to_have_count(0)
            tab.notice("does not answer").get_by_role("button", name="Try again").click()
            expect(tab.button("submit")).to_have_text("All submitted")
            annotator.check()
            tab.shot("server_back")
            server.kill()
            server.__enter__()
            tab.reload()
            tab.wait_ready()
            annotator.check()

            archive.close()
            annotator.paint(5)
            tab.press("propagate")
            assert annotator.filled() > 6
            tab.press("final")
            expect(tab.notice("not in the archive")).to_be_visible()
            annotator.check()
            tab.shot("archive_gone")
    assert tab.errors == []


def test_keys_do_what_the_buttons_do(tab: Tab, client: Client, series: dict[str, Series]) -> None:
    tab.open(series["named"].study)
    annotator, press = begin(tab, client, series["named"]), tab.page.keyboard.press
    press("p")
    expect(tab.notice("Nothing is annotated yet")).to_be_visible()
    press("Control+Enter")
    expect(tab.notice("nothing to submit")).to_be_visible()
    tab.shot("nothing")
    assert client.study(annotator.image)["result"] is None
    for key, pressed in (("e", "tool=eraser"), ("s", "tool=scribble"), ("x", "mark=background"), ("n", "tool=look")):
        press(key)
        expect(tab.page.locator(f"[data-{pressed}]")).to_have_attribute("aria-pressed", "true")
    radius = tab.page.get_by_label("Radius in mm")
    press("b")
    before = float(radius.input_value())
    press("]")
    expect(radius).to_have_value(f"{before + 1:g}")
    press("[")
    expect(radius).to_have_value(f"{before:g}")

    annotator.paint(4)
    annotator.paint(10)
    press("Control+Enter")
    expect(tab.button("submit")).to_have_text("All submitted")
    press("p")
    expect(tab.button("undo")).to_be_enabled()
    press("u")
    expect(tab.button("uncertainty")).to_have_attribute("aria-pressed", "true")
    press("u")
    shown = tab.picture()
    press("h")
    eventually(lambda: tab.picture() != shown, "the labels to be hidden")
    tab.shot("hidden")
    press("h")
    eventually(lambda: tab.picture() == shown, "the labels to be shown")
    suggested = tab.button("suggest").inner_text().split()[-1]
    press("g")
    expect(tab.part("slice").locator("[data-slice]")).to_have_attribute("data-slice", suggested)
    annotator.check()


def test_labels_are_added_renamed_and_recoloured(
    tab: Tab, context: BrowserContext, client: Client, series: dict[str, Series]
) -> None:
    image = series["coronal"].image
    tab.open(series["coronal"].study)
    tab.wait_ready()
    tab.add_label("draft")
    other = Tab(context, client.url, tab.folder)
    other.open(series["named"].study)
    other.page.locator("[data-label=draft]").wait_for()
    tab.page.locator("[data-label=draft]").dblclick()
    tab.page.get_by_label("New name of draft").fill("lesion")
    tab.page.keyboard.press("Enter")
    for one in (tab, other):
        one.page.locator("[data-label=lesion]").wait_for()
    tab.settle()
    tab.page.get_by_label("Colour of lesion").fill("#12ab9f")
    expect(other.page.get_by_label("Colour of lesion")).to_have_value("#12ab9f")
    tab.shot("labels")
    study = client.study(image)
    assert "draft" not in study["label_names"]
    assert study["colors"]["lesion"] == "#12ab9f"
    tab.page.get_by_placeholder("New label").fill("Lesion")
    tab.page.keyboard.press("Enter")
    expect(tab.notice("already")).to_be_visible()
    assert other.errors == []


def test_the_dock_is_as_wide_as_it_is_dragged(tab: Tab, series: dict[str, Series]) -> None:
    tab.open(series["coronal"].study)
    tab.wait_ready()
    panel, edge = tab.page.locator(".labelprop-panel"), tab.page.locator(".labelprop-resize")
    before, at = panel.bounding_box(), edge.bounding_box()
    assert before is not None and at is not None
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x - 60, y)
    tab.page.mouse.move(x - 120, y)
    tab.page.mouse.up()
    tab.shot("wide")
    tab.reload()
    tab.wait_ready()
    after = panel.bounding_box()
    assert after is not None and abs(after["width"] - before["width"] - 120) < 3


@pytest.mark.parametrize("name", ODD)
def test_a_series_that_is_no_volume_is_told(name: str, tab: Tab, series: dict[str, Series]) -> None:
    tab.page.goto(tab.address(series[name].study))
    expect(tab.page.locator(".labelprop-panel")).to_contain_text(ODD[name][1])
    tab.shot(name.replace(" ", "_"))


def test_a_series_that_is_no_volume_is_told_in_other_modes(tab: Tab, series: dict[str, Series]) -> None:
    tab.open(series["localiser"].study, "segmentation")
    tab.page.locator("[data-cy=labelprop-btn]").click()
    expect(tab.page.locator(".labelprop-panel")).to_contain_text("not a volume")


def test_other_modes_are_left_alone_until_the_panel_is_opened(
    tab: Tab, client: Client, series: dict[str, Series]
) -> None:
    tab.open(series["descending"].study, "monai-label")
    tab.page.locator(".monaiLabelPanel").wait_for()
    assert tab.page.evaluate("window.services.segmentationService.getSegmentations().length") == 0
    tab.page.locator("[data-cy=labelprop-btn]").click()
    tab.wait_ready()
    assert tab.listed() == client.study(series["descending"].image)["annotated_slices"]
