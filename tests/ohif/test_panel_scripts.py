"""The panel's scripts: their own tests, run by node where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sliceprop

TESTS = sorted(Path(__file__).parent.glob("*.test.mjs"))
SCRIPTS = sorted((Path(sliceprop.__file__).parent / "ohif").glob("*.js"))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_scripts(file: Path) -> None:
    run = subprocess.run(["node", "--test", str(file)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout or "ℹ fail 0" in run.stdout


def test_scripts_ask_no_other_host() -> None:
    assert SCRIPTS
    for file in SCRIPTS:
        addresses = set(re.findall(r"\w+://[\w./-]+", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name  # the name of a format, which nobody asks


def test_scripts_are_complete_in_themselves() -> None:
    for file in SCRIPTS:
        code = re.sub(r"^/\*\*.*?\*/\s*", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert code.startswith("(() => {"), file.name
        assert code.rstrip().endswith("})();"), file.name
