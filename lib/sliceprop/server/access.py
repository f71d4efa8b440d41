"""Who may talk to the server: asked of every request first, also of those to MONAI Label's own routes.

Without tokens it answers programs on its own machine only, and no page of another site that runs in a browser there.
With tokens (`sliceprop token`) a request brings one as `Authorization: Bearer ...`; a browser gives it once, on a page,
and gets a cookie for it. MONAI Label's own clients ask for a user and a password; the password is the token.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from monailabel.endpoints.user.auth import DEFAULT_USER, User
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceprop.errors import InputError
from sliceprop.server.errors import BusyError, ForbiddenError, UnauthorizedError, refusal
from sliceprop.server.guard import route_path
from sliceprop.server.requests import flag
from sliceprop.server.sign_in import (
    LOG_IN,
    LOG_IN_ASKED,
    LOGGED_IN,
    SIGN_IN,
    SIGN_OUT,
    local_address,
    sign_in_page,
    small_form,
)
from sliceprop.tokens import Holder, TokenFile, digest_of

logger = logging.getLogger(__name__)

COOKIE = "sliceprop"
SIGNED_IN_S = 12 * 3600.0
"""A working day; then the token must be given again."""

MAX_SIGNED_IN, MAX_ADDRESSES, MAX_LET_IN = 1_000, 10_000, 10_000
"""Bounds of what is remembered."""

MAX_BROWSERS = 20
"""That are signed in with one token; nobody signs others out by signing in again and again."""

MAX_FAILURES, FAILURES_S = 10, 60.0
"""Wrong tokens that an address may send within this time before it has to wait."""

LOCAL = Holder("local", "administer")
"""Whoever uses a server without tokens."""

PUBLIC = frozenset({SIGN_IN, "/healthz", "/favicon.ico"})
"""Routes that need no token."""

DAMAGED = "the file of tokens cannot be used"
"""Told to operators and holders."""

_READS = frozenset({"GET", "HEAD", "OPTIONS"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
        "base-uri 'self'; object-src 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
}
"""Sent with every answer: nothing is shown as another type than it has, nor inside a page of another site, and our
pages get nothing from other hosts and send nothing there. OHIF's decoders are programs that it compiles."""


def needed_role(method: str, path: str) -> str:
    """The least role that may send a request; what deletes needs the highest, if it is not known to be harmless."""
    reads = method in _READS
    if path == "/metrics" and reads:
        return "watch"
    if path.startswith(("/logs", "/model", "/reload")):
        return "administer"
    if path.startswith(("/train", "/batch", "/labelprop/checkpoints")) and not reads:
        return "train"
    if method == "DELETE" and not path.startswith(("/session/", "/scoring/")):
        return "administer"
    return "annotate"


@dataclass(frozen=True)
class Policy:
    """What the operator decided.

    Attributes:
        tokens: None lets anybody in who is on this machine.
        insecure: lets anybody in from anywhere, if there are no tokens.
        hosts: names of this machine by which it may be called without tokens, besides addresses and `localhost`.
        origins: addresses of pages elsewhere that may use the server from a browser.
    """

    tokens: TokenFile | None = None
    insecure: bool = False
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def configured(cls, conf: Mapping[str, Any], origins: frozenset[str]) -> Policy:
        """From `--conf token_file`, `insecure` and `hosts` (separated by commas).

        Raises:
            FileError: if the file of tokens cannot be used.
            InputError: if `insecure` is neither true nor false.
        """
        file = conf.get("token_file")
        hosts = frozenset(name.strip().lower() for name in str(conf.get("hosts", "")).split(",") if name.strip())
        return cls(TokenFile(Path(file)) if file else None, flag(conf, "insecure"), hosts, origins)


class Failures:
    """Counts wrong tokens per address, for a bounded number of addresses.

    Many people may share an address (NAT, a proxy): a token that was let in from there before goes on being let in.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[float]] = OrderedDict()
        self._let_in: OrderedDict[tuple[str, str], None] = OrderedDict()

    def check(self, address: str, digest: str, now: float) -> None:
        """Refuse an address that failed too often, unless the token with this digest was let in from there.

        Raises:
            BusyError: saying when it may try again.
        """
        if (address, digest) in self._let_in:
            return
        recent = [then for then in self._times.get(address, []) if now - then < FAILURES_S]
        if len(recent) >= MAX_FAILURES:
            raise BusyError("too many wrong tokens from this address; try again in a minute", FAILURES_S)

    def let_in(self, address: str, digest: str) -> None:
        """Remember a token that is known."""
        self._let_in[address, digest] = None
        self._let_in.move_to_end((address, digest))
        while len(self._let_in) > MAX_LET_IN:
            self._let_in.popitem(last=False)

    def add(self, address: str, digest: str, now: float) -> None:
        """Count a token that is not, or not any more."""
        self._let_in.pop((address, digest), None)
        times = self._times.pop(address, [])
        self._times[address] = [*times, now][-MAX_FAILURES:]
        while len(self._times) > MAX_ADDRESSES:
            self._times.popitem(last=False)


class SignedIn:
    """Cookies of browsers that gave a token; kept in memory, so a restart of the server ends them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def add(self, digest: str, now: float) -> str:
        """A new cookie for the token with this digest; its oldest one goes if there are too many, or that of all."""
        cookie, own = secrets.token_urlsafe(32), [one for one, (whose, _) in self._known.items() if whose == digest]
        for one in own[: max(0, len(own) - MAX_BROWSERS + 1)]:
            del self._known[one]
        self._known[digest_of(cookie)] = (digest, now + SIGNED_IN_S)
        while len(self._known) > MAX_SIGNED_IN:
            self._known.popitem(last=False)
        return cookie

    def digest(self, cookie: str, now: float) -> str | None:
        """The digest of the token that a cookie stands for; None if it is not known or too old."""
        digest, until = self._known.get(digest_of(cookie), ("", 0.0))
        return digest if now < until else None

    def remove(self, cookie: str) -> None:
        """End it."""
        self._known.pop(digest_of(cookie), None)


class Access:
    """ASGI middleware: lets a request pass, with the `Holder` as `scope["state"]["holder"]`, or answers it.

    Args:
        app: what lies behind.
        policy: whom to let in.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self._policy = app, policy
        self._failures, self._signed_in = Failures(), SignedIn()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 403 or 429, a browser without a token with the page that asks for it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        guarded = _with_headers(send)
        try:
            answer = await self._answer(Request(scope, receive))
        except InputError as error:
            answer = refusal(error)
        await (answer or self.app)(scope, receive, guarded)

    async def _answer(self, request: Request) -> Response | None:
        """An answer instead of that of the route; None to let the route answer.

        Raises:
            ForbiddenError: for an address, page or role that may not.
            UnauthorizedError: without a token that is known.
            BusyError: after too many wrong tokens.
        """
        path = route_path(request.scope)
        self._check_page(request)
        if self._policy.tokens is None:
            self._check_address(request)
            _admit(request, path, LOCAL)
        elif path in (SIGN_IN, SIGN_OUT):
            return await self._sign_in_or_out(request, path)
        elif path == LOG_IN_ASKED:
            return JSONResponse({"enabled": True})
        elif path == LOG_IN and request.method == "POST":
            return await self._log_in(request)
        elif path not in PUBLIC:
            try:
                holder = self._holder(request)
                _admit(request, path, holder)
            except UnauthorizedError:
                if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                    here = path + (f"?{request.url.query}" if request.url.query else "")
                    return RedirectResponse(f"{_root(request)}{SIGN_IN}?next={quote(here)}", status_code=303)
                raise
            if path == LOGGED_IN:
                return JSONResponse(User(username=holder.name, roles=[holder.role]).model_dump())
        return None

    def _check_page(self, request: HTTPConnection) -> None:
        """Refuse what a page of another site makes a browser send; programs send none of these headers.

        Raises:
            ForbiddenError: naming the page's site.
        """
        origin, headers = request.headers.get("Origin"), request.headers
        if origin in self._policy.origins:
            return
        site, writes = headers.get("Sec-Fetch-Site"), request.scope["method"] not in _READS
        foreign = site in ("cross-site", "same-site") or (origin is not None and not _is_own(origin, request))
        embedded = site == "cross-site" and headers.get("Sec-Fetch-Mode") != "navigate"
        if (foreign and writes) or embedded:
            raise ForbiddenError(
                f"pages of {origin or 'another site'} may not use this server; "
                "its operator can allow them with MONAI_LABEL_CORS_ORIGINS"
            )

    def _check_address(self, request: HTTPConnection) -> None:
        """Without tokens: let in this machine only, called by its address or a name that is its own.

        A name that only pretends to be ours (DNS rebinding) would make a page of another site look like one of ours.

        Raises:
            ForbiddenError: saying what the operator can do.
        """
        if self._policy.insecure:
            return
        if request.client is not None and not is_loopback(request.client.host):
            raise ForbiddenError(
                "this server has no login and answers programs on its own machine only; "
                "its operator can let others in with --token-file (see SECURITY.md)"
            )
        host = _parts(f"//{request.headers.get('Host', '')}").hostname or ""
        if host and not (_is_address(host) or host == "localhost" or host in self._policy.hosts):
            raise ForbiddenError(f"{host} is not a name of this server; its operator can add it with --conf hosts")

    def _holder(self, request: HTTPConnection) -> Holder:
        """Whose token or cookie comes with a request.

        Raises:
            UnauthorizedError: without any, or one that is not known.
            BusyError: after too many wrong ones.
        """
        now, cookie = time.monotonic(), _cookie(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return self._checked(request, token.strip(), now)
        digest = self._signed_in.digest(cookie, now) if cookie else None
        holder = self._known(digest) if digest else None
        if holder is None:
            raise UnauthorizedError("this server asks for a token: send it as `Authorization: Bearer TOKEN`")
        return holder

    def _checked(self, request: HTTPConnection, token: str, now: float) -> Holder:
        address = request.client.host if request.client else ""
        digest = digest_of(token)
        self._failures.check(address, digest, now)
        holder = self._known(digest)
        if holder is None:
            self._failures.add(address, digest, now)
            logger.warning("a wrong token came from %s", address)
            raise UnauthorizedError("this token is not known here; ask the server's operator for one")
        self._failures.let_in(address, digest)
        return holder

    def _known(self, digest: str) -> Holder | None:
        """Whose token has this digest; None if nobody's.

        Raises:
            UnauthorizedError: while the file of tokens cannot be used.
        """
        tokens = self._policy.tokens
        if tokens is not None and tokens.damaged:
            raise UnauthorizedError(f"{DAMAGED}; tell the server's operator")
        return tokens.holder(digest) if tokens is not None else None

    async def _log_in(self, request: Request) -> Response:
        """What MONAI Label's clients expect for a user and a password; whatever user they name, the token tells it.

        Raises:
            InputError: or a subclass, for anything but a token that is known.
        """
        token = (await small_form(request)).get("password", "").strip()
        _remember(request, self._checked(request, token, time.monotonic()))
        return JSONResponse({"token_type": "Bearer", "access_token": token}, headers={"Cache-Control": "no-store"})

    async def _sign_in_or_out(self, request: Request, path: str) -> Response | None:
        target, cookie = local_address(request.query_params.get("next", "")), _cookie(request)
        if path == SIGN_OUT and request.method == "POST":
            self._signed_in.remove(cookie)
            answer: Response = RedirectResponse(f"{_root(request)}{SIGN_IN}", status_code=303)
            answer.delete_cookie(COOKIE)
            return answer
        if path != SIGN_IN or request.method != "POST":
            return HTMLResponse(sign_in_page(target)) if path == SIGN_IN else None
        token = (await small_form(request)).get("token", "").strip()
        try:
            _remember(request, self._checked(request, token, time.monotonic()))
        except UnauthorizedError as error:
            return HTMLResponse(sign_in_page(target, str(error)), status_code=401)
        answer = RedirectResponse(f"{_root(request)}{target}", status_code=303)
        value = self._signed_in.add(digest_of(token), time.monotonic())
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, value, max_age=int(SIGNED_IN_S), httponly=True, samesite="strict", secure=secure)
        return answer


def _cookie(request: HTTPConnection) -> str:
    """What the browser was given to remember; empty without it. It has no quotes, whose reading may take seconds."""
    pairs = (pair.partition("=") for header in request.headers.getlist("Cookie") for pair in header.split(";"))
    return next((value.strip() for key, _, value in pairs if key.strip() == COOKIE), "")


async def current_user(request: Request) -> User:
    """Whoever sends a request, as MONAI Label's routes want to know it.

    It waits for nothing, but a plain function would be run in a thread, for which requests to a busy server wait.
    """
    holder: Holder = request.scope.get("state", {}).get("holder", LOCAL)
    return User(username=holder.name, roles=DEFAULT_USER.roles)


def is_loopback(address: str) -> bool:
    """Whether this is an address of the machine itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _parts(address: str) -> SplitResult:
    """Of an address in a header.

    Raises:
        ForbiddenError: if it is none, such as one with half of a pair of brackets.
    """
    try:
        return urlsplit(address)
    except ValueError as error:
        raise ForbiddenError(f"{address!r} is no address; send Host and Origin as browsers do") from error


def _is_own(origin: str, request: HTTPConnection) -> bool:
    """Whether this is where pages of ours come from; one that came without TLS is none where the request has it.

    A proxy may have it and not say so.

    Raises:
        ForbiddenError: as of `_parts`.
    """
    page = _parts(origin)
    encrypted = request.scope["scheme"] != "https" or page.scheme == "https"
    return encrypted and page.netloc.lower() == request.headers.get("Host", "").lower()


def _admit(request: Request, path: str, holder: Holder) -> None:
    """Let a request pass if its sender's role allows it.

    Raises:
        ForbiddenError: if it does not.
    """
    _remember(request, holder)
    if not holder.may(role := needed_role(request.method, path)):
        raise ForbiddenError(f"this needs the role {role}, and {holder.name} has the role {holder.role}")


def _remember(request: Request, holder: Holder) -> None:
    """For the routes, and for the audit."""
    request.scope.setdefault("state", {})["holder"] = holder


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return guarded
