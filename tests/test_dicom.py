"""DICOM series as other programs read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage

from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError, GeometryError
from sliceprop.io import Image, read_image
from sliceprop.phantom import make_phantom


@pytest.fixture(scope="module")
def scan() -> Image:
    phantom = make_phantom(24, 4)
    return Image(phantom.image, phantom.affine)


def test_attributes_that_a_viewer_needs(tmp_path: Path, scan: Image) -> None:
    slices = [pydicom.dcmread(file) for file in write_dicom_series(tmp_path / "series", scan, name="thigh")]
    first = slices[0]
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == MRImageStorage
    assert (first.Modality, first.PatientID, first.Rows, first.Columns) == ("MR", "thigh", 24, 24)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({one.get(keyword) for one in slices}) == 1
    assert len({one.SOPInstanceUID for one in slices}) == 4
    assert [one.InstanceNumber for one in slices] == [1, 2, 3, 4]
    row, column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    np.testing.assert_allclose([row @ row, column @ column, row @ column], (1, 1, 0), atol=1e-6)
    np.testing.assert_array_equal(slices[2].pixel_array.T, scan.array[..., 2])
    positions = np.array([one.ImagePositionPatient for one in slices], float)
    np.testing.assert_allclose(np.linalg.norm(np.diff(positions, axis=0), axis=1), 30, atol=1e-6)
    np.testing.assert_allclose(positions[0] * (-1, -1, 1), scan.affine[:3, 3], atol=1e-6)


def test_the_same_scan_gets_the_same_uids(tmp_path: Path, scan: Image) -> None:
    other = Image(scan.array + 1, scan.affine)
    uids = [
        pydicom.dcmread(write_dicom_series(tmp_path / str(n), image)[0]).SOPInstanceUID
        for n, image in enumerate((scan, scan, other))
    ]
    assert uids[0] == uids[1] != uids[2]


@pytest.mark.parametrize("array", [np.linspace(-0.5, 70_000.25, 60), np.arange(60) * 3000 - 5], ids=["float", "wide"])
def test_values_that_do_not_fit_are_scaled(tmp_path: Path, array: np.ndarray) -> None:
    scan = Image(array.reshape(5, 4, 3), np.diag([1.0, 1.0, 2.0, 1.0]))
    write_dicom_series(tmp_path / "series", scan)
    back = np.sort(read_image(tmp_path / "series").array, axis=None)
    np.testing.assert_allclose(back, array, atol=np.ptp(array) / 32_767)


def test_folder_with_files_and_sheared_affine_are_refused(tmp_path: Path, scan: Image) -> None:
    write_dicom_series(tmp_path / "series", scan)
    with pytest.raises(FileError, match="not empty"):
        write_dicom_series(tmp_path / "series", scan)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(GeometryError, match="sheared"):
        write_dicom_series(tmp_path / "other", Image(scan.array, sheared))
