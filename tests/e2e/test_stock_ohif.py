"""OHIF's own mode *MONAI Label*, untouched, on our server: connect, segment, next sample, update the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving import AFFINE, DRAWN, SHAPE, Client, Server, eventually, only, running_orthanc, scan, truth
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError
from sliceprop.io import Image
from sliceprop.orthanc import find_orthanc

pytest.importorskip("playwright")
from browsing import CHROMIUM, Tab, artefacts, browser_context

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

VALUES = """() => {
    const one = window.services.segmentationService.getSegmentations()[0];
    const volume = window.services.segmentationService.getLabelmapVolume(one.segmentationId);
    return Array.from(volume.voxelManager.getCompleteScalarDataArray());
}"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    try:
        find_orthanc()
    except FileError as missing:
        pytest.skip(str(missing))
    work = tmp_path_factory.mktemp("stock")
    with running_orthanc(work / "orthanc") as orthanc:
        orthanc.add(write_dicom_series(work / "dicom", Image(scan(), AFFINE), name="stock"))
        conf = {"folder": str(work / "kept")}
        with Server(orthanc.dicomweb, work, conf, environment=orthanc.environment) as client:
            yield client


@pytest.fixture
def tab(client: Client, tmp_path: Path) -> Iterator[Tab]:
    with browser_context() as context:
        address = {"name": "MONAILABEL_SERVER_URL", "value": f"{client.url}/".replace(":", "%3A").replace("/", "%2F")}
        context.add_cookies([{**address, "url": f"{client.url}/ohif/"}])
        yield Tab(context, client.url, artefacts(tmp_path))


def test_models_segmentation_next_sample_and_training(client: Client, tab: Tab) -> None:
    (series,) = client.ok("GET", "/proxy/dicom/qido/series")
    image, study = series["0020000E"]["Value"][0], series["0020000D"]["Value"][0]
    client.paint(image, only(truth()), annotated_slices=list(DRAWN), slice_axis=2)
    tab.open(study, mode="monai-label")
    page = tab.page
    page.wait_for_function("document.querySelectorAll('.cornerstone-canvas').length >= 3")
    page.locator(".settingsTable button.actionButton").first.click()
    page.get_by_text("Auto-Segmentation").wait_for()

    page.locator(".tab:has-text('Auto-Segmentation') button.actionButton").first.click()
    eventually(lambda: client.study(image)["result"], "the result")
    result = client.voxels(image)
    page.wait_for_function(
        f"expected => ({VALUES})().filter(value => value).length === expected", arg=np.count_nonzero(result)
    )
    shown = np.array(page.evaluate(VALUES)).reshape(SHAPE, order="F")
    # OHIF numbers its segments by the alphabet, and has its own order of slices.
    core, disc = (shown == 1), (shown == 2)
    assert any(
        np.array_equal(disc[..., order], result == 1) and np.array_equal(core[..., order], result == 2)
        for order in (slice(None), slice(None, None, -1))
    )
    tab.shot("stock_segmentation")

    page.locator("label.tab-label:has-text('Active Learning')").click()
    page.locator("button:has-text('Update Model')").click()
    eventually(lambda: client.stats().get("image") == image, "the training to be asked for")
    client.ok("DELETE", "/train/")
    page.locator("button:has-text('Next Sample')").click()
    page.get_by_text("annotate axial slice").wait_for()
    tab.shot("stock_next_sample")
    expected = client.next_slice(image)
    assert page.get_by_text(expected["Modality"]).is_visible()
    assert not tab.errors
