"""The synthetic thigh in an archive and a server on it, a few slices annotated: to picture and measure OHIF with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from browsing import Tab, browser_context
from serving import Client, Server, running_orthanc
from sliceprop.dicom import write_dicom_series
from sliceprop.io import LPS_TO_RAS, Image
from sliceprop.phantom import LABEL_NAMES, Phantom

BUDGET_S = "120"
"""Of a training, so that it is not cut short on a busy machine."""


@dataclass(frozen=True)
class Tour:
    """An annotated study, and a tab that does not show it yet.

    Attributes:
        client: of the server.
        tab: of a fresh browser.
        study: StudyInstanceUID.
        image: SeriesInstanceUID.
    """

    client: Client
    tab: Tab
    study: str
    image: str


@contextmanager
def touring(phantom: Phantom, slices: Sequence[int], folder: Path) -> Iterator[Tour]:
    """A tour of a thigh.

    Args:
        phantom: the thigh.
        slices: 0-based, annotated as the phantom's reference has them.
        folder: for pictures.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        files = write_dicom_series(work / "dicom", Image(phantom.image, phantom.affine), name="thigh")
        scan = pydicom.dcmread(files[0])
        image, study = str(scan.SeriesInstanceUID), str(scan.StudyInstanceUID)
        with running_orthanc(work / "orthanc") as orthanc:
            orthanc.add(files)
            conf = {"folder": str(work / "kept"), "budget_s": BUDGET_S}
            server = Server(orthanc.dicomweb, work, conf, environment=orthanc.environment)
            with server as client, browser_context() as context:
                annotate(client, image, phantom, slices)
                yield Tour(client, Tab(context, client.url, folder), study, image)


def annotate(client: Client, image: str, phantom: Phantom, slices: Sequence[int]) -> None:
    """Submit slices of the phantom's reference, as the server counts voxels."""
    study = client.study(image)
    to_server = np.linalg.inv(study["affine_lps"]) @ LPS_TO_RAS @ phantom.affine
    voxels = np.argwhere(phantom.reference)
    there = np.round(voxels @ to_server[:3, :3].T + to_server[:3, 3]).astype(int)
    drawn = np.isin(there[:, study["slice_axis"]], slices)
    labels = np.zeros(study["shape"], np.uint8)
    labels[tuple(there[drawn].T)] = phantom.reference[tuple(voxels[drawn].T)]
    names = [{"name": name.replace("_", " "), "idx": index} for index, name in enumerate(LABEL_NAMES, start=1)]
    params = {"label_info": names, "annotated_slices": list(slices), "slice_axis": study["slice_axis"]}
    files = {"label": ("label.bin", labels.tobytes(order="F"))}
    client.ok("PUT", f"/datastore/label?image={image}&tag=sparse", files=files, data={"params": json.dumps(params)})
