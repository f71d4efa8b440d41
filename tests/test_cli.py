"""The command line from files to files; the exit code, the one line on standard error, and what is left on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sliceprop.cli import main
from sliceprop.dicom import write_dicom_series
from sliceprop.io import Image, read_image, write_image
from sliceprop.phantom import Phantom, make_phantom

ROOT = Path(__file__).resolve().parents[1]
REPORT_KEYS = {"label_names", "slice_axis", "annotated_slices", "method", "trained", "quality", "suggestion"}
SUGGESTION_KEYS = {"slice", "slice_axis", "position_ras", "reason", "labels", "stop"} | {
    f"expected_{name}" for name in ("dice", "dice_after", "gain")
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(48, 9)


@pytest.fixture(scope="module")
def data(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan, labels on three slices and files of every kind that cannot be used with them."""
    folder = tmp_path_factory.mktemp("data")
    scan = Image(phantom.image, phantom.affine)
    write_image(folder / "scan.nii.gz", phantom.image, scan)
    write_image(folder / "labels.nii.gz", phantom.sparse, scan)
    write_image(folder / "nothing.nii.gz", phantom.sparse * 0, scan)
    write_image(folder / "fractions.nii.gz", phantom.sparse / 3, scan)
    write_image(folder / "constant.nii.gz", phantom.image * 0, scan)
    broken = phantom.image.astype(np.float32)
    broken[0, 0, 0] = np.nan
    write_image(folder / "nan.nii.gz", broken, scan)
    crop = Image(phantom.sparse[1:], phantom.affine)
    write_image(folder / "other_shape.nii.gz", crop.array, crop)
    moved = Image(phantom.sparse, np.array([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ phantom.affine)
    write_image(folder / "other_place.nii.gz", moved.array, moved)
    (folder / "truncated.nii.gz").write_bytes((folder / "scan.nii.gz").read_bytes()[:2000])
    write_image(folder / "truncated.mha", phantom.image, scan, compress=False)
    (folder / "truncated.mha").write_bytes((folder / "truncated.mha").read_bytes()[:2000])
    header = "ObjectType = Image\nNDims = 3\nDimSize = 20000 20000 20000\nElementType = MET_SHORT\n"
    (folder / "huge.mha").write_text(f"{header}ElementDataFile = LOCAL\n")
    (folder / "empty").mkdir()
    (folder / "text.nii.gz").write_text("this is no scan")
    (folder / "damaged.safetensors").write_bytes(b"\0" * 100)
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the scan in `data`."""
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    assert (
        main(["train", str(data / "scan.nii.gz"), str(data / "labels.nii.gz"), "-o", str(file), "--budget-s", "3"]) == 0
    )
    return file


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives exit code, standard output and standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run_command


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def scan_and_labels(data: Path) -> tuple[Path, Path]:
    return data / "scan.nii.gz", data / "labels.nii.gz"


def test_propagate_with_a_model_writes_everything(
    data: Path, model: Path, tmp_path: Path, phantom: Phantom, run: Run
) -> None:
    outputs = ["-o", tmp_path / "out.nii.gz", "--uncertainty", tmp_path / "uncertainty.nii.gz"]
    outputs += ["--candidates", tmp_path / "candidate", "--report", tmp_path / "report.json"]
    outputs += ["--drawn", tmp_path / "drawn.nii.gz"]
    code, out, err = run("propagate", *scan_and_labels(data), "--model", model, *outputs)
    assert code == 0, err
    assert "estimated Dice" in out
    scan, result = read_image(data / "scan.nii.gz"), read_image(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(result.affine, scan.affine)
    slices = list(phantom.annotated_slices)
    np.testing.assert_array_equal(result.array[..., slices], phantom.reference[..., slices])
    assert all(result.array[..., k].any() for k in range(min(slices), max(slices)))
    uncertainty = read_image(tmp_path / "uncertainty.nii.gz").array
    assert uncertainty[..., slices].max() == 0
    assert 0 < uncertainty.max() <= 1
    for side in ("lower", "upper"):
        assert read_image(tmp_path / f"candidate_from_{side}.nii.gz").array.any()
    drawn = read_image(tmp_path / "drawn.nii.gz")
    np.testing.assert_array_equal(np.unique(np.nonzero(drawn.array)[2]), slices)
    assert drawn.array[..., slices].all() and np.allclose(drawn.affine, scan.affine)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["label_names"] == {str(value): value for value in np.unique(phantom.sparse)[1:]}
    assert report["annotated_slices"] == slices
    assert report["trained"] is True
    assert report["suggestion"].keys() == SUGGESTION_KEYS
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_output_format_follows_the_name(data: Path, tmp_path: Path, suffix: str, run: Run) -> None:
    outputs = ["-o", tmp_path / f"out{suffix}", "--candidates", tmp_path / "c"]
    assert run("propagate", *scan_and_labels(data), "--method", "shape", *outputs)[0] == 0
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {f"out{suffix}", f"c_from_lower{suffix}", f"c_from_upper{suffix}"}


def test_a_dicom_folder_is_a_scan(data: Path, tmp_path: Path, phantom: Phantom, run: Run) -> None:
    write_dicom_series(tmp_path / "series", Image(phantom.image, phantom.affine))
    code, _, err = run(
        "propagate", tmp_path / "series", data / "labels.nii.gz", "--method", "nearest", "-o", tmp_path / "out.nii.gz"
    )
    assert code == 0, err


def test_propagate_learns_first_and_prints_json_only(data: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run(
        "propagate", *scan_and_labels(data), "-o", tmp_path / "out.nii.gz", "--budget-s", 10, "--json", "--seed", 7
    )
    assert code == 0, err
    report = json.loads(out)
    assert report.keys() >= REPORT_KEYS
    assert report["trained"] is True
    assert "learning" in err
    assert "left" in err


def test_an_overfitted_network_shows_its_progress_and_is_named(
    data: Path, tmp_path: Path, phantom: Phantom, run: Run
) -> None:
    output = tmp_path / "out.nii.gz"
    code, out, err = run("propagate", *scan_and_labels(data), "-o", output, "--method", "unet", "--budget-s", 1)
    assert code == 0, err
    assert "method unet" in out
    assert "encoder resnet18" in out
    assert "learning" in err
    assert "fit" in err
    slices = list(phantom.annotated_slices)
    np.testing.assert_array_equal(read_image(output).array[..., slices], phantom.reference[..., slices])


@pytest.mark.parametrize("method", ["shape", "contour", "nearest"])
def test_interpolation_needs_no_learning(data: Path, tmp_path: Path, method: str, run: Run) -> None:
    code, out, err = run(
        "propagate", *scan_and_labels(data), "-o", tmp_path / "out.nii.gz", "--method", method, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["trained"] is False
    assert "learning" not in err


def test_explicit_slices_decide_what_is_annotated(data: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run(
        "propagate", *scan_and_labels(data), "-o", tmp_path / "out.nii.gz", "--method", "shape", "--json",
        "--annotated-slices", "0,4", "--extrapolate", "none",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["annotated_slices"] == [0, 4]
    assert not read_image(tmp_path / "out.nii.gz").array[..., 0].any()


def test_training_continues_from_a_checkpoint(data: Path, model: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "next.safetensors"
    code, out, err = run("train", *scan_and_labels(data), "-o", output, "--init", model, "--budget-s", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == str(output)
    assert output.with_suffix(".json").is_file()


def test_learning_starts_from_the_pretrained_model_that_fits(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "models").mkdir()
    for modality in ("CT", "MR"):
        (tmp_path / f"models/{modality}.safetensors").write_bytes(model.read_bytes())
        (tmp_path / f"models/{modality}.card.json").write_text(json.dumps({"data": {"modality": modality}}))
    monkeypatch.setenv("SLICEPROP_PRETRAINED", str(tmp_path / "models"))
    options = ["-o", tmp_path / "out.nii.gz", "--budget-s", 2, "--manifest", tmp_path / "manifest.json"]
    code, _, err = run("propagate", *scan_and_labels(data), *options, "--modality", "CT")
    assert code == 0, err
    assert f"learning starts from {tmp_path}/models/CT.safetensors" in err
    assert "CT.safetensors" in (tmp_path / "manifest.json").read_text()
    code, _, err = run("propagate", *scan_and_labels(data), *options, "--modality", "PT")
    assert code == 0, err
    assert "starts from" not in err
    monkeypatch.setenv("SLICEPROP_PRETRAINED", str(tmp_path / "gone"))
    code, _, err = run("propagate", *scan_and_labels(data), "-o", tmp_path / "out.nii.gz", "--method", "shape")
    assert code == 0, "what learns nothing does not look for a start"


@pytest.mark.parametrize("labels", [["labels.nii.gz"], ["nothing.nii.gz"], []], ids=["some", "all zero", "left out"])
def test_suggest_prints_a_list_of_suggestions(data: Path, labels: list[str], phantom: Phantom, run: Run) -> None:
    code, out, err = run("suggest", data / "scan.nii.gz", *[data / name for name in labels], "-n", 2, "--json")
    assert code == 0, err
    suggestions = json.loads(out)
    assert len(suggestions) == 2
    for suggestion in suggestions:
        assert suggestion.keys() == SUGGESTION_KEYS
        assert suggestion["slice"] not in (phantom.annotated_slices if labels == ["labels.nii.gz"] else ())


def test_suggest_prints_text(data: Path, model: Path, run: Run) -> None:
    code, out, err = run("suggest", *scan_and_labels(data), "--model", model)
    assert code == 0, err
    assert "slice" in out


@pytest.mark.parametrize("plan", ["centres", "random", "perceptual"])
def test_suggest_lays_out_a_plan(data: Path, model: Path, plan: str, phantom: Phantom, run: Run) -> None:
    options = ["--plan", plan, "-n", 5, "--seed", 3, "--json"]
    if plan == "perceptual":
        options += ["--model", model]
    code, out, err = run("suggest", data / "scan.nii.gz", *options)
    assert code == 0, err
    slices = [suggestion["slice"] for suggestion in json.loads(out)]
    assert len(slices) == 5 and slices == sorted(set(slices))
    code, out, err = run("suggest", *scan_and_labels(data), *options)
    assert code == 0, err
    left = [suggestion["slice"] for suggestion in json.loads(out)]
    assert left == [s for s in slices if s not in phantom.annotated_slices]


def test_the_target_decides_when_it_is_enough(data: Path, run: Run) -> None:
    def stop(target: float) -> bool:
        code, out, err = run("suggest", *scan_and_labels(data), "--target", target, "--json")
        assert code == 0, err
        return bool(json.loads(out)[0]["stop"])

    assert stop(0.01)
    assert not stop(1)


def test_evaluate_knows_the_answer_of_a_shifted_box(tmp_path: Path, run: Run) -> None:
    """A box of 6 voxels moved by one voxel of 2 mm: Dice 5/6."""
    boxes = np.zeros((2, 20, 8, 8), np.uint8)
    boxes[0, 4:10, 2:6, 2:6] = boxes[1, 5:11, 2:6, 2:6] = 3
    grid = Image(boxes[0], np.diag([2.0, 1.0, 1.0, 1.0]))
    for name, box in zip(("prediction", "reference"), boxes, strict=True):
        write_image(tmp_path / f"{name}.nii.gz", box, grid)
    sparse = np.where(np.arange(8) == 3, boxes[1], 0)
    write_image(tmp_path / "labels.nii.gz", sparse, grid)
    pair = (tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz")
    code, out, _ = run("evaluate", *pair, "--json")
    measured = json.loads(out)
    assert code == 0
    assert measured["whole"]["labels"]["3"]["dice"] == pytest.approx(5 / 6)
    assert measured["whole"]["labels"]["3"]["hausdorff95_mm"] == pytest.approx(2)
    assert "without_annotated" not in measured
    code, out, _ = run("evaluate", *pair, "--labels", tmp_path / "labels.nii.gz")
    assert code == 0
    assert "without the annotated slices" in out
    assert "0.833" in out


def test_sample_data_and_its_dicom_series_are_the_same_scan(tmp_path: Path, run: Run) -> None:
    code, _, err = run("sample-data", tmp_path, "--dicom")
    assert code == 0, err
    scan, series = read_image(tmp_path / "phantom.nii.gz"), read_image(tmp_path / "dicom")
    np.testing.assert_array_equal(series.array, scan.array)
    np.testing.assert_allclose(series.affine, scan.affine, atol=1e-4)


def test_demo_runs_end_to_end(tmp_path: Path, run: Run) -> None:
    code, out, err = run("demo", "-o", tmp_path / "demo", "--budget-s", 3, "--json")
    assert code == 0, err
    assert json.loads(out)["evaluation"]["without_annotated"]["mean"]["dice"] > 0.7
    assert (tmp_path / "demo/overlay.png").read_bytes().startswith(b"\x89PNG")


BAD = {
    "no command": "",
    "unknown command": "fly",
    "no output": "propagate scan.nii.gz labels.nii.gz",
    "unknown method": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --method magic",
    "unknown fusion": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --fusion magic",
    "unknown axis": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --slice-axis 3",
    "bad extrapolate": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --extrapolate -2",
    "bad list": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --annotated-slices 3,x",
    "slice out of range": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --annotated-slices 3,99",
    "two ways": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --partial --annotated-slices 3",
    "bad budget": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --budget-s 0",
    "bad device": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --device abacus",
    "network on a bad device": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --method unet --device abacus",
    "missing weights": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --method unet --encoder-weights missing.pth",
    "missing scan": "propagate missing.nii.gz labels.nii.gz -o out.nii.gz",
    "text for a scan": "propagate text.nii.gz labels.nii.gz -o out.nii.gz",
    "truncated MetaImage": "propagate truncated.mha labels.nii.gz -o out.nii.gz",
    "huge MetaImage": "propagate huge.mha labels.nii.gz -o out.nii.gz",
    "folder without DICOM": "propagate empty labels.nii.gz -o out.nii.gz",
    "long name": f"propagate {'x' * 300}.nii.gz labels.nii.gz -o out.nii.gz",
    "long name for output": f"propagate scan.nii.gz labels.nii.gz -o {'x' * 300}.nii.gz",
    "negative seed": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --seed -1",
    "huge seed": f"propagate scan.nii.gz labels.nii.gz -o out.nii.gz --seed {10**30}",
    "endless budget": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --budget-s inf",
    "truncated scan": "propagate truncated.nii.gz labels.nii.gz -o out.nii.gz",
    "constant scan": "propagate constant.nii.gz labels.nii.gz -o out.nii.gz",
    "scan with NaN": "propagate nan.nii.gz labels.nii.gz -o out.nii.gz",
    "other shape": "propagate scan.nii.gz other_shape.nii.gz -o out.nii.gz",
    "other place": "propagate scan.nii.gz other_place.nii.gz -o out.nii.gz",
    "fractions": "propagate scan.nii.gz fractions.nii.gz -o out.nii.gz",
    "no annotation": "propagate scan.nii.gz nothing.nii.gz -o out.nii.gz",
    "scribbles of other shape": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --scribbles other_shape.nii.gz",
    "damaged model": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --model damaged.safetensors",
    "missing model": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --model missing.safetensors",
    "missing start": "train scan.nii.gz labels.nii.gz -o out.safetensors --init missing.safetensors",
    "unknown format": "propagate scan.nii.gz labels.nii.gz -o out.png",
    "missing folder": "propagate scan.nii.gz labels.nii.gz -o missing/out.nii.gz",
    "report into a missing folder": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --report missing/report.json",
    "model into a missing folder": "train scan.nii.gz labels.nii.gz -o missing/out.safetensors",
    "model of unknown format": "train scan.nii.gz labels.nii.gz -o out.pt",
    "overwrites its input": "propagate scan.nii.gz labels.nii.gz -o labels.nii.gz",
    "writes twice": "propagate scan.nii.gz labels.nii.gz -o out.nii.gz --uncertainty out.nii.gz",
    "no suggestion": "suggest scan.nii.gz labels.nii.gz -n 0",
    "target of nothing": "suggest scan.nii.gz labels.nii.gz --target 0",
    "target above all": "suggest scan.nii.gz labels.nii.gz --target 1.5",
    "unknown plan": "suggest scan.nii.gz --plan every_second",
    "plan with a negative seed": "suggest scan.nii.gz --plan random --seed -1",
    "weights of another plan": "suggest scan.nii.gz --plan ssim --perceptual-weights text.nii.gz",
    "missing weights of AlexNet": "suggest scan.nii.gz --plan perceptual --perceptual-weights missing.pth",
    "damaged weights": "suggest scan.nii.gz --plan perceptual --perceptual-weights damaged.safetensors",
    "linear weights alone": "suggest scan.nii.gz --plan perceptual --linear-weights missing.pth",
    "evaluate other shape": "evaluate labels.nii.gz other_shape.nii.gz",
    "bad port": "serve --port 0",
}


@pytest.mark.parametrize("command", BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_loses_nothing(
    data: Path, command: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(data)
    before = contents(data)
    code, out, err = run(*command.split())
    assert code == 2
    assert out == ""
    assert err.startswith("sliceprop")
    assert err.count("\n") == 1
    assert contents(data) == before


def test_a_model_of_another_scan_is_refused(model: Path, tmp_path: Path, phantom: Phantom, run: Run) -> None:
    other = Image(phantom.image[:40].copy(), phantom.affine)
    write_image(tmp_path / "scan.nii.gz", other.array, other)
    write_image(tmp_path / "labels.nii.gz", phantom.sparse[:40], other)
    code, _, err = run("propagate", *scan_and_labels(tmp_path), "-o", tmp_path / "out.nii.gz", "--model", model)
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "out.nii.gz").exists()


def test_ctrl_c_keeps_the_best_so_far_and_goes_on(tmp_path: Path) -> None:
    """The one test with the real program: it learns for minutes unless it is told to stop."""
    files = [ROOT / "sample-data/phantom.nii.gz", ROOT / "sample-data/labels/sparse/phantom.nii.gz"]
    command = [sys.executable, ROOT / "main.py", "propagate", *files, "-o", tmp_path / "out.nii.gz"]
    process = subprocess.Popen(
        [*map(str, command), "--budget-s", "600", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        while "similarity" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert json.loads(out)["trained"] is True
    assert (tmp_path / "out.nii.gz").is_file()
