"""Classical interpolation of shapes whose in-between is known."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sliceprop.engine.contour import ContourWorker
from sliceprop.engine.interpolation import (
    FAR_PX,
    INTERPOLATIONS,
    bounding_box,
    carry,
    interpolate,
    signed_distance,
    sources,
)
from sliceprop.errors import ContourError, InputError
from sliceprop.labels import sparse_labels


def disc(centre, radius, shape=(48, 56)):
    rows, columns = np.indices(shape)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def volume(n_slices, planes, shape=(48, 56)):
    """Labels from `{slice: {value: mask}}`."""
    labels = np.zeros((n_slices, *shape), np.int32)
    for s, masks in planes.items():
        for value, mask in masks.items():
            labels[s][mask] = value
    return labels


def radius_of(mask):
    return np.sqrt(mask.sum() / np.pi)


@pytest.fixture
def two_labels():
    """Two labels that move and change size over slices 2 and 6 of 9."""
    lower = {3: disc((14, 14), 8), 700: disc((30, 40), 10)}
    upper = {3: disc((16, 18), 6), 700: disc((30, 36), 8)}
    return sparse_labels(volume(9, {2: lower, 6: upper}))


def test_signed_distance_is_half_a_pixel_at_the_border():
    row = np.zeros((5, 9), bool)
    row[:, 3:6] = True
    assert signed_distance(row)[2].tolist() == [-2.5, -1.5, -0.5, 0.5, 1.5, 0.5, -0.5, -1.5, -2.5]


def test_signed_distance_is_positive_exactly_inside_and_antisymmetric():
    mask = disc((20, 30), 9)
    assert ((signed_distance(mask) > 0) == mask).all()
    assert (signed_distance(mask) == -signed_distance(~mask)).all()


def test_signed_distance_without_border_is_far():
    assert (signed_distance(np.zeros((4, 5), bool)) == -FAR_PX).all()
    assert (signed_distance(np.ones((4, 5), bool)) == FAR_PX).all()


@pytest.mark.parametrize("centre", [(24, 28), (2, 3), (46, 54)])
def test_signed_distance_inside_the_box_needs_nothing_outside(centre):
    mask = disc(centre, 7)
    box = bounding_box(mask)
    assert (signed_distance(mask[box]) == signed_distance(mask)[box]).all()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_annotated_slices_come_back_bit_identical(method, two_labels):
    result = interpolate(two_labels, method)
    for labels in (result.labels, result.from_lower, result.from_upper):
        assert labels.dtype == np.int32
        assert (labels[[2, 6]] == two_labels.labels[[2, 6]]).all()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_outermost_slices_are_held_beyond(method, two_labels):
    labels = interpolate(two_labels, method).labels
    assert (labels[:2] == two_labels.labels[2]).all()
    assert (labels[7:] == two_labels.labels[6]).all()


def test_one_sided_results_carry_the_neighbour(two_labels):
    result = interpolate(two_labels, "shape")
    assert (result.from_lower[2:6] == two_labels.labels[2]).all()
    assert (result.from_upper[3:7] == two_labels.labels[6]).all()
    assert not result.from_lower[:2].any()
    assert not result.from_upper[7:].any()


def test_nearest_breaks_ties_to_the_lower_slice(two_labels):
    labels = interpolate(two_labels, "nearest").labels
    assert (labels[3:5] == two_labels.labels[2]).all()
    assert (labels[5] == two_labels.labels[6]).all()


@pytest.mark.parametrize(("method", "tolerance_px"), [("shape", 0.5), ("contour", 2.5)])
def test_radius_of_a_cone_grows_linearly(method, tolerance_px):
    annotation = sparse_labels(volume(9, {0: {1: disc((24, 28), 4)}, 8: {1: disc((24, 28), 20)}}))
    radii = [radius_of(plane) for plane in interpolate(annotation, method).labels]
    assert radii == pytest.approx([4 + 2 * s for s in range(9)], abs=tolerance_px)
    assert radii == sorted(radii)


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_two_equal_slices_give_a_cylinder_exactly(method):
    annotation = sparse_labels(volume(6, {0: {5: disc((24, 28), 9)}, 5: {5: disc((24, 28), 9)}}))
    assert (interpolate(annotation, method).labels == annotation.labels[0]).all()


def test_touching_labels_stay_without_a_gap():
    left = np.indices((48, 56))[1] < 20
    right = np.indices((48, 56))[1] < 34
    annotation = sparse_labels(volume(5, {0: {1: left, 2: ~left}, 4: {1: right, 2: ~right}}))
    labels = interpolate(annotation, "shape").labels
    assert (labels > 0).all()
    assert [int((plane[0] == 1).sum()) for plane in labels] == pytest.approx([20, 23.5, 27, 30.5, 34], abs=0.5)


@pytest.mark.parametrize(("method", "last"), [("nearest", 2), ("shape", 2), ("contour", 0)])
def test_label_missing_on_a_known_slice_ends_before_it(method, last):
    annotation = sparse_labels(volume(6, {0: {4: disc((20, 20), 7)}}), annotated_slices=[0, 4])
    present = np.flatnonzero(interpolate(annotation, method).labels.any(axis=(1, 2)))
    assert present.tolist() == list(range(last + 1))


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_known_background_slice_is_never_bridged(method):
    held = {2: disc((24, 28), 9)}
    annotation = sparse_labels(volume(9, {0: held, 8: held}), annotated_slices=[0, 4, 8])
    assert not interpolate(annotation, method).labels[4].any()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_partial_slices_bound_only_their_own_labels(method):
    one, two = disc((14, 14), 8), disc((34, 40), 8)
    labels = volume(9, {0: {1: one}, 4: {1: one}, 1: {2: two}, 7: {2: two}})
    result = interpolate(sparse_labels(labels, partial=True), method).labels
    assert (result == np.where(one, 1, np.where(two, 2, 0))).all()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_partial_label_overrides_what_is_carried_there(method):
    """Label 2 covers label 1's place on its own slices; on slice 2 label 1 is known and wins there."""
    one, two = disc((24, 28), 6), disc((24, 28), 12)
    annotation = sparse_labels(volume(5, {0: {2: two}, 2: {1: one}, 4: {2: two}}), partial=True)
    result = interpolate(annotation, method).labels[2]
    assert ((result == 1) == one).all()
    assert ((result == 2) == (two & ~one)).all()


@pytest.mark.parametrize("method", INTERPOLATIONS)
@pytest.mark.parametrize("annotated", [[], [3]])
def test_nothing_drawn_gives_nothing(method, annotated):
    annotation = sparse_labels(np.zeros((5, 48, 56), np.int32), annotated_slices=annotated)
    assert not interpolate(annotation, method).labels.any()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_one_annotated_slice_is_held_everywhere(method):
    annotation = sparse_labels(volume(5, {3: {9: disc((20, 20), 7)}}))
    assert (interpolate(annotation, method).labels == annotation.labels[3]).all()


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_scribbled_label_without_a_slice_is_left_alone(method):
    scribbles = np.zeros((5, 48, 56), np.int32)
    scribbles[2, 40, 3:9] = 8
    annotation = sparse_labels(volume(5, {1: {9: disc((20, 20), 7)}}), scribbles=scribbles)
    assert set(np.unique(interpolate(annotation, method).labels)) == {0, 9}


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_flipping_the_slices_flips_the_result(method, two_labels):
    flipped = sparse_labels(two_labels.labels[:, :, ::-1].copy())
    assert (interpolate(flipped, method).labels == interpolate(two_labels, method).labels[:, :, ::-1]).mean() > 0.999


@pytest.mark.parametrize("method", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(2, 1, 1), (5, 1, 1), (3, 1, 7), (3, 7, 1)])
def test_tiny_slices(method, shape):
    labels = np.zeros(shape, np.int32)
    labels[[0, -1]] = 65535
    assert interpolate(sparse_labels(labels), method).labels.shape == shape


def test_memory_order_does_not_matter(two_labels):
    transposed = sparse_labels(np.asfortranarray(two_labels.labels))
    assert (interpolate(transposed, "contour").labels == interpolate(two_labels, "contour").labels).all()


def test_sources_are_the_nearest_known_slices():
    lower, upper = sources(np.array([[False, True, False, False, True, False]]))
    assert lower.tolist() == [[-1, 1, 1, 1, 4, 4]]
    assert upper.tolist() == [[1, 1, 4, 4, 4, -1]]


def test_where_carried_labels_meet_the_nearer_slice_wins():
    one, two = disc((24, 28), 6), disc((24, 28), 12)
    annotation = sparse_labels(volume(6, {0: {1: one}, 1: {2: two}}), partial=True)
    carried = carry(annotation, sources(annotation.known)[0])
    assert (carried[5] == np.where(two, 2, 0)).all()


def test_unknown_method_is_an_input_error(two_labels):
    with pytest.raises(InputError, match="nearest, shape, contour"):
        interpolate(two_labels, "spline")


def test_child_that_dies_or_hangs_at_work_is_an_error(two_labels):
    worker = ContourWorker(limit_s=0.2)
    os.kill(worker.start(), signal.SIGSTOP)
    with pytest.raises(ContourError, match="contour interpolation failed"):
        worker(two_labels.labels)


def test_child_that_crashed_is_replaced(two_labels):
    worker = ContourWorker()
    crashed = worker.start()
    os.kill(crashed, signal.SIGSEGV)
    with contextlib.suppress(ContourError):  # whether the crash comes before or during this call is open
        worker(two_labels.labels)
    assert (worker(two_labels.labels)[2] == two_labels.labels[2]).all()
    assert worker.start() != crashed


def test_child_ends_with_its_parent():
    code = "from sliceprop.engine.contour import ContourWorker; print(ContourWorker().start())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
