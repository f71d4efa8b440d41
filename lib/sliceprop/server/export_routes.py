"""Route that hands a study's labels out in the formats of other programs."""

from __future__ import annotations

import io as memory
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import Response

from sliceprop.errors import InputError
from sliceprop.export import FORMATS, export_labels
from sliceprop.labels import LabelArray
from sliceprop.segments import Segment
from sliceprop.server.cases import Case
from sliceprop.server.errors import NotFoundError
from sliceprop.server.guard import plain_name
from sliceprop.server.label_files import read_labels
from sliceprop.server.limits import ReadSlot
from sliceprop.server.outcome import current_labels
from sliceprop.server.web import Reader, StoredResponse, running_app
from sliceprop.server.workspace import Workspace

router = APIRouter()


@router.get("/labelprop/export")
def export(image: str, user: Reader, format: str = ".seg.nrrd", tag: str = "", *, slot: ReadSlot) -> Response:
    """The labels of a study as a file, or as a ZIP archive where the format needs several."""
    name, content = exported(running_app().workspace, image, format, tag)
    header = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
    return StoredResponse([content], header, "application/octet-stream")


def exported(workspace: Workspace, image: str, form: str, tag: str = "") -> tuple[str, bytes]:
    """Name and content of the file for a client.

    Args:
        workspace: of the server.
        image: id of the study.
        form: one of `sliceprop.export.FORMATS`, with or without the dot in front.
        tag: of a stored label file; without one the last result under the annotation in force.

    Raises:
        NotFoundError: an unknown study, or one without labels.
        InputError: an unknown format, or DICOM SEG for a scan that is no DICOM series.
        ExportError: if the converter to DICOM SEG does not work.
    """
    ending = "." + form.removeprefix(".")
    if ending not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    case = workspace.case(image)
    indices = workspace.names.indices
    colors = workspace.colors.of(indices)
    segments = [Segment(index, name, colors[name]) for name, index in indices.items()]
    series = case.image if case.image.is_dir() else None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{image}{ending}"
        labels = _labels(workspace, case, tag)
        files = export_labels(target, labels, workspace.scan(case), segments, series=series)
        if len(files) == 1:
            return files[0].name, files[0].read_bytes()
        return f"{image}{ending}.zip", _zipped(files)


def _labels(workspace: Workspace, case: Case, tag: str) -> LabelArray:
    if tag:
        file = workspace.store.label_file(case.image_id, plain_name(tag, "tag"))
        if file is None:
            raise NotFoundError(f"there is no label {tag!r} of {case.image_id!r}")
        return read_labels(file, workspace.scan(case), cropped=True)
    labels = current_labels(workspace, case)
    if not labels.any():
        raise NotFoundError(f"there are no labels of {case.image_id!r} yet; annotate a slice, or propagate")
    return labels


def _zipped(files: list[Path]) -> bytes:
    buffer = memory.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return buffer.getvalue()
