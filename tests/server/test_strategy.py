"""Strategies and scoring on a folder of studies, without a server."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")

from sliceprop.errors import InputError, MemoryTakenError
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.requests import label_options
from sliceprop.server.scoring import QualityScoring
from sliceprop.server.strategy import LastingAnswer, NextSlice, NextStudy
from sliceprop.server.workspace import Workspace

SHAPE, AFFINE = (24, 22, 9), np.diag([1.0, 1, 3, 1])
NAMES = [{"name": "disc", "idx": 1}, {"name": "core", "idx": 2}]


def truth(drift):
    """A disc that drifts by `drift` pixels a slice, and one that stays."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    still = (i - 6) ** 2 + (j - 16) ** 2 < 9
    return np.where((i - 8 - drift * k) ** 2 + (j - 7) ** 2 < 16, 1, np.where(still, 2, 0)).astype(np.uint8)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    studies = tmp_path / "studies"
    studies.mkdir()
    for name, drift in (("calm", 0.0), ("moving", 1.2), ("new", 0.5)):
        scan = np.random.default_rng(0).normal(truth(drift) * 100.0, 5).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, AFFINE), studies / f"{name}.nii.gz")
    return Workspace(LocalStudies(str(studies)))


@pytest.fixture
def annotate(workspace, tmp_path):
    def submit(image, drift, slices):
        labels = np.zeros(SHAPE, np.uint8)
        labels[..., slices] = truth(drift)[..., slices]
        nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "upload.nii.gz")
        workspace.submit(image, "sparse", tmp_path / "upload.nii.gz", label_options({"label_info": NAMES}))

    return submit


@pytest.fixture
def next_slice(workspace):
    return lambda **request: NextSlice(workspace, 0.95)(request, workspace.store)


@pytest.fixture
def next_study(workspace):
    return lambda **request: NextStudy(workspace, 0.95)(request, workspace.store)


def test_what_monai_label_knows_of_the_image_does_not_replace_the_answer():
    answer = LastingAnswer(id="a", slice=7, reason="because")
    stored = {"slice": 1, "Modality": "MR", "quality": {}, "suggestion": {"slice": 3}}
    answer.update(stored, reason="no", ts=3)
    assert answer == {"id": "a", "slice": 7, "reason": "because", "Modality": "MR", "ts": 3}


def test_the_answer_holds_all_suggestions_and_names(annotate, next_slice):
    annotate("moving", 1.2, [1, 7])
    answer = next_slice(image="moving", n=2)
    assert answer["id"] == "moving"
    assert answer["suggestions"][0]["slice"] == answer["slice"]
    assert len({1, 7, *(s["slice"] for s in answer["suggestions"])}) == 4
    assert answer["labels"][0] == "disc"
    assert answer["label_names"] == {"disc": 1, "core": 2}
    assert 0 < answer["expected_dice"] < answer["expected_dice_after"] <= 1
    assert answer["position_ras"] == pytest.approx((11.5, 10.5, 3 * answer["slice"]))


def test_clients_see_the_plans_and_get_them(annotate, next_slice, workspace):
    choices = NextSlice(workspace, 0.9).info()["config"]
    assert choices["plan"][0] == "next_slice" and choices["target"] == 0.9
    annotate("calm", 0.0, [4])
    for plan in choices["plan"][1:]:
        slices = [s["slice"] for s in next_slice(image="new", plan=plan, n=3)["suggestions"]]
        assert len(set(slices)) == 3
    assert [s["slice"] for s in next_slice(image="calm", plan="centres", n=3)["suggestions"]] == [1, 7]
    assert next_slice(image="calm", plan=choices["plan"])["suggestions"][0]["labels"]


def test_the_target_of_the_request_decides_about_stop(annotate, next_slice):
    annotate("calm", 0.0, [0, 2, 4, 6, 8])
    assert next_slice(image="calm", target=0.05)["stop"] is True
    assert next_slice(image="calm", target=1)["stop"] is False
    annotate("calm", 0.0, list(range(9)))
    answer = next_slice(image="calm")
    assert (answer["slice"], answer["stop"], answer["position_ras"]) == (None, True, None)


@pytest.mark.parametrize("request_", [{"n": 0}, {"plan": "x"}, {"target": 0}, {"seed": -1}, {"image": "nope"}])
def test_bad_requests_are_refused(next_slice, request_):
    with pytest.raises(InputError):
        next_slice(**{"image": "new", **request_})


def test_the_worst_study_comes_first_then_the_unannotated(annotate, next_slice, next_study):
    assert next_study()["id"] == "calm"  # nothing is annotated: by name
    annotate("moving", 1.2, [1, 7])
    annotate("calm", 0.0, [1, 7])
    dice = {image: next_slice(image=image)["expected_dice"] for image in ("calm", "moving")}
    assert dice["moving"] < dice["calm"]
    answer = next_study()
    assert answer["id"] == "moving" and answer["slice"] not in (1, 7)
    annotate("moving", 1.2, list(range(9)))
    assert next_study()["id"] == "calm"
    annotate("calm", 0.0, list(range(9)))
    answer = next_study()
    assert answer["id"] == "new" and answer["slice"] in range(9) and not answer["stop"]


def test_a_finished_study_is_not_looked_at_again_until_its_labels_change(annotate, next_study, workspace):
    annotate("calm", 0.0, [0, 2, 4, 6, 8])
    assert next_study(target=0.05)["id"] == "moving"
    assert workspace.studies_by_need(0.05) == (["moving", "new"], ["calm"])
    assert workspace.studies_by_need(0.06)[0][0] == "calm"
    annotate("calm", 0.0, [4])
    assert workspace.studies_by_need(0.05)[0][0] == "calm"


def test_when_every_study_is_done_it_says_so(annotate, next_study):
    for image, drift in (("calm", 0.0), ("moving", 1.2), ("new", 0.5)):
        annotate(image, drift, list(range(9)))
    for _ in range(2):
        answer = next_study()
        assert answer["stop"] is True and answer["id"]
        assert "Every study is done" in answer["reason"]


def test_a_damaged_image_does_not_keep_from_the_others(annotate, next_study, workspace):
    (workspace.folder.parent / "calm.nii.gz").write_bytes(b"damaged")
    assert next_study()["id"] == "moving"


@pytest.mark.parametrize("short", [{"calm"}, {"calm", "moving", "new"}])
def test_too_little_memory_for_a_study_does_not_keep_from_the_others(
    annotate, next_study, workspace, monkeypatch, short
):
    annotate("calm", 0.0, [1])
    scan = workspace.scan

    def read(case):
        if case.image_id in short:
            raise MemoryTakenError("try again")
        return scan(case)

    monkeypatch.setattr(workspace, "scan", read)
    if len(short) == 3:
        with pytest.raises(MemoryTakenError):
            next_study()
    else:
        assert next_study()["id"] not in short


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [(None, lambda k: k + 1), (list(range(9, 0, -1)), lambda k: 9 - k)],
    ids=["none", "descending"],
)
def test_ohif_shows_the_slice_as_modality(annotate, next_slice, workspace, numbers, shown):
    annotate("moving", 1.2, [1, 7])
    assert "Modality" not in next_slice(image="moving")
    series = {"SeriesInstanceUID": "1.2", "Modality": "MR"} | ({"InstanceNumbers": numbers} if numbers else {})
    workspace.store.update_image_info("moving", series)
    answer = next_slice(image="moving")
    where = f"axial slice {shown(answer['slice'])} of 9 (S {3 * answer['slice']:.1f} mm)"
    assert answer["Modality"] == f"MR: annotate {where}"


def test_without_a_single_image_there_is_no_answer(tmp_path):
    empty = Workspace(LocalStudies(str(tmp_path / "empty")))
    assert NextStudy(empty, 0.95)({}, empty.store) == {}
    assert NextSlice(empty, 0.95)({}, empty.store) == {}


def test_scoring_stores_quality_and_suggestion_for_clients_to_show(annotate, workspace):
    annotate("moving", 1.2, [1, 7])
    annotate("calm", 0.0, [1, 7])
    scores = QualityScoring(workspace, 0.95)({}, workspace.store)
    assert scores.keys() == {"calm", "moving"}
    info = workspace.store.get_image_info("moving")
    assert info["quality"].keys() == {"disc", "core"}
    disc = info["quality"]["disc"]
    assert disc["slices"]["1"] == 1 and disc["slices_surface_mm"]["1"] == 0
    assert disc["slices"]["4"] < 1 and disc["slices_surface_mm"]["4"] > 0
    assert info["suggestion"]["slice"] not in (1, 7) and info["suggestion"]["labels"][0] == "disc"
    assert "disc" in info["suggestion"]["reason"]
    assert workspace.studies_by_need(0.95) == (["moving", "calm", "new"], [])
