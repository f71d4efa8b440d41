"""What OHIF reads from the archive goes through this server, which has the address and the credentials.

MONAI Label's own proxy blocks all other requests while it waits for the archive, and leaves out the query: then every
search finds everything.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response
from monailabel.config import settings

from sliceprop.errors import InputError
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.errors import ForbiddenError, NotFoundError
from sliceprop.server.limits import ArchiveSlot
from sliceprop.server.web import Reader, StoredResponse, running_app

router = APIRouter()

_SEGMENT = re.compile(r"[A-Za-z0-9._,-]+")
"""Words, UIDs and lists of frames: nothing that the archive, or a proxy before it, could take for another place."""

_RESOURCES = ("studies", "series", "instances")
"""With which a path of DICOMweb begins; what else an archive may have there is not for viewers."""

_NO_PAGE = {"Content-Security-Policy": "sandbox"}
"""For viewers: shown as a page, what the archive has could not do anything in the visitor's name."""

_PASSED_ON = ("Content-Type", "Content-Encoding", "Content-Range", "Warning")


@router.get("/proxy/dicom/{path:path}", include_in_schema=False)
def read_archive(request: Request, path: str, user: Reader, *, slot: ArchiveSlot) -> Response:
    """Pass a request on; OHIF puts `qido/` or `wado/` in front of the path."""
    store = running_app().datastore()
    if not isinstance(store, ArchivedStudies):
        raise NotFoundError("the studies of this server are a folder, OHIF needs a DICOMweb archive; see `make ohif`")
    if not all(_SEGMENT.fullmatch(part) and part.strip(".") for part in path.split("/")):
        raise InputError(f"{path!r} is no path of DICOMweb")
    encodings = request.headers.get("Accept-Encoding", "identity")
    status, headers, parts = store.read(archive_path(path), request.url.query, encodings)
    told = {key: headers[key] for key in _PASSED_ON if key in headers} | _NO_PAGE
    return StoredResponse(parts, told, status_code=status)


@router.post("/proxy/dicom/{path:path}", include_in_schema=False)
def write_archive(path: str, user: Reader) -> Response:
    """Refuse: MONAI Label's own passes everything on with the server's credentials, the client's cookies with it."""
    raise ForbiddenError("viewers read from the archive here; labels get there as DICOM SEG by POST /labelprop/final")


def archive_path(path: str) -> str:
    """The archive's path for one of OHIF's, with the prefix that the operator set for this kind of request.

    Raises:
        InputError: if it asks for anything but studies, series and instances.
    """
    kind, _, rest = path.partition("/")
    prefixes = {
        "qido": settings.MONAI_LABEL_WADO_PREFIX if rest.endswith("/metadata") else settings.MONAI_LABEL_QIDO_PREFIX,
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    prefix, rest = (prefixes[kind], rest) if kind in prefixes else ("", path)
    if rest.partition("/")[0] not in _RESOURCES:
        raise InputError(f"{path!r} asks for no {', '.join(_RESOURCES)}")
    return "/".join(filter(None, [prefix, rest]))
