"""A result is never taken for what a user drew, whatever a client wants it to be stored as."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving import NAMES, nifti, only, scan, truth

MODELS = ("labelprop", "labelprop_scribbles", "grow_from_seeds", "threshold_islands", "fill_between_slices")
STUDIES = ("drawn", "accepted")
TAGS = ("final", "Final", "sparse", "scribbles", "original", "round_one", "", None)


@pytest.fixture(scope="module", autouse=True)
def drawings(client: TestClient) -> None:
    """One study is annotated under each of the tags that count."""
    for image, tag in zip(STUDIES, ("sparse", "final"), strict=True):
        assert client.put(
            "/datastore/image", params={"image": image}, files={"file": ("f.nii", nifti(scan()))}
        ).is_success
        label = {"label": ("l.nii", nifti(only(truth())))}
        data = {"params": json.dumps({"label_info": NAMES})}
        assert client.put("/datastore/label", params={"image": image, "tag": tag}, files=label, data=data).is_success


def in_force(client: TestClient, image: str) -> Any:
    versions = client.get("/labelprop/versions", params={"image": image})
    voxels = client.get("/labelprop/voxels", params={"image": image, "kind": "annotation"})
    study = client.get("/labelprop/study", params={"image": image}).json()
    return versions.json(), voxels.content, study["annotated_slices"], study["scribbles_version"]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(STUDIES),
    st.sampled_from(MODELS),
    st.sampled_from(TAGS),
    st.sampled_from(("disc", "core", None)),
    st.booleans(),
)
@example("accepted", "labelprop_scribbles", "final", "core", True)
@example("accepted", "threshold_islands", "final", "core", True)
def test_what_counts_as_drawn_stays(
    client: TestClient, image: str, model: str, tag: str | None, selected: str | None, save: bool
) -> None:
    before = in_force(client, image)
    options = {"label_tag": tag, "selected_label_name": selected, "save_label": save, "method": "nearest", "lower": 150}
    params = json.dumps({key: value for key, value in options.items() if value is not None})
    answer = client.post(f"/infer/{model}", params={"image": image}, data={"params": params})
    assert answer.status_code in (200, 400), answer.text
    assert in_force(client, image) == before


def test_a_result_is_not_taken_for_that_of_another_scan_of_its_name(client: TestClient) -> None:
    def add(seed: int) -> None:
        files = {"file": ("f.nii", nifti(scan(seed)))}
        assert client.put("/datastore/image", params={"image": "anew"}, files=files).is_success

    def shown() -> tuple[Any, bool]:
        voxels = client.get("/labelprop/voxels", params={"image": "anew", "kind": "labels"}).content
        return client.get("/labelprop/study", params={"image": "anew"}).json()["result"], any(voxels)

    add(0)
    label, data = {"label": ("l.nii", nifti(only(truth())))}, {"params": json.dumps({"label_info": NAMES})}
    assert client.put("/datastore/label", params={"image": "anew", "tag": "sparse"}, files=label, data=data).is_success
    params = json.dumps({"method": "nearest"})
    assert client.post("/infer/labelprop", params={"image": "anew"}, data={"params": params}).is_success
    result, anything = shown()
    assert result and anything
    assert client.delete("/datastore/image", params={"id": "anew"}).is_success
    add(1)
    assert shown() == (None, False)


def test_a_client_can_tell_whether_it_has_the_file_of_an_image(client: TestClient, studies: Path) -> None:
    file = next(studies.glob("case.nii*"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    told = {
        None: 200,
        f"SHA256:{digest}": 200,
        digest.upper(): 200,
        f"SHA256:{'0' * 64}": 404,
        "X:1": 400,
        "a:b:c": 400,
    }
    for check_sum, status in told.items():
        answer = client.head(
            "/datastore/image", params={"image": "case"} | ({"check_sum": check_sum} if check_sum else {})
        )
        assert answer.status_code == status, check_sum
    assert client.head("/datastore/image?image=absent").status_code == 404


@pytest.mark.parametrize("path", ["/info/", "/datastore/", "/datastore/?output=all"])
def test_what_an_archive_is_asked_for_holds_up_nobody_else(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200
    routes = [route for route in client.app.routes if getattr(route, "path", "") == path.partition("?")[0]]
    first = next(route for route in routes if "GET" in route.methods)
    assert not inspect.iscoroutinefunction(first.endpoint)
