"""The folder of an archive's server after its list of images was lost; the archive itself is asked in `tests/e2e`."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel")

from monailabel.datastore.dicom import DICOMwebClientX
from pydicom import dcmread

from sliceprop import io
from sliceprop.dicom import write_dicom_series
from sliceprop.erasure import erase_study
from sliceprop.errors import InputError
from sliceprop.orthanc import Orthanc
from sliceprop.server.archive import ArchivedStudies

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
