"""What all routes share: the app, who may do what, uploads and large answers on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar
from weakref import finalize

from fastapi import Depends, Form, UploadFile
from fastapi.responses import FileResponse, StreamingResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from starlette.types import Receive, Scope, Send

from sliceprop.errors import InputError, StorageError
from sliceprop.io import SUFFIXES
from sliceprop.server.access import current_user
from sliceprop.server.app import LabelPropApp
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.errors import BusyError, NotFoundError
from sliceprop.server.guard import CREATING, inside, new_name, plain_filename
from sliceprop.stored_voxels import LONGEST_HEADER, is_one_file

Reader = Annotated[User, Depends(current_user)]
Annotator = Annotated[User, Depends(current_user)]
Admin = Annotated[User, Depends(current_user)]
"""Whoever sends a request; `Access` has asked for the role before. MONAI Label's own dependency would say `admin` of
all of them: FastAPI replaces dependencies only in routes that the application itself includes."""

Params = Annotated[str, Form()]

IMAGE_KEYS = ("image", "id", "label")
"""Parameters that name an image."""

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

    Scans of an archive that are not here yet are fetched, before their requests wait for those of others.

    Raises:
        NotFoundError: if there is no such image, or no label of it under that tag.
        InputError: if something new is to be called by a name that is not allowed, or a file lies elsewhere.
        ArchiveError: if the archive does not answer.
        StorageError: if the folder is full.
    """
    if asks_archive(method, path, names):
        for image in _images(path, names):
            _fetch(image)
    if not path.startswith("/datastore/"):
        return
    store, tag = running_app().datastore(), names.get("tag")
    for key, image in ((key, names[key]) for key in IMAGE_KEYS if key in names):
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


def asks_archive(method: str, path: str, names: Mapping[str, str]) -> bool:
    """Whether `check_known` asks an archive; arguments as there."""
    store = running_app().datastore()
    new = (method, path) in CREATING
    return isinstance(store, ArchivedStudies) and not (new or _images(path, names) <= store._datastore.objects.keys())


def _images(path: str, names: Mapping[str, str]) -> set[str]:
    """What a request is about; a session has a scan of its own, and for what a training does nothing need be here."""
    if path.startswith("/datastore/"):
        return {names[key] for key in IMAGE_KEYS if key in names}
    elsewhere = path == "/labelprop/progress" or "session_id" in names
    return {names["image"]} if "image" in names and not elsewhere else set()


def _fetch(image: str) -> None:
    store = running_app().datastore()
    if not store.has_image(image):
        raise NotFoundError(f"unknown image {image!r}")
    try:
        store.get_image_uri(image)
    except StorageError as error:
        raise StorageError("the folder of the studies does not take the series") from error


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


class OpenFileResponse(StreamingResponse):
    """A file as it was when it was opened, whatever takes its place, or its name, while the client takes it.

    Args:
        file: to send from its beginning; closed at the end.
        headers: its length is added.
        media_type: of the content.
        status_code: of the answer.
    """

    def __init__(
        self, file: BinaryIO, headers: Mapping[str, str], media_type: str | None = None, status_code: int = 200
    ) -> None:
        self.file, size = file, os.fstat(file.fileno()).st_size
        length = {"Content-Length": str(size)} if size else {}
        super().__init__(_parts(file, size), status_code, {**headers, **length}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client has all or hangs up."""
        with self.file:
            await super().__call__(scope, receive, send)


def _parts(file: BinaryIO, left: int) -> Iterator[bytes]:
    file.seek(0)
    while left and (part := file.read(min(CHUNK, left))):
        left -= len(part)
        yield part


def opened(answer: FileResponse) -> OpenFileResponse:
    """In place of an answer of MONAI Label's, which looks at the length of one file and may send another.

    Raises:
        NotFoundError: if the file is gone by now.
    """
    try:
        file = Path(answer.path).open("rb")  # noqa: SIM115, closed when the answer has ended
    except FileNotFoundError:
        raise NotFoundError("this was removed a moment ago") from None
    return OpenFileResponse(file, {"Content-Disposition": answer.headers["Content-Disposition"]}, answer.media_type)


MAX_STORED = 8 << 30
"""Bytes of answers that wait for their clients."""


class StoredResponse(OpenFileResponse):
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
        file = tempfile.TemporaryFile()  # noqa: SIM115, closed when the answer has ended
        file.writelines(parts)
        size = file.tell()
        file.flush()
        self._stored[id(self)] = size
        self._taken = finalize(self, self._stored.pop, id(self))
        if sum(list(self._stored.values())) > max(MAX_STORED, size):
            self._taken()
            file.close()
            raise BusyError("many answers wait for their clients to take them; try again", retry_after_s=30)
        super().__init__(file, headers, media_type, status_code)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client has all or hangs up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._taken()
