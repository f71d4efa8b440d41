"""Volumes as DICOM series, for servers and viewers that read nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from sliceprop.errors import FileError, GeometryError
from sliceprop.io import LPS_TO_RAS, Image, check_folder, make_folder
from sliceprop.volume import voxel_spacing

_INT16 = np.iinfo(np.int16)


def write_dicom_series(folder: str | Path, image: Image, *, slice_axis: int = 2, name: str = "phantom") -> list[Path]:
    """Write one file per slice: MR Image Storage, explicit little endian, signed 16 bit.

    Voxel `(a, b)` of a slice, the image's other two axes in order, becomes column `a` of row `b`. Integers that fit
    keep their values; others are scaled, with slope and intercept in each file. The same voxels on the same grid under
    the same name get the same UIDs, so that importing twice makes no second study.

    Args:
        folder: made if absent; must hold no files.
        image: `(i, j, k)` with its affine to RAS mm.
        slice_axis: axis that counts slices.
        name: of patient, study and series.

    Returns:
        the files, in slice order.

    Raises:
        FileError: if the folder holds something already or cannot be written.
        GeometryError: for a sheared affine, which DICOM cannot express.
    """
    target = Path(folder)
    make_folder(target)
    if any(target.iterdir()):
        raise FileError(f"{target}: is not empty; a DICOM series needs a folder of its own")
    check_folder(target / "slice")
    stored, slope, intercept = _to_int16(np.moveaxis(image.array, slice_axis, 0))
    digest = hashlib.sha256(stored.tobytes() + image.affine.tobytes() + f"{slice_axis}/{name}".encode()).hexdigest()
    files = []
    for index, pixels in enumerate(stored):
        file = target / f"{name}_{index:04d}.dcm"
        dataset = _empty_slice(file, digest, name, index)
        _place(dataset, image.affine, slice_axis, index)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        _fill(dataset, pixels.T, stored)
        try:
            dcmwrite(file, dataset, write_like_original=False)
        except OSError as error:
            raise FileError(f"{file}: cannot write ({error.strerror})") from error
        files.append(file)
    return files


def _empty_slice(file: Path, digest: str, name: str, index: int) -> FileDataset:
    """Everything that does not depend on the voxels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[digest, "instance", str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, generate_uid(entropy_srcs=[digest, keyword]))
    dataset.PatientName = dataset.PatientID = dataset.StudyDescription = dataset.SeriesDescription = name
    dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName = "", "O", ""
    dataset.StudyID, dataset.AccessionNumber, dataset.SeriesNumber, dataset.InstanceNumber = "1", "", 1, index + 1
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20000101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.Modality, dataset.Manufacturer, dataset.ImageType = "MR", "sliceprop", ["DERIVED", "SECONDARY", "OTHER"]
    dataset.PatientPosition, dataset.PositionReferenceIndicator = "HFS", ""
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime, dataset.EchoTrainLength = "2D", 15, 600, 1
    return dataset


def _place(dataset: FileDataset, affine: NDArray[np.float64], slice_axis: int, index: int) -> None:
    """Position, orientation and spacing of one slice, in LPS mm as DICOM wants them.

    Raises:
        GeometryError: if the axes are not at right angles.
    """
    spacing = np.array(voxel_spacing(affine))
    lps = LPS_TO_RAS @ affine
    directions = lps[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise GeometryError("the affine is sheared; DICOM needs axes at right angles")
    column, row = (axis for axis in range(3) if axis != slice_axis)
    dataset.ImageOrientationPatient = _decimal([*directions[:, column], *directions[:, row]])
    dataset.ImagePositionPatient = _decimal(lps[:3, 3] + index * lps[:3, slice_axis])
    dataset.PixelSpacing = _decimal([spacing[row], spacing[column]])
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal([spacing[slice_axis]])[0]


def _fill(dataset: FileDataset, pixels: NDArray[np.int16], volume: NDArray[np.int16]) -> None:
    """Voxels of one slice `(rows, columns)`, and a window that suits the whole volume."""
    low, high = (int(value) for value in np.percentile(volume, (1, 99.5)))
    dataset.WindowCenter, dataset.WindowWidth = (low + high) // 2, max(high - low, 1)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<i2").tobytes()


def _to_int16(array: NDArray[np.generic]) -> tuple[NDArray[np.int16], float, float]:
    """Stored values with `value = stored * slope + intercept`."""
    values = np.asarray(array, np.float64)
    low, high = values.min(), values.max()
    if np.issubdtype(array.dtype, np.integer) and low >= _INT16.min and high <= _INT16.max:
        return array.astype(np.int16), 1, 0
    slope = float(f"{(high - low) / _INT16.max or 1:.10g}")
    intercept = float(f"{low:.10g}")
    return np.round((values - intercept) / slope).clip(0, _INT16.max).astype(np.int16), slope, intercept


def _decimal(values: NDArray[np.float64] | list[float]) -> list[str]:
    """Numbers in at most 16 characters, DICOM's decimal string."""
    return [f"{value:.9f}"[:16] for value in values]
