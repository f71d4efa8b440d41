"""Files in and out: the only reader and writer of scans and label maps.

Every array is in the axis order `(i, j, k)` of its file and every affine maps voxel index to RAS millimetres, whatever
the format: NIfTI (nibabel), NRRD and MetaImage (SimpleITK, converted from LPS), or a folder with one DICOM series.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sliceprop.dicom_series import read_header, read_series
from sliceprop.errors import FileError, GeometryError, ShapeError, SlicePropError, StorageError
from sliceprop.memory import check_memory
from sliceprop.stored_voxels import (
    META_SUFFIXES,
    NRRD_SUFFIXES,
    check_compressed,
    check_gzip,
    check_lines,
    meta_end,
    read_head,
)
from sliceprop.volume import check_affine

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SITK_SUFFIXES = NRRD_SUFFIXES + META_SUFFIXES
SUFFIXES = NIFTI_SUFFIXES + SITK_SUFFIXES
OUTPUT_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")
"""Without the formats that keep header and voxels in two files, which cannot appear at once."""

ZARR_SUFFIX, ZARR_REASON = ".zarr", "is OME-Zarr; fill it with `sliceprop propagate-large`"

LONGEST_NAME = 255
"""Bytes of a file name, the limit of all common file systems."""

FOLDER = ".labelprop"
"""Beside the scans: what is kept of them. A server makes it at its start; if it goes, its disk was taken away."""

UNFINISHED = ".writing-"
"""Begins the name of what is being written, until it is complete."""

LONGEST_EXTENSIONS = 16 << 20
"""Bytes between the header of a NIfTI and its voxels; real ones are histories and the headers of DICOM files."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Image:
    """An array with its place in space.

    Attributes:
        array: `(i, j, k)` in the file's axis order.
        affine: `(4, 4)`, voxel index to RAS mm.
        header: the NIfTI header it came with, so that results carry the same codes and units; None for other formats.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header | None = None


def read_image(path: str | Path) -> Image:
    """Read a scan or a label map.

    Raises:
        FileError: missing, unreadable or truncated file, unknown format, a folder without exactly one DICOM series.
        GeometryError: an affine that is singular or not finite; DICOM slices that are no regular stack.
        ShapeError: not a single 3D volume.
        TooLargeError: if the volume would not fit into memory.
    """
    file = Path(path)
    _check_name(file)
    if not file.exists():
        raise FileError(f"{file}: no such file or folder")
    if file.name.endswith(ZARR_SUFFIX):
        raise FileError(f"{file}: {ZARR_REASON}")
    if file.is_dir():
        return _read_sitk(file, lambda: _read_dicom_series(file))
    if file.name.endswith(NIFTI_SUFFIXES):
        return _read_nifti(file)
    if file.name.endswith(SITK_SUFFIXES):
        return _read_sitk(file, lambda: _read_checked(file))
    raise FileError(f"{file}: unknown format; use {', '.join(SUFFIXES)} or a folder with one DICOM series")


def image_shape(path: str | Path) -> tuple[int, ...] | None:
    """The shape of a file by its header alone; None where that does not tell.

    Of a folder with a DICOM series one header is read, and all files are taken for slices of it.
    """
    file = Path(path)
    try:
        if file.is_dir():
            files = [each for each in file.iterdir() if each.is_file()]
            header = read_header(max(files, key=lambda each: each.stat().st_size))
            return None if header is None else (*header.shape[:2], header.shape[2] * len(files))
        if file.name.endswith(NIFTI_SUFFIXES):
            return _squeezed(_nifti_header(file).get_data_shape())
        if file.name.endswith(SITK_SUFFIXES):
            return _header_size(file)
    except (FileError, OSError, EOFError, RuntimeError, ValueError, zlib.error, HeaderDataError):
        return None
    return None


def _header_size(file: Path) -> tuple[int, ...]:
    return tuple(_header_read(file).GetSize())


def check_same_grid(image: Image, other: Image, name: str) -> None:
    """Refuse an array that does not lie on the image's grid.

    Raises:
        ShapeError: other shape.
        GeometryError: corners more than a tenth of a voxel apart.
    """
    if image.array.shape != other.array.shape:
        raise ShapeError(
            f"{name}: shape {other.array.shape} differs from the image's {image.array.shape}; both need the same grid"
        )
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(image.array.shape) - 1
    apart = np.linalg.norm((corners @ (image.affine - other.affine).T)[:, :3], axis=1).max()
    voxel = np.linalg.norm(image.affine[:3, :3], axis=0).min()
    if apart > 0.1 * voxel:
        raise GeometryError(
            f"{name}: its affine places voxels up to {apart:.2f} mm away from the image's; "
            "resample it onto the image's grid first"
        )


def write_image(
    path: str | Path, array: NDArray[Any], like: Image, *, dtype: str | None = None, compress: bool = True
) -> None:
    """Write `array` on the grid of `like`, format by the file's ending; the file appears whole or not at all.

    Args:
        path: ends with one of `OUTPUT_SUFFIXES`; its folder must exist.
        array: `(i, j, k)`; floats become float32, int16 (scans) stays, other integers (labels) take the smallest
            unsigned type that holds them.
        like: gives affine and, for NIfTI, the header's codes and units.
        dtype: type in the file; chosen as above without it.
        compress: for NRRD and MetaImage; NIfTI says it in the ending.

    Raises:
        FileError: unknown ending, folder missing, read-only or full.
        ShapeError: `array` is not on the grid of `like`.
    """
    if array.shape != like.array.shape:
        raise ShapeError(f"{path}: array {array.shape} is not on the image's grid {like.array.shape}")
    check_writable(path)
    data = _compact(array) if dtype is None else array.astype(dtype)
    if str(path).endswith(NIFTI_SUFFIXES):
        image = nib.Nifti1Image(data, like.affine, like.header)
        if like.header is None:
            image.set_sform(like.affine, "scanner")
            image.header.set_xyzt_units("mm")
        image.set_data_dtype(data.dtype)
        image.header.set_slope_inter(1, 0)
        image.header["cal_min"], image.header["cal_max"] = 0, 0
        write_atomically(path, lambda temporary: nib.save(image, temporary))
    else:
        write_atomically(path, lambda temporary: sitk.WriteImage(_to_sitk(data, like.affine), str(temporary), compress))


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read, or twice to one file.

    Args:
        outputs: files to write.
        inputs: files to read; None and empty names count for nothing.

    Raises:
        FileError: naming the file.
    """
    taken = {Path(file).resolve() for file in inputs if file}
    for file in outputs:
        if file.resolve() in taken:
            raise FileError(f"{file}: would overwrite another file of this command; choose another name")
        taken.add(file.resolve())


def check_writable(path: str | Path) -> None:
    """Refuse an output that cannot be written, before any long work.

    Raises:
        FileError: unknown ending, or a folder that is missing or read-only.
    """
    file = Path(path)
    if not file.name.endswith(OUTPUT_SUFFIXES):
        raise FileError(f"{file}: unknown output format; use one of {', '.join(OUTPUT_SUFFIXES)}")
    check_folder(file)


def check_folder(file: Path) -> None:
    """Refuse a file to write that is a folder, or whose folder is missing or read-only.

    Raises:
        FileError: naming the folder.
    """
    _check_name(file)
    if file.is_dir():
        raise FileError(f"{file}: is a folder, give a file")
    folder = file.absolute().parent
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: is read-only")


def _check_name(file: Path) -> None:
    if len(os.fsencode(file.name)) > LONGEST_NAME:
        raise FileError(f"{file}: the name is too long")


def make_folder(folder: str | Path) -> None:
    """Make a folder and its parents, but neither a `FOLDER` nor anything in one; one that is there is fine.

    Raises:
        StorageError: if that is not possible.
    """
    path = Path(folder)
    for kept in (path, *path.parents):
        if kept.name == FOLDER and not kept.is_dir():
            raise StorageError(f"{kept}: is out of reach")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot make this folder ({error.strerror})") from error


def write_atomically(
    path: str | Path, write: Callable[[Path], object], put: Callable[[Path, Path], object] = os.replace
) -> None:
    """Call `write` on a temporary file beside `path`, then `put` it there, so that readers never see half a file.

    The file is on the disk before its name is, so that this also holds after a loss of power.

    Raises:
        StorageError: if the folder is missing, read-only or full; nothing is left behind.
    """
    file = Path(path)
    suffix = "".join(file.suffixes[-2:]) if file.name.endswith(".nii.gz") else file.suffix
    try:
        descriptor, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=UNFINISHED, suffix=suffix)
    except OSError as error:
        raise StorageError(f"{file}: cannot write ({error.strerror})") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        sync(temporary)
        put(temporary, file)
        sync(file.absolute().parent)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{file}: cannot write ({getattr(error, 'strerror', None) or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: for a file that cannot be written to the disk; folders cannot be synced everywhere, which is fine.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        with suppress(OSError) if folder else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON; the file appears whole or not at all.

    Raises:
        FileError: if the folder is missing, read-only or full.
    """
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def compact_labels(array: NDArray[Any]) -> NDArray[Any]:
    """Label values in the smallest unsigned integer type that holds them: uint8 or uint16."""
    return array.astype(np.uint8 if array.max(initial=0) <= 255 else np.uint16)


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    return array if array.dtype == np.int16 else compact_labels(array)


def _read_nifti(file: Path) -> Image:
    try:
        header = _nifti_header(file)
        shape, begin = _squeezed(header.get_data_shape()), header.get_data_offset()
        _check_volume(file, 1, shape)
        check_gzip(file, begin + math.prod(shape) * header.get_data_dtype().itemsize)
        array = np.asanyarray(ArrayProxy(str(file), header.copy())).reshape(shape)
        affine = check_affine(header.get_best_affine(), str(file))
    except SlicePropError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, HeaderDataError) as error:
        raise FileError(f"{file}: cannot be read as NIfTI, it may be truncated ({error})") from error
    if shape != header.get_data_shape():
        header.set_data_shape(shape)
    header.set_data_offset(0)
    return Image(np.ascontiguousarray(array), affine, header)


def _nifti_header(file: Path) -> nib.Nifti1Header:
    """The header without its extensions, which are of no use here and may take any memory and time.

    Raises:
        FileError: if there is none, or voxels begin too far behind it.
        OSError, EOFError, ValueError, OverflowError, zlib.error, HeaderDataError: if it is damaged.
    """
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
        block = content.read(nib.Nifti2Header.sizeof_hdr)
    kinds: Iterable[Any] = (nib.Nifti1Header, nib.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(block)), None)
    if kind is None:
        raise FileError(f"{file}: cannot be read as NIfTI, it does not begin as such a file does")
    header: nib.Nifti1Header = kind(block[: kind.sizeof_hdr])
    if not header["vox_offset"] <= LONGEST_EXTENSIONS:  # nor if it is not a number
        raise FileError(f"{file}: cannot be read as NIfTI, its voxels begin too far behind its header")
    return header


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length one behind the third."""
    return _squeezed(shape[:-1]) if len(shape) > 3 and shape[-1] == 1 else shape


def _check_volume(file: Path, components: int, shape: tuple[int, ...]) -> None:
    """Refuse by the header what is not one volume of numbers that fits into memory."""
    if components != 1:
        raise ShapeError(f"{file}: has {components} values per voxel; give one grey volume")
    if len(shape) != 3:
        raise ShapeError(f"{file}: needs 3 axes, found {len(shape)} (shape {shape}); give one 3D volume")
    check_memory(shape, str(file))


def _read_sitk(file: Path, read: Callable[[], sitk.Image]) -> Image:
    try:
        image = read()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileError(f"{file}: cannot be read, it may be truncated ({reason})") from error
    _check_volume(file, image.GetNumberOfComponentsPerPixel(), image.GetSize())
    return Image(np.ascontiguousarray(sitk.GetArrayFromImage(image).T), _sitk_affine(image, str(file)))


def _read_checked(file: Path) -> sitk.Image:
    """Read the header first, so that a huge volume is refused before it is read."""
    reader = _header_read(file)
    _check_volume(file, reader.GetNumberOfComponents(), reader.GetSize())
    voxel = sitk.GetArrayViewFromImage(sitk.Image((1, 1), reader.GetPixelID(), 1)).nbytes
    check_compressed(file, math.prod(reader.GetSize()) * voxel)
    image: sitk.Image = reader.Execute()
    return image


def _header_read(file: Path) -> sitk.ImageFileReader:
    """A reader that knows the header; what kind of file it is says its name, never its content."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    if file.name.endswith(NRRD_SUFFIXES):
        check_lines(file)
        reader.SetImageIO("NrrdImageIO")
    else:
        _check_dimensions(file)
        reader.SetImageIO("MetaImageIO")
    reader.ReadImageInformation()
    return reader


def _check_dimensions(file: Path) -> None:
    """Refuse MetaImage with any other number of axes than one digit: ITK would write outside of its memory, and crash.

    Raises:
        FileError: also if the file cannot be opened.
    """
    head = read_head(file)
    end = meta_end(head)
    axes = re.findall(rb"NDims[^\r\n]*", head[: end.start()] if end else b"")
    if len(axes) != 1 or not re.fullmatch(rb"NDims\s*[=:]\s*[1-9]\s*", axes[0]):
        raise FileError(f"{file}: cannot be read, its header does not end, or does not say how many axes there are")


def _read_dicom_series(folder: Path) -> sitk.Image:
    files = read_series(folder)
    columns, rows, frames = files[0].shape
    check_memory((columns, rows, frames * len(files)), str(folder))
    reader: Any
    if frames > 1:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(files[0].path))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file.path) for file in files])
    reader.SetImageIO("GDCMImageIO")
    if len({file.scale for file in files}) > 1:  # else all take the type that holds the first one
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image: sitk.Image = reader.Execute()
    return image


def _sitk_affine(image: sitk.Image, name: str) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return check_affine(LPS_TO_RAS @ affine, name)


def _to_sitk(array: NDArray[Any], affine: NDArray[np.float64]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image
