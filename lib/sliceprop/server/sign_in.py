"""Where a token is given once: the page for browsers, and what MONAI Label's own clients ask for."""

from __future__ import annotations

import asyncio
from html import escape
from urllib.parse import parse_qsl, quote

from starlette.requests import ClientDisconnect, Request

from sliceprop.errors import InputError, TooLargeError
from sliceprop.server.errors import TooSlowError

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

LOG_IN_ASKED, LOG_IN, LOGGED_IN = "/auth/", "/auth/token", "/auth/token/valid"
"""As MONAI Label calls them: is there a login, where a user and a password are given for a token, is that one valid."""

MAX_FORM_BYTES, FORM_S = 1 << 14, 20.0
"""How much a form may hold, and how long it may take to arrive, from those who are not let in yet."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sign in</title>
<style>
body {{ font: 16px sans-serif; margin: 15vh auto; max-width: 24em; background: #090c29; color: #e8e8f0 }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5em; margin: .5em 0 }}
p[role=alert] {{ color: #ffb0a0 }}
</style>
</head>
<body>
<h1>Sign in</h1>
<form method="post" action="?next={target}">
<label for="token">Your token for this server</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
</form>
{problem}<p>Research use only; not a medical device.</p>
</body>
</html>
"""


def sign_in_page(target: str, problem: str = "") -> str:
    """HTML of the page; it loads nothing and runs no script.

    Args:
        target: path to go on to.
        problem: with the token that was given.
    """
    shown = f'<p role="alert">{escape(problem)}</p>\n' if problem else ""
    return _PAGE.format(target=quote(target), problem=shown)


async def small_form(request: Request) -> dict[str, str]:
    """The fields of a form (`application/x-www-form-urlencoded`) that comes with a request.

    Raises:
        TooLargeError: if it holds too much.
        TooSlowError: if it takes too long to arrive.
        InputError: if it does not arrive.
    """
    body = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_FORM_BYTES:
                    raise TooLargeError(f"this form may have {MAX_FORM_BYTES} bytes, not more")
    except TimeoutError as error:
        raise TooSlowError(f"the form did not arrive within {FORM_S:g} s") from error
    except ClientDisconnect as error:
        raise InputError("the form did not arrive") from error
    return dict(parse_qsl(body.decode("utf-8", "replace")))


def local_address(target: str) -> str:
    """`target` if it is a path of this server, else OHIF's: a link must not lead elsewhere after signing in."""
    inside = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if inside and "\\" not in target else "/ohif/"
