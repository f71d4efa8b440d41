"""Who read, drew, trained and exported what: notes of the request at hand, and one line of the audit when it ends."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceprop.audit import AuditLog
from sliceprop.server.guard import MAX_NAME, route_path
from sliceprop.server.health import Counters
from sliceprop.server.logs import used_names
from sliceprop.server.sign_in import LOG_IN, LOG_IN_ASKED, SIGN_IN, SIGN_OUT

_notes: ContextVar[dict[str, Any]] = ContextVar("notes")
_scope: ContextVar[Scope] = ContextVar("scope")

QUIET = (
    *("/info/", "/healthz", "/metrics", "/static/", "/ohif/", "/labelprop/progress", "/docs", "/openapi.json"),
    f"{LOG_IN}/",
)
"""Routes that tell nothing of a study."""

_EVENTS = {SIGN_IN: "sign-in", LOG_IN: "sign-in", SIGN_OUT: "sign-out"}

AGAIN_S, MAX_REMEMBERED = 60.0, 4096
"""A viewer reads a series frame by frame, and strangers may knock for ever: one line a minute says that they do."""

KNOWN = frozenset(
    {
        *("activelearning", "auth", "batch", "datastore", "docs", "healthz", "infer", "info"),
        *("labelprop", "logs", "metrics", "model", "ohif", "openapi.json", "proxy", "reload"),
        *("scoring", "session", "sign-in", "sign-out", "static", "train"),
    }
)
"""First parts of paths that are declared."""

_LONGEST = 80
"""Characters of what a client is free to choose."""


def note(*studies: str) -> None:
    """Say which studies the request at hand is about, where its address does not; each gets a line of the audit."""
    if named := [study for study in studies if study]:
        _notes.get({})["studies"] = named
        used_names.add(*named)


def sender() -> dict[str, str]:
    """Who sent the request at hand: `user`, and `client`, the program as it calls itself; empty outside of one."""
    scope = _scope.get(None)
    if scope is None:
        return {}
    holder, agent = scope.get("state", {}).get("holder"), Headers(scope=scope).get("User-Agent", "")
    printable = "".join(c for c in agent if c.isprintable())
    return {"user": holder.name if holder else "", "client": printable[:_LONGEST]}


def event_of(method: str, path: str) -> str:
    """What a request is called in the audit."""
    if method in ("GET", "HEAD"):
        exports = path.startswith(("/labelprop/export", "/datastore/dataset", "/labelprop/checkpoints/"))
        return "export" if exports else "read"
    if path.startswith("/train"):
        return "train"
    if path.startswith(("/infer", "/batch", "/activelearning", "/scoring")):
        return "compute"
    return _EVENTS.get(path, "delete" if method == "DELETE" else "write")


def study_of(path: str, query: str) -> str:
    """The study that an address names: `image`, `id` or `label` of the query, or the series of a DICOMweb path."""
    named = dict(parse_qsl(query))
    parts = path.split("/")
    series = parts[parts.index("series") + 1 :][:1] if "series" in parts and path.startswith("/proxy/") else []
    return str(named.get("image") or named.get("id") or named.get("label") or "".join(series))[:MAX_NAME]


class Auditor:
    """ASGI middleware before those that may refuse: writes the audit and counts requests.

    Args:
        app: what lies behind.
        log: the audit, once there is one.
        counters: of the requests.
    """

    def __init__(self, app: ASGIApp, log: Callable[[], AuditLog], counters: Counters) -> None:
        self.app, self._log, self._counters = app, log, counters
        self._seen: OrderedDict[tuple[Any, ...], float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and write down what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], route_path(scope)
        scope["client"] = _addressed(scope.get("client"))
        study = study_of(path, scope["query_string"].decode("latin-1"))
        notes: dict[str, Any] = {"studies": [study], "status": 500}
        _notes.set(notes)
        _scope.set(scope)
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes["status"] = message["status"]
            await send(message)

        self._counters.begin()
        try:
            await self.app(scope, receive, watched)
        finally:
            self._counters.end(method, notes["status"], time.perf_counter() - started)
            self._write(scope, method, path, notes)

    def _write(self, scope: Scope, method: str, path: str, notes: dict[str, Any]) -> None:
        holder, client = scope.get("state", {}).get("holder"), scope.get("client")
        about = {"user": holder.name if holder else None, "client": client[0] if client else None}
        event, route = event_of(method, path), _route(path, scope)
        refused = notes["status"] in (401, 403, 429)
        if method == "OPTIONS" or ((path in ("/", LOG_IN_ASKED) or path.startswith(QUIET)) and not refused):
            return
        studies = notes.pop("studies")
        if refused and holder is None:
            told = self._first_in_a_while((about["client"], event, notes["status"]))
        else:
            told = not path.startswith("/proxy/") or self._first_in_a_while((*about.values(), event, *studies))
        for study in studies if told else ():
            line = {**about, "method": method[:_LONGEST], "route": route[:_LONGEST], "study": study, **notes}
            self._log().record("refused" if refused else event, **line)

    def _first_in_a_while(self, key: tuple[Any, ...]) -> bool:
        now = time.monotonic()
        last = self._seen.pop(key, -AGAIN_S)
        first = now - last >= AGAIN_S
        self._seen[key] = now if first else last
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return first


def _addressed(client: Any) -> tuple[str, int] | None:
    """Address and port of a client; a proxy may pass on any text as the address, which is `unknown` then."""
    if client is None:
        return None
    try:
        return str(ipaddress.ip_address(client[0].partition("%")[0])), client[1]
    except ValueError:
        return "unknown", client[1]


def _route(path: str, scope: Scope) -> str:
    """The path as it was declared, so that no id in it gets into the log; of others a known first part."""
    declared = getattr(scope.get("route"), "path", None)
    if declared:
        return str(declared)
    first = path.partition("/")[2].partition("/")[0]
    return f"/{first}" if first in KNOWN else "other"
