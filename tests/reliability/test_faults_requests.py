"""Versions over HTTP: listed, restored, kept in conflicts, and never given out damaged."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from serving import DRAWN, SHAPE, nifti, only, scan, truth


@pytest.fixture(scope="module")
def study(client):
    files = {"file": ("versions.nii", nifti(scan(3)))}
    assert client.put("/datastore/image", params={"image": "versions"}, files=files).status_code == 200
    assert put(client, "versions", only(truth(3))).status_code == 200
    return "versions"


def put(client, study, labels, **params):
    files = {"label": ("l.nii", nifti(labels))}
    query = {"image": study, "tag": "sparse"}
    data = {"params": json.dumps(params)}
    return client.put("/datastore/label", params=query, files=files, data=data, headers={"User-Agent": "a test"})


def listed(client, study):
    answer = client.get("/labelprop/versions", params={"image": study})
    assert answer.status_code == 200, answer.text
    return answer.json()


def drawn(client, study):
    answer = client.get("/labelprop/voxels", params={"image": study, "kind": "annotation"})
    return np.frombuffer(answer.content, np.uint8).reshape(SHAPE, order="F")


def test_versions_over_http(client, study):
    first = listed(client, study)["annotation"]
    second = put(client, study, only(truth(3), (4,)), annotation_version=first)
    assert second.status_code == 200 and second.json()["annotation_version"] != first
    refused = put(client, study, only(truth(3), (9,)), annotation_version=first)
    assert refused.status_code == 409 and "kept as version 3" in refused.json()["detail"]
    known = listed(client, study)
    assert [one["event"] for one in known["versions"]] == ["conflict", "submitted", "submitted"]
    assert known["versions"][0]["by"]["client"] == "a test"
    assert known["annotation"] == known["versions"][1]["name"] == second.json()["annotation_version"]
    np.testing.assert_array_equal(drawn(client, study), only(truth(3), (4,)))

    restored = client.post("/labelprop/restore", params={"image": study, "version": 1})
    assert restored.status_code == 200 and restored.json()["annotation_version"] == restored.json()["name"]
    np.testing.assert_array_equal(drawn(client, study), only(truth(3)))
    assert client.post("/labelprop/restore", params={"image": study, "version": 99}).status_code == 400
    assert client.get("/labelprop/versions", params={"image": "nope"}).status_code == 404

    file = client.get("/labelprop/version", params={"image": study, "version": 3})
    image = nib.Nifti1Image.from_bytes(gzip.decompress(file.content))
    np.testing.assert_array_equal(np.asarray(image.dataobj), only(truth(3), (9,)))
    assert client.get("/labelprop/version", params={"image": study, "version": 99}).status_code == 404


def test_a_damaged_version_is_not_given_out(client, study, studies):
    put(client, study, only(truth(3), (6,)))
    number = listed(client, study)["versions"][0]["version"]
    (file,) = (studies / ".labelprop" / "studies" / study / "versions" / f"{number:06d}").glob("labels*")
    file.write_bytes(file.read_bytes()[:-9])
    for answer in (
        client.get("/labelprop/version", params={"image": study, "version": number}),
        client.post("/labelprop/restore", params={"image": study, "version": number}),
    ):
        assert answer.status_code == 400 and "damaged" in answer.json()["detail"]
    assert number in [one["version"] for one in listed(client, study)["damaged"]]


def test_folders_that_cannot_be_used_are_told(client, studies):
    """As on a disk that is out of reach: the answer says that the server is at fault, and not where its folders lie."""
    files = {"file": ("unreachable.nii", nifti(scan(3)))}
    assert client.put("/datastore/image", params={"image": "unreachable"}, files=files).status_code == 200
    assert put(client, "unreachable", only(truth(3))).status_code == 200
    versions = studies / ".labelprop" / "studies" / "unreachable" / "versions"
    versions.rename(versions.with_name("elsewhere"))
    versions.touch()
    query = {"image": "unreachable"}
    for answer in (client.get("/labelprop/versions", params=query), put(client, "unreachable", only(truth(3)))):
        assert answer.status_code == 507, answer.text
        assert "directory" in answer.json()["detail"] and str(studies) not in answer.text
    versions.unlink()
    versions.with_name("elsewhere").rename(versions)
    assert len(listed(client, "unreachable")["versions"]) == 1


def test_provenance_and_manifest_of_a_result(client, study):
    put(client, study, only(truth(3)))
    assert client.get("/labelprop/manifest", params={"image": study}).status_code == 404
    files = {"params": (None, json.dumps({"method": "shape"}))}
    params = {"image": study, "output": "json"}
    told = client.post("/infer/labelprop", params=params, files=files).json()
    manifest = client.get("/labelprop/manifest", params={"image": study, "number": told["manifest"]}).json()
    assert manifest["inputs"].keys() == {"image", "labels"} and manifest["config"]["method"] == "shape"
    assert client.get("/labelprop/manifest", params={"image": study, "number": 77}).status_code == 404
    answer = client.get("/labelprop/voxels", params={"image": study, "kind": "drawn"})
    mask = np.frombuffer(answer.content, np.uint8).reshape(SHAPE, order="F")
    np.testing.assert_array_equal(mask.all(axis=(0, 1)), np.isin(np.arange(SHAPE[2]), DRAWN))
    assert mask.sum() == len(DRAWN) * SHAPE[0] * SHAPE[1]


def test_another_scan_does_not_take_up_what_was_drawn_on_one_that_is_gone(client, studies):
    def upload(seed):
        files = {"file": ("gone.nii", nifti(scan(seed)))}
        return client.put("/datastore/image", params={"image": "gone"}, files=files)

    assert upload(4).status_code == 200 and put(client, "gone", only(truth(4))).status_code == 200
    (studies / "gone.nii").unlink()
    refused = upload(5)
    assert refused.status_code == 409 and "labels of another scan" in refused.json()["detail"]
    assert client.get("/labelprop/study", params={"image": "gone"}).status_code == 404
    assert upload(4).status_code == 200
    np.testing.assert_array_equal(drawn(client, "gone"), only(truth(4)))


@pytest.mark.parametrize("entry", ["sha256", "mtime_ns", "version"])
def test_what_the_server_notes_of_a_label_file_is_not_a_clients(client, entry):
    query = {"label": "case", "tag": "sparse"}
    known = client.get("/datastore/label/info", params=query).json()
    answer = client.put("/datastore/label/info", params=query, data={"info": json.dumps({entry: 1})})
    assert answer.status_code == 400 and entry in answer.json()["detail"]
    assert client.get("/datastore/label/info", params=query).json() == known


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/scoring/quality", {"json": {}}),
        ("POST", "/batch/infer/labelprop", {"json": {}}),
        ("POST", "/train/labelprop", {"json": {"image": "case"}}),
        ("PUT", "/labelprop/labels", {"json": {"labels": [{"name": "new"}]}}),
        ("POST", "/labelprop/final?image=case", {}),
    ],
)
def test_nothing_begins_and_nothing_is_made_while_the_folder_is_out_of_reach(client, studies, method, path, body):
    away = studies.rename(studies.with_name("away"))
    try:
        assert client.request(method, path, **body).status_code == 507
        assert not studies.exists()
    finally:
        away.rename(studies)
