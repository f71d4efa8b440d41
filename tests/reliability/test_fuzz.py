"""Random and damaged input for every reader of foreign bytes and for the parser of requests.

Nothing but `SlicePropError` may come out of a reader, and nothing of the 500s out of the server. SLICEPROP_FUZZ says
how many inputs are tried in all (5,000 by default); `make reliability` tries 100,000.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("monailabel")

from starlette.testclient import TestClient

from serving import only, truth
from sliceprop import io, segments
from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.cli import main
from sliceprop.cohort.finding import find_studies
from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans.weights import read_alexnet
from sliceprop.engine.registration import Model
from sliceprop.errors import SlicePropError
from sliceprop.manifest import reproduce, write_manifest
from sliceprop.server import guard
from sliceprop.server.label_edits import parse_edits
from sliceprop.server.label_files import read_labels
from sliceprop.server.names import parse_names
from sliceprop.server.requests import (
    first_choices,
    label_options,
    parse_params,
    propagate_config,
    suggest_config,
    train_config,
)
from sliceprop.tokens import TokenFile

INPUTS = int(os.environ.get("SLICEPROP_FUZZ", "5000"))
quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def share(part: float) -> settings:
    return settings(quick, max_examples=max(10, int(INPUTS * part)))


SMALL = np.zeros((4, 5, 6), np.int16)
SMALL[1:3, 1:4, 2:5] = 7


def written(name: str) -> bytes:
    """A small image in a format."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        io.write_image(file, SMALL, io.Image(SMALL, np.eye(4)), dtype="int16")
        return file.read_bytes()


def dicom() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.dcm"
        sitk.WriteImage(sitk.GetImageFromArray(SMALL[:1].astype(np.uint16)), str(file))
        return file.read_bytes()


SEEDS = {name: written(name) for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha")} | {"a.seg.nrrd": written("a.nrrd")}
FOLDERS = {"series": dicom()}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A file with some bytes changed, cut out, doubled, or cut off; headers are hit more often than voxels."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        reach = draw(st.sampled_from([len(content), 400]))
        place = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        match draw(st.sampled_from(["set", "cut", "double", "end", "text"])):
            case "set":
                content[place : place + 1] = bytes(
                    [draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))]
                )
            case "cut":
                del content[place : place + draw(st.integers(1, 64))]
            case "double":
                content[place:place] = content[place : place + draw(st.integers(1, 64))]
            case "end":
                del content[place:]
            case "text":
                content[place:place] = draw(
                    st.sampled_from([b"-1", b"1e999", b"nan", b"999999999999", b"\n", b"../x", b"\0"])
                )
    return bytes(content)


def survives(read: Callable[[], Any]) -> None:
    """Run a reader; it may refuse in words of ours, and do nothing else."""
    try:
        read()
    except SlicePropError as error:
        assert str(error)


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_images_are_read_or_refused(name: str, tmp_path: Path) -> None:
    file, like = tmp_path / name, io.Image(SMALL, np.eye(4))

    @share(0.08)
    @given(damaged(SEEDS[name]))
    def tried(content: bytes) -> None:
        file.write_bytes(content)
        survives(lambda: io.read_image(file))
        survives(lambda: read_labels(file, like))
        if name.endswith(".seg.nrrd"):
            survives(lambda: segments.read_segments(file))

    tried()


def test_damaged_compressed_images_are_read_or_refused(tmp_path: Path) -> None:
    """Damage inside of the compression, which damage outside of it rarely lets through."""
    file = tmp_path / "a.nii.gz"

    @share(0.08)
    @given(damaged(SEEDS["a.nii"]))
    def tried(content: bytes) -> None:
        file.write_bytes(gzip.compress(content, 1))
        survives(lambda: io.read_image(file))

    tried()


def test_damaged_dicom_series_are_read_or_refused(tmp_path: Path) -> None:
    @share(0.03)
    @given(damaged(FOLDERS["series"]))
    def tried(content: bytes) -> None:
        (tmp_path / "a.dcm").write_bytes(content)
        survives(lambda: io.read_image(tmp_path))

    tried()


def test_damaged_ome_zarr_is_read_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    from sliceprop.zarr_io import ZarrVolume, open_zarr, write_zarr

    folder = tmp_path / "a.zarr"
    write_zarr(folder, SMALL, ZarrVolume(SMALL, (1.0, 1.0, 1.0)))
    good = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    @share(0.02)
    @given(st.data(), st.sampled_from(sorted(good)))
    def tried(data: st.DataObject, file: Path) -> None:
        file.write_bytes(data.draw(damaged(good[file])))
        survives(lambda: open_zarr(folder).slice(1))
        file.write_bytes(good[file])

    tried()


def test_damaged_manifests_are_refused_or_repeated(tmp_path: Path) -> None:
    """Also one that somebody changed and gave the right checksum."""
    scan = tmp_path / "scan.nii.gz"
    io.write_image(scan, SMALL, io.Image(SMALL, np.eye(4)))
    labels = only((SMALL > 0).astype(np.uint8), (2, 4))
    io.write_image(tmp_path / "labels.nii.gz", labels, io.Image(labels, np.eye(4)))
    file = tmp_path / "manifest.json"
    files = [str(scan), str(tmp_path / "labels.nii.gz"), "-o", str(tmp_path / "out.nii.gz")]
    assert main(["propagate", *files, "--method", "nearest", "--manifest", str(file)]) == 0
    good = file.read_text(encoding="utf-8")

    @share(0.01)
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        content = json.loads(good)
        inner = content
        while isinstance(inner, dict) and inner:
            at, outer = data.draw(st.sampled_from(sorted(inner))), inner
            inner = outer[at]
        outer[at] = data.draw(values)
        write_manifest(file, content)
        survives(lambda: reproduce(file))
        file.write_bytes(data.draw(damaged(good.encode())))
        survives(lambda: reproduce(file))

    tried()


@pytest.mark.parametrize("name", ["studies.csv", "datastore_v2.json"])
def test_damaged_lists_of_studies_are_read_or_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(SEEDS["a.nii.gz"])
    (tmp_path / "labels" / "sparse").mkdir(parents=True)
    (tmp_path / "labels" / "sparse" / "a.nii.gz").write_bytes(SEEDS["a.nii.gz"])
    info = {"slice_axis": 2, "annotated_slices": [1], "label_info": [{"name": "disc", "idx": 7}]}
    listed = {"objects": {"a": {"labels": {"sparse": {"ext": ".nii.gz", "info": {"params": info}}}}}}
    good = {"studies.csv": "image,labels,slice_axis\na.nii.gz,labels/sparse/a.nii.gz,2\n"}.get(name, json.dumps(listed))
    file = tmp_path / name

    @share(0.02)
    @given(damaged(good.encode()))
    def tried(content: bytes) -> None:
        file.write_bytes(content)
        survives(lambda: find_studies(file if name.endswith(".csv") else tmp_path))

    tried()


def test_damaged_weights_are_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"features.0.weight": torch.zeros(2, 3)}, file)
    good = file.read_bytes()

    @share(0.01)
    @given(damaged(good))
    def tried(content: bytes) -> None:
        file.write_bytes(content)
        survives(lambda: read_alexnet(file))

    tried()


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """Every byte counts: what is not exactly what was saved is never used."""
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, Model(RegistrationNet().state_dict(), TrainConfig()))
    good = file.read_bytes()

    @share(0.03)
    @given(damaged(good))
    def tried(content: bytes) -> None:
        if content == good:
            return
        file.write_bytes(content)
        with pytest.raises(SlicePropError):
            load_checkpoint(file)

    tried()


@share(0.05)
@given(st.binary(max_size=200) | st.sampled_from([b"alice train sha256:" + b"0" * 64]))
def test_any_file_of_tokens_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens"
        file.touch(0o600)
        file.write_bytes(content)
        survives(lambda: TokenFile(file))


KEYS = (
    *("method", "fusion", "extrapolate", "slice_axis", "budget_s", "init", "seed", "partial", "plan", "n", "target"),
    *("image", "selected_label_name", "result_extension", "result_dtype", "result_compress", "label_tag", "save_label"),
    *("label_info", "annotated_slices", "reviewed_slices", "annotation_version", "background_scribble"),
    *("labels", "removed", "name", "color", "renamed_from", "idx", "id"),
)
numbers = st.integers() | st.floats() | st.sampled_from([-1, 0, 1, 2, 3, 255, 65_535, 65_536, 2**63, 1e308, "1e999"])
words = st.text(max_size=20) | st.sampled_from(
    ["auto", "none", "shape", "unet", "../x", "a/b", "", "true", "\ud800", "\0"]
)
leaves = st.none() | st.booleans() | numbers | words
entries = st.dictionaries(st.sampled_from(KEYS) | words, leaves, max_size=4)
values = st.recursive(
    leaves | entries,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | words, inner, max_size=4),
    max_leaves=6,
)
options = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)


@share(0.2)
@given(options | values)
def test_any_options_are_taken_or_refused(given_options: Any) -> None:
    survives(lambda: parse_edits(first_choices(given_options)))
    for parse in (
        propagate_config,
        label_options,
        lambda known: train_config(known, 30),
        lambda known: suggest_config(known, 0.95),
    ):
        survives(lambda parse=parse: parse(first_choices(given_options)))
    survives(lambda: parse_names(given_options) if isinstance(given_options, str) else None)


@share(0.1)
@given(
    st.text(max_size=200) | values.map(lambda value: json.dumps(value)) | st.sampled_from(["[" * 99_999, "1" * 9_999])
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    survives(lambda: parse_params(text))
    survives(lambda: guard.check_body(text.encode("utf-8", "surrogatepass")))


@share(0.1)
@given(st.text(max_size=250))
def test_any_name_is_one_component_of_a_path_or_refused(name: str) -> None:
    for check in (guard.plain_name, guard.new_name, lambda given_name, what: guard.plain_filename(given_name)):
        try:
            kept = check(name, "name")
        except SlicePropError:
            continue
        assert "/" not in kept and "\\" not in kept and "\0" not in kept and kept not in (".", "..")
        assert kept == "" or (Path("/folder") / kept).parent == Path("/folder")


INFER, LABEL, ASK, EDIT, TRAIN = "infer", "label", "ask", "edit", "train"


@pytest.mark.parametrize("route", [INFER, LABEL, ASK, EDIT, TRAIN])
def test_the_server_never_fails_for_a_request(client: TestClient, route: str) -> None:
    drawn = only(truth())
    before = client.get("/labelprop/versions?image=case").json()["annotation"]

    def send_json(method: str, address: str, content: str | bytes) -> int:
        headers = {"Content-Type": "application/json"}
        return client.request(method, address, content=content, headers=headers).status_code

    def send(chosen: dict[str, Any], text: str) -> int:
        params = {"params": json.dumps(chosen) if chosen else text}
        if route == INFER:
            cheap = {**chosen, "method": chosen.get("method", "nearest")}
            cheap = cheap if cheap["method"] not in ("unet", "auto", "registration") else {**cheap, "method": "nearest"}
            return client.post("/infer/labelprop?image=case", data={"params": json.dumps(cheap)}).status_code
        if route == LABEL:
            files = {"label": ("label.bin", drawn.tobytes(order="F"))}
            return client.put("/datastore/label?image=case&tag=fuzz", files=files, data=params).status_code
        if route == ASK:
            body = {"plan": "centres", **chosen}
            body = (
                body if body["plan"] == "centres" or not isinstance(body["plan"], str) else {**body, "plan": "centres"}
            )
            return send_json("POST", "/activelearning/next_slice", json.dumps({**body, "image": "case"}))
        if route == EDIT:
            body = json.dumps(chosen) if chosen else text.encode("utf-8", "replace")
            return send_json("PUT", "/labelprop/labels", body)
        wrong = {"image": "case", **chosen, "budget_s": -1}  # none is to begin
        return send_json("POST", "/train/labelprop", json.dumps(wrong))

    @share(0.03)
    @given(options, st.text(max_size=50))
    def tried(chosen: dict[str, Any], text: str) -> None:
        status = send(chosen, text)
        assert status == 200 or 400 <= status < 500, (status, chosen, text)

    tried()
    assert client.get("/labelprop/versions?image=case").json()["annotation"] == before
    assert client.get("/info/").status_code == 200
