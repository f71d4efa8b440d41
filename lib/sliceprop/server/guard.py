"""What a client may call things: ids, tags and file names never reach the file system unless they are plain names."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from sliceprop.errors import InputError
from sliceprop.server.errors import refusal

MAX_NAME = 200
NAME_KEYS = frozenset({"image", "id", "label", "tag", "session_id"})
FOREIGN = ("/proxy/", "/ohif/", "/static/")
"""Routes that do not use our names: the DICOMweb proxy and the viewer's files."""


def plain_name(name: str, what: str) -> str:
    """`name` itself if it can safely be one component of a path.

    Raises:
        InputError: for separators, `..`, control characters or an endless name.
    """
    if name in (".", "..") or any(c in "/\\" or not c.isprintable() for c in name):
        raise InputError(f"{what} {name!r} must be a plain name, without path separators or '..'")
    if len(name) > MAX_NAME:
        raise InputError(f"{what} has {len(name)} characters, at most {MAX_NAME} are allowed")
    return name


def plain_filename(name: str | None) -> str:
    """The last component of an uploaded file's name.

    MONAI Label's own client, and with it 3D Slicer, sends the absolute path on the user's machine as the name: only its
    last component is used. Anything else with separators or `..` is refused.

    Raises:
        InputError: for a relative name with separators, or with `..`.
    """
    text = name or ""
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() and ".." not in path.parts:
            return plain_name(path.name, "file name")
    return plain_name(text, "file name")


def check_names(path: str, query: str) -> None:
    """Refuse a request whose path or query would leave the folders of the app.

    Args:
        path: of the URL, decoded.
        query: of the URL, still encoded.

    Raises:
        InputError: naming the offender.
    """
    if path.startswith(FOREIGN):
        return
    if ".." in path.split("/"):
        raise InputError(f"the path {path!r} contains '..'")
    for key, value in parse_qsl(query):
        if key in NAME_KEYS:
            plain_name(value, key)


class NameGuard:
    """ASGI middleware: applies `check_names` before any route acts, those of MONAI Label included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400."""
        if scope["type"] == "http":
            try:
                check_names(scope["path"], scope["query_string"].decode("latin-1"))
            except InputError as error:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
