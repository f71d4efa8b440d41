"""Routes of the versions of a study: list them, look at one, make one count again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from sliceprop.server.audit import sender
from sliceprop.server.cases import Case
from sliceprop.server.errors import NotFoundError
from sliceprop.server.limits import ReadSlot
from sliceprop.server.manifests import Manifests
from sliceprop.server.records import StudyRecord
from sliceprop.server.web import Annotator, Reader, running_app
from sliceprop.versions import DamagedError

router = APIRouter()


@router.get("/labelprop/versions")
def list_versions(image: str, user: Reader, *, slot: ReadSlot) -> dict[str, Any]:
    """Everything that was ever submitted for a study, the newest first, and what is damaged."""
    workspace = running_app().workspace
    case = workspace.case(image)
    with workspace.lock(case):
        versions, drawings = _record(case).versions, workspace.drawings
        told = {"annotation": drawings.annotation_version(case), "scribbles": drawings.scribbles_version(case)}
        damaged = [{"version": number, "reason": reason} for number, reason in versions.damaged().items()]
        return {**told, "versions": [one.told() for one in versions.newest_first()], "damaged": damaged}


@router.get("/labelprop/version")
def get_version(image: str, version: int, user: Reader, *, slot: ReadSlot) -> Response:
    """The label file of one version."""
    workspace = running_app().workspace
    try:
        found = _record(workspace.case(image)).versions.get(version)
    except DamagedError:
        raise
    except ValueError as error:
        raise NotFoundError(str(error)) from error
    if found.labels_file is None:
        raise NotFoundError(f"version {version} says that there is no label")
    ending = found.labels_file.name.partition(".")[2]
    return FileResponse(found.labels_file, filename=f"{image}_{version}.{ending}")


@router.post("/labelprop/restore")
def restore_version(image: str, version: int, user: Annotator, *, slot: ReadSlot) -> dict[str, Any]:
    """Make an old version count again, as a new one; nothing is lost by it."""
    workspace = running_app().workspace
    case = workspace.case(image)
    restored = workspace.drawings.restore(case, version, sender())
    told = {"annotation_version": workspace.drawings.annotation_version(case)}
    return {**restored.told(), **told, "scribbles_version": workspace.drawings.scribbles_version(case)}


@router.get("/labelprop/manifest")
def get_manifest(image: str, user: Reader, number: int = 0) -> dict[str, Any]:
    """What it takes to make the last result again, or one of those before."""
    manifests = Manifests(_record(running_app().workspace.case(image)).folder)
    known = manifests.numbers()
    if not known or number not in (0, *known):
        raise NotFoundError(f"there is no manifest {number} of {image!r}" if number else f"no result of {image!r} yet")
    return manifests.read(number or known[-1])


def _record(case: Case) -> StudyRecord:
    assert case.record is not None  # it is one of the datastore
    return case.record
