"""Results of a server made again from their manifests, by the command line, bit by bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel")

from columns import SHAPE, column
from sliceprop import io
from sliceprop.cli import main
from sliceprop.config import TrainConfig
from sliceprop.manifest import find_manifest, read_manifest, write_manifest
from sliceprop.server import manifests
from sliceprop.server.infer import PropagateTask
from sliceprop.server.requests import LabelOptions
from sliceprop.study import train


@pytest.fixture
def infer(workspace):
    task = PropagateTask(workspace, 0.95)

    def infer(**options):
        return task({"image_id": "case", "result_extension": ".nii.gz", **options})[1]

    return infer


def learn(workspace, seed=0):
    study = workspace.open(workspace.case("case"), LabelOptions()).study
    model = train(study, TrainConfig(max_epochs=1, refine_steps=4, seed=seed))
    workspace.checkpoints.save("case", model)


def manifest(workspace, number):
    return workspace.folder / "studies" / "case" / "manifests" / f"{number:06d}" / "manifest.json"


def reproduce(workspace, number, *more):
    return main(["reproduce", str(manifest(workspace, number)), "--json", *map(str, more)])


def test_a_result_is_made_again_though_everything_changed_since(workspace, submit, infer, tmp_path, capsys):
    marks = np.zeros(SHAPE, np.uint16)
    marks[6:9, 8, 4], marks[0, :, 5] = 1, 255
    submit(column([2, 7]), annotated_slices=[2, 7, 9])
    submit(marks, tag="scribbles")
    learn(workspace)
    first = infer()
    labels = workspace.case("case").record.result("labels")
    submit(column([4]))
    learn(workspace, seed=1)
    assert infer()["manifest"] == first["manifest"] + 1
    assert reproduce(workspace, first["manifest"], "-o", tmp_path / "again.nii.gz") == 0
    assert all(json.loads(capsys.readouterr().out)["same"].values())
    np.testing.assert_array_equal(io.read_image(tmp_path / "again.nii.gz").array, labels)
    assert first["trained"] and (labels[6:9, 8, 4] == 1).all()


@pytest.mark.parametrize("options", [{"method": "registration"}, {"method": "nearest", "extrapolate": 2}])
def test_other_methods_and_partial_slices_are_made_again_too(workspace, submit, infer, options):
    submit(column([2, 7]), partial=True)
    assert reproduce(workspace, infer(**options)["manifest"]) == 0


def test_a_manifest_is_found_by_its_study_and_by_a_copy(workspace, submit, infer, tmp_path, capsys):
    submit(column([2, 7]))
    first, _ = (infer(method=method)["manifest"] for method in ("shape", "nearest"))
    copy = tmp_path / "elsewhere" / "copy.json"
    copy.parent.mkdir()
    content = json.loads(manifest(workspace, first).read_text())
    copy.write_text(json.dumps(dict(reversed(content.items()))))
    assert main(["reproduce", str(copy)]) == 2 and "--studies" in capsys.readouterr().err
    studies = str(workspace.folder.parent)
    for named, method in ((str(copy), "shape"), ("case", "nearest")):
        found = find_manifest(named, Path(studies))
        assert read_manifest(found)["config"]["method"] == method
        assert main(["reproduce", named, "--studies", studies]) == 0
    shutil.rmtree(manifest(workspace, first).parent)
    capsys.readouterr()
    assert main(["reproduce", str(copy), "--studies", studies]) == 2 and "not any more" in capsys.readouterr().err
    assert main(["reproduce", "unknown", "--studies", studies]) == 2 and "unknown" in capsys.readouterr().err


def test_an_input_that_changed_is_told_of(workspace, submit, infer, capsys):
    submit(column([2, 7]))
    number = infer(method="shape")["manifest"]
    case = workspace.case("case")
    scan = workspace.scan(case)
    io.write_image(case.image, scan.array + 1, scan)
    assert reproduce(workspace, number) == 2
    assert "changed" in capsys.readouterr().err


def test_a_result_that_comes_out_differently_is_told_of(workspace, submit, infer, capsys):
    submit(column([2, 7]))
    number = infer(method="shape")["manifest"]
    file = manifest(workspace, number)
    content = json.loads(file.read_text())
    content["results"]["labels"], content["versions"]["torch"] = "0" * 64, "1.0"
    write_manifest(file, content)
    assert reproduce(workspace, number) == 2
    told = capsys.readouterr().err
    assert "labels" in told and "torch 1.0 then" in told


def test_old_manifests_go_and_models_that_none_names(workspace, submit, infer, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_MANIFESTS", 2)
    submit(column([2, 7]))
    learn(workspace)
    numbers = [infer()["manifest"]]
    models = workspace.folder / "studies" / "case" / "models"
    assert len(list(models.iterdir())) == 1
    learn(workspace, seed=1)
    numbers += [infer()["manifest"] for _ in range(3)]
    kept = manifests.Manifests(models.parent)
    assert kept.numbers() == numbers[-2:] and len(list(models.iterdir())) == 1
    assert reproduce(workspace, numbers[-1]) == 0


@pytest.mark.parametrize("form", [1, 2])
def test_a_damaged_manifest_is_told_of_and_stops_nothing(workspace, submit, infer, capsys, form):
    submit(column([2, 7]))
    learn(workspace)
    first = infer()["manifest"]
    file, models = manifest(workspace, first), workspace.folder / "studies" / "case" / "models"
    file.write_text(file.read_text().replace("inputs", "inputr").replace('"format": 2', f'"format": {form}'))
    assert infer()["manifest"] == first + 1
    file.write_text(file.read_text()[:100])
    learn(workspace, seed=1)
    assert infer()["manifest"] == first + 2 and len(list(models.iterdir())) == 2
    assert reproduce(workspace, first) == 2 and "damaged" in capsys.readouterr().err
    assert reproduce(workspace, first + 2) == 0


def test_a_manifest_without_a_checksum_is_read(workspace, submit, infer):
    submit(column([2, 7]))
    number = infer(method="shape")["manifest"]
    content = json.loads(manifest(workspace, number).read_text())
    del content["sha256"]
    manifest(workspace, number).write_text(json.dumps({**content, "format": 1}))
    assert reproduce(workspace, number) == 0


def test_a_model_kept_for_a_manifest_that_is_damaged_is_kept_anew(workspace, submit, infer):
    submit(column([2, 7]))
    learn(workspace)
    number = infer()["manifest"]
    (kept,) = (workspace.folder / "studies" / "case" / "models").iterdir()
    content = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert infer()["trained"] and kept.read_bytes() == content
    assert reproduce(workspace, number) == 0


def test_a_damaged_or_foreign_checkpoint_is_refused_and_said_so(workspace, submit, infer):
    submit(column([2, 7]))
    learn(workspace)
    file = workspace.checkpoints.file("case")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = infer()
    assert told["trained"] is False and "damaged" in told["note"]
    file.write_bytes(content)
    assert "note" not in infer()
    case = workspace.case("case")
    scan = workspace.scan(case)
    io.write_image(case.image, scan.array[::-1], scan)
    assert "another scan" in infer()["note"]
