"""OME-Zarr in and out, and the propagation of a volume that is never in memory as a whole."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numcodecs
import numpy as np
import psutil
import pytest
import zarr

from phantoms import dice, moving_disc, only
from sliceprop.cli import main
from sliceprop.config import TrainConfig
from sliceprop.errors import FileError, GeometryError, InputError, NoAnnotationError, ShapeError, TooLargeError
from sliceprop.large import LargeConfig, propagate_large
from sliceprop.zarr_io import ZarrVolume, new_zarr, open_zarr, write_zarr

SHORT = TrainConfig(max_epochs=2, refine_steps=10)
ANNOTATED = [1, 5, 9]


def grid(array: np.ndarray) -> ZarrVolume:
    return ZarrVolume(array, (3.0, 0.5, 0.25), (10.0, -20.0, 30.0))


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path]:
    """Image and labels of three annotated slices."""
    image, labels = moving_disc()
    sparse = only(labels, ANNOTATED).astype(np.uint8)
    write_zarr(tmp_path / "image.zarr", image, grid(image))
    write_zarr(tmp_path / "labels.zarr", sparse, grid(sparse), label=True)
    return tmp_path / "image.zarr", tmp_path / "labels.zarr"


def test_what_is_written_is_read_and_chunked_along_the_slices(scan: tuple[Path, Path]) -> None:
    found = open_zarr(scan[0])
    assert (found.spacing, found.origin) == ((3.0, 0.5, 0.25), (10.0, -20.0, 30.0))
    np.testing.assert_array_equal(found.array[:], moving_disc()[0])
    assert zarr.open_group(str(scan[0]))["0"].chunks == (1, 48, 60)
    attributes = json.loads((scan[1] / ".zattrs").read_text())
    assert attributes["multiscales"][0]["version"] == "0.4"
    assert [axis["name"] for axis in attributes["multiscales"][0]["axes"]] == ["z", "y", "x"]
    assert "image-label" in attributes


def test_other_peoples_units_levels_and_axes(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(1, 1, 2, 3, 4)
    group = zarr.open_group(str(tmp_path / "other.zarr"), mode="w", zarr_format=2)
    group["fine"] = array
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *axes]
    steps = [{"type": "scale", "scale": [1, 1, 2000, 500, 250]}]
    levels = [{"path": "fine", "coordinateTransformations": steps}, {"path": "coarse", "coordinateTransformations": []}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    found = open_zarr(tmp_path / "other.zarr")
    assert found.shape == (2, 3, 4)
    assert found.spacing == pytest.approx((2.0, 0.5, 0.25))
    np.testing.assert_array_equal(found.slice(1), array[0, 0, 1])


def test_transformations_of_all_levels_apply_after_those_of_one(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "moved.zarr"), mode="w", zarr_format=2)
    group["0"] = np.zeros((2, 3, 4), np.uint8)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    level = [{"type": "scale", "scale": [2, 1, 1]}, {"type": "translation", "translation": [10, 20, 30]}]
    outer = [{"type": "scale", "scale": [1500, 500, 250]}, {"type": "translation", "translation": [1000, 0, -2000]}]
    scales = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": level}]}
    group.attrs["multiscales"] = [{**scales, "coordinateTransformations": outer}]
    found = open_zarr(tmp_path / "moved.zarr")
    assert found.spacing == pytest.approx((3.0, 0.5, 0.25))
    assert found.origin == pytest.approx((16.0, 10.0, 5.5))


class Program:
    """Pickled, it makes a file when it is read."""

    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._made,)


@pytest.mark.parametrize(
    ("dtype", "filters", "compressor"),
    [
        ("|O", [{"id": "vlen-utf8"}, {"id": "pickle"}], None),
        ("|O", [{"id": "vlen-bytes"}], {"id": "pickle"}),
        ("|O", [{"id": "pickle"}], None),
        ("|u1", [{"id": "pickle"}], None),
        ("|u1", None, {"id": "pickle"}),
        ("<f4", [{"id": "delta", "dtype": "<f4"}, {"id": "json2"}], None),
        ("<U4", None, None),
    ],
)
def test_only_numbers_are_read(
    scan: tuple[Path, Path], dtype: str, filters: Any, compressor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = scan[0].parent / "made"
    stored = json.loads((scan[0] / "0" / ".zarray").read_text())
    stored |= {"dtype": dtype, "filters": filters, "compressor": compressor, "fill_value": "" if dtype == "|O" else 0}
    (scan[0] / "0" / ".zarray").write_text(json.dumps(stored))
    for chunk in (scan[0] / "0").glob("*/*/*"):
        chunk.write_bytes(pickle.dumps(Program(made)))
    with pytest.raises(FileError, match=r"image\.zarr: cannot be read as OME-Zarr"):
        open_zarr(scan[0])
    assert main(["propagate-large", *map(str, scan), "-o", str(scan[0].parent / "out.zarr")]) == 2
    assert "cannot be read as OME-Zarr" in capsys.readouterr().err
    assert not made.exists()


@pytest.mark.parametrize("format", [2, 3])
def test_known_codecs_are_read(tmp_path: Path, format: Any) -> None:
    array = np.arange(2 * 4 * 4, dtype=np.int16).reshape(2, 4, 4)
    group = zarr.open_group(str(tmp_path / "any.zarr"), mode="w", zarr_format=format)
    sharded = {"shards": (1, 4, 4)} if format == 3 else {"filters": [numcodecs.Delta("<i2")]}
    group.create_array("0", data=array, chunks=(1, 2, 2), **sharded)
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": []}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    np.testing.assert_array_equal(open_zarr(tmp_path / "any.zarr").slice(1), array[1])


def test_a_damaged_chunk_is_told(scan: tuple[Path, Path]) -> None:
    chunk = next(file for file in (scan[0] / "0").glob("5/*/*") if file.is_file())
    chunk.write_bytes(b"damaged")
    with pytest.raises(FileError, match="slice 5 of an OME-Zarr volume cannot be read"):
        open_zarr(scan[0]).slice(5)


@pytest.mark.parametrize("coarse_voxels", [10**9, 11 * 24 * 30])
def test_annotated_slices_stay_and_the_rest_is_found(
    scan: tuple[Path, Path], tmp_path: Path, coarse_voxels: int
) -> None:
    config = LargeConfig(TrainConfig(600, max_epochs=4, refine_steps=40), coarse_voxels, "cpu")
    told = propagate_large(*scan, tmp_path / "out.zarr", config, uncertainty=tmp_path / "doubt.zarr")
    found, truth = open_zarr(tmp_path / "out.zarr"), moving_disc()[1]
    assert (found.spacing, found.origin) == ((3.0, 0.5, 0.25), (10.0, -20.0, 30.0))
    result, doubt = np.asarray(found.array[:]), np.asarray(open_zarr(tmp_path / "doubt.zarr").array[:])
    np.testing.assert_array_equal(result[ANNOTATED], truth[ANNOTATED])
    assert told["annotated_slices"] == ANNOTATED
    assert told["labels"] == [1, 7]
    between = [s for s in range(1, 9) if s not in ANNOTATED]
    for label in (1, 7):
        assert dice(result[between] == label, truth[between] == label) > 0.93
    assert doubt[ANNOTATED].max() == 0
    assert 0 < doubt.max() <= 100


def test_the_command_shows_how_far_learning_is(
    scan: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["propagate-large", *map(str, scan), "-o", str(tmp_path / "out.zarr"), "--device", "cpu", "--json"]
    assert main([*command, "--budget-s", "2"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["annotated_slices"] == ANNOTATED
    assert "learning" in told.err and "s left, similarity 0." in told.err


def test_other_commands_name_the_one_for_this_format(
    scan: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["propagate", *map(str, scan), "-o", str(tmp_path / "out.nii.gz")]) == 2
    assert "image.zarr: is OME-Zarr; fill it with `sliceprop propagate-large`" in capsys.readouterr().err


def test_a_label_too_small_for_the_coarse_grid_is_carried(tmp_path: Path) -> None:
    image, _ = moving_disc(shift_px=0)
    sparse = np.zeros(image.shape, np.uint16)
    sparse[[1, 9], 16, 14] = 300
    write_zarr(tmp_path / "image.zarr", image, grid(image))
    write_zarr(tmp_path / "labels.zarr", sparse, grid(sparse))
    config = LargeConfig(SHORT, 11 * 12 * 15, "cpu")
    propagate_large(tmp_path / "image.zarr", tmp_path / "labels.zarr", tmp_path / "out.zarr", config)
    assert (np.asarray(open_zarr(tmp_path / "out.zarr").array[5]) == 300).any()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from scipy import ndimage
from sliceprop import study
from sliceprop.config import TrainConfig
from sliceprop.large import LargeConfig, propagate_large
from sliceprop.zarr_io import ZarrVolume, new_zarr

folder, size, n = Path(sys.argv[1]), 640, 48
like = ZarrVolume(np.empty((n, size, size), np.uint8), (1.0, 1.0, 1.0))
rows, columns = np.mgrid[:size, :size]
texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(size, size)), 6)
texture = 60 * texture / np.abs(texture).max()
images, marks = (new_zarr(folder / f"{name}.zarr", like, kind, name=name) for name, kind in (("i", "i2"), ("l", "u1")))
with images as image, marks as labels:
    for s in range(n):
        disc = (rows - 200) ** 2 + (columns - 200 - 3 * s) ** 2 < 100**2
        image[s] = (np.roll(texture, 3 * s, axis=1) + 200 * disc).astype(np.int16)
        labels[s] = disc.astype(np.uint8) if s % 8 == 4 else 0 * disc
virtual = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**30, virtual + 2**30))
config = LargeConfig(TrainConfig(max_epochs=1, refine_steps=4), 48 * 64 * 64, "cpu")
propagate_large(folder / "i.zarr", folder / "l.zarr", folder / "o.zarr", config)
"""


def test_memory_stays_within_a_limit_that_the_whole_volume_would_break(tmp_path: Path) -> None:
    """The study as a whole would need 140 bytes for each of its 20 million voxels, 2.6 GiB; it gets 1 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = open_zarr(tmp_path / "o.zarr")
    rows, columns = np.mgrid[:640, :640]
    for s in (8, 24, 40):
        disc = (rows - 200) ** 2 + (columns - 200 - 3 * s) ** 2 < 100**2
        assert dice(result.slice(s) == 1, disc) > 0.95


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_one_voxel_that_is_not_finite_is_found_wherever_it_lies(
    scan: tuple[Path, Path], tmp_path: Path, hole: float
) -> None:
    image = moving_disc()[0]
    image[7, 3, 3] = hole
    write_zarr(tmp_path / "hole.zarr", image, grid(image))
    with pytest.raises(InputError, match="slice 7"):
        propagate_large(tmp_path / "hole.zarr", scan[1], tmp_path / "out.zarr", LargeConfig(SHORT, device="cpu"))


def test_outputs_and_grids_are_checked_before_anything_is_read(scan: tuple[Path, Path], tmp_path: Path) -> None:
    """The labels are empty, which would be told next, before learning."""
    image, there = scan
    nothing = np.zeros((11, 48, 60), np.uint8)
    places = {"empty": grid(nothing), "thick": ZarrVolume(nothing, (5.0, 0.5, 0.25), (10.0, -20.0, 30.0))}
    places["moved"] = ZarrVolume(nothing, (3.0, 0.5, 0.25))
    for name, like in places.items():
        write_zarr(tmp_path / f"{name}.zarr", nothing, like, label=True)
    empty, out = tmp_path / "empty.zarr", tmp_path / "out.zarr"
    badly_named, nowhere = tmp_path / "out", tmp_path / "absent" / "out.zarr"
    for output, uncertainty in [(out, out), (out, image), (out, nowhere), (there, None), (badly_named, None)]:
        with pytest.raises(FileError):
            propagate_large(image, empty, output, uncertainty=uncertainty)
    for labels in ("thick", "moved"):
        with pytest.raises(GeometryError):
            propagate_large(image, tmp_path / f"{labels}.zarr", out)


def test_labels_that_would_need_too_much_memory_are_refused(
    scan: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve bands need 280 kB in their windows; the coarse image needs 60 and the annotated slices 70."""
    bands = np.zeros((11, 48, 60), np.uint8)
    bands[ANNOTATED] = 1 + np.arange(48)[:, None] // 4
    write_zarr(tmp_path / "bands.zarr", bands, grid(bands), label=True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000, total=200_000))
    with pytest.raises(TooLargeError, match="12 labels"):
        propagate_large(
            scan[0], tmp_path / "bands.zarr", tmp_path / "out.zarr", LargeConfig(SHORT, 11 * 12 * 15, "cpu")
        )


def test_what_cannot_be_used_is_told_and_leaves_nothing(
    scan: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels = scan
    array = np.zeros((11, 48, 60), np.uint8)
    write_zarr(tmp_path / "empty.zarr", array, grid(array))
    write_zarr(tmp_path / "other.zarr", array[:, :40], grid(array[:, :40]))
    write_zarr(tmp_path / "flat.zarr", array, grid(array))
    write_zarr(tmp_path / "fractions.zarr", array + np.float32(0.5), grid(array))
    (tmp_path / "no.zarr").mkdir()
    out = tmp_path / "out.zarr"
    cases = [
        (image, tmp_path / "empty.zarr", NoAnnotationError),
        (image, tmp_path / "other.zarr", ShapeError),
        (image, tmp_path / "fractions.zarr", InputError),
        (tmp_path / "flat.zarr", labels, InputError),
        (tmp_path / "no.zarr", labels, FileError),
        (tmp_path / "absent.zarr", labels, FileError),
    ]
    for scan_file, label_file, kind in cases:
        with pytest.raises(kind):
            propagate_large(scan_file, label_file, out, LargeConfig(SHORT, device="cpu"))
    for place in (image, tmp_path / "out.nii", tmp_path / "absent" / "out.zarr"):
        with pytest.raises(FileError), new_zarr(place, grid(array), "u1", name="x"):
            pass
    assert not out.exists()
    assert not list(tmp_path.glob(".writing-*"))
    command = [
        "propagate-large",
        str(image),
        str(labels),
        "-o",
        str(out),
        "--device",
        "cpu",
        "--budget-s",
        "1",
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(out)]
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
