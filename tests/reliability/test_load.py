"""Real servers in processes of their own, driven from this one: load, strangers, encryption, no call to the outside.

SLICEPROP_SOAK_S says how many seconds the clients work at once (60 by default); `make reliability` takes 30 minutes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

pytest.importorskip("monailabel")

from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from certificates import write_certificate
from load import SOAK, STUDIES, measure_soak, measure_studies
from serving import ROOT, Client, eventually, free_port, nifti, only, scan, truth
from sliceprop.tokens import add_token

pytestmark = pytest.mark.e2e

SOAK_S = float(os.environ.get("SLICEPROP_SOAK_S", "60"))

GUARD = """
import socket

LOG = {log!r}


def outside(address):
    host = address[0] if isinstance(address, tuple) else None
    return host is not None and not (str(host).startswith("127.") or host in ("::1", "localhost", "0.0.0.0", "::", ""))


def watched(name, place):
    original = getattr(socket.socket if place is None else place, name)

    def call(*arguments, **options):
        address = arguments[1] if place is None else (arguments[0],)
        if outside(address):
            with open(LOG, "a") as file:
                file.write(f"{{name}} {{address}}\\\\n")
            raise OSError("the network is blocked")
        return original(*arguments, **options)

    setattr(socket.socket if place is None else place, name, call)


for method in ("connect", "connect_ex", "sendto"):
    watched(method, None)
watched("getaddrinfo", socket)
"""
"""Runs first in every Python process of a server: calls to the outside fail and are written down."""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names calls to the outside."""
    log, folder = tmp_path / "outside.log", tmp_path / "guard"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(GUARD.format(log=str(log)).replace("\\\\n", "\\n"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return log


def test_the_guard_notices_calls_to_the_outside(outside: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode != 0
    assert "192.0.2.1" in outside.read_text()


def test_clients_at_once_lose_nothing_and_nobody_is_called(tmp_path: Path, outside: Path) -> None:
    soak = measure_soak(tmp_path / "studies", clients=4, seconds=SOAK_S)[SOAK]
    assert soak["lost_or_changed"] == [] and soak["failed"] == 0 and soak["answers"] > 20
    second, last = soak["open_files"]
    assert last <= second + 30
    assert not outside.exists(), outside.read_text()


def test_different_studies_one_after_the_other(tmp_path: Path) -> None:
    told = measure_studies(tmp_path / "studies", 3)[STUDIES]
    assert told["studies"] == 3 and told["requests"] > 0


@contextmanager
def running(command: list[str], folder: Path, url: str, verify: str | bool = True) -> Iterator[Client]:
    """A program that serves, until the end of the block."""
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
    client = Client(url, folder)

    def up() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            return requests.get(f"{url}/healthz", timeout=60, verify=verify).ok
        except requests.ConnectionError:
            return False

    try:
        eventually(up, "the server to answer")
        yield client
    finally:
        process.terminate()
        process.wait(60)


def own_address() -> str | None:
    """One of this machine's addresses that is not loopback."""
    found = (one for cards in psutil.net_if_addrs().values() for one in cards if one.family == socket.AF_INET)
    return next((one.address for one in found if not one.address.startswith("127.")), None)


def test_a_plain_start_answers_this_machine_and_tells_others_why_not(tmp_path: Path, outside: Path) -> None:
    """As MONAI Label's documentation starts it: it listens on every address. With everything a study goes through."""
    port, address = free_port(), own_address()
    app = ["--app", str(ROOT / "apps" / "labelprop"), "--studies", str(tmp_path / "studies"), "--port", str(port)]
    command, url = ["-m", "monailabel.main", "start_server", *app], f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(1) as pool, running(command, tmp_path, url) as client:
        image = client.add_image("DOE JOHN 1970")
        client.submit(image, only(truth()))
        client.train(image, budget_s=1)
        client.infer(f"image={image}")
        assert client.next_slice(image)["id"] == image
        if address is not None:
            refused = requests.get(f"http://{address}:{port}/info/", timeout=60)
            assert refused.status_code == 403 and "--token-file" in refused.json()["detail"]
            forged = {"X-Forwarded-For": "127.0.0.1"}
            assert requests.get(f"http://{address}:{port}/info/", timeout=60, headers=forged).status_code == 403
        late = pool.submit(client.infer, f"image={image}")
        eventually(lambda: late.done() or "jobs_running 1" in client.call("GET", "/metrics").text, "the request")
    assert late.result(60)[0].any()  # finished while the server was shutting down
    assert not outside.exists(), outside.read_text()
    log = (tmp_path / "server.log").read_text()
    assert "DOE" not in log and "JOHN" not in log
    audit = [
        json.loads(line) for line in (tmp_path / "studies" / ".labelprop" / "audit.jsonl").read_text().splitlines()
    ]
    assert {"write", "train", "compute", "refused"} - {line["event"] for line in audit} <= (
        {"refused"} if address is None else set()
    )


def log_in_as_slicer_does(url: str, token: str) -> None:
    """MONAI Label's own client: it asks whether there is a login, then for a user and a password."""
    client = MONAILabelClient(url)
    assert client.auth_enabled() and not client.auth_valid_token()
    with pytest.raises(MONAILabelClientException, match="401"):
        client.info()
    with pytest.raises(MONAILabelClientException, match="401"):
        client.auth_token("alice", "wrong")
    client.update_auth(client.auth_token("user-xyz", token))
    assert client.auth_valid_token()
    assert client.next_sample("next_slice", {"image": "a"})["id"] == "a"
    assert client.info()["datastore"]["total"] == 1 and client.datastore()["objects"].keys() == {"a"}


def test_tokens_and_encryption_for_others(tmp_path: Path) -> None:
    """As SECURITY.md says it: `sliceprop serve` on every address, with tokens and a certificate."""
    port, address = free_port(), own_address() or "127.0.0.1"
    (cert, key), tokens = write_certificate(tmp_path, "127.0.0.1", address), tmp_path / "tokens"
    token, url = add_token(tokens, "alice", "annotate"), f"https://{address}:{port}"
    options = [
        str(ROOT / "main.py"),
        "serve",
        "--studies",
        str(tmp_path / "studies"),
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
    ]
    options += ["--token-file", str(tokens), "--tls-cert", str(cert), "--tls-key", str(key)]
    with running(options, tmp_path, url, verify=str(cert)):
        session = requests.Session()
        session.verify, session.trust_env = str(cert), False  # whatever certificates the environment names
        assert session.get(f"{url}/info/", timeout=60).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert session.get(f"{url}/info/", headers=bearer, timeout=60).status_code == 200
        upload = {"file": ("a.nii", nifti(scan()))}
        added = session.put(f"{url}/datastore/image?image=a", headers=bearer, files=upload, timeout=60)
        assert added.status_code == 200, added.text
        trained = session.post(f"{url}/train/labelprop", json={"image": "a"}, headers=bearer, timeout=60)
        assert trained.status_code == 403 and "role train" in trained.json()["detail"]
        assert session.post(f"{url}/sign-in?next=/info/", data={"token": token}, timeout=60).status_code == 200
        assert session.cookies and session.get(f"{url}/datastore/", timeout=60).json()["total"] == 1
        log_in_as_slicer_does(url, token)
        audit = (tmp_path / "studies" / ".labelprop" / "audit.jsonl").read_text()
        logins = [line for line in map(json.loads, audit.splitlines()) if line["route"] == "/auth"]
        assert token not in audit and {("POST", 401, None), ("POST", 200, "alice")} <= {
            (line["method"], line["status"], line["user"]) for line in logins
        }
        with pytest.raises(requests.RequestException):
            requests.get(f"http://{address}:{port}/info/", timeout=60)
