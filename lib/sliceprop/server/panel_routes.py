"""Routes of the panel in OHIF: its script, what it shows of a study, and what its buttons do."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif

import sliceprop
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.audit import sender
from sliceprop.server.errors import NotFoundError
from sliceprop.server.label_edits import edit_labels, parse_edits
from sliceprop.server.limits import ReadSlot, UploadSlot
from sliceprop.server.outcome import finalise, undo
from sliceprop.server.panel import study_state, voxels
from sliceprop.server.requests import label_options, parse_params
from sliceprop.server.web import Annotator, Params, Reader, StoredResponse, running_app, saved
from sliceprop.versions import SCRIBBLES

router = APIRouter()

STOCK_CONFIG = Path(ohif.__file__).parent / "static" / "ohif" / "app-config.js"
PANEL = Path(sliceprop.__file__).parent / "ohif"
"""Folder of the panel's scripts; each is complete in itself, and they run in the order of their names."""

_ELSEWHERE = re.compile(r"""<link[^>]*\bhttps?://[^>]*>|@import\s+url\(["']?https?://[^)]*\)[^;]*;""")
"""Fonts that OHIF's page and styles would have a browser fetch from the internet; without them it takes its own."""

_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")


@router.get("/ohif/app-config.js", include_in_schema=False)
def app_config() -> Response:
    """The configuration that OHIF loads before it starts, and behind it the panel."""
    scripts = [STOCK_CONFIG, *sorted(PANEL.glob("*.js"))]
    text = "\n".join(script.read_text(encoding="utf-8") for script in scripts)
    return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


@router.get("/ohif/{path:path}", include_in_schema=False)
def ohif_file(path: str, user: Reader) -> Response:
    """A file of OHIF; page and styles ask no other host for anything."""
    stock: FileResponse = ohif.get_ohif(path)
    file = Path(stock.path)
    if not file.is_file():
        raise NotFoundError(f"OHIF has no file {path!r}")
    if file.suffix not in (".html", ".css"):
        return stock
    text = _ELSEWHERE.sub("", file.read_text(encoding="utf-8"))
    return Response(text, media_type=stock.media_type, headers={"Cache-Control": "no-cache"})


@router.get("/labelprop/study")
def get_study(image: str, user: Reader, *, slot: ReadSlot) -> dict[str, Any]:
    """All that the panel shows of a study but its voxels."""
    app = running_app()
    store, workspace = app.datastore(), app.workspace
    case = workspace.case(image)
    if isinstance(store, ArchivedStudies):
        with workspace.lock(case):
            if not workspace.record(image).versions.numbers():  # they belong to the slices that there were
                store.renew(image)
    return study_state(workspace, case, app.training(image))


@router.get("/labelprop/voxels")
def get_voxels(request: Request, image: str, user: Reader, kind: str = "labels", *, slot: ReadSlot) -> Response:
    """Voxels of a study as raw bytes, the first axis fastest."""
    workspace = running_app().workspace
    array, headers = voxels(workspace, workspace.case(image), kind)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    content: bytes | memoryview = np.ascontiguousarray(array.T).data.cast("B")  # `tobytes` holds up all others
    headers |= {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if _GZIP.search(request.headers.get("Accept-Encoding", "")):
        content, headers = gzip.compress(content, compresslevel=1), {**headers, "Content-Encoding": "gzip"}
    return StoredResponse([content], headers, "application/octet-stream")


@router.put("/labelprop/labels")
def put_labels(body: dict[str, Any], user: Annotator, *, slot: ReadSlot) -> dict[str, Any]:
    """Add, rename, recolour or remove labels."""
    workspace = running_app().workspace
    edit_labels(workspace, parse_edits(body))
    names = workspace.names.indices
    told = {"colors": workspace.colors.of(names), "renamed_labels": workspace.names.renamed}
    return {"label_names": names, **told}


@router.put("/labelprop/scribbles")
def put_scribbles(
    image: str, label: UploadFile, user: Annotator, params: Params = "{}", *, slot: UploadSlot
) -> dict[str, Any]:
    """Store marks in any plane, 255 for background; marks that were there before go, with an empty volume all."""
    options = label_options(parse_params(params))
    with saved(label) as file:
        assert file is not None
        return running_app().workspace.submit(image, SCRIBBLES, file, options, sender())


@router.get("/labelprop/progress")
def get_progress(user: Reader, image: str = "") -> dict[str, Any]:
    """How far the training is, also that of another study, with a queue that of this one; reads one small file."""
    state = running_app().training(image, user.username)
    keys = ("status", "epoch", "total_epochs", "seconds", "seconds_left", "best_metric", "image")
    told = {key: state.get(key) for key in keys}
    return {**told, **{key: state[key] for key in ("error", "note") if key in state}}


@router.post("/labelprop/undo")
def take_back(image: str, user: Annotator, *, slot: ReadSlot) -> dict[str, Any]:
    """Take the last propagation back."""
    workspace = running_app().workspace
    case = workspace.case(image)
    undo(workspace, case)
    return {"undone": True, "undo": bool(case.record and case.record.can_undo())}


@router.post("/labelprop/final")
def save_final(image: str, user: Annotator, *, slot: ReadSlot) -> dict[str, Any]:
    """Store what the panel shows as the study's final label, in an archive also as DICOM SEG."""
    app = running_app()
    told = finalise(app.workspace, app.workspace.case(image), sender())
    app.on_save_label(image, image)
    return {"saved": True, **told}
