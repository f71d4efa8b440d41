import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import balls
from sliceprop import io
from sliceprop.dicom import write_dicom_series
from sliceprop.errors import FileError, InputError
from sliceprop.export import export_labels
from sliceprop.labels import present_values
from sliceprop.segments import Segment, read_segments

LABELS = np.where(balls.truth() == 2, 7, balls.truth()).astype(np.int32)
SEGMENTS = [Segment(1, "left ball", "#dd8265"), Segment(7, "right ball", "#0a80ff")]
BALL_ML = {1: 4 / 3 * np.pi * 7**3 / 1000, 7: 4 / 3 * np.pi * 6**3 / 1000}
CENTRE_MM = {1: balls.CENTRES[1], 7: balls.CENTRES[2]}

AFFINES = pytest.mark.parametrize("affine", [balls.STRAIGHT, balls.OBLIQUE, np.diag([-1.0, -1, 1, 1]) @ balls.OBLIQUE])


def scan(affine=balls.OBLIQUE):
    return io.Image(balls.scan().astype(np.int16), affine)


@AFFINES
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".seg.nrrd"])
def test_label_maps_come_back_with_names_and_colours(tmp_path, ending, affine):
    files = export_labels(tmp_path / f"out{ending}", LABELS, scan(affine), SEGMENTS)
    back = io.read_image(files[0])
    np.testing.assert_array_equal(back.array, LABELS)
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    assert read_segments(files[-1]) == SEGMENTS
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_slicer_finds_its_own_fields(tmp_path):
    [file] = export_labels(tmp_path / "out.seg.nrrd", LABELS, scan(), SEGMENTS)
    picture = sitk.ReadImage(str(file))
    held = np.argwhere(LABELS == 7)
    expected = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segment1_ID": "Segment_7",
        "Segment1_Name": "right ball",
        "Segment1_LabelValue": "7",
        "Segment1_Layer": "0",
        "Segment1_Extent": " ".join(f"{a} {b}" for a, b in zip(held.min(axis=0), held.max(axis=0), strict=True)),
    }
    assert {key: picture.GetMetaData(key) for key in expected} == expected
    np.testing.assert_allclose(
        [float(part) for part in picture.GetMetaData("Segment1_Color").split()], [10 / 255, 128 / 255, 1], atol=1e-5
    )


def test_values_without_a_name_are_numbered(tmp_path):
    [file] = export_labels(tmp_path / "out.seg.nrrd", LABELS, scan(), SEGMENTS[:1])
    assert [segment.name for segment in read_segments(file)] == ["left ball", "label_7"]


def signed_ml(points, triangles):
    """Volume inside a closed surface whose triangles turn counter-clockwise as seen from outside."""
    a, b, c = (points[triangles[:, n]] for n in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6 / 1000)


def check_ball(points, triangles, label, affine):
    centre = io.LPS_TO_RAS @ affine @ [*np.divide(CENTRE_MM[label], balls.SPACING), 1]
    assert signed_ml(points - centre[:3], triangles) == pytest.approx(BALL_ML[label], rel=0.15)
    np.testing.assert_allclose(points.mean(axis=0), centre[:3], atol=0.7)


@AFFINES
def test_stl_has_a_closed_surface_per_label_in_lps(tmp_path, affine):
    files = export_labels(tmp_path / "out.stl", LABELS, scan(affine), SEGMENTS)
    assert [file.name for file in files] == ["out_1_left_ball.stl", "out_7_right_ball.stl"]
    for file, segment in zip(files, SEGMENTS, strict=True):
        data = file.read_bytes()
        header = data[:80].decode().rstrip()
        assert header == f"SPACE=LPS label={segment.value} color={segment.color} name={segment.name}"
        table = np.frombuffer(data[84:], np.dtype([("n", "<f4", 3), ("p", "<f4", (3, 3)), ("a", "<u2")]))
        assert len(table) == int.from_bytes(data[80:84], "little")
        points = table["p"].reshape(-1, 3).astype(float)
        check_ball(points, np.arange(len(points)).reshape(-1, 3), segment.value, affine)
        edges = np.cross(table["p"][:, 1] - table["p"][:, 0], table["p"][:, 2] - table["p"][:, 0])
        assert (np.einsum("ij,ij->i", edges, table["n"]) > 0).all()


def read_obj(file):
    """Points, and per object its name, material and triangles."""
    points, objects = [], []
    for line in file.read_text().splitlines():
        key, _, rest = line.partition(" ")
        if key == "v":
            points.append([float(part) for part in rest.split()])
        elif key == "o":
            objects.append((rest, [], []))
        elif key == "usemtl":
            objects[-1][1].append(rest)
        elif key == "f":
            objects[-1][2].append([int(part) - 1 for part in rest.split()])
    return np.array(points), objects


@AFFINES
def test_obj_has_all_labels_with_name_and_colour(tmp_path, affine):
    obj, mtl = export_labels(tmp_path / "out.obj", LABELS, scan(affine), SEGMENTS)
    points, objects = read_obj(obj)
    assert [name for name, _, _ in objects] == ["left ball", "right ball"] and "mtllib out.mtl" in obj.read_text()
    for (_, [material], triangles), segment in zip(objects, SEGMENTS, strict=True):
        used = np.unique(triangles)
        check_ball(points[used], np.searchsorted(used, triangles), segment.value, affine)
        colour = mtl.read_text().split(f"newmtl {material}\nKd ")[1].splitlines()[0]
        np.testing.assert_allclose([float(part) * 255 for part in colour.split()], segment.rgb, atol=0.01)


def test_a_label_at_the_edge_of_the_scan_has_a_closed_surface(tmp_path):
    full = np.ones((4, 5, 6), np.int32)
    obj, _ = export_labels(tmp_path / "out.obj", full, io.Image(full, np.eye(4)))
    points, [(_, _, triangles)] = read_obj(obj)
    assert signed_ml(points, np.array(triangles)) * 1000 == pytest.approx(4 * 5 * 6, rel=0.1)


CONVERTER = Path(sys.executable).parent / "segimage2itkimage"


@pytest.mark.skipif(not (CONVERTER.exists() or shutil.which("segimage2itkimage")), reason="needs dcmqi")
def test_dicom_seg_comes_back(tmp_path):
    series = tmp_path / "series"
    write_dicom_series(series, scan())
    image = io.read_image(series)
    labels = LABELS if image.array.shape == LABELS.shape else None
    assert labels is not None
    [file] = export_labels(tmp_path / "out.dcm", labels, image, SEGMENTS, series=series)
    program = str(CONVERTER) if CONVERTER.exists() else "segimage2itkimage"
    command = [program, "--inputDICOM", str(file), "--outputDirectory", str(tmp_path), "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    [described] = tmp_path.glob("*meta.json")
    told = [one for group in json.loads(described.read_text())["segmentAttributes"] for one in group]
    assert [one["SegmentLabel"] for one in told] == [segment.name for segment in SEGMENTS]
    for number, (one, segment) in enumerate(zip(told, SEGMENTS, strict=True), start=1):
        np.testing.assert_allclose(one["recommendedDisplayRGBValue"], segment.rgb, atol=2)
        part = sitk.ReadImage(str(next(tmp_path.glob(f"*{number}.nrrd"))))
        whole = sitk.ReadImage(str(export_labels(tmp_path / "all.nrrd", labels, image, SEGMENTS)[0]))
        placed = sitk.GetArrayFromImage(sitk.Resample(part, whole, sitk.Transform(), sitk.sitkNearestNeighbor)).T
        np.testing.assert_array_equal(placed > 0, labels == segment.value)


@pytest.mark.parametrize(
    ("name", "labels", "error", "words"),
    [
        ("out.xyz", LABELS, FileError, "unknown format"),
        ("absent/out.obj", LABELS, FileError, "no such folder"),
        ("out.stl", LABELS * 0, InputError, "no label"),
        ("out.dcm", LABELS, InputError, "name its folder"),
        ("out.nrrd", LABELS[1:], InputError, "not on the image's grid"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, labels, error, words):
    with pytest.raises(error, match=words):
        export_labels(tmp_path / name, labels, scan())
    assert not list(tmp_path.iterdir())


def test_values_above_a_byte_stay(tmp_path):
    files = export_labels(tmp_path / "out.nrrd", LABELS * 1000, scan())
    assert present_values(io.read_image(files[0]).array.astype(np.int32)) == {1000, 7000}
