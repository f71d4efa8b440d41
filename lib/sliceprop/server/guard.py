"""What a client may call things: ids, tags and file names never reach the file system unless they are plain names.

New names are allow-listed: letters, digits and marks of any script, space, and `._-`. Files that the operator put into
the folder may be called otherwise and stay readable, as long as their names cannot mean a place elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.concurrency import run_in_threadpool
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceprop.errors import InputError, SlicePropError, TooLargeError
from sliceprop.server.errors import refusal, storage_refusal

T = TypeVar("T")

MAX_NAME = 200
MAX_BODY_BYTES = 1 << 16
"""Of a body without files: options, slices, the names of two thousand studies, never voxels. JSON, and a form in one
line byte by byte, are read in the event loop, which a MiB holds for a second."""

STREAMED = "/labelprop/checkpoints/"
"""Route that takes a body as it is, of whatever kind curl says that it is."""

LOOKUPS = 8
"""Requests that may ask an archive at once for what they name and this server does not have yet."""

MAX_DEPTH = 32
"""Of JSON, in lists and objects within each other; our own options need 4."""

NAME_KEYS = frozenset({"image", "id", "label", "tag", "label_tag", "session_id", "init", "model", "strategy", "method"})
"""Parameters of a query, and entries of a JSON body, that name something."""

FOREIGN = ("/proxy/", "/ohif/", "/static/")
"""Routes that do not use our names: the DICOMweb proxy and the viewer's files."""

CREATING = frozenset({("PUT", "/datastore/image"), ("PUT", "/datastore/")})
"""Requests whose `image` is new."""

BODILESS = frozenset({"GET", "HEAD", "DELETE"})
"""Methods with which no route reads a body; MONAI Label's client announces some that never come."""

_FILES = re.compile(r"/(datastore(/image|/label)?|session|infer/[^/]+|labelprop/(scribbles|checkpoints/[^/]+))/?")
"""Paths of routes that take files."""

_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1"})

_MARKS = " ._-"
_INVISIBLE = frozenset(
    chr(code)
    for code in (
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180F, 0x3164, 0xFFA0),
        *(*range(0x180B, 0x180E), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
    )
)
"""Letters and marks that show nothing: Unicode's `Default_Ignorable_Code_Point` of the categories L and M."""

_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)


def plain_name(name: str, what: str) -> str:
    """`name` itself if it can safely be one component of a path, such as the id of a file that is there already.

    Raises:
        InputError: for separators, `..`, control characters or an endless name.
    """
    if not isinstance(name, str):
        raise InputError(f"{what} must be text, not {name!r}")
    if name in (".", "..") or any(c in "/\\" or not (c == " " or c.isprintable()) for c in name):
        raise InputError(f"{what} {name!r} must be a plain name, without path separators or '..'")
    if len(name) > MAX_NAME or len(name.encode("utf-8")) > MAX_NAME:
        raise InputError(f"{what} is {len(name)} characters long, at most {MAX_NAME} bytes are allowed")
    return name


def new_name(name: str, what: str) -> str:
    """`name` itself if something new may be called that: visible letters and digits of any script, space, `._-`.

    Raises:
        InputError: for anything else, and for names that some file system would take for another.
    """
    plain_name(name, what)
    strange = sorted({c for c in name if not (unicodedata.category(c)[0] in "LMN" or c in _MARKS)})
    strange += [f"U+{ord(c):04X}" for c in sorted(_INVISIBLE.intersection(name))]
    if strange:
        raise InputError(f"{what} {name!r} holds {' '.join(strange)}; use letters, digits, space and . _ -")
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        raise InputError(f"{what} {name!r} must not begin with a dot or end with one, nor with a space")
    if name.partition(".")[0].lower() in _WINDOWS_DEVICES:
        raise InputError(f"{what} {name!r} is a device on Windows; choose another name")
    return name


def check_unlike(name: str, others: Iterable[str]) -> None:
    """Refuse a new id that some file system, and most readers, would take for one that is there.

    Raises:
        InputError: naming the other.
    """
    same = next((other for other in others if other != name and _look(other) == _look(name)), None)
    if same is not None:
        raise InputError(f"image {name!r} looks like {same!r}, which is there; choose another name")


def _look(name: str) -> str:
    """Without what tells apart only bytes: capitals, and composed from combined characters."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def plain_filename(name: str | None) -> str:
    """The last component of an uploaded file's name.

    MONAI Label's own client, and with it 3D Slicer, sends the path on the user's machine as the name, of any system and
    relative to wherever it runs: only its last component is used.

    Raises:
        InputError: for a name that holds `..`, or whose last component is no plain name.
    """
    path = PureWindowsPath(name or "")  # / and \ separate
    return plain_name((name or "") if ".." in path.parts else path.name, "file name")


def inside(folder: Path, file: Path, called: str = "") -> Path:
    """`file` itself if it lies in `folder` once all links are followed.

    Args:
        folder: that it must not leave.
        file: perhaps a link, or already what one leads to.
        called: in the error, where the name of the file may be that of a place elsewhere.

    Raises:
        InputError: if it lies elsewhere.
    """
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{called or repr(file.name)} is a link to a place outside of the studies folder; put the file itself there"
        )
    return file


def route_path(scope: Scope) -> str:
    """The path of a request as routes see it: decoded, without the prefix of a reverse proxy."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def check_names(path: str, query: str) -> dict[str, str]:
    """Refuse a request whose path or query would leave the folders of the app.

    Args:
        path: of the URL, decoded.
        query: of the URL, still encoded.

    Returns:
        what the query names.

    Raises:
        InputError: naming the offender.
    """
    if path.startswith(FOREIGN):
        return {}
    for part in path.split("/"):
        plain_name(part, "path")
    names = dict[str, str]()
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in NAME_KEYS:
            if names.get(key, value) != value:
                raise InputError(f"{key} is given twice, as {names[key]!r} and as {value!r}")
            names[key] = plain_name(value, key)
    return names


def check_body(body: bytes) -> None:
    """Refuse a JSON body that names something by what is no plain name.

    Raises:
        InputError: for no JSON, one that is nested endlessly, or a name that is not plain.
    """
    for key, name in _named(parse_json(body) if body.strip() else {}):
        plain_name(name, key)


def parse_json(text: str | bytes, what: str = "") -> Any:
    """What a client sent as JSON.

    Args:
        text: the JSON.
        what: it is called in the error.

    Raises:
        InputError: for no JSON, one that is nested or counts endlessly, or halves of characters, which no answer could
            hold.
    """
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} not valid JSON: {error}".lstrip()) from error
    if _deeper(content, MAX_DEPTH):
        raise InputError(f"{what} JSON with more than {MAX_DEPTH} levels; send plain lists and objects".lstrip())
    return content


def _deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects lie within each other more often than that."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    return inner is not None and (levels == 0 or any(_deeper(one, levels - 1) for one in inner))


def _named(content: Any) -> Iterator[tuple[str, str]]:
    """Names in an object, or in one that lies in it, as OHIF sends options under the name of a trainer."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key in NAME_KEYS:
            yield from ((key, one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
        elif isinstance(value, dict):
            yield from _named(value)


Known = Callable[[str, str, dict[str, str]], T]
"""Is asked with method and path of a request, and the names in its query."""


class NameGuard:
    """ASGI middleware: checks names before any route acts, those of MONAI Label included.

    Args:
        app: what lies behind.
        check_known: called in a thread; raises if a name is unknown.
        is_far: whether that asks another machine, which may be slow: then few do so at once.
    """

    def __init__(
        self, app: ASGIApp, check_known: Known[None], is_far: Known[bool] = lambda method, path, names: False
    ) -> None:
        self.app, self._check_known, self._is_far = app, check_known, is_far
        self._lookups = asyncio.Semaphore(LOOKUPS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 4xx."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = route_path(scope)
        try:
            names = check_names(path, scope["query_string"].decode("latin-1"))
            if names:
                request = scope["method"], path, names
                async with self._lookups if self._is_far(*request) else nullcontext():
                    await run_in_threadpool(self._check_known, *request)
            _check_charset(scope)
            if _is_small(scope, path):
                body = await _whole_body(receive)
                if _brings_json(scope):
                    check_body(body)
                receive = _again(body, receive)
        except (SlicePropError, OSError) as error:
            answer = refusal(error) if isinstance(error, SlicePropError) else storage_refusal(error)
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _kind(scope: Scope) -> str:
    return Headers(scope=scope).get("Content-Type", "").partition(";")[0].strip().lower()


def _check_charset(scope: Scope) -> None:
    """Refuse forms in encodings that nobody sends: fields in some of Python's take minutes of the event loop to read.

    Raises:
        InputError: naming those that are read.
    """
    _, options = parse_options_header(Headers(scope=scope).get("Content-Type"))
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise InputError("the charset of a request must be utf-8, us-ascii or iso-8859-1")


def _is_small(scope: Scope, path: str) -> bool:
    """Whether a body holds no files, and is read."""
    if scope["method"] in BODILESS or path.startswith(FOREIGN):
        return False
    in_one_line = _kind(scope) == "application/x-www-form-urlencoded" and not path.startswith(STREAMED)
    return in_one_line or _brings_json(scope) or not takes_files(scope["method"], path)


def _brings_json(scope: Scope) -> bool:
    """Whether a route may read JSON from the request."""
    return _kind(scope).endswith(("/json", "+json")) and scope["method"] not in BODILESS


def takes_files(method: str, path: str) -> bool:
    """Whether a body may hold files; routes that take JSON read one of every kind whole."""
    return method in ("PUT", "POST") and _FILES.fullmatch(path) is not None


async def _whole_body(receive: Receive) -> bytes:
    """The body of a request.

    Raises:
        TooLargeError: if it is longer than `MAX_BODY_BYTES`.
        InputError: if its client hangs up before.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise InputError("the client hung up before all of the request was here")
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError(f"a body without files may have {MAX_BODY_BYTES} bytes, not more")
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands a body that was read out a second time."""
    waiting = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": waiting.pop()} if waiting else await receive()

    return replay
