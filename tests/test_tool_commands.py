"""The tools on the command line: files in, files out; the tools themselves are tested in `tests/tools`."""

import json

import numpy as np
import pytest

import balls
from sliceprop import io
from sliceprop.cli import main
from sliceprop.segments import Segment, description, read_segments


@pytest.fixture
def folder(tmp_path):
    scan = io.Image(balls.scan(), balls.OBLIQUE)
    io.write_image(tmp_path / "scan.nii.gz", balls.scan(), scan)
    marks = np.where(balls.seeds() < 0, 255, balls.seeds())
    io.write_image(tmp_path / "seeds.nrrd", marks, scan)
    dots = np.zeros(balls.SHAPE, np.int32)
    for label in (1, 2):
        held = np.argwhere(balls.truth() == label)
        for axis in range(3):
            for end in (held[:, axis].argmin(), held[:, axis].argmax()):
                plane = held[held[:, axis] == held[end, axis]]
                dots[tuple(plane[np.linalg.norm(plane - plane.mean(axis=0), axis=1).argmin()])] = label
    io.write_image(tmp_path / "dots.nii.gz", dots, scan)
    sparse = np.zeros(balls.SHAPE, np.int32)
    sparse[..., [5, 6, 8, 9]] = balls.truth()[..., [5, 6, 8, 9]]
    io.write_image(tmp_path / "sparse.nii.gz", sparse, scan)
    return tmp_path


def run(folder, command, *arguments, out="out.nii.gz"):
    files = [str(folder / word) if (folder / word).is_file() else word for word in arguments]
    return main([command, *files, "-o", str(folder / out)])


@pytest.mark.parametrize(
    ("command", "arguments", "least"),
    [
        ("grow-from-seeds", ["scan.nii.gz", "seeds.nrrd"], 0.97),
        ("fast-marching", ["scan.nii.gz", "seeds.nrrd", "--max-volume-ml", "1=1.5", "--max-volume-ml", "2=1"], 0.9),
        ("threshold-islands", ["scan.nii.gz", "--range", "1", "50", "150", "--range", "2", "150", "none"], 0.97),
        ("fill-between-slices", ["sparse.nii.gz", "--slice-axis", "2"], 0.9),
        ("boundary-points", ["scan.nii.gz", "dots.nii.gz"], 0.95),
    ],
)
def test_tools_find_the_balls_on_an_oblique_grid(folder, capsys, command, arguments, least):
    assert run(folder, command, *arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = io.read_image(folder / "out.nii.gz")
    np.testing.assert_allclose(found.affine, balls.OBLIQUE, atol=1e-4)
    for label in (1, 2):
        assert balls.dice(found.array == label, balls.truth() == label) > least
        assert told["volume_ml"][str(label)] == pytest.approx((found.array == label).sum() * 0.003)


def test_points_come_as_json_too(folder, capsys):
    dots = io.read_image(folder / "dots.nii.gz").array
    points = {str(label): np.argwhere(dots == label).tolist() for label in (1, 2)}
    (folder / "points.json").write_text(json.dumps(points))
    assert run(folder, "boundary-points", "scan.nii.gz", "points.json", out="a.nrrd") == 0
    assert run(folder, "boundary-points", "scan.nii.gz", "dots.nii.gz", out="b.nrrd") == 0
    np.testing.assert_array_equal(io.read_image(folder / "a.nrrd").array, io.read_image(folder / "b.nrrd").array)
    assert "label 1: " in capsys.readouterr().out


def test_export_takes_names_from_a_description_and_keeps_them(folder, capsys):
    segments = [Segment(1, "left", "#102030"), Segment(2, "right", "#405060")]
    (folder / "names.txt").write_text(description(segments))
    assert run(folder, "export", "sparse.nii.gz", "--names", "names.txt", out="out.seg.nrrd") == 0
    assert read_segments(folder / "out.seg.nrrd") == segments
    assert run(folder, "export", "out.seg.nrrd", out="mesh.obj") == 0
    assert "o left" in (folder / "mesh.obj").read_text()
    assert "mesh.mtl: written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grow-from-seeds", "scan.nii.gz", "sparse.nii.gz", "--lower", "9", "--upper", "1"], "swap them"),
        (["grow-from-seeds", "scan.nii.gz", "absent.nii.gz"], "no such file"),
        (["grow-from-seeds", "scan.nii.gz", "seeds.nrrd", "--background-scribble", "0"], "must lie in 1.."),
        (["fast-marching", "scan.nii.gz", "seeds.nrrd", "--max-volume-ml", "much"], "LABEL=NUMBER"),
        (["threshold-islands", "scan.nii.gz"], "give a lower threshold"),
        (["threshold-islands", "scan.nii.gz", "--lower", "1", "--preset", "lung"], "give either"),
        (["threshold-islands", "scan.nii.gz", "--range", "1", "a", "b"], "--range takes"),
        (["threshold-islands", "scan.nii.gz", "--lower", "0", "--label", "0"], "must lie in 1.."),
        (["boundary-points", "scan.nii.gz", "nothing.json"], "cannot be read"),
        (["automatic", "scan.nii.gz", "--bundle", "absent"], "no MONAI bundle"),
        (["export", "sparse.nii.gz", "--names", "absent.txt"], "no such file"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_code_2(folder, capsys, arguments, words):
    code = run(folder, *arguments)
    told = capsys.readouterr()
    assert code == 2 and words in told.err and told.err.count("\n") == 1
    assert not (folder / "out.nii.gz").exists()


@pytest.fixture
def bad(folder):
    """Files on other grids, on sheared ones, and with seeds that cannot be used."""
    seeds = np.where(balls.seeds() < 0, 255, balls.seeds())
    shifted = balls.OBLIQUE.copy()
    shifted[:3, 3] += 5
    io.write_image(folder / "shifted.nrrd", seeds, io.Image(seeds, shifted))
    io.write_image(folder / "cropped.nrrd", seeds[2:], io.Image(seeds[2:], balls.OBLIQUE))
    io.write_image(folder / "sheared.nii.gz", balls.scan(), io.Image(balls.scan(), balls.SHEARED))
    io.write_image(folder / "sheared_seeds.nii.gz", seeds, io.Image(seeds, balls.SHEARED))
    io.write_image(folder / "one.nrrd", np.where(seeds == 1, 1, 0), io.Image(seeds, balls.OBLIQUE))
    (folder / "outside.json").write_text(json.dumps({"1": [[1, 2, 3]] * 5 + [[400, 2, 3]]}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grow-from-seeds", "scan.nii.gz", "one.nrrd"], "all seeds are of label 1"),
        (["grow-from-seeds", "scan.nii.gz", "shifted.nrrd"], "mm"),
        (["fast-marching", "scan.nii.gz", "cropped.nrrd"], "same grid"),
        (["threshold-islands", "scan.nii.gz", "--lower", "0", "--keep", "selected", "--seeds", "shifted.nrrd"], "mm"),
        (["grow-from-seeds", "sheared.nii.gz", "sheared_seeds.nii.gz"], "off a right angle"),
        (["fast-marching", "sheared.nii.gz", "sheared_seeds.nii.gz"], "off a right angle"),
        (["boundary-points", "sheared.nii.gz", "sheared_seeds.nii.gz"], "off a right angle"),
        (["boundary-points", "scan.nii.gz", "outside.json"], "outside the image"),
        (["threshold-islands", "scan.nii.gz", "--lower", "9999"], "no voxel lies at or above 9999"),
    ],
)
def test_seeds_and_grids_that_cannot_be_used_say_why(bad, capsys, arguments, words):
    code = run(bad, *arguments)
    told = capsys.readouterr()
    assert code == 2 and words in told.err and told.err.count("\n") == 1
    assert not (bad / "out.nii.gz").exists()


def test_inputs_are_not_overwritten(folder, capsys):
    before = (folder / "seeds.nrrd").read_bytes()
    assert run(folder, "grow-from-seeds", "scan.nii.gz", "seeds.nrrd", out="seeds.nrrd") == 2
    assert (folder / "seeds.nrrd").read_bytes() == before and "would overwrite" in capsys.readouterr().err
