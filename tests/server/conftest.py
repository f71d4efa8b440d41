"""A workspace on a folder with the study of `columns`, without a server; some tests have one of their own instead."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import AFFINE, NAMES, SHAPE, column
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    studies = tmp_path / "studies"
    studies.mkdir()
    scan = np.random.default_rng(0).normal(column() * 100, 5, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, AFFINE), studies / "case.nii.gz")
    return Workspace(LocalStudies(str(studies)))


@pytest.fixture
def submit(workspace, tmp_path):
    def submit(labels, tag="sparse", **params):
        file = tmp_path / "upload.nii.gz"
        nib.save(nib.Nifti1Image(labels, AFFINE), file)
        return workspace.submit("case", tag, file, label_options({"label_info": NAMES, **params}))

    return submit
