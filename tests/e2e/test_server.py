"""The app as its clients meet it: the real `monailabel start_server` as a process, driven over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from serving import AFFINE, AXIS, DRAWN, NAMES, SHAPE, Client, Server, eventually, nifti, only, scan, truth

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One server for all tests; each test adds images of its own."""
    work = tmp_path_factory.mktemp("server")
    with Server(work / "studies", work) as client:
        yield client


def test_an_empty_folder_starts_and_answers(client: Client) -> None:
    info = client.ok("GET", "/info/")
    assert info["models"]["labelprop"]["type"] == "segmentation"
    assert info["models"]["labelprop_scribbles"]["type"] == "scribbles"
    assert list(info["trainers"]) == ["labelprop"]
    assert {"random", "next_slice", "next_study"} <= info["strategies"].keys()
    assert {"next_slice", "centres", "perceptual"} <= set(info["strategies"]["next_slice"]["config"]["plan"])
    assert "quality" in info["scoring"]
    for strategy in info["strategies"]:
        answer = client.next_slice("", strategy)
        assert answer.get("id") or (answer["stop"] and answer["slice"] is None and answer["reason"])
    assert client.ok("POST", "/activelearning/next_study").get("id") == answer.get("id")


def test_annotate_train_propagate_suggest_correct(client: Client) -> None:
    image, labels = client.add_image("story"), truth()
    answer = client.submit(image, only(labels))
    assert answer["annotated_slices"] == list(DRAWN)

    untrained, params = client.infer(f"image={image}")
    assert params["trained"] is False
    np.testing.assert_array_equal(untrained[..., list(DRAWN)], labels[..., list(DRAWN)])

    client.train(image)
    stats = client.stats()
    assert stats["status"] == "DONE" and stats["epoch"] > 0 and stats["total_epochs"] >= stats["epoch"]
    assert {"best_metric", "seconds_left", "total_time"} <= stats.keys()

    client.train(image)  # at once, while the process of the first one is still ending
    assert client.stats()["status"] == "DONE"
    eventually(lambda: client.ok("GET", "/train/")["status"] == "DONE", "the training process to end")

    result, params = client.infer(f"image={image}")
    assert params["trained"] is True
    assert (params["slice_axis"], params["annotated_slices"]) == (AXIS, list(DRAWN))
    assert params["label_names"].items() >= {"disc": 1, "core": 2}.items()
    assert params["quality"].keys() == {"disc", "core"}
    assert 0 <= params["quality"]["disc"]["dice"] <= 1
    assert all(0 <= int(s) < SHAPE[AXIS] for s in params["quality"]["disc"]["slices"])
    np.testing.assert_array_equal(result[..., list(DRAWN)], labels[..., list(DRAWN)])
    overlap = 2 * np.sum((result == 1) & (labels == 1)) / (np.sum(result == 1) + np.sum(labels == 1))
    assert overlap > 0.8

    for kind in ("labels", "from_lower", "from_upper", "uncertainty"):
        response = client.call("GET", f"/labelprop/result?image={image}&kind={kind}")
        assert response.ok
        (client.folder / "kind.nii.gz").write_bytes(response.content)
        volume = nib.load(client.folder / "kind.nii.gz")
        np.testing.assert_allclose(volume.affine, AFFINE)
        if kind == "labels":
            np.testing.assert_array_equal(np.asarray(volume.dataobj), result)

    suggestion = client.next_slice(image)
    assert suggestion["id"] == image and suggestion["slice_axis"] == AXIS
    assert suggestion["slice"] not in DRAWN and 0 <= suggestion["slice"] < SHAPE[AXIS]
    centre = AFFINE @ [(SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2, suggestion["slice"], 1]
    np.testing.assert_allclose(suggestion["position_ras"], centre[:3])
    assert suggestion["reason"] and isinstance(suggestion["stop"], bool) and suggestion["expected_gain"] >= 0
    assert suggestion["expected_dice"] <= suggestion["expected_dice_after"] <= 1
    assert set(suggestion["labels"]) <= {"disc", "core"} and suggestion["label_names"]["disc"] == 1
    assert Path(suggestion["path"]).is_file()
    again = client.next_slice(image, "random")
    assert {key: again[key] for key in suggestion.keys() - {"strategy"}} == {
        key: suggestion[key] for key in suggestion.keys() - {"strategy"}
    }
    plan = client.ok("POST", "/activelearning/next_slice", json={"image": image, "plan": ["centres"], "n": 5})
    assert [s["slice"] for s in plan["suggestions"]] == [1, 4, 6, 9, 12]
    study = client.next_slice("", "next_study")
    assert study["id"] and study["slice"] in range(SHAPE[AXIS]) and not study["stop"]
    assert client.next_slice("")["id"] == image

    # The viewer now holds a dense label: sent back as it is, it adds no annotation; corrected, it adds that slice.
    assert client.submit(image, result, tag=None)["annotated_slices"] == list(DRAWN)
    corrected = result.copy()
    corrected[..., 5] = labels[..., 5]
    corrected[0, 0, 5] = 2
    assert client.submit(image, corrected, tag=None)["annotated_slices"] == [2, 5, 7, 11]
    again, params = client.infer(f"image={image}")
    assert params["annotated_slices"] == [2, 5, 7, 11]
    np.testing.assert_array_equal(again[..., 5], corrected[..., 5])
    assert client.submit(image, again, tag=None, reviewed_slices=[9])["annotated_slices"] == [2, 5, 7, 9, 11]


def test_a_panel_paints_propagates_scribbles_and_undoes(client: Client) -> None:
    image, labels = client.add_image("panel", seed=4), truth(4)
    assert client.study(image)["result"] is None
    answer = client.paint(image, only(labels).astype("<u2"), annotated_slices=list(DRAWN), slice_axis=AXIS).json()
    assert client.paint(image, only(labels), annotation_version="").status_code == 409
    assert client.paint(image, only(labels) * 0).status_code == 400
    assert client.study(image)["annotation_version"] == answer["annotation_version"]

    def propagate() -> np.ndarray:
        client.ok("POST", f"/infer/labelprop?image={image}&output=json", files={"params": (None, "{}")})
        return client.voxels(image)

    before = propagate()
    marks = np.zeros(SHAPE, np.uint8)
    marks[8:20, 10:26, 5] = 255
    scribbles = {"label": ("label.bin", marks.tobytes(order="F"))}
    client.ok("PUT", f"/labelprop/scribbles?image={image}", files=scribbles)
    np.testing.assert_array_equal(client.voxels(image, "scribbles"), marks)
    after = propagate()
    assert not after[8:20, 10:26, 5].any() and before[8:20, 10:26, 5].any()
    np.testing.assert_array_equal(after[..., list(DRAWN)], labels[..., list(DRAWN)])
    client.ok("PUT", f"/labelprop/scribbles?image={image}", files={"label": ("label.bin", bytes(marks.size))})
    assert client.study(image)["scribbles"] is False

    assert client.ok("POST", f"/labelprop/undo?image={image}") == {"undone": True, "undo": True}
    np.testing.assert_array_equal(client.voxels(image), before)
    assert client.ok("POST", f"/labelprop/undo?image={image}") == {"undone": True, "undo": False}
    np.testing.assert_array_equal(client.voxels(image), only(labels))
    assert client.call("POST", f"/labelprop/undo?image={image}").status_code == 409
    saved = client.ok("POST", f"/labelprop/final?image={image}")
    assert saved["saved"] and not saved["dicom_seg"] and "NIfTI" in saved["sentence"]


def test_labels_are_renamed_and_coloured_by_name(client: Client) -> None:
    image = client.add_image("renamed")
    client.submit(image, only(truth()))
    number = client.study(image)["label_names"]["core"]
    edit = {"name": "nucleus", "renamed_from": "core", "color": "#102030"}
    told = client.ok("PUT", "/labelprop/labels", json={"labels": [edit]})
    assert told["label_names"]["nucleus"] == number and told["colors"]["nucleus"] == "#102030"
    assert client.call("PUT", "/labelprop/labels", json={"removed": ["nucleus"]}).status_code == 409
    assert client.infer(f"image={image}")[1]["quality"].keys() == {"disc", "nucleus"}
    client.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "core", "renamed_from": "nucleus"}]})


def test_answers_are_compressed_for_those_who_can_read_that(client: Client) -> None:
    image = client.add_image("zipped")
    client.submit(image, only(truth()))
    path = f"/labelprop/voxels?image={image}"
    plain = client.call("GET", path, headers={"Accept-Encoding": "identity"})
    zipped = client.call("GET", path, headers={"Accept-Encoding": "br, gzip"})
    unwanted = client.call("GET", path, headers={"Accept-Encoding": "gzip;q=0, br"})
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert not {"Content-Encoding"} & (plain.headers.keys() | unwanted.headers.keys())
    assert zipped.content == plain.content == unwanted.content == only(truth()).tobytes(order="F")


def test_stopping_keeps_the_best_checkpoint(client: Client) -> None:
    image = client.add_image("stopped", seed=1)
    client.submit(image, only(truth(1)))
    client.ok("POST", "/train/labelprop", json={"image": image, "budget_s": 600})
    assert client.stats()["status"] in ("SUBMITTED", "RUNNING")
    second = client.call("POST", "/train/labelprop", json={"image": image})
    assert second.status_code == 429 and image in second.json()["detail"]
    eventually(lambda: client.stats()["epoch"] > 0, "the first epoch")
    progress = client.ok("GET", f"/labelprop/progress?image={image}")
    assert (progress["image"], progress["status"]) == (image, "RUNNING") and progress["seconds_left"] > 0
    assert client.study(image)["training"]["status"] == "RUNNING"
    client.ok("DELETE", "/train/")
    eventually(lambda: client.stats()["status"] != "RUNNING", "the training to be stopped")
    assert client.stats()["status"] in ("STOPPED", "DONE")
    _, params = client.infer(f"image={image}")
    assert params["trained"] is True


def test_two_studies_do_not_mix(client: Client) -> None:
    images = [client.add_image(f"two{seed}", seed) for seed in (0, 3)]
    for image, seed in zip(images, (0, 3), strict=True):
        client.submit(image, only(truth(seed)))
    clients = [Client(client.url, client.folder / image) for image in images]
    for one in clients:
        one.folder.mkdir()
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda one, image: one.infer(f"image={image}")[0], clients, images))
    for result, seed in zip(results, (0, 3), strict=True):
        np.testing.assert_array_equal(result[..., list(DRAWN)], truth(seed)[..., list(DRAWN)])


def test_a_study_without_annotation_gets_an_empty_mask_and_a_first_slice(client: Client) -> None:
    image = client.add_image("bare")
    options = {"method": ["auto", "shape"], "result_dtype": "uint8", "result_compress": False}
    result, params = client.infer(f"image={image}", restore_label_idx=False, **options)
    assert result.shape == SHAPE and result.dtype == np.uint8 and not result.any()
    assert params["annotated_slices"] == [] and params["quality"] == {}
    assert client.next_slice(image)["slice"] in range(SHAPE[AXIS])


def test_the_body_alone_is_the_image_for_viewers_that_ask_so(client: Client) -> None:
    image = client.add_image("body")
    client.submit(image, only(truth()))
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "fusion": ["sdf"], "budget_s": [3]}
    response = client.call(
        "POST", f"/infer/labelprop?image={image}&output=image", files={"params": (None, json.dumps(params))}
    )
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"NRRD")


def test_names_decide_about_values(client: Client) -> None:
    image, labels = client.add_image("names"), truth()
    swapped = np.array([0, 2, 1], np.uint8)[labels]
    answer = client.submit(image, only(swapped), label_info=[{"name": "core", "idx": 1}, {"name": "disc", "idx": 2}])
    assert answer["label_names"]["disc"] == 1
    result, _ = client.infer(f"image={image}", method="nearest")
    np.testing.assert_array_equal(result[..., list(DRAWN)], labels[..., list(DRAWN)])


def test_raw_bytes_and_lists_of_slices(client: Client) -> None:
    image, labels = client.add_image("raw"), only(truth(), (7,))
    params = {"label_info": NAMES, "slice_axis": AXIS, "annotated_slices": [7, 13]}
    client.ok(
        "PUT",
        f"/datastore/label?image={image}&tag=sparse",
        files={"label": ("label.bin", labels.tobytes(order="F"))},
        data={"params": json.dumps(params)},
    )
    result, params = client.infer(f"image={image}")
    assert params["annotated_slices"] == [7, 13]
    np.testing.assert_array_equal(result[..., 7], labels[..., 7])
    assert not result[..., 13].any()


def test_a_label_with_the_request_wins_and_is_not_stored(client: Client) -> None:
    image, labels = client.add_image("upload"), truth()
    client.submit(image, only(labels))
    upload = ("current.nii", nifti(only(labels, (4, 9))))
    result, params = client.infer(f"image={image}", label=upload, label_info=NAMES)
    assert params["annotated_slices"] == [4, 9]
    np.testing.assert_array_equal(result[..., 4], labels[..., 4])
    assert client.infer(f"image={image}")[1]["annotated_slices"] == list(DRAWN)


def test_the_scribbles_model_answers_with_the_selected_label(client: Client) -> None:
    image, labels = client.add_image("scribbles"), truth()
    marks = np.zeros(SHAPE, np.uint8)
    marks[0:3, 0:3, 5] = 255
    client.submit(image, marks, tag="scribbles")
    upload = ("current.nii", nifti(only(labels)))
    result, params = client.infer(
        f"image={image}", "labelprop_scribbles", upload, label_info=NAMES, selected_label_name="core", roi=[]
    )
    assert params["label_names"] == {"core": 1}
    np.testing.assert_array_equal(result[..., list(DRAWN)], labels[..., list(DRAWN)] == 2)
    assert set(np.unique(result)) == {0, 1}


def test_a_session_needs_no_image_in_the_datastore(client: Client) -> None:
    session = client.ok("PUT", "/session/", files={"files": ("mine.nii", nifti(scan()))})["session_id"]
    labels = truth()
    query, upload = f"image=unknown&session_id={session}", ("current.nii", nifti(only(labels)))
    result, params = client.infer(query, label=upload, label_info=NAMES)
    np.testing.assert_array_equal(result[..., list(DRAWN)], labels[..., list(DRAWN)])
    back = ("current.nii", nifti(result.astype(np.uint8)))
    assert client.infer(query, label=back, label_info=NAMES)[1]["annotated_slices"] == params["annotated_slices"]


def test_scoring_stores_the_quality_of_each_annotated_study(client: Client) -> None:
    image = client.add_image("scored")
    client.submit(image, only(truth()))
    client.ok("POST", "/scoring/quality", json={"image": image})
    eventually(lambda: client.ok("GET", "/scoring/")["status"] != "RUNNING", "the scoring to end")
    info = eventually(
        lambda: client.ok("GET", f"/datastore/image/info?image={image}").get("quality"), "the score to be stored"
    )
    assert info.keys() == {"disc", "core"}
    assert info["disc"]["slices"]["2"] == 1 and info["disc"]["slices_surface_mm"]["2"] == 0
    suggestion = client.ok("GET", f"/datastore/image/info?image={image}")["suggestion"]
    assert suggestion["slice"] not in DRAWN and set(suggestion["labels"]) <= {"disc", "core"}


def test_annotating_is_over_when_every_slice_is_annotated(client: Client) -> None:
    image = client.add_image("complete")
    client.submit(image, truth())
    for request in ({}, {"n": 3}, {"plan": "centres", "n": 3}):
        answer = client.ok("POST", "/activelearning/next_slice", json={"image": image, **request})
        assert (answer["id"], answer["slice"], answer["stop"]) == (image, None, True)
        assert "Every slice" in answer["reason"]


def test_a_label_on_one_slice_only_is_no_obstacle(client: Client) -> None:
    image, labels = client.add_image("lonely"), only(truth())
    labels[..., 2][labels[..., 2] == 2] = 0
    labels[..., 11][labels[..., 11] == 2] = 0
    for partial in (False, True):
        client.submit(image, labels, partial=partial)
        answer = client.next_slice(image)
        assert answer["slice"] not in DRAWN and answer["reason"]
        assert answer["stop"] is False


def test_checkpoints_travel(client: Client) -> None:
    image = client.add_image("travelling", seed=2)
    client.submit(image, only(truth(2)))
    client.train(image)
    assert image in [entry["id"] for entry in client.ok("GET", "/labelprop/checkpoints")]
    content = client.call("GET", f"/labelprop/checkpoints/{image}").content

    client.ok("PUT", "/labelprop/checkpoints/copy", data=content)
    client.ok("PUT", "/labelprop/checkpoints/copy", files={"file": ("copy.safetensors", content)})
    assert client.infer(f"image={image}", init="copy")[1]["trained"] is True
    assert client.infer(f"image={image}", init="none")[1]["trained"] is False

    other = client.add_image("other", seed=5)
    assert client.call("PUT", f"/labelprop/checkpoints/{other}", data=content).status_code == 400
    for damaged in (content[: len(content) // 2], b"", b"x" * 100, content[:-1] + bytes([content[-1] ^ 1])):
        response = client.call("PUT", "/labelprop/checkpoints/damaged", data=damaged)
        assert response.status_code == 400 and response.json()["detail"]
    assert client.call("GET", "/labelprop/checkpoints/damaged").status_code == 404


def test_everything_but_a_training_survives_a_restart(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    with Server(studies, tmp_path) as client:
        options = {"image": client.add_image("training"), "budget_s": [600]}
        assert client.ok("POST", "/train/", json={"labelprop": options})["labelprop"]["result"]["id"]
        eventually(lambda: client.stats()["status"] == "RUNNING", "the training process")
        training = json.loads((studies / ".labelprop" / "training.json").read_text())["process"]["pid"]
        image = client.add_image("kept")
        client.submit(image, only(truth()))
        result, before = client.infer(f"image={image}")
    eventually(lambda: not psutil.pid_exists(training), "the training to end with its server")
    with Server(studies, tmp_path) as client:
        assert client.stats()["status"] in ("STOPPED", "DONE")
        assert client.ok("GET", "/info/")["labels"] == ["disc", "core"]
        assert client.next_slice("")["id"] == image
        assert client.submit(image, result.astype(np.uint8), tag=None)["annotated_slices"] == list(DRAWN)
        again, after = client.infer(f"image={image}")
        np.testing.assert_array_equal(again, result)
        for key in ("version", "manifest"):
            assert after.pop(key) != before.pop(key)
        assert after == before


JSON, FORM = "json", "params"
SHIFTED = AFFINE + np.diag([0, 0, 0.7, 0])
BAD_LABELS: dict[str, bytes] = {
    "shape": nifti(np.ones((5, 5, 5), np.uint8)),
    "affine": nifti(only(truth()), SHIFTED),
    "2d": nifti(np.ones((40, 36), np.uint8)),
    "4d": nifti(np.ones((*SHAPE, 2), np.uint8)),
    "fractions": nifti(only(truth()) * np.float32(0.5)),
    "too large": nifti(only(truth()).astype(np.int32) * 70_000),
    "negative": nifti(-only(truth()).astype(np.int16)),
    "truncated": nifti(only(truth()))[:1000],
    "not an image": b"hello",
    "empty": b"",
}


@pytest.fixture(scope="module")
def bad(client: Client) -> Client:
    client.add_image("bad")
    client.submit("bad", only(truth()))
    return client


def refused(response: requests.Response) -> str:
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    assert response.json()["detail"]
    return str(response.json()["detail"])


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_a_bad_label_is_refused_and_the_old_one_kept(bad: Client, kind: str) -> None:
    files = {"label": ("l.nii", BAD_LABELS[kind])}
    refused(bad.call("PUT", "/datastore/label?image=bad&tag=sparse", files=files))
    refused(bad.call("POST", "/infer/labelprop?image=bad", files=files))
    assert bad.infer("image=bad", method="nearest")[1]["annotated_slices"] == list(DRAWN)


@pytest.mark.parametrize(
    "params",
    [
        {"label_info": [{"name": "disc"}]},
        {"label_info": "disc"},
        {"annotated_slices": [99]},
        {"annotated_slices": "x"},
        {"slice_axis": 7},
        {"partial": True, "annotated_slices": [2]},
        [],
    ],
)
def test_a_badly_described_label_is_refused(bad: Client, params: Any) -> None:
    files = {"label": ("l.nii", nifti(only(truth())))}
    data = {"params": json.dumps(params)}
    refused(bad.call("PUT", "/datastore/label?image=bad&tag=sparse", files=files, data=data))


@pytest.mark.parametrize(
    "query", ["image=bad&tag=../x", "image=bad&tag=a/b", "image=nope", "image=../bad", "image=/etc/passwd"]
)
def test_a_label_for_a_strange_place_is_refused(bad: Client, query: str) -> None:
    refused(bad.call("PUT", f"/datastore/label?{query}", files={"label": ("l.nii", nifti(only(truth())))}))
    assert not list(bad.folder.glob("x*"))


def test_an_uploaded_file_with_a_strange_name_is_refused(bad: Client) -> None:
    files = {"label": ("../l.nii", nifti(only(truth())))}
    refused(bad.call("PUT", "/datastore/label?image=bad&tag=sparse", files=files))
    refused(bad.call("POST", "/infer/labelprop?image=bad", files=files))
    refused(bad.call("PUT", "/datastore/image?image=new", files={"file": ("../l.nii", nifti(scan()))}))
    refused(bad.call("PUT", "/session/", files={"files": ("..", nifti(scan()))}))
    refused(bad.call("PUT", "/session/?uncompress=true", files={"files": ("a.zip", b"PK")}))


def header_of(*shape: int) -> bytes:
    """A file that claims to be an image of this shape."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    return bytes(header.binaryblock) + bytes(4)


BAD_IMAGES: dict[str, bytes] = {
    "constant": nifti(np.zeros(SHAPE, np.int16)),
    "nan": nifti(np.full(SHAPE, np.nan, np.float32)),
    "infinite": nifti(np.where(truth() > 0, np.inf, 0).astype(np.float32)),
    "2d": nifti(scan()[..., 0]),
    "4d": nifti(np.stack([scan()] * 2, axis=-1)),
    "one voxel": nifti(scan()[:1, :1, :1]),
    "huge": header_of(30_000, 30_000, 30_000),
    "truncated": nifti(scan())[:5000],
    "not an image": b"hello",
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_refused(bad: Client, kind: str) -> None:
    refused(bad.call("PUT", "/datastore/image?image=rejected", files={"file": ("i.nii", BAD_IMAGES[kind])}))
    assert "rejected" not in bad.ok("GET", "/datastore/?output=all")["objects"]


def test_a_bad_image_in_the_folder_is_refused_when_it_is_used(bad: Client) -> None:
    studies = bad.folder / "studies"
    (studies / "damaged.nii.gz").write_bytes(b"\x1f\x8b damaged")
    (studies / "flat.nii").write_bytes(BAD_IMAGES["constant"])
    (studies / "single.nii").write_bytes(nifti(scan()[..., :1]))
    for image in ("damaged", "flat", "single"):
        refused(bad.call("POST", f"/infer/labelprop?image={image}"))
        refused(bad.call("POST", "/train/labelprop", json={"image": image}))
        refused(bad.call("POST", "/activelearning/next_slice", json={"image": image}))
        refused(bad.call("POST", "/activelearning/next_slice", json={"image": image, "plan": "centres"}))
    assert bad.next_slice("", "next_study")["id"] not in ("damaged", "flat", "single")


@pytest.mark.parametrize(
    ("method", "path", "kind", "content"),
    [
        ("GET", "/labelprop/study?image=nope", None, None),
        ("GET", "/labelprop/study?image=../bad", None, None),
        ("GET", "/labelprop/voxels?image=bad&kind=nope", None, None),
        ("GET", "/labelprop/voxels?image=nope", None, None),
        ("PUT", "/labelprop/labels", JSON, {"labels": "x"}),
        ("PUT", "/labelprop/scribbles?image=bad", None, None),
        ("POST", "/labelprop/undo?image=nope", None, None),
        ("POST", "/labelprop/final?image=nope", None, None),
        ("GET", "/proxy/dicom/qido/studies", None, None),
        ("POST", "/infer/nope?image=bad", None, None),
        ("POST", "/infer/labelprop", None, None),
        ("POST", "/infer/labelprop?image=bad&output=dicom_seg", None, None),
        ("POST", "/infer/labelprop?image=nope", None, None),
        ("POST", "/infer/labelprop?image=/etc/hostname", None, None),
        ("POST", "/infer/labelprop?image=main.py", None, None),
        ("POST", "/infer/labelprop?image=bad&session_id=nope", None, None),
        ("POST", "/infer/labelprop?image=bad", FORM, {"image": "/etc/hostname"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"label": "/etc/hostname"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"session": {"path": "/etc"}}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"method": "magic"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"fusion": "mean"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"extrapolate": -2}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"slice_axis": 3}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"init": "nope"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"init": "../nope"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"result_extension": ".exe"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"result_dtype": "text"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"save_label": True, "label_tag": "../x"}),
        ("POST", "/infer/labelprop?image=bad", FORM, [1]),
        ("POST", "/infer/labelprop_scribbles?image=bad", FORM, {"selected_label_name": "nope"}),
        ("POST", "/infer/wsi/labelprop?image=bad", JSON, {}),
        ("POST", "/train/nope", JSON, {"image": "bad"}),
        ("POST", "/train/labelprop", JSON, {"image": "nope"}),
        ("POST", "/train/labelprop", JSON, {"image": "/etc/hostname"}),
        ("POST", "/train/labelprop", JSON, {"image": "bad", "budget_s": "soon"}),
        ("POST", "/train/labelprop", JSON, {"image": "bad", "init": "nope"}),
        ("POST", "/train/", JSON, {"labelprop": {"image": "nope"}}),
        ("POST", "/activelearning/nope", JSON, {"image": "bad"}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "nope"}),
        ("POST", "/activelearning/next_slice", JSON, {"image": 5}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "bad", "n": 0}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "bad", "n": "many"}),
        ("POST", "/activelearning/random", JSON, {"image": "bad", "plan": "every_second"}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "bad", "plan": "random", "seed": -1}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "bad", "target": 0}),
        ("POST", "/activelearning/next_slice", JSON, {"image": "bad", "target": 1.2}),
        ("POST", "/activelearning/next_study", JSON, {"target": "high"}),
        ("POST", "/infer/labelprop?image=bad", FORM, {"target": 2}),
        ("POST", "/scoring/nope", JSON, {}),
        ("POST", "/scoring/quality", JSON, {"image": "nope"}),
        ("POST", "/batch/infer/nope", JSON, {}),
        ("POST", "/batch/infer/labelprop", JSON, {"label_tag": "../x"}),
        ("GET", "/labelprop/result?image=nope", None, None),
        ("GET", "/labelprop/result?image=bad&kind=nope", None, None),
        ("GET", "/labelprop/checkpoints/nope", None, None),
        ("GET", "/labelprop/checkpoints/%2e%2e%2fx", None, None),
        ("GET", "/datastore/image?image=nope", None, None),
        ("GET", "/datastore/image?image=../../etc/passwd", None, None),
        ("GET", "/datastore/label?label=bad&tag=../x", None, None),
        ("DELETE", "/datastore/image?id=nope", None, None),
        ("PUT", "/datastore/image/info?image=nope", "info", {}),
        ("DELETE", "/session/%2e%2e", None, None),
        ("GET", "/model/labelprop", None, None),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(
    bad: Client, method: str, path: str, kind: str | None, content: Any
) -> None:
    options: dict[str, Any] = {"json": content} if kind == JSON else {}
    if kind not in (JSON, None):
        options = {"data": {kind: json.dumps(content)}}
    refused(bad.call(method, path, **options))
    assert bad.call("GET", "/info/").ok
