"""Schemathesis on what the server says of itself: no request that its OpenAPI allows, or just does not, makes it fail.

SLICEPROP_FUZZ counts the inputs, as in `test_fuzz.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("monailabel")
pytest.importorskip("schemathesis")

from serving import Server, only, truth

pytestmark = pytest.mark.e2e

EXAMPLES = max(2, int(os.environ.get("SLICEPROP_FUZZ", "5000")) // 2500)
"""Per route, of which there are some 50; each brings some more that are derived from its parameters."""

LONG = r"^POST /(train|batch|scoring)"
"""Routes that start processes: what they refuse is in `test_names.py`."""


def test_no_request_makes_the_server_fail(tmp_path: Path) -> None:
    with Server(tmp_path / "studies", tmp_path, {"upload_mib": "8"}) as client:
        client.submit(client.add_image("case"), only(truth()))
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.url}/openapi.json", "--no-color"]
        command += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "-n", str(EXAMPLES)]
        command += ["--exclude-name-regex", LONG, "--generation-deterministic"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert client.study("case")["annotated_slices"]
