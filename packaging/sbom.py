"""Writes a bill of materials (CycloneDX) of an environment: this program, and its parts with the hashes of their files.

    python packaging/sbom.py CYCLONEDX PYTHON LOCK FILE

CYCLONEDX is the program `cyclonedx-py`, PYTHON that of the environment, LOCK what `packaging/lock.sh` wrote of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main(cyclonedx: str, python: str, lock: str, file: str) -> None:
    """Write the file."""
    described = told(cyclonedx, "environment", "--pyproject", str(ROOT / "pyproject.toml"), python)
    locked = told(cyclonedx, "requirements", lock)
    Path(file).write_text(json.dumps(merged(described, locked), indent=2) + "\n", encoding="utf-8")


def told(*command: str) -> dict[str, Any]:
    """What `cyclonedx-py` prints."""
    answer = subprocess.run([*command, "--output-reproducible"], check=True, stdout=subprocess.PIPE)
    return dict(json.loads(answer.stdout))


def merged(described: dict[str, Any], locked: dict[str, Any]) -> dict[str, Any]:
    """The bill of an environment with the hashes of a lock; the product itself is no part of it."""
    hashed = {name_of(one): one.get("externalReferences", []) for one in locked["components"]}
    product = described["metadata"]["component"]
    own = {one["bom-ref"]: one for one in described["components"] if name_of(one) == name_of(product)}
    product["version"] = next(iter(own.values()))["version"]
    parts = [one for one in described["components"] if one["bom-ref"] not in own]
    for one in parts:
        one["externalReferences"] = one.get("externalReferences", []) + hashed.get(name_of(one), [])
    needs = [one for one in described.get("dependencies", []) if one["ref"] not in own]
    return {**described, "components": parts, "dependencies": needs}


def name_of(component: dict[str, Any]) -> str:
    """As registries compare names."""
    return re.sub(r"[-_.]+", "-", component["name"]).lower()


if __name__ == "__main__":
    main(*sys.argv[1:])
