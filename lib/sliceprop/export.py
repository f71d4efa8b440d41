"""Segmentations in the formats of other programs: labels, names, colours and geometry stay."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import SimpleITK as sitk
from scipy import ndimage

from sliceprop import io
from sliceprop.dicom_seg import write_dicom_seg
from sliceprop.errors import FileError, InputError
from sliceprop.labels import LabelArray, present_values
from sliceprop.meshes import surface, write_obj, write_stl
from sliceprop.segments import Segment, description, segments_for, slicer_header

NRRD, DICOM, STL, OBJ = ".nrrd", ".dcm", ".stl", ".obj"
FORMATS = (*io.NIFTI_SUFFIXES, ".seg.nrrd", NRRD, ".mha", DICOM, STL, OBJ)


def export_labels(
    path: str | Path,
    labels: LabelArray,
    scan: io.Image,
    known: Iterable[Segment] = (),
    *,
    series: Path | None = None,
) -> list[Path]:
    """Write a label map; the ending of the name says how.

    `.seg.nrrd` and `.nrrd` hold names and colours as 3D Slicer writes them. `.nii`, `.nii.gz` and `.mha` cannot, so a
    label description of ITK-SNAP goes beside them. `.dcm` is a DICOM SEG. `.stl` is one file per label, its value and
    name added to the file's name; `.obj` holds all, with a `.mtl` beside it.

    Args:
        path: its folder must exist.
        labels: `(i, j, k)`.
        scan: gives the grid; its voxels are not looked at.
        known: names and colours; `segments_for` makes up the others.
        series: folder with the DICOM files of the scan, for `.dcm`.

    Returns:
        the files that were written.

    Raises:
        InputError: an empty label map where the format needs one, an unknown ending, or no `series`.
        FileError: a folder that is missing, read-only or full.
        ExportError: if the converter to DICOM SEG does not work.
    """
    file = Path(path)
    if not file.name.endswith(FORMATS):
        raise FileError(f"{file}: unknown format; use one of {', '.join(FORMATS)}")
    io.check_folder(file)
    segments = segments_for(present_values(labels), known)
    if file.suffix in (DICOM, STL, OBJ):
        if not segments:
            raise InputError(f"{file}: there is no label to write")
        if file.suffix == DICOM:
            return [_write_seg(file, labels, scan, segments, series)]
        return _write_surfaces(file, labels, scan, segments)
    if file.suffix == NRRD:
        return [_write_nrrd(file, labels, scan, segments)]
    io.write_image(file, labels, scan)
    beside = file.with_name(file.name.removesuffix(".gz").rsplit(".", 1)[0] + "_labels.txt")
    io.write_atomically(beside, lambda temporary: temporary.write_text(description(segments), encoding="utf-8"))
    return [file, beside]


def _write_nrrd(file: Path, labels: LabelArray, scan: io.Image, segments: list[Segment]) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "labels.nrrd"
        io.write_image(plain, labels, scan)
        picture = sitk.ReadImage(str(plain))
    for key, value in slicer_header(segments, _extents(labels)).items():
        picture.SetMetaData(key, value)
    io.write_atomically(file, lambda temporary: sitk.WriteImage(picture, str(temporary), True))
    return file


def _extents(labels: LabelArray) -> Mapping[int, list[tuple[int, int]]]:
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    return {value: [(part.start, part.stop - 1) for part in box] for value, box in boxes if box is not None}


def _write_seg(file: Path, labels: LabelArray, scan: io.Image, segments: list[Segment], series: Path | None) -> Path:
    if series is None:
        raise InputError("a DICOM SEG refers to the DICOM series of the scan; name its folder")
    with tempfile.TemporaryDirectory() as folder:
        plain, written = Path(folder) / "labels.nrrd", Path(folder) / "seg.dcm"
        io.write_image(plain, labels, scan)
        label_info = [{"name": s.name, "idx": s.value, "color": s.color} for s in segments]
        write_dicom_seg(plain, series, label_info, written)
        content = written.read_bytes()
    io.write_atomically(file, lambda temporary: temporary.write_bytes(content))
    return file


def _write_surfaces(file: Path, labels: LabelArray, scan: io.Image, segments: list[Segment]) -> list[Path]:
    shapes = {segment: surface(labels == segment.value, scan.affine) for segment in segments}
    if file.suffix == OBJ:
        write_obj(file, shapes)
        return [file, file.with_suffix(".mtl")]
    files = []
    for segment, shape in shapes.items():
        name = re.sub(r"[^\w.-]+", "_", segment.name)
        files.append(file.with_name(f"{file.stem}_{segment.value}_{name}{STL}"))
        write_stl(files[-1], shape, segment)
    return files
