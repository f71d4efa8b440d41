"""Versions, provenance, manifests and erasure on the command line, on a folder as a server leaves it."""

import getpass
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel")
import nibabel as nib
from filelock import FileLock

from columns import AFFINE, NAMES, SHAPE, column
from sliceprop import io
from sliceprop.audit import AuditLog
from sliceprop.cli import main
from sliceprop.config import TrainConfig
from sliceprop.manifest import write_manifest
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.infer import PropagateTask
from sliceprop.server.requests import LabelOptions, label_options
from sliceprop.server.workspace import Workspace
from sliceprop.study import train
from sliceprop.versions import study_versions


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two studies that were annotated, learned and propagated."""
    tmp_path = tmp_path_factory.mktemp("prepared")
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(("case", "other")):
        scan = np.random.default_rng(seed).normal(column() * 100, 5, SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, AFFINE), folder / f"{name}.nii.gz")
    workspace = Workspace(LocalStudies(str(folder), watch=False))
    for name in ("other", "case"):
        for slices in ([2], [2, 7]):
            nib.save(nib.Nifti1Image(column(slices), AFFINE), tmp_path / "l.nii.gz")
            by = {"user": "anna", "client": "3D Slicer"}
            workspace.submit(name, "sparse", tmp_path / "l.nii.gz", label_options({"label_info": NAMES}), by)
        study = workspace.open(workspace.case(name), LabelOptions()).study
        model = train(study, TrainConfig(max_epochs=1, refine_steps=2))
        workspace.checkpoints.save(name, model)
        workspace.checkpoints.save(f"copy of {name}", model)
        PropagateTask(workspace, 0.95)({"image_id": name})
    workspace.store.update_image_info("case", {"quality": 0.9})
    return folder


@pytest.fixture
def studies(prepared, tmp_path, monkeypatch):
    """A copy of them for each test, as a backup would be."""
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    return Path(shutil.copytree(prepared, tmp_path / "studies"))


@pytest.fixture
def run(studies, capsys):
    def run(command, *arguments, code=0):
        assert main([command, *map(str, arguments), "--studies", str(studies), "--json"]) == code
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else err

    return run


def test_versions_are_listed_and_restored(studies, run):
    listed = run("versions", "case")["versions"]
    assert [(one["version"], one["annotated_slices"]) for one in listed] == [(2, [2, 7]), (1, [2])]
    assert listed[0]["by"] == {"user": "anna", "client": "3D Slicer"} and len(listed[0]["sha256"]) == 64
    assert run("restore", "case", 1)["version"] == 3
    workspace = Workspace(LocalStudies(str(studies)))
    assert workspace.drawings.annotation(workspace.case("case")).annotated_slices == (2,)
    assert workspace.drawings.annotation(workspace.case("other")).annotated_slices == (2, 7)
    assert "no version 9" in run("restore", "case", 9, code=2)
    assert "nothing is kept" in run("versions", "../case", code=2)


def test_what_the_command_line_does_to_a_study_is_in_the_audit(studies, run, tmp_path):
    run("versions", "case")
    run("restore", "case", 1)
    run("provenance", "case", "--version", 2, "-o", tmp_path / "drawn.nii.gz")
    lines = list(AuditLog(studies / ".labelprop").lines("case"))
    assert [(line["event"], line["client"]) for line in lines] == [
        ("read", "sliceprop versions"),
        ("write", "sliceprop restore"),
        ("export", "sliceprop provenance"),
    ]
    run("erase", "case")
    *_, last = AuditLog(studies / ".labelprop").lines("case")
    assert {last["user"], *(line["user"] for line in lines)} == {getpass.getuser()}


def test_versions_are_listed_for_people(studies, capsys):
    (studies / ".labelprop" / "studies" / "case" / "versions" / "000001" / "record.json").write_text("{")
    assert main(["versions", "case", "--studies", str(studies)]) == 0
    out = capsys.readouterr().out
    assert "2,7  anna 3D Slicer" in out and "damaged" in out


def test_provenance_is_written_as_a_mask(run, tmp_path):
    for arguments in ([], ["--version", 2]):
        told = run("provenance", "case", "-o", tmp_path / "drawn.nii.gz", *arguments)
        drawn = io.read_image(tmp_path / "drawn.nii.gz").array
        np.testing.assert_array_equal(drawn.any(axis=(0, 1)), [s in (2, 7) for s in range(12)])
        assert drawn[..., [2, 7]].all() and told["drawn"] == drawn.sum()


def put_scan(studies, change):
    """Another scan under the name of a study, put there by hand."""
    file = studies / "case.nii.gz"
    scan = nib.load(file)
    voxels, affine = scan.get_fdata(dtype=np.float32), scan.affine
    if change == "stored in another direction":
        shift = np.eye(4)
        shift[2, 2], shift[2, 3] = -1, voxels.shape[2] - 1
        voxels, affine = voxels[..., ::-1], affine @ shift
    else:
        voxels = voxels + 1
    nib.save(nib.Nifti1Image(voxels, affine), studies / "new.nii.gz")
    return (studies / "new.nii.gz").replace(file)


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("arguments", [(), ("--version", 2)])
def test_provenance_is_not_written_onto_another_grid(studies, run, tmp_path, arguments, elsewhere):
    scan = put_scan(studies, "stored in another direction")
    named = ("--image", scan) if elsewhere else ()
    error = run("provenance", "case", "-o", tmp_path / "drawn.nii.gz", *arguments, *named, code=2)
    assert "on a scan with another grid" in error and not (tmp_path / "drawn.nii.gz").exists()


def test_provenance_of_a_version_that_did_not_keep_its_grid_goes_by_its_label_file(studies, run, tmp_path):
    kept = study_versions(studies / ".labelprop" / "studies" / "case")
    old = kept.get(2)
    kept.append(replace(old.entry, grid=None), old.labels_file, old.drawn())
    arguments = ("provenance", "case", "-o", tmp_path / "drawn.nii.gz", "--version", 3)
    assert run(*arguments)["drawn"] == old.drawn().sum()
    put_scan(studies, "stored in another direction")
    assert "on a scan with another grid" in run(*arguments, code=2)


def test_provenance_of_a_result_is_not_that_of_another_scan_on_the_same_grid(studies, run, tmp_path):
    shutil.copyfile(studies / "case.nii.gz", tmp_path / "before.nii.gz")
    put_scan(studies, "other voxels")
    arguments = ("provenance", "case", "-o", tmp_path / "drawn.nii.gz")
    assert "another scan of this name" in run(*arguments, code=2)
    assert run(*arguments, "--image", tmp_path / "before.nii.gz")["drawn"] > 0
    assert run(*arguments, "--version", 2)["drawn"] > 0


def test_provenance_of_no_version_is_not_that_of_the_result(run, tmp_path):
    assert "there is no version 0" in run("provenance", "case", "-o", tmp_path / "drawn.nii.gz", "--version", 0, code=2)


@pytest.mark.parametrize("tag", ["sparse", "final"])
@pytest.mark.parametrize("name", ["case.nii.gz", "case.nrrd", "case.seg.nrrd"])
def test_nothing_is_restored_before_what_was_put_there_by_hand(studies, run, tag, name):
    """It would count afterwards, when the server takes it up."""
    put = studies / "labels" / tag / name
    put.parent.mkdir(exist_ok=True)
    io.write_image(put, column([9]), io.read_image(studies / "case.nii.gz"))
    if tag == "sparse" and name != "case.nii.gz":
        (put.parent / "case.nii.gz").unlink()
        LocalStudies(str(studies), watch=False)
    assert f"{put} is no version yet" in run("restore", "case", 1, code=2)
    workspace = Workspace(LocalStudies(str(studies), watch=False))
    workspace.drawings.current(workspace.case("case"), tag)
    for number in (1, 2, 1):
        run("restore", "case", number)
    assert workspace.drawings.annotation(workspace.case("case")).annotated_slices == (2,)


def everything(folder):
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


def test_an_erased_study_leaves_no_trace_but_a_hash_and_others_stay(studies, run):
    before = everything(studies)
    (studies / ".labelprop" / "training.json").write_text(json.dumps({"image": "case", "status": "DONE"}))
    run("erase", "case")
    after = everything(studies)
    assert (studies / "case.nii.gz").is_file() and not [name for name in after if "case" in name and "/" in name]
    gone = {name for name in before.keys() - after.keys() if "case" not in name}
    assert gone == {".labelprop/last_used.json"}
    assert all(name in after for name in before if "other" in name)
    kept = [file.read_text(errors="ignore") for name, file in after.items() if name.endswith((".json", ".jsonl"))]
    assert not any('"labels": {\n        "sparse"' in text and '"case"' in text.split('"other"')[0] for text in kept)
    entry = json.loads((studies / "datastore_v2.json").read_text())["objects"]["case"]
    assert entry["labels"] == {} and "quality" not in entry["image"]["info"]
    log = AuditLog(studies / ".labelprop")
    (line,) = log.lines("case")
    assert (line["event"], line["versions"]) == ("erase", 2)
    assert "case" not in (studies / ".labelprop" / "audit.jsonl").read_text()
    assert not (studies / ".labelprop" / "training.json").exists()
    workspace = Workspace(LocalStudies(str(studies)))
    assert workspace.drawings.annotation(workspace.case("case")) is None
    assert workspace.drawings.annotation(workspace.case("other")).annotated_slices == (2, 7)


def test_a_segmentation_of_slicer_is_erased_with_its_study_and_no_other(studies, run):
    for name in ("case", "other"):
        shutil.copyfile(studies / "case.nii.gz", studies / "labels" / "sparse" / f"{name}.seg.nrrd")
    (studies / ".labelprop" / "studies" / "other.seg").mkdir()
    run("erase", "case")
    run("erase", "other")
    assert sorted(file.name for file in (studies / "labels" / "sparse").iterdir()) == ["other.seg.nrrd"]


def test_the_scan_is_erased_only_if_asked_for(studies, run):
    run("erase", "case", "--scan")
    assert not (studies / "case.nii.gz").exists() and (studies / "other.nii.gz").is_file()
    assert "case" not in json.loads((studies / "datastore_v2.json").read_text())["objects"]
    assert "nothing is kept" in run("erase", "case", code=2)
    assert "nothing is kept" in run("erase", "..", code=2)


def test_a_folder_that_is_called_like_a_study_stays(studies, run):
    shutil.copyfile(studies / "case.nii.gz", studies / "labels.nii.gz")
    before = sorted((studies / "labels").rglob("*"))
    run("erase", "labels", "--scan")
    assert not (studies / "labels.nii.gz").exists() and sorted((studies / "labels").rglob("*")) == before


def test_what_lies_behind_a_link_stays(studies, run, tmp_path):
    (tmp_path / "others").mkdir()
    shutil.copyfile(studies / "case.nii.gz", tmp_path / "others" / "case.nii.gz")
    (studies / "labels" / "linked").symlink_to(tmp_path / "others")
    run("erase", "case")
    assert (tmp_path / "others" / "case.nii.gz").is_file()


@pytest.mark.parametrize("linked", [".labelprop/studies/case", "case.nii.gz"])
def test_a_link_is_erased_and_not_what_it_leads_to(studies, run, tmp_path, linked):
    target, link = tmp_path / "elsewhere", studies / linked
    link.rename(target)
    link.symlink_to(target)
    run("erase", "case", "--scan")
    assert target.exists() and not link.is_symlink()


def test_what_is_being_received_is_not_erased(studies, run):
    for name in ("new", "old"):
        file = studies / f".writing-{name}" / "series" / "000000.dcm"
        file.parent.mkdir(parents=True)
        file.touch()
        for one in (file.parent, file.parents[1], *([file] if name == "old" else [])):
            os.utime(one, (0, 0))
    run("erase", "case")
    assert [one.name for one in studies.glob(".writing-*")] == [".writing-new"]


def test_a_mistyped_study_is_not_erased_whatever_else_there_is_to_remove(studies, run):
    left = studies / ".labelprop" / ".writing-abc"
    left.touch()
    os.utime(left, (0, 0))
    assert "nothing is kept" in run("erase", "caes", code=2)
    assert left.is_file() and not list(AuditLog(studies / ".labelprop").lines())
    run("erase", "case")
    assert not left.exists()


@pytest.mark.parametrize("started", [False, True])
def test_a_damaged_list_of_images_goes_with_the_study_that_it_names(studies, run, started):
    listed = studies / "datastore_v2.json"
    listed.write_text(listed.read_text()[:-20])
    if started:
        LocalStudies(str(studies), watch=False)  # as a server does, which sets the list aside and makes a new one

    def naming():
        return [file.name for file in studies.glob("datastore*") if '"case"' in file.read_text()]

    before = naming()
    assert ("datastore_v2.damaged" in before) == started
    assert "nothing is kept" in run("erase", "caes", code=2)
    assert naming() == before
    run("erase", "case", "--scan")
    assert not naming()
    store = LocalStudies(str(studies), watch=False)
    assert store.list_images() == ["other"]
    assert Workspace(store).drawings.annotation(Workspace(store).case("other")).annotated_slices == (2, 7)


def test_a_damaged_list_alone_is_enough_to_be_erased(studies, run):
    aside = studies / "datastore_v2.damaged"
    aside.write_text('{"objects": {"gone": {"image"')
    assert "nothing is kept" in run("erase", "gon", code=2)
    run("erase", "gone")
    assert not aside.exists()


def test_the_checkpoint_of_another_study_on_the_same_scan_stays(studies, run):
    checkpoints = studies / ".labelprop" / "checkpoints"
    for ending in ("safetensors", "json"):
        shutil.copyfile(checkpoints / f"case.{ending}", checkpoints / f"other.{ending}")
    run("erase", "case")
    assert {file.stem for file in checkpoints.glob("*.safetensors")} == {"other", "copy of other"}


def test_nothing_is_erased_beside_a_server(studies, capsys):
    """It would bring back what it is working on."""
    with FileLock(studies / ".labelprop" / ".server.lock"):
        assert main(["erase", "case", "--studies", str(studies)]) == 2
    assert "end it first" in capsys.readouterr().err and (studies / ".labelprop" / "studies" / "case").is_dir()
    assert main(["erase", "case", "--studies", str(studies)]) == 0


@pytest.mark.parametrize("method", [["--budget-s", "0.5"], ["--method", "shape"], ["--method", "registration"]])
def test_what_the_command_line_propagated_is_made_again(studies, tmp_path, capsys, method):
    labels, out, again = tmp_path / "labels.nii.gz", tmp_path / "out.nii.gz", tmp_path / "again.nii.gz"
    nib.save(nib.Nifti1Image(column([2, 7]), AFFINE), labels)
    manifest = tmp_path / "manifest.json"
    inputs = [studies / "case.nii.gz", labels]
    assert main([str(a) for a in ("propagate", *inputs, "-o", out, "--manifest", manifest, *method)]) == 0
    capsys.readouterr()
    assert main(["reproduce", str(manifest), "-o", str(again)]) == 0
    assert "the same bytes" in capsys.readouterr().out
    assert again.read_bytes() == out.read_bytes()
    content = json.loads(manifest.read_text())
    learnt_from = set() if "shape" in method else {"init"}
    assert content["inputs"].keys() == {"image", "labels", *learnt_from} and content["seconds"] > 0
    assert content["outputs"]["labels"]["path"] == "out.nii.gz" and "torch" in content["versions"]
    assert main(["reproduce", str(labels)]) == 2
    write_manifest(tmp_path / "other.json", {**content, "config": {**content["config"], "speed": 2}})
    assert main(["reproduce", str(tmp_path / "other.json")]) == 2
    assert "speed" in capsys.readouterr().err
    nib.save(nib.Nifti1Image(column([2, 8]), AFFINE), labels)
    assert main(["reproduce", str(manifest)]) == 2
    labels.unlink()
    assert main(["reproduce", str(manifest)]) == 2
    assert "gone" in capsys.readouterr().err
