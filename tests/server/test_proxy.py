"""What viewers may ask the archive for."""

from __future__ import annotations

import pytest

pytest.importorskip("monailabel")

from monailabel.config import settings

from sliceprop.errors import InputError
from sliceprop.server.proxy import archive_path


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("qido/studies", "q/studies"),
        ("qido/series", "q/series"),
        ("qido/studies/1.2/metadata", "w/studies/1.2/metadata"),
        ("wado/studies/1.2/series/3/instances/4/frames/1,2", "w/studies/1.2/series/3/instances/4/frames/1,2"),
        ("instances", "instances"),
        ("studies/1.2/series", "studies/1.2/series"),
    ],
)
def test_studies_series_and_instances_are_found_behind_the_prefixes(
    path: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "q")
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "w")
    assert archive_path(path) == asked


@pytest.mark.parametrize(
    "path", ["servers", "info", "qido/servers", "wado/info", "wado", "stow", "", "stow/tools/reset"]
)
def test_nothing_else_is_passed_on(path: str) -> None:
    with pytest.raises(InputError):
        archive_path(path)
