"""Which pretrained model is taken, by what is known of a scan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sliceprop.checkpoint import load_checkpoint
from sliceprop.dicom import write_dicom_series
from sliceprop.engine.flow import integrate_velocity, warp
from sliceprop.engine.losses import lncc_loss
from sliceprop.errors import FileError, InputError
from sliceprop.io import Image
from sliceprop.phantom import make_phantom
from sliceprop.warm_start import CARD, ENVIRONMENT, SHIPPED, Kind, WarmStart, common_kind, kind_of


def put(folder: Path, name: str, date: str, modality: str = "", anatomy: str = "") -> Path:
    """A model and its card; nothing looks into the model here."""
    file = folder / f"{name}.safetensors"
    file.write_bytes(b"")
    card = {"date": date, "data": {"modality": modality, "anatomy": anatomy}}
    (folder / f"{name}.card.json").write_text(json.dumps(card))
    return file


def taken(folder: Path, modality: str = "", anatomy: str = "", image: Path | None = None) -> str | None:
    file = WarmStart(str(folder), Kind(modality, anatomy)).checkpoint(image)
    return None if file is None else file.stem


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, "knee", "2026-01-03", "MR", "KNEE")
    put(tmp_path, "spine", "2026-01-02", "MR", "LSPINE")
    put(tmp_path, "mr", "2026-01-05", "MR")
    put(tmp_path, "ct", "2026-01-04", "CT", "LSPINE")
    return tmp_path


@pytest.mark.parametrize(
    ("modality", "anatomy", "name"),
    [
        ("MR", "KNEE", "knee"),
        ("mr", "l-spine", "spine"),  # nor do capitals and signs count
        ("CT", "", "ct"),
        ("MR", "", "mr"),  # three agree in as much, this is the newest of them
        ("MR", "HEART", "mr"),  # the others are for other parts
        ("", "LSPINE", "ct"),  # newer than the other one for it
        ("", "", "mr"),
        ("PT", "", SHIPPED.stem),
    ],
)
def test_the_newest_of_those_that_agree_in_most(models: Path, modality: str, anatomy: str, name: str | None) -> None:
    assert taken(models, modality, anatomy) == name


def test_a_checkpoint_is_taken_as_it_is_whatever_its_card_says(models: Path) -> None:
    wanted = models / "ct.safetensors"
    assert WarmStart(str(wanted), Kind("MR", "KNEE")).checkpoint() == wanted
    assert WarmStart("none", Kind("CT")).checkpoint() is None


def test_auto_is_what_the_environment_names(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert WarmStart().checkpoint() == SHIPPED
    monkeypatch.setenv(ENVIRONMENT, "none")
    assert WarmStart().checkpoint() is None
    monkeypatch.setenv(ENVIRONMENT, str(models))
    assert WarmStart(said=Kind("CT")).checkpoint() == models / "ct.safetensors"
    monkeypatch.setenv(ENVIRONMENT, str(models / "none"))
    with pytest.raises(FileError, match="no such checkpoint"):
        WarmStart().checkpoint()


def test_the_network_that_comes_along_has_seen_synthetic_thighs_only() -> None:
    model = load_checkpoint(SHIPPED)
    assert model.study_hash is None and model.fields is None
    card = json.loads(SHIPPED.with_suffix(CARD).read_text())
    assert card["data"]["licence"].startswith("synthetic")
    assert SHIPPED.stat().st_size < 5e6
    scans = [torch.from_numpy(make_phantom(64, 8, seed=99).image[None, None, :, :, k] / 1000).float() for k in (3, 4)]
    with torch.no_grad():
        velocity = model.network()(*scans)
    before, after = (
        float(lncc_loss(moved, scans[1])) for moved in (scans[0], warp(scans[0], integrate_velocity(velocity)))
    )
    assert after < before


def test_only_checkpoints_with_a_card_are_pretrained_models(tmp_path: Path) -> None:
    (tmp_path / "study.safetensors").write_bytes(b"")
    put(tmp_path, "gone", "2026-01-01").unlink()
    (tmp_path / "bad.safetensors").write_bytes(b"")
    (tmp_path / "bad.card.json").write_text("[")
    with pytest.raises(InputError, match="holds no pretrained model"):
        taken(tmp_path)
    put(tmp_path, "good", "2026-01-01")
    assert taken(tmp_path) == "good"


def test_what_the_files_of_a_scan_tell(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series, scan = tmp_path / "scan", tmp_path / "scan.nii.gz"
    write_dicom_series(series, Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4)))
    (series / "0_readme.txt").write_text("no DICOM")
    assert kind_of(series) == Kind("MR") == kind_of(scan)  # the series that a server keeps beside it
    scan.with_name("scan.json").write_text(json.dumps({"Modality": "CT", "BodyPartExamined": "LSPINE"}))
    assert kind_of(scan) == Kind("CT", "LSPINE")
    assert taken(models, image=scan) == "ct"
    assert taken(models, "MR", image=scan) == "spine"  # what the user says counts first
    assert kind_of(tmp_path / "other.nrrd") == kind_of(Path(models.anchor)) == Kind()
    monkeypatch.chdir(series)
    assert kind_of(Path()) == kind_of(series)


def test_what_all_scans_agree_on() -> None:
    assert common_kind([Kind("MR", "KNEE"), Kind("mr", "HIP")]) == Kind("MR")
    assert common_kind([Kind("CT", "L SPINE"), Kind("CT", "lspine")]) == Kind("CT", "L SPINE")
    assert common_kind([Kind("CT"), Kind()]) == common_kind([]) == Kind()
