"""DICOM series: a volume as one, for servers and viewers that read nothing else, and whether one is a volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from sliceprop.errors import FileError, GeometryError, ShapeError
from sliceprop.io import LPS_TO_RAS, Image, check_folder, make_folder
from sliceprop.volume import voxel_spacing

UNEQUAL = 0.1
"""Part of a voxel by which a slice may lie off its place in a regular stack."""

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


def check_series(folder: str | Path) -> None:
    """Refuse a DICOM series that is not one volume of equally spaced, parallel slices.

    Args:
        folder: holds the files of one series and nothing else.

    Raises:
        FileError: if a file cannot be read as DICOM, or there is none.
        ShapeError: for slices of several sizes, or fewer than two.
        GeometryError: for slices without a place, in several orientations, at the same place, missing, unequally
            spaced or shifted against each other.
    """
    headers = [_header(file) for file in sorted(Path(folder).iterdir())]
    if not headers:
        raise FileError(f"{folder}: holds no DICOM files")
    sizes = sorted({(int(one.get("Rows", 0)), int(one.get("Columns", 0))) for one in headers})
    if len(sizes) > 1:
        raise ShapeError(f"the series holds images of several sizes ({sizes[0]} and {sizes[1]}); choose another series")
    frames = [frame for header in headers for frame in _frames(header)]
    if len(frames) < 2:
        raise ShapeError("the series has one slice, as a scout has; at least 2 slices are needed")
    pixel = float(min(headers[0].get("PixelSpacing", None) or (1.0,)))
    _check_places(np.array([orientation for orientation, _ in frames]), np.array([at for _, at in frames]), pixel)


def describe_series(folder: str | Path) -> dict[str, Any]:
    """What clients of MONAI Label show of a series that `check_series` takes.

    Returns:
        attributes that name series, study and patient, `UNK` where one is missing; and the slices' `InstanceNumbers` in
        the order of `io.read_image`, by which viewers count, if every file is one slice and has one.
    """
    headers = [_header(file) for file in sorted(Path(folder).iterdir())]
    keywords = ("SeriesInstanceUID", "StudyInstanceUID", "StudyDate", "StudyTime", "Modality", "PatientID")
    told: dict[str, Any] = {keyword: str(headers[0].get(keyword, None) or "UNK") for keyword in keywords}
    if all(one.get("InstanceNumber", None) is not None and "ImagePositionPatient" in one for one in headers):
        headers.sort(key=_height)
        told["InstanceNumbers"] = [int(one.InstanceNumber) for one in headers]
    return told


def series_tags(folder: Path, keywords: Sequence[str]) -> dict[str, str]:
    """Attributes of the first DICOM file in a folder, those that it has; none where there is no such file."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return {}
    for file in files:
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(keywords))
        except (OSError, InvalidDicomError, ValueError):
            continue
        return {keyword: str(header[keyword].value) for keyword in keywords if keyword in header}
    return {}


def _height(header: Dataset) -> float:
    """Position of a slice along the normal of the stack, mm."""
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    return float(np.cross(row, column) @ np.array(header.ImagePositionPatient, float))


def _header(file: Path) -> Dataset:
    try:
        return dcmread(file, stop_before_pixels=True)
    except (OSError, InvalidDicomError, ValueError) as error:
        raise FileError(f"{file}: cannot be read as DICOM ({error})") from error


def _frames(header: Dataset) -> list[tuple[list[float], list[float]]]:
    """Orientation and position of each image in a file, in LPS mm.

    Raises:
        GeometryError: if one has none.
    """
    shared = header.get("SharedFunctionalGroupsSequence", None) or [Dataset()]
    groups = header.get("PerFrameFunctionalGroupsSequence", None) or [header]
    return [(_attribute("Orientation", group, shared[0]), _attribute("Position", group, shared[0])) for group in groups]


def _attribute(what: str, *places: Dataset) -> list[float]:
    """`ImageOrientationPatient` or `ImagePositionPatient`, of an image or of the groups of a multi-frame image."""
    for place in places:
        inner = (place.get(f"Plane{what}Sequence", None) or [place])[0]
        values = inner.get(f"Image{what}Patient", None)
        if values:
            return [float(value) for value in values]
    raise GeometryError("the series has images without a place in space, such as screenshots; choose another series")


def _check_places(orientations: NDArray[np.float64], positions: NDArray[np.float64], pixel: float) -> None:
    """Refuse slices that are no regular stack.

    Args:
        orientations: `(S, 6)`, directions of rows and columns.
        positions: `(S, 3)`, of the first voxel of each slice, LPS mm.
        pixel: size of a pixel in mm.

    Raises:
        GeometryError: saying what is wrong with them.
    """
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise GeometryError("the slices have several orientations, as those of a localiser; choose another series")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    order = np.argsort(positions @ normal)
    heights = positions[order] @ normal
    gaps = np.diff(heights)
    same, step = int(np.count_nonzero(gaps < 1e-3)), float(np.median(gaps))
    if same:
        raise GeometryError(
            f"{same + 1 if same == len(gaps) else same} of {len(heights)} images lie where another one lies, as in a "
            "series with several time points or echoes; split it and choose one of the parts"
        )
    if np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max() > UNEQUAL * step:
        wide = int(gaps.argmax())
        if gaps[wide] > 1.5 * step:
            where = f"{gaps[wide]:.1f} mm lie between slices {wide + 1} and {wide + 2}, {step:.1f} mm between others"
            raise GeometryError(f"slices are missing: {where}")
        raise GeometryError(f"the slices are spaced unequally ({gaps.min():.2f} to {gaps.max():.2f} mm); resample them")
    within = positions[order] - np.outer(heights, normal)
    if np.abs(within - within[0]).max() > UNEQUAL * pixel:
        raise GeometryError("the slices are shifted against each other, as with a tilted gantry; resample them")


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
