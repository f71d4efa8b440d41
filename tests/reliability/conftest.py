"""The whole server inside the test process: every route and guard, without a port."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("monailabel")

from starlette.testclient import TestClient

from serving import ROOT, nifti, only, scan, truth


class LocalClient(TestClient):
    """Speaks from this machine, to this machine."""

    def __init__(self, api: object, **options: object) -> None:
        super().__init__(api, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50_000), **options)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded") / "studies"


@pytest.fixture(scope="session")
def client(studies: Path) -> Iterator[LocalClient]:
    """A server with the study `case`, annotated."""
    from monailabel.config import settings

    before = logging.getLogRecordFactory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MONAI_LABEL_APP_DIR", str(ROOT / "apps" / "labelprop"))
        patch.setattr(settings, "MONAI_LABEL_STUDIES", str(studies))
        patch.setattr(settings, "MONAI_LABEL_APP_CONF", {"upload_mib": "64"})
        patch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
        patch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(studies.parent / "sessions"))
        from monailabel.app import app as api

        with LocalClient(api, raise_server_exceptions=False) as client:
            add_study(client, "case")
            yield client
    logging.setLogRecordFactory(before)


def add_study(client: TestClient, image: str, seed: int = 0) -> None:
    files = {"file": (f"{image}.nii", nifti(scan(seed)))}
    assert client.put("/datastore/image", params={"image": image}, files=files).status_code == 200
    label = {"label": ("l.nii", nifti(only(truth(seed))))}
    answer = client.put("/datastore/label", params={"image": image, "tag": "sparse"}, files=label)
    assert answer.status_code == 200, answer.text
