"""MONAI Label's own login, with the versions that are installed, refuses everybody; so the app refuses it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.config import settings
from monailabel.endpoints.user.auth import from_token

from sliceprop.errors import InputError

KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2048)


@pytest.fixture
def realm(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A realm as Keycloak publishes it, with the login switched on."""
    der, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    lines = KEY.public_key().public_bytes(der, info).decode().strip().splitlines()[1:-1]

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"realm": "monailabel", "public_key": "".join(lines)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/realms/monailabel"
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", address)
    yield address
    server.shutdown()
    server.server_close()


def token() -> str:
    """A token that Keycloak could have issued to an administrator, valid for an hour."""
    roles = {"roles": [settings.MONAI_LABEL_AUTH_ROLE_ADMIN]}
    claims = {"preferred_username": "alice", "realm_access": roles, "exp": int(time.time()) + 3600}
    return jwt.encode(claims, KEY, algorithm="RS256")


def test_the_token_is_a_good_one() -> None:
    assert jwt.decode(token(), KEY.public_key(), algorithms=["RS256"])["preferred_username"] == "alice"


@pytest.mark.usefixtures("realm")
def test_the_login_refuses_a_good_token() -> None:
    """Once this fails, the login has been mended: see what it checks, then let the app start with it."""
    with pytest.raises(jwt.exceptions.DecodeError, match="algorithms"):
        from_token(token())


def test_the_app_does_not_start_with_it(tmp_path: Path, realm: str) -> None:
    from sliceprop.server.app import LabelPropApp

    with pytest.raises(InputError, match="token_file"):
        LabelPropApp(str(tmp_path), str(tmp_path / "studies"), {})
