import numpy as np
import pytest

from sliceprop import io
from sliceprop.errors import GeometryError, InputError, ShapeError
from sliceprop.labels import present_values
from sliceprop.server.label_files import place_on_grid, read_labels, replace_values

AFFINE = np.array([[0, 0, 4.0, -10], [1.5, 0, 0, 20], [0, -1.5, 0, 5], [0, 0, 0, 1]])
SCAN = io.Image(np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7), AFFINE)


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 4, SCAN.array.shape, dtype=np.int32)


def part_of(labels, start, stop, order=(0, 1, 2), flips=()):
    """A cut-out with its axes swapped and reversed, and the affine that says where it lies."""
    cut = labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    to_scan = np.eye(4)
    to_scan[:3, 3] = start
    for axis in flips:
        cut = np.flip(cut, axis)
        to_scan = to_scan @ _flip(axis, cut.shape[axis])
    swap = np.eye(4)
    swap[:3, :3] = np.eye(3)[:, list(order)]
    return io.Image(np.transpose(cut, order), AFFINE @ to_scan @ swap)


def _flip(axis, n):
    matrix = np.eye(4)
    matrix[axis, axis], matrix[axis, 3] = -1, n - 1
    return matrix


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_a_part_of_the_grid_lands_where_it_belongs(labels, order, flips):
    start, stop = (1, 0, 2), (4, 6, 5)
    placed = place_on_grid(part_of(labels, start, stop, order, flips), SCAN)
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    expected = np.zeros_like(labels)
    expected[inside] = labels[inside]
    np.testing.assert_array_equal(placed, expected)


@pytest.mark.parametrize("shift", [(0.4, 0, 0), (0, 0, 5)])
def test_a_part_off_the_grid_is_refused(labels, shift):
    part = part_of(labels, (1, 0, 2), (4, 6, 5))
    moved = np.eye(4)
    moved[:3, 3] = shift
    with pytest.raises(GeometryError):
        place_on_grid(io.Image(part.array, part.affine @ moved), SCAN)


def test_a_cropped_segmentation_is_read_and_a_cropped_label_map_is_not(tmp_path, labels):
    part = part_of(labels, (1, 0, 2), (4, 6, 5))
    for name in ("cut.seg.nrrd", "cut.nii.gz"):
        io.write_image(tmp_path / name, part.array, part)
    assert read_labels(tmp_path / "cut.seg.nrrd", SCAN).shape == SCAN.array.shape
    with pytest.raises(ShapeError):
        read_labels(tmp_path / "cut.nii.gz", SCAN)
    np.testing.assert_array_equal(
        read_labels(tmp_path / "cut.nii.gz", SCAN, cropped=True), read_labels(tmp_path / "cut.seg.nrrd", SCAN)
    )


def test_raw_bytes_run_fastest_along_the_first_axis(tmp_path, labels):
    (tmp_path / "label.bin").write_bytes(labels.astype(np.uint8).tobytes(order="F"))
    np.testing.assert_array_equal(read_labels(tmp_path / "label.bin", SCAN), labels)


def test_raw_values_of_two_bytes_are_little_endian(tmp_path, labels):
    (tmp_path / "label.bin").write_bytes((labels * 300).astype("<u2").tobytes(order="F"))
    np.testing.assert_array_equal(read_labels(tmp_path / "label.bin", SCAN), labels * 300)


def test_raw_bytes_of_another_size_are_refused(tmp_path):
    (tmp_path / "label.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ShapeError, match="100 bytes"):
        read_labels(tmp_path / "label.bin", SCAN)


def test_labels_elsewhere_are_refused(tmp_path, labels):
    moved = AFFINE.copy()
    moved[0, 3] += 2
    io.write_image(tmp_path / "l.nii.gz", labels, io.Image(labels, moved))
    with pytest.raises(GeometryError):
        read_labels(tmp_path / "l.nii.gz", SCAN)


def test_probabilities_are_not_labels(tmp_path, labels):
    io.write_image(tmp_path / "l.nii.gz", labels / 3, io.Image(labels, AFFINE))
    with pytest.raises(InputError, match="whole numbers"):
        read_labels(tmp_path / "l.nii.gz", SCAN)


def test_values_are_counted_and_replaced():
    labels = np.array([[[0, 3], [3, 60_000]]], np.int32)
    assert present_values(labels) == {3, 60_000}
    assert present_values(labels * 0) == set()
    assert replace_values(labels, {3: 1}).tolist() == [[[0, 1], [1, 0]]]
    assert replace_values(labels, {3: 1}, keep=True).tolist() == [[[0, 1], [1, 60_000]]]
    assert replace_values(labels * 0, {}).tolist() == (labels * 0).tolist()
