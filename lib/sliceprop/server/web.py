"""What all routes share: the app, who may do what, uploads and large answers on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar
from weakref import finalize

from fastapi import Depends, Form, UploadFile
from fastapi.responses import StreamingResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from starlette.types import Receive, Scope, Send

from sliceprop.errors import InputError
from sliceprop.io import SUFFIXES
from sliceprop.server.access import current_user
from sliceprop.server.app import LabelPropApp
from sliceprop.server.errors import BusyError, NotFoundError
from sliceprop.server.guard import CREATING, inside, new_name, plain_filename
from sliceprop.stored_voxels import LONGEST_HEADER, is_one_file

Reader = Annotated[User, Depends(current_user)]
Annotator = Annotated[User, Depends(current_user)]
Admin = Annotated[User, Depends(current_user)]
"""Whoever sends a request; `Access` has asked for the role before. MONAI Label's own dependency would say `admin` of
all of them: FastAPI replaces dependencies only in routes that the application itself includes."""

Params = Annotated[str, Form()]

CHUNK = 1 << 16
"""Bytes of a large answer that are in memory at once."""


def running_app() -> LabelPropApp:
    """The app of this server."""
    app: LabelPropApp = app_instance()
    return app


def check_known(method: str, path: str, names: Mapping[str, str]) -> None:
    """Refuse what MONAI Label's routes would take: unknown images and tags, strange new ones, links to elsewhere.

    Args:
        method: of the request.
        path: of the request.
        names: plain names in its query.

    Raises:
        NotFoundError: if there is no such image, or no label of it under that tag.
        InputError: if something new is to be called by a name that is not allowed, or a file lies elsewhere.
    """
    if not path.startswith("/datastore/"):
        return
    store, tag = running_app().datastore(), names.get("tag")
    for key, image in ((key, names[key]) for key in ("image", "id", "label") if key in names):
        known = store.has_image(image)
        if (method, path) in CREATING and key == "image" and not known:
            new_name(image, "image")
            continue
        if not known:
            raise NotFoundError(f"unknown image {image!r}")
        store.get_image_uri(image)
        if tag is None or store.get_label_uri(image, tag):
            continue
        if method != "PUT":
            raise NotFoundError(f"there is no label {tag!r} of {image!r}")
        folder = Path(store._datastore_path)
        inside(folder, folder / "labels" / new_name(tag, "tag"))


def check_upload(file: UploadFile) -> str:
    """The name of an uploaded file, without the folder that stock clients put in front of it.

    Raises:
        InputError: if it is no plain name, or the header says that the voxels are in another file, of the server's.
    """
    name = plain_filename(file.filename)
    head = file.file.read(LONGEST_HEADER)
    file.file.seek(0)
    if not is_one_file(name, head):
        raise InputError(f"{name}: the header does not end, or says that the voxels are in another file; send one file")
    return name


def image_id(filename: str | None) -> str:
    """The id of an image that is uploaded without one: its file's name without the ending."""
    name = plain_filename(filename)
    ending = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")
    return name.removesuffix(ending) or "image"


@contextmanager
def saved(upload: UploadFile | None) -> Iterator[Path | None]:
    """The uploaded file on disk, under its own name, for the length of a request."""
    if upload is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield save_upload(upload, Path(folder))


def save_upload(upload: UploadFile, folder: Path) -> Path:
    """The uploaded file, in a folder, under its own name.

    Raises:
        InputError: as of `check_upload`.
    """
    file = folder / (check_upload(upload) or "upload")
    with file.open("wb") as target:
        shutil.copyfileobj(upload.file, target)
    return file


MAX_STORED = 8 << 30
"""Bytes of answers that wait for their clients."""


class StoredResponse(StreamingResponse):
    """A large answer: it waits for its client in a nameless file, which goes with it, and not in memory.

    So may `MAX_STORED` bytes in all.

    Args:
        parts: of its content.
        headers: its length is added.
        media_type: of the content.
        status_code: of the answer.

    Raises:
        BusyError: if too much waits already.
    """

    _stored: ClassVar = dict[int, int]()  # bytes by answer

    def __init__(
        self,
        parts: Iterable[bytes | memoryview],
        headers: Mapping[str, str],
        media_type: str | None = None,
        status_code: int = 200,
    ) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, closed when the answer has ended
        self.file.writelines(parts)
        size = self.file.tell()
        length = {"Content-Length": str(size)} if size else {}
        self.file.seek(0)
        self._stored[id(self)] = size
        self._taken = finalize(self, self._stored.pop, id(self))
        if sum(list(self._stored.values())) > max(MAX_STORED, size):
            self._taken()
            self.file.close()
            raise BusyError("many answers wait for their clients to take them; try again", retry_after_s=30)
        chunks = iter(partial(self.file.read, CHUNK), b"")
        super().__init__(chunks, status_code, {**headers, **length}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client has all or hangs up."""
        try:
            with self.file:
                await super().__call__(scope, receive, send)
        finally:
            self._taken()
