"""What is installed is not older than what mends the advisories in `docs/dependencies.md`."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


@pytest.mark.parametrize(
    ("package", "mended"),
    [
        ("monai", "1.5.2"),  # CVE-2026-21851, GHSA-89gg-p5r5-q6r4
        ("torch", "2.10"),  # CVE-2026-24747
    ],
)
def test_known_holes_are_mended(package: str, mended: str) -> None:
    assert Version(version(package)) >= Version(mended)
