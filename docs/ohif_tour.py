"""The loop in OHIF as a script: a real browser on the sample data, a real server and archive; takes the pictures.

PYTHONPATH=tests python docs/ohif_tour.py docs        # needs Orthanc, chromium and Playwright for Python
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom

from browsing import Tab, browser_context, expect
from serving import Client, Server
from sliceprop.dicom import write_dicom_series
from sliceprop.io import LPS_TO_RAS, Image
from sliceprop.orthanc import start_orthanc
from sliceprop.phantom import LABEL_NAMES, Phantom, make_phantom
from sliceprop.serve import Programs

DRAWN = (2, 12, 21)


def main(folder: Path) -> None:
    """Go through the loop once."""
    phantom = make_phantom()
    with tempfile.TemporaryDirectory() as scratch, Programs() as programs:
        work = Path(scratch)
        files = write_dicom_series(work / "dicom", Image(phantom.image, phantom.affine), name="thigh")
        orthanc = start_orthanc(programs, work / "orthanc")
        orthanc.add(files)
        scan = pydicom.dcmread(files[0])
        with Server(orthanc.dicomweb, work, {"folder": str(work / "kept")}) as client, browser_context() as context:
            annotate(client, str(scan.SeriesInstanceUID), phantom)
            take(Tab(context, client.url, folder), str(scan.StudyInstanceUID))


def annotate(client: Client, image: str, phantom: Phantom) -> None:
    """Submit the drawn slices, as the server counts voxels."""
    study = client.study(image)
    to_server = np.linalg.inv(study["affine_lps"]) @ LPS_TO_RAS @ phantom.affine
    voxels = np.argwhere(phantom.reference)
    there = np.round(voxels @ to_server[:3, :3].T + to_server[:3, 3]).astype(int)
    drawn = np.isin(there[:, study["slice_axis"]], DRAWN)
    labels = np.zeros(study["shape"], np.uint8)
    labels[tuple(there[drawn].T)] = phantom.reference[tuple(voxels[drawn].T)]
    names = [{"name": name.replace("_", " "), "idx": index} for index, name in enumerate(LABEL_NAMES, start=1)]
    params = {"label_info": names, "annotated_slices": list(DRAWN), "slice_axis": study["slice_axis"]}
    files = {"label": ("label.bin", labels.tobytes(order="F"))}
    client.ok("PUT", f"/datastore/label?image={image}&tag=sparse", files=files, data={"params": json.dumps(params)})


def take(tab: Tab, study: str) -> None:
    """The annotated slice, the result with the slice to correct, and where the result is uncertain."""
    tab.open(study)
    tab.wait_ready()
    tab.page.locator(f"[data-slice-index='{DRAWN[1]}']").click()
    tab.page.locator(".labelprop-label").first.click()
    tab.shot("ohif_painting")
    tab.button("train").click()
    expect(tab.page.locator("[data-training]")).to_be_visible()
    expect(tab.page.locator("[data-training]")).to_have_count(0, timeout=600_000)
    tab.press("propagate")
    tab.go_to_suggestion()
    tab.shot("ohif_propagated")
    tab.press("uncertainty")
    tab.shot("ohif_uncertainty")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
