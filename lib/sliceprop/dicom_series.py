"""DICOM series as they come: which files of a folder make one, whether it is a regular stack, and what it tells.

Headers are read by pydicom, and nothing reaches GDCM that is not checked here: for an element that declares more bytes
than its file holds, GDCM takes the memory first.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info, read_sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    MediaStorageDirectoryStorage,
)
from pydicom.valuerep import VR

from sliceprop.errors import FileError, GeometryError, ShapeError

UNEQUAL = 0.1
"""Part of a voxel by which a slice may lie off its place in a regular stack."""

_SAME_PIXEL = 1e-3
"""Part of a pixel by which those of one series may differ."""

_FAR_MM = 1e6
"""No scanner has a place, or pixels, of that size."""

_LARGE = 1 << 16
"""Bytes of an element that are left in the file until somebody asks for them."""

_PREAMBLE = 128
_MAGIC = b"DICM"
_BARE = (b"\x02\x00", b"\x08\x00")
"""How files begin that some programs write without preamble: with the group of their first element."""

_PLAIN_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_JPEG_SYNTAXES = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes)
_SIZ = re.compile(rb"\xff\x51(?=(.{38}))", re.DOTALL)
"""Where a JPEG 2000 image tells its size; 4 more numbers of it keep what only looks so from being taken for one."""

_SOF = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7](?=(.{8}))", re.DOTALL)
"""The same of the other kinds of JPEG."""

_END_OF_ITEMS = 0xFFFE, 0xE0DD
_ITEM = b"\xfe\xff\x00\xe0"
_DEEPEST = 32
"""In how many sequences an element may lie."""

_OPEN_COSTS, _MOST_WORK = 6, 1_000_000
"""How many times as long GDCM takes for each sequence that does not tell its length, below one that does, and how many
items it may take as long for: a second, about. 6 such levels take 10 ms, 10 of them 19 s (GDCM of SimpleITK 2.5)."""

_MOST_ITEMS = 200_000
"""Of a sequence with all that are inside of it; one of each frame has some twenty."""

_FILE_META = 2
_UNDEFINED = 0xFFFFFFFF
_KINDS = frozenset(VR)


@dataclass(frozen=True)
class SeriesFile:
    """What one file of a series says of itself.

    Attributes:
        path: of the file.
        series: `SeriesInstanceUID`.
        number: `InstanceNumber`, if it has one.
        shape: columns, rows, frames.
        pixel: distance of rows and of columns, mm; 1 if it does not say.
        values: samples per pixel, bits of each, and whether they are signed.
        scale: slope and intercept from what is stored to values.
        places: `(F, 9)`, of each frame the directions of its rows and columns and the position of its first voxel, LPS
            mm; `(1, 9)` where frames have no place of their own, `(0, 9)` where there is none.
        attributes: the whole header.
    """

    path: Path
    series: str
    number: int | None
    shape: tuple[int, int, int]
    pixel: tuple[float, float]
    values: tuple[int, int, int]
    scale: tuple[float, float]
    places: NDArray[np.float64]
    attributes: Dataset

    @property
    def height(self) -> float:
        """Position of the first frame along the normal of the stack, mm."""
        row, column, position = self.places[0].reshape(3, 3)
        return float(np.cross(row, column) @ position)


def read_series(folder: str | Path) -> list[SeriesFile]:
    """The files of the one series in a folder, in the order of their slices: by place, else by number, else by name.

    Files that are not DICOM are passed over, and so is a DICOMDIR. Slices that have no place at all, as those that
    other programs made of plain pictures, are taken as they are.

    Raises:
        FileError: if a file is damaged, or there is not exactly one series.
        ShapeError: for images of several sizes or kinds, or several files with frames.
        GeometryError: if slices have places and are no regular stack, or frames have none.
    """
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror})") from error
    files = [file for file in map(read_header, paths) if file is not None]
    series = {file.series for file in files}
    if len(series) != 1:
        raise FileError(f"{folder}: holds {len(series)} DICOM series; give a folder with exactly one")
    _check_alike(files)
    if any(len(file.places) for file in files):
        _check_places(files)
        return sorted(files, key=lambda file: file.height)
    if all(file.number is not None for file in files):
        return sorted(files, key=lambda file: file.number or 0)
    return files


def _check_alike(files: Sequence[SeriesFile]) -> None:
    """Refuse files of which one volume cannot be made.

    Raises:
        ShapeError: for images of several sizes or kinds, or several files with frames.
        GeometryError: for pixels of several sizes, and frames without a place of their own.
    """
    sizes, kinds = sorted({file.shape[:2] for file in files}), {file.values for file in files}
    if len(sizes) > 1:
        raise ShapeError(f"the series holds images of several sizes ({sizes[0]} and {sizes[1]}); choose another series")
    if len(kinds) > 1:
        raise ShapeError("the series holds images of several kinds (colours, bits or signs); choose another series")
    if np.ptp([file.pixel for file in files], axis=0).max() > _SAME_PIXEL * min(files[0].pixel):
        raise GeometryError("the series holds images whose pixels are of several sizes; choose another series")
    framed = [file for file in files if file.shape[2] > 1]
    if framed and len(files) > 1:
        raise ShapeError("the series holds several files with frames; give a folder with one of them")
    if any(len(file.places) != file.shape[2] for file in framed):
        raise GeometryError("the frames have no place of their own, as those of a film; choose another series")


def check_series(files: Sequence[SeriesFile]) -> None:
    """Refuse a series that is not one volume of at least two equally spaced, parallel slices.

    Args:
        files: of `read_series`, which refuses what lies irregularly: slices in several orientations, at the same place,
            missing, unequally spaced or shifted against each other.

    Raises:
        ShapeError: for fewer than two slices.
        GeometryError: for slices without a place.
    """
    if not all(len(file.places) for file in files):
        raise GeometryError(_NO_PLACE)
    if sum(len(file.places) for file in files) < 2:
        raise ShapeError("the series has one slice, as a scout has; at least 2 slices are needed")


def describe_series(files: Sequence[SeriesFile]) -> dict[str, Any]:
    """What clients of MONAI Label show of a series.

    Returns:
        attributes that name series, study and patient, `UNK` where one is missing; and the slices' `InstanceNumbers` in
        the order of `io.read_image`, by which viewers count, if every file is one slice and has one.
    """
    keywords = ("SeriesInstanceUID", "StudyInstanceUID", "StudyDate", "StudyTime", "Modality", "PatientID")
    first = files[0].attributes
    told: dict[str, Any] = {keyword: str(first.get(keyword, None) or "UNK") for keyword in keywords}
    if all(file.number is not None and file.shape[2] == 1 for file in files):
        told["InstanceNumbers"] = [file.number for file in files]
    return told


def series_tags(folder: Path, keywords: Sequence[str]) -> dict[str, str]:
    """Attributes of the first DICOM image in a folder, those that it has; none where there is no image to read."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(FileError):
            if image := read_header(file):
                told = image.attributes
                return {keyword: str(told[keyword].value) for keyword in keywords if keyword in told}
    return {}


def read_header(path: Path) -> SeriesFile | None:
    """What a file says of itself; None if it is not DICOM, or holds no image.

    Raises:
        FileError: if it is DICOM and cannot be read, or shorter than its elements say.
    """
    try:
        with path.open("rb") as content:
            head = content.read(_PREAMBLE + len(_MAGIC))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    marked = head[_PREAMBLE:] == _MAGIC
    if not marked and not head.startswith(_BARE):
        return None
    header = None
    try:
        meta = read_file_meta_info(path) if marked else Dataset()
        if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return None
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise ValueError("it is deflated; store it in another transfer syntax")
        if marked and "TransferSyntaxUID" not in meta:
            raise ValueError("it names no transfer syntax")
        with path.open("rb") as content:
            header, size = dcmread(content, force=True, stop_before_pixels=True, defer_size=_LARGE), path.stat().st_size
            if not marked and "SeriesInstanceUID" not in header:
                return None
            _check_elements(header, size)
            _check_sequences(header.file_meta, content)
            _check_sequences(header, content)
            if "Rows" not in header and "Columns" not in header:
                return None  # a report, a presentation, contours
            told = _told_by(path, header)
            _check_voxels(told, content, size)
            return told
    except Exception as error:  # pydicom lets out whatever damaged bytes make of its conversions
        if not marked and header is None:
            return None
        raise FileError(f"{path}: cannot be read as DICOM, it may be damaged ({error})") from error


def _check_elements(header: Dataset, size: int) -> None:
    """Refuse a file whose elements reach beyond its end, or are of a kind that DICOM does not know.

    Raises:
        ValueError: naming the element.
    """
    for part in (header.file_meta, header):
        for tag, element in part.items():
            if part is header.file_meta and tag.group != _FILE_META:
                raise ValueError(f"{tag} stands among what describes the file")
            if not isinstance(element, RawDataElement):
                continue
            if element.VR is not None and element.VR not in _KINDS:
                raise ValueError(f"{tag} is of the unknown kind {element.VR!r}")
            if element.length != _UNDEFINED and element.value_tell + element.length > size:
                raise ValueError(f"{tag} reaches beyond the end of the file")


def _check_sequences(part: Dataset, content: BinaryIO, depth: int = 0, opened: int = 0, *, closed: bool = False) -> int:
    """Refuse sequences that GDCM would never come to the end of, or crash by.

    Args:
        part: a header, or an item of a sequence.
        content: of the file, from the element of the voxels on.
        depth: in how many sequences it lies.
        opened: how many of those do not tell their length, below one that does.
        closed: whether it lies in one that tells its length.

    Returns:
        the work that they make, in the unit of `_MOST_WORK`.

    Raises:
        ValueError: if they are too many, or too deep in one another.
    """
    work = 0
    for element in part.values():
        sequence = _sequence(element, content)
        for item in sequence:
            open_ended = sequence.is_undefined_length, item.is_undefined_length_sequence_item
            below = opened + (closed and any(open_ended))
            if depth == _DEEPEST:
                raise ValueError(f"{element.tag} holds sequences too deep in one another")
            work += _OPEN_COSTS**below
            work += _check_sequences(item, content, depth + 1, below, closed=closed or not all(open_ended))
            if work > _MOST_WORK:
                raise ValueError(f"{element.tag} holds too many sequences in one another")
    return work


def _sequence(element: DataElement | RawDataElement, content: BinaryIO) -> Any:
    """The items of an element as GDCM reads them; none if it is no sequence.

    Raises:
        ValueError: if there are too many, or they end before it does; pydicom's own errors too.
    """
    if not isinstance(element, RawDataElement):
        return element.value if element.VR == VR.SQ else ()
    value = element.value
    if value is None and element.length and element.VR in (None, VR.SQ):
        here = content.tell()
        content.seek(element.value_tell)
        value = content.read(element.length)
        content.seek(here)
    if not value or not (element.VR == VR.SQ or (element.VR is None and value.startswith(_ITEM))):
        return ()
    if value.count(_ITEM) > _MOST_ITEMS:
        raise ValueError(f"{element.tag} has more than {_MOST_ITEMS} items")
    items = BytesIO(value)
    found = read_sequence(items, element.is_implicit_VR, element.is_little_endian, len(value), default_encoding)
    if items.tell() != len(value):
        raise ValueError(f"{element.tag} goes on behind its last item")
    return found


def _check_voxels(file: SeriesFile, content: BinaryIO, size: int) -> None:
    """Refuse a file that ends before its voxels do.

    Args:
        file: its header.
        content: of it, from the element of the voxels on.
        size: of it, bytes.

    Raises:
        ValueError: if they are too few.
    """
    header = file.attributes
    syntax = header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    (samples, bits, _), head = file.values, 8 if header.is_implicit_VR else 12
    if syntax not in _PLAIN_SYNTAXES:
        voxels = _compressed(content, size)
        if max(_told_sizes(voxels, syntax in _JPEG_SYNTAXES), default=0) > math.prod(file.shape[:2]) * samples:
            raise ValueError("its compressed voxels say that they are more than the header says")
        return
    if size - content.tell() - head < math.prod(file.shape) * samples * bits // 8:
        raise ValueError("its voxels reach beyond the end of the file")


def _compressed(content: BinaryIO, size: int) -> bytes:
    """Compressed voxels, whose parts are put together as those of one image are; none in a vendor's own syntax.

    Raises:
        ValueError: if a part reaches beyond the end of the file.
    """
    parts = list[bytes]()
    if content.read(12)[8:] != _UNDEFINED.to_bytes(4):
        return b""  # after tag and kind: in one piece
    while len(head := content.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == _END_OF_ITEMS:
            break
        if content.tell() + length > size:
            raise ValueError("its voxels reach beyond the end of the file")
        parts.append(content.read(length))
    return b"".join(parts)


def _told_sizes(voxels: bytes, jpeg: bool) -> Iterator[int]:
    """How many values there are in each image, as it says itself, by which GDCM takes the memory.

    Args:
        voxels: of `_compressed`.
        jpeg: whether they may be of another kind than JPEG 2000.
    """
    for match in _SIZ.finditer(voxels):
        length, _, x, y, left, top, width, height, tile_left, tile_top, samples = struct.unpack(">2H8IH", match[1])
        inside = tile_left <= left < min(x, tile_left + width) and tile_top <= top < min(y, tile_top + height)
        if length == 38 + 3 * samples and inside:
            yield (x - left) * (y - top) * samples
    for match in _SOF.finditer(voxels) if jpeg else ():
        length, _, rows, columns, samples = struct.unpack(">HBHHB", match[1])
        if length == 8 + 3 * samples:
            yield rows * columns * samples


def _told_by(path: Path, header: Dataset) -> SeriesFile:
    """Attributes of a header as numbers.

    Raises:
        ValueError: for attributes that are missing or no numbers; pydicom's own errors too.
    """
    pixel = [float(side) for side in header.get("PixelSpacing", None) or (1, 1)]
    if len(pixel) != 2 or not all(0 < side < _FAR_MM for side in pixel):
        raise ValueError(f"its pixels have the size {pixel}")
    kinds = ("SamplesPerPixel", "BitsAllocated", "PixelRepresentation")
    slope, intercept = (header.get(f"Rescale{name}", None) for name in ("Slope", "Intercept"))
    return SeriesFile(
        path=path,
        series=str(header.SeriesInstanceUID),
        number=_number(header),
        shape=(int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames", None) or 1)),
        pixel=(pixel[0], pixel[1]),
        values=(int(header.get(kinds[0], 1)), int(header.get(kinds[1], 0)), int(header.get(kinds[2], 0))),
        scale=(float(1 if slope is None else slope), float(0 if intercept is None else intercept)),
        places=_places(header),
        attributes=header,
    )


def _number(header: Dataset) -> int | None:
    """`InstanceNumber`, if it is one number."""
    try:
        return int(header.InstanceNumber)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _places(header: Dataset) -> NDArray[np.float64]:
    """`SeriesFile.places`.

    Raises:
        ValueError: if a place is not nine numbers of a size that may be.
    """
    shared = (header.get("SharedFunctionalGroupsSequence", None) or [Dataset()])[0]
    groups = header.get("PerFrameFunctionalGroupsSequence", None) or [header]
    places = []
    for group in groups:
        orientation, position = _attribute("Orientation", group, shared), _attribute("Position", group, shared)
        if not orientation or not position:
            return np.empty((0, 9))
        places.append(np.concatenate((np.reshape(orientation, 6), np.reshape(position, 3))))
    if not (np.abs(places) < _FAR_MM).all():
        raise ValueError(f"its place is not within {_FAR_MM:g} mm")
    return np.array(places)


def _attribute(what: str, *groups: Dataset) -> list[float]:
    """`ImageOrientationPatient` or `ImagePositionPatient`, of an image or of the groups of a multi-frame image."""
    for group in groups:
        inner = (group.get(f"Plane{what}Sequence", None) or [group])[0]
        values = inner.get(f"Image{what}Patient", None)
        if values:
            return [float(value) for value in values]
    return []


_NO_PLACE = "the series has images without a place in space, such as screenshots; choose another series"


def _check_places(files: Sequence[SeriesFile]) -> None:
    """Refuse slices that are no regular stack.

    Raises:
        GeometryError: saying what is wrong with them.
    """
    if not all(len(file.places) for file in files):
        raise GeometryError(_NO_PLACE)
    places = np.concatenate([file.places for file in files])
    if len(places) < 2:
        return
    orientations, positions = places[:, :6], places[:, 6:]
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise GeometryError("the slices have several orientations, as those of a localiser; choose another series")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    order = np.argsort(positions @ normal)
    if len(files) == 1 and not (np.diff(order) == 1).all() and not (np.diff(order) == -1).all():
        raise GeometryError("the frames are not in the order of their places; split them by time point or stack")
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
    if np.abs(within - within[0]).max() > UNEQUAL * min(files[0].pixel):
        raise GeometryError("the slices are shifted against each other, as with a tilted gantry; resample them")
