"""The page on which a browser gives its token once."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

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


def local_address(target: str) -> str:
    """`target` if it is a path of this server, else OHIF's: a link must not lead elsewhere after signing in."""
    inside = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if inside and "\\" not in target else "/ohif/"
