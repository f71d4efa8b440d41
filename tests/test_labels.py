"""What counts as known, and which annotation is refused."""

import numpy as np
import pytest

from sliceprop.errors import InputError, ShapeError
from sliceprop.labels import SCRIBBLED_BACKGROUND, check_labels, sparse_labels


def painted() -> np.ndarray:
    labels = np.zeros((8, 10, 12), np.int32)
    labels[1, 2:5, 3:6] = 3
    labels[5, 2:5, 3:6] = 3
    labels[5, 6:9, 7:11] = 900
    return labels


def test_a_slice_with_any_label_is_known_for_all() -> None:
    annotation = sparse_labels(painted())
    assert annotation.values == (3, 900)
    assert annotation.annotated_slices == (1, 5)
    assert annotation.known_slices(0) == annotation.known_slices(1) == (1, 5)


def test_partial_slices_are_known_for_their_labels_only() -> None:
    annotation = sparse_labels(painted(), partial=True)
    assert annotation.known_slices(0) == (1, 5)
    assert annotation.known_slices(1) == (5,)


def test_a_listed_slice_without_label_is_known_background_and_others_do_not_count() -> None:
    annotation = sparse_labels(painted(), annotated_slices=[5, 7])
    assert annotation.annotated_slices == (5, 7)
    assert annotation.known_slices(0) == (5, 7)
    assert not annotation.labels[1].any()


def test_only_background_slices() -> None:
    annotation = sparse_labels(np.zeros((8, 10, 12), np.int32), annotated_slices=[2])
    assert annotation.annotated_slices == (2,)
    assert annotation.values == ()


def test_scribbles_are_not_annotation() -> None:
    scribbles = np.zeros((8, 10, 12), np.int32)
    scribbles[3, 4, 2:6], scribbles[3, 8, 2:6] = 44, 255
    annotation = sparse_labels(painted(), scribbles=scribbles)
    assert annotation.annotated_slices == (1, 5)
    assert annotation.values == (3, 44, 900)
    assert annotation.scribbles is not None
    assert (annotation.scribbles[3, 8, 2:6] == SCRIBBLED_BACKGROUND).all()


def test_a_label_with_the_value_of_the_background_scribble() -> None:
    labels, scribbles = painted(), np.zeros((8, 10, 12), np.int32)
    labels[labels == 3], scribbles[3, 3, 3] = 255, 255
    with pytest.raises(InputError, match="background scribble"):
        sparse_labels(labels, scribbles=scribbles)
    assert sparse_labels(labels, scribbles=scribbles, background_scribble=77).values == (255, 900)


@pytest.mark.parametrize("slices", [[8], [-1], [3, 99]])
def test_slices_out_of_range(slices: list[int]) -> None:
    with pytest.raises(InputError, match="out of range"):
        sparse_labels(painted(), annotated_slices=slices)


def test_both_ways_of_saying_what_is_known() -> None:
    with pytest.raises(InputError, match="not both"):
        sparse_labels(painted(), annotated_slices=[1], partial=True)


def test_annotation_across_the_slices_is_refused() -> None:
    labels = painted()
    labels[:, 2:9, 5] = 3
    with pytest.raises(InputError, match="more than one plane"):
        sparse_labels(labels)


def test_a_thin_structure_is_no_second_plane() -> None:
    labels = painted()
    for s in range(8):
        labels[s, 2:5, (s % 4) + 2] = 3
    assert len(sparse_labels(labels).annotated_slices) == 8


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((2, 2, 3)), ShapeError),
        (np.full((2, 2, 2), 0.5), InputError),
        (np.full((2, 2, 2), -1), InputError),
        (np.full((2, 2, 2), 65_536), InputError),
        (np.full((2, 2, 2), np.nan), InputError),
        (np.full((2, 2, 2), 1j), InputError),
    ],
)
def test_unusable_labels(array: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_labels(array, (2, 2, 2))


def test_whole_numbers_in_floats_and_booleans_are_fine() -> None:
    assert check_labels(np.full((2, 2, 2), 65_535.0), (2, 2, 2)).max() == 65_535
    assert check_labels(np.ones((2, 2, 2), bool), (2, 2, 2)).max() == 1


@pytest.mark.parametrize("planes", [[(1, 5)], [(1, 3), (1, 7)], [(1, 5), (2, 6)], [(2, 4), (2, 8)]])
def test_crossing_planes_are_refused_however_many(planes: list[tuple[int, int]]) -> None:
    labels = np.zeros((9, 12, 12), np.int32)
    labels[4, 2:10, 2:10] = 3
    for axis, index in planes:
        np.moveaxis(labels, axis, 0)[index, 1:8, 2:10] = 3
    with pytest.raises(InputError, match="more than one plane"):
        sparse_labels(labels)


def test_adjacent_slices_with_thin_tips_are_one_plane() -> None:
    labels = painted()
    labels[2], labels[6] = labels[1], labels[5]
    labels[2, 7, 1:11] = labels[6, 1, 1:11] = 44
    assert sparse_labels(labels).annotated_slices == (1, 2, 5, 6)


def test_rounding_of_scaled_values_is_forgiven() -> None:
    assert (check_labels(np.full((2, 2, 2), 3.00000006), (2, 2, 2)) == 3).all()


@pytest.mark.parametrize("value", [0, -4, 65_536])
def test_the_background_scribble_is_a_label_value(value: int) -> None:
    with pytest.raises(InputError, match="background scribble"):
        sparse_labels(painted(), background_scribble=value)
