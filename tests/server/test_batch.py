"""MONAI Label's batch inference on a folder of studies: which images, what is stored, and what fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from dicomweb_client import DICOMwebClient

from columns import AFFINE, NAMES, SHAPE, column
from sliceprop import io
from sliceprop.errors import InputError
from sliceprop.server.app import LabelPropApp
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.outcome import finalise
from sliceprop.server.requests import label_options

DRAWN = [2, 7]
QUICK = {"model": "labelprop", "method": "nearest"}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelPropApp]:
    """The app on the studies `bare`, `broken`, `first` and `second`; all but the first are annotated."""
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    studies = tmp_path / "studies"
    studies.mkdir()
    for seed, name in enumerate(("bare", "broken", "first", "second")):
        scan = np.random.default_rng(seed).normal(column() * 100, 5, SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, AFFINE), studies / f"{name}.nii.gz")
    before = logging.getLogRecordFactory()
    app = LabelPropApp(str(tmp_path), str(studies), {})
    for seed, name in enumerate(("broken", "first", "second")):
        drawn = column(DRAWN)
        drawn[0, seed, DRAWN] = 2
        nib.save(nib.Nifti1Image(drawn, AFFINE), tmp_path / "drawn.nii.gz")
        app.workspace.submit(name, "sparse", tmp_path / "drawn.nii.gz", label_options({"label_info": NAMES}))
    whole = (studies / "broken.nii.gz").read_bytes()
    (studies / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    yield app
    logging.setLogRecordFactory(before)


def stored(app: LabelPropApp, image: str, tag: str) -> np.ndarray:
    return io.read_image(app.datastore().label_file(image, tag)).array


def masked(app: LabelPropApp, image: str, tag: str = "original") -> list[int]:
    """The slices that the mask of a result says to be drawn; all of each."""
    mask = stored(app, image, f"{tag}_drawn")
    assert set(np.unique(mask)) <= {0, 1} and (mask.any(axis=(0, 1)) == mask.all(axis=(0, 1))).all()
    return [int(index) for index in np.flatnonzero(mask.any(axis=(0, 1)))]


def drawn(app: LabelPropApp, image: str) -> np.ndarray:
    annotation = app.workspace.drawings.annotation(app.workspace.case(image))
    assert annotation is not None and list(annotation.annotated_slices) == DRAWN
    return annotation.labels


@pytest.mark.parametrize("tag", ["round_one", "original"])
def test_results_are_stored_by_tag_and_annotated_slices_stay(app: LabelPropApp, tag: str) -> None:
    labels = {image: drawn(app, image)[..., DRAWN] for image in ("first", "second")}
    request = QUICK if tag == "original" else {**QUICK, "label_tag": tag}
    answers = app.batch_infer(request)
    assert answers.keys() == {"broken", "first", "second"}
    for image, values in labels.items():
        result = stored(app, image, tag)
        np.testing.assert_array_equal(result[..., DRAWN], values)
        assert result[..., 5].any()
        assert masked(app, image, tag) == DRAWN
        np.testing.assert_array_equal(drawn(app, image)[..., DRAWN], values)
        assert app.datastore().get_image_info(image)["batch"] == {"model": "labelprop", "label_tag": tag, "error": None}


@pytest.mark.parametrize("tag", ["sparse", "scribbles", "final", "Final"])
def test_results_never_become_what_users_drew(app: LabelPropApp, tag: str) -> None:
    with pytest.raises(InputError, match="are what users drew"):
        app.infer({**QUICK, "image": "first", "save_label": True, "label_tag": tag})
    answers = app.batch_infer({**QUICK, "label_tag": tag})
    assert all("are what users drew" in answer["error"] for answer in answers.values())
    drawn(app, "first")
    assert app.workspace.drawings.scribbles(app.workspace.case("first")) is None


@pytest.mark.parametrize("tag", ["we~ird", "con", ".hid", " sp ", "a_drawn", "x" * 250])
def test_results_have_tags_that_are_allowed(app: LabelPropApp, tag: str) -> None:
    with pytest.raises(InputError, match="label_tag"):
        app.infer({**QUICK, "image": "first", "save_label": True, "label_tag": tag})


def test_the_mask_is_that_of_the_result_beside_it(app: LabelPropApp, tmp_path: Path) -> None:
    tool = {"model": "threshold_islands", "label_name": "disc", "lower": 50, "save_label": True}
    app.infer({**QUICK, "image": "first", "save_label": True})
    nib.save(nib.Nifti1Image(column([4]), AFFINE), tmp_path / "drawn.nii.gz")
    app.workspace.submit("first", "sparse", tmp_path / "drawn.nii.gz", label_options({"label_info": NAMES}))
    assert masked(app, "first") == DRAWN
    app.infer({**tool, "image": "first"})
    assert masked(app, "first") == [4]
    app.infer({**tool, "image": "bare"})
    assert stored(app, "bare", "original").any() and masked(app, "bare") == []


def test_a_result_that_was_corrected_by_hand_is_a_version_before_the_next_one(app: LabelPropApp) -> None:
    request = {**QUICK, "images": ["first"]}
    app.batch_infer(request)
    file = app.datastore().label_file("first", "original")
    app.batch_infer(request)
    versions = app.workspace.record("first").versions
    assert versions.newest("original") is None
    nib.save(nib.Nifti1Image(column([3]), AFFINE), file)
    corrected = file.read_bytes()
    for _ in range(2):
        app.batch_infer(request)
    (kept,) = versions.newest_first("original")
    assert kept.entry.event == "found" and kept.labels_file.read_bytes() == corrected != file.read_bytes()
    assert list(drawn(app, "first").any(axis=(0, 1)).nonzero()[0]) == DRAWN


def test_no_client_has_got_what_a_batch_made(app: LabelPropApp) -> None:
    app.batch_infer(QUICK)
    app.batch_infer({"model": "threshold_islands", "lower": 50, "label_name": "disc"})
    assert not app.workspace.record("first").outlines()
    app.infer({**QUICK, "image": "first"})
    assert len(app.workspace.record("first").outlines()) == 1


def test_an_image_that_fails_is_told_and_ends_nothing(app: LabelPropApp) -> None:
    answers = app.batch_infer({**QUICK, "label_tag": "round_one"})
    reason = answers["broken"]["error"]
    assert "broken.nii.gz" in reason and "truncated" in reason
    assert app.datastore().get_image_info("broken")["batch"]["error"] == reason
    assert app.datastore().label_file("broken", "round_one") is None
    assert not app.datastore().get_image_info("bare").get("batch")


def test_images_can_be_chosen(app: LabelPropApp) -> None:
    app.infer({**QUICK, "image": "first"})
    finalise(app.workspace, app.workspace.case("first"))
    assert app.datastore().get_labeled_images() == ["first"]
    assert app.batch_infer({**QUICK, "images": "all", "max_batch_size": 2}).keys() == {"broken", "first"}
    assert app.batch_infer({**QUICK, "images": "labeled"}).keys() == {"first"}
    assert app.batch_infer({**QUICK, "images": "unlabeled"}).keys() == {"broken", "second"}


def test_labeled_images_of_an_archive_are_those_with_a_final_label(app: LabelPropApp) -> None:
    finalise(app.workspace, app.workspace.case("first"))
    archive = ArchivedStudies(DICOMwebClient("http://127.0.0.1:9"), {}, app.datastore()._datastore_path)
    request = {"model": "labelprop", "images": "labeled", "label_tag": "round_one"}
    assert app.init_batch_infer().get_images(request, archive) == ["first"]


def test_models_that_need_nothing_drawn_get_every_image(app: LabelPropApp) -> None:
    answers = app.batch_infer({"model": "threshold_islands", "label_tag": "bone"})
    assert answers.keys() == {"bare", "broken", "first", "second"}
