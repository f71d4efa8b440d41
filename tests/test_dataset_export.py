"""A finished cohort becomes a training set: its voxels, its files about itself, and nothing about who was scanned."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from cohorts import AFFINE, write_study
from phantoms import moving_disc, only
from sliceprop.cli import main
from sliceprop.cohort.finding import find_studies
from sliceprop.cohort.run import COHORT
from sliceprop.cohort.work import CohortConfig, Task, run_study
from sliceprop.config import PropagateConfig
from sliceprop.dataset_export import ExportConfig, export_dataset
from sliceprop.errors import FileError, InputError
from sliceprop.io import Image, read_image, write_image, write_json
from sliceprop.versions import FINAL, Entry, Event, Versions

ROOT = Path(__file__).resolve().parents[1]
NAMES = {1: "drifting disc", 7: "shrinking disc"}
SECRET = "MUSTERMANN"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished studies in `out`, of scans in `in` that are called after a patient, in file and header."""
    folder = tmp_path_factory.mktemp("cohort")
    for n in range(2):
        write_study(folder / f"in/{SECRET}{n}", seed=n)
        scan = nib.load(folder / f"in/{SECRET}{n}/image.nii.gz")
        scan.header["descrip"] = SECRET.encode()
        scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine, scan.header), scan.get_filename())
    run(folder / "in", folder / "out")
    return folder


def run(studies: Path, results: Path) -> None:
    """What `sliceprop cohort` leaves, without its workers."""
    config = CohortConfig(propagate=PropagateConfig("shape"), device="cpu", pictures=False, names=NAMES)
    reports = [run_study(Task(entry, results / entry.id, config)) for entry in find_studies(studies)[0]]
    write_json(results / COHORT, {"failed": [], "studies": [{"id": report["id"]} for report in reports]})  # type: ignore[index]


@pytest.fixture
def cohort(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def test_voxels_and_values(cohort: Path, tmp_path: Path) -> None:
    exported = export_dataset(cohort, tmp_path / "raw", ExportConfig("Discs", 7))
    assert exported.folder == tmp_path / "raw/Dataset007_Discs"
    assert dict(exported.labels) == {"drifting disc": 2, "shrinking disc": 2}
    for n, case in enumerate(["case_0001", "case_0002"]):
        image, truth = moving_disc(seed=n)
        scan = read_image(exported.folder / f"imagesTr/{case}_0000.nii.gz")
        labels = read_image(exported.folder / f"labelsTr/{case}.nii.gz")
        np.testing.assert_array_equal(scan.array, image)
        for each in (scan, labels):
            np.testing.assert_allclose(each.affine, AFFINE)
        result = read_image(cohort / exported.cases[case] / "labels.nii.gz").array
        np.testing.assert_array_equal(labels.array, np.where(result == 7, 2, result))
        np.testing.assert_array_equal(labels.array[5], np.where(truth == 7, 2, truth)[5])


def test_nnunet_and_monai_find_their_way(cohort: Path, tmp_path: Path) -> None:
    folder = export_dataset(cohort, tmp_path / "raw", ExportConfig(channel="CT", weights=True, ignore_above=0.3)).folder
    told = json.loads((folder / "dataset.json").read_text())
    assert told["channel_names"] == {"0": "CT"}
    assert told["labels"] == {"background": 0, "drifting disc": 1, "shrinking disc": 2, "ignore": 3}
    assert told["numTraining"] == len(list((folder / "labelsTr").iterdir())) == 2
    assert all((folder / f"imagesTr/{file.name[:9]}_0000.nii.gz").is_file() for file in (folder / "labelsTr").iterdir())
    listed = load_decathlon_datalist(folder / "datalist.json", is_segmentation=True, data_list_key="training")
    assert len(listed) == 2
    assert all(Path(item[key]).is_file() for item in listed for key in ("image", "label", "weight"))


def test_uncertain_voxels_are_ignored_and_weigh_less_but_never_drawn_ones(cohort: Path, tmp_path: Path) -> None:
    config = ExportConfig(ignore_above=0.3, weights=True)
    folder = export_dataset(cohort, tmp_path / "raw", config).folder
    for name, study in (("case_0001", 0), ("case_0002", 1)):
        doubt = read_image(cohort / f"{SECRET}{study}_image/uncertainty.nii.gz").array
        labels, weights = (read_image(folder / f"{each}/{name}.nii.gz").array for each in ("labelsTr", "weightsTr"))
        np.testing.assert_allclose(weights, 1 - doubt, atol=1e-5)
        np.testing.assert_array_equal(labels == 3, doubt > 0.3)
        assert (labels == 3).any()
        assert (weights[[1, 5, 9]] == 1).all()


def test_provenance_of_every_slice_and_reviewed_labels_win(cohort: Path, tmp_path: Path) -> None:
    truth = moving_disc(seed=1)[1]
    (tmp_path / "checked").mkdir()
    write_image(tmp_path / f"checked/{SECRET}1_image.nrrd", truth, Image(truth, AFFINE))
    config = ExportConfig(reviewed=tmp_path / "checked", ignore_above=0.3)
    write_image(tmp_path / "checked/mistyped.nii.gz", truth, Image(truth, AFFINE))
    exported = export_dataset(cohort, tmp_path / "raw", config)
    folder, (unknown,) = exported.folder, exported.failures
    assert unknown.name == str(tmp_path / "checked/mistyped.nii.gz") and "no finished study" in unknown.reason
    first, second = json.loads((folder / "provenance.json").read_text())["cases"]
    others = [0, 2, 3, 4, 6, 7, 8, 10]
    assert first["slices"] == {"drawn": [1, 5, 9], "reviewed": [], "propagated": others}
    assert second["slices"] == {"drawn": [1, 5, 9], "reviewed": others, "propagated": []}
    assert (first["method"], set(first["estimated_dice"])) == ("shape", {"1", "2"})
    assert second["estimated_dice"] == {}
    labels = read_image(folder / "labelsTr/case_0002.nii.gz").array
    np.testing.assert_array_equal(labels, np.where(truth == 7, 2, truth))


def test_nothing_tells_who_was_scanned(cohort: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "who.csv"
    folder = export_dataset(cohort, tmp_path / "raw", ExportConfig(weights=True), mapping=mapping).folder
    for file in folder.rglob("*"):
        assert SECRET not in file.name
        if file.suffix == ".json":
            assert SECRET not in file.read_text()
        elif file.is_file():
            header = nib.load(file).header
            assert SECRET.encode() not in header.binaryblock
            assert not header.extensions
    with mapping.open() as lines:
        assert list(csv.DictReader(lines)) == [
            {"case": f"case_000{n + 1}", "study": f"{SECRET}{n}_image"} for n in range(2)
        ]
    with pytest.raises(InputError, match="keep it out"):
        export_dataset(cohort, tmp_path / "raw", ExportConfig("X"), mapping=tmp_path / "raw/Dataset501_X/who.csv")


def test_a_study_that_cannot_be_written_is_told_and_leaves_no_gap(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cohort / f"{SECRET}0_image/labels.nii.gz").write_text("no labels")
    assert main(["export-dataset", str(cohort), "-o", str(tmp_path / "raw"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["cases"] == 1
    assert "cannot be read" in told["failed"][0]["reason"]
    files = {file.name for file in (tmp_path / "raw/Dataset501_Propagated").rglob("*.nii.gz")}
    assert files == {"case_0001.nii.gz", "case_0001_0000.nii.gz"}


def test_only_what_the_cohort_counts_is_written(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that a shorter list, or another name of the study, has left; a copy; and one whose results are gone."""
    first = cohort / f"{SECRET}0_image"
    for name in ("stale", "copy"):
        shutil.copytree(first, cohort / name)
        report = json.loads((first / "report.json").read_text())
        write_json(cohort / name / "report.json", {**report, "id": name})
    studies = [{"id": name} for name in (f"{SECRET}0_image", f"{SECRET}1_image", "gone")]
    failed = [{"id": "copy", "reason": "the same as another one"}, {"id": "", "reason": "no image"}]
    write_json(cohort / COHORT, {"failed": failed, "studies": studies})
    assert main(["export-dataset", str(cohort), "-o", str(tmp_path / "raw"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["cases"] == 2
    reasons = {failure["name"]: failure["reason"] for failure in told["failed"]}
    assert reasons.keys() == {str(cohort / name) for name in ("copy", "stale", "gone")}
    assert reasons[str(cohort / "copy")] == "the same as another one"
    assert "remove it" in reasons[str(cohort / "stale")]
    assert "run `sliceprop cohort` again" in reasons[str(cohort / "gone")]


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A studies folder with one scan; its label maps are to follow."""
    image, _ = moving_disc()
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.nii.gz", image, Image(image, AFFINE))
    return tmp_path / "in"


def draw(studies: Path, tag: str, slices: list[int]) -> Path:
    """The true labels on some slices as the label map of a tag."""
    labels = only(moving_disc()[1], slices)
    file = studies / f"labels/{tag}/a.nii.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_image(file, labels, Image(labels, AFFINE))
    return file


def reviewed(studies: Path) -> bool:
    """Whether the finished study is exported with its `final` label map, rather than with the result."""
    results, raw = studies.parent / "out", studies.parent / "raw"
    folder = export_dataset(results, raw, ExportConfig(number=len(list(raw.glob("*"))) + 1)).folder
    (told,) = json.loads((folder / "provenance.json").read_text())["cases"]
    written = np.array_equal(
        read_image(folder / "labelsTr/case_0001.nii.gz").array > 0,
        read_image(studies / "labels/final/a.nii.gz").array > 0,
    )
    assert written == bool(told["slices"]["reviewed"]) != bool(told["slices"]["propagated"])
    return written


def test_a_drawing_submitted_as_final_is_no_review(disc: Path) -> None:
    draw(disc, FINAL, [1, 5, 9])
    run(disc, disc.parent / "out")
    assert not reviewed(disc)
    draw(disc, FINAL, [1, 3, 5, 9])  # and goes on after the cohort's run
    assert not reviewed(disc)


def test_a_final_label_map_put_beside_a_drawing_is_a_review_if_it_holds_more(disc: Path) -> None:
    draw(disc, "sparse", [1, 5, 9])
    run(disc, disc.parent / "out")
    draw(disc, FINAL, [1, 5])
    assert not reviewed(disc)
    draw(disc, FINAL, list(range(11)))
    assert reviewed(disc)


@pytest.mark.parametrize(
    ("tag", "event", "held", "drawn", "is_review"),
    [
        ("sparse", "submitted", [2, 6], [2, 6], False),
        (FINAL, "submitted", [1, 3, 5, 9], [1, 3, 5, 9], False),
        (FINAL, "submitted", list(range(11)), [1, 5, 9], True),
        (FINAL, "final", list(range(11)), [1, 5, 9], True),
        (FINAL, "final", [1, 5, 9], [1, 5, 9], False),
        ("sparse", "found", list(range(11)), list(range(11)), True),
    ],
)
def test_what_the_server_noted_as_drawn_is_no_review(
    disc: Path, tag: str, event: Event, held: list[int], drawn: list[int], is_review: bool
) -> None:
    draw(disc, tag, [1, 5, 9])
    run(disc, disc.parent / "out")
    labels = draw(disc, FINAL, held)
    mask = np.zeros((11, *read_image(labels).array.shape[1:]), bool)
    mask[drawn] = True
    (disc / ".labelprop").mkdir()
    Versions(disc / ".labelprop/studies/a/versions").append(Entry(FINAL, event), labels, mask)
    assert reviewed(disc) == is_review


def test_nothing_half_written_stays(cohort: Path, tmp_path: Path) -> None:
    export_dataset(cohort, tmp_path / "raw")
    with pytest.raises(InputError, match="there already"):
        export_dataset(cohort, tmp_path / "raw")
    for file in cohort.glob("*/labels.nii.gz"):
        file.unlink()
    with pytest.raises(InputError, match="none of its studies"):
        export_dataset(cohort, tmp_path / "raw", ExportConfig("Other"))
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["Dataset501_Propagated"]
    with pytest.raises(FileError, match=r"holds no cohort.json"):
        export_dataset(tmp_path / "raw", tmp_path / "more")
    write_json(cohort / COHORT, {"failed": [], "studies": []})
    shutil.rmtree(cohort / f"{SECRET}0_image")
    shutil.rmtree(cohort / f"{SECRET}1_image")
    with pytest.raises(FileError, match="no finished studies"):
        export_dataset(cohort, tmp_path / "more")


def test_one_value_has_one_meaning(cohort: Path, tmp_path: Path) -> None:
    file = cohort / f"{SECRET}0_image/report.json"
    report = json.loads(file.read_text())
    file.write_text(json.dumps(report | {"label_names": {"1": "liver", "7": "shrinking disc"}}))
    with pytest.raises(InputError, match="one value needs one meaning"):
        export_dataset(cohort, tmp_path / "raw")
    file.write_text(json.dumps(report | {"label_names": {"9": "ignore"}}))
    with pytest.raises(InputError, match="names of labels"):
        export_dataset(cohort, tmp_path / "raw")


@pytest.mark.parametrize(
    "bad", [{"name": "a b"}, {"number": 1000}, {"ignore_above": 1.0}, {"reviewed": Path("/absent")}]
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ExportConfig(**bad)  # type: ignore[arg-type]


def test_the_documented_network_learns_from_it(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_dataset(cohort, tmp_path / "raw", ExportConfig(weights=True, ignore_above=0.3)).folder
    options = ["--epochs", "2", "--patch", "8", "16", "16", "--output", str(tmp_path / "unet.pt")]
    monkeypatch.setattr(sys, "argv", ["train_unet.py", str(folder), *options])
    runpy.run_path(str(ROOT / "docs/train_unet.py"), run_name="__main__")
    assert "held-out case: Dice" in capsys.readouterr().out
    assert (tmp_path / "unet.pt").is_file()
