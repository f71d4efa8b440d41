import numpy as np
import pytest

import balls
from sliceprop.errors import GeometryError, InputError, NoAnnotationError, TooLargeError
from sliceprop.tools import boundary_points as module
from sliceprop.tools.boundary_points import PointsConfig, boundary_points, points_of_marks


def six_points(label):
    """The outermost voxels of a ball along each axis, near the middle of its outermost plane."""
    voxels = np.argwhere(balls.truth() == label)
    points = []
    for axis in range(3):
        for end in (voxels[:, axis].min(), voxels[:, axis].max()):
            plane = voxels[voxels[:, axis] == end]
            points.append(plane[np.linalg.norm(plane - plane.mean(axis=0), axis=1).argmin()])
    return np.array(points, dtype=float)


@pytest.mark.parametrize("affine", [balls.STRAIGHT, balls.OBLIQUE])
def test_balls_are_found_from_six_points_each(affine):
    points = {1: six_points(1), 2: six_points(2)}
    found = boundary_points(balls.scan(), points, affine=affine)
    for label in (1, 2):
        assert balls.dice(found == label, balls.truth() == label) > 0.95


def test_nothing_lies_farther_out_than_the_margin():
    flat = np.zeros((30, 30, 12), np.float32)
    flat[0, 0, 0] = 1e-3
    points = np.array([[10, 15, 6], [20, 15, 6], [15, 8, 6], [15, 22, 6], [15, 15, 3], [15, 15, 9]])
    found = boundary_points(flat, {4: points}, affine=balls.STRAIGHT, config=PointsConfig(margin_mm=2))
    outside = np.ones(flat.shape, dtype=bool)
    outside[8:23, 6:25, 2:11] = False
    assert not found[outside].any() and (found[tuple(points.T)] == 4).all()


def test_dots_in_a_label_map_are_points():
    marks = np.zeros(balls.SHAPE, np.int32)
    marks[tuple(six_points(1).astype(int).T)] = 1
    found = points_of_marks(marks)
    assert list(found) == [1]
    assert {tuple(p) for p in found[1]} == {tuple(p) for p in six_points(1)}


@pytest.mark.parametrize(
    ("points", "affine", "error", "words"),
    [
        ({}, balls.STRAIGHT, NoAnnotationError, "no points"),
        ({1: six_points(1)[:5]}, balls.STRAIGHT, NoAnnotationError, "label 1: 5 points"),
        ({1: six_points(1) + np.array([0, 0, 9])}, balls.STRAIGHT, InputError, "outside the image"),
        ({1: six_points(1) * np.array([1, 1, 0])}, balls.STRAIGHT, InputError, "in one plane"),
        ({1: six_points(1)[:, :2]}, balls.STRAIGHT, InputError, "three voxel indices"),
        ({1: "abc"}, balls.STRAIGHT, InputError, "three voxel indices"),
        ({1: [[1, 2], [3]]}, balls.STRAIGHT, InputError, "three voxel indices"),
        ({1: [[{}, 1, 1]] * 6}, balls.STRAIGHT, InputError, "three voxel indices"),
        ({1: [[10**400, 1, 1]] * 6}, balls.STRAIGHT, InputError, "three voxel indices"),
        ({1: [[1e300, 1, 1]] * 6}, balls.STRAIGHT, InputError, r"point \(1e\+300, 1, 1\) lies outside the image"),
        (dict.fromkeys(range(1, 255), six_points(1)), balls.STRAIGHT, InputError, "254 structures"),
        ({1: six_points(1)}, balls.SHEARED, GeometryError, "right angle"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(points, affine, error, words):
    with pytest.raises(error, match=words):
        boundary_points(balls.scan(), points, affine=affine)


def test_points_whose_search_takes_too_much_are_refused(monkeypatch):
    corners = np.array([[0, 0, 0], np.array(balls.SHAPE) - 1] * 3)
    with pytest.raises(InputError, match="more than 4 times the image"):
        boundary_points(balls.scan(), dict.fromkeys(range(1, 6), corners), affine=balls.STRAIGHT)
    monkeypatch.setattr(module, "BYTES_PER_SEARCHED_VOXEL", 1 << 50)
    with pytest.raises(TooLargeError, match="the box around the points"):
        boundary_points(balls.scan(), {1: corners}, affine=balls.STRAIGHT)
