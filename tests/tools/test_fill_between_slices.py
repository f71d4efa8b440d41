from itertools import pairwise

import numpy as np
import pytest

from sliceprop.errors import NoAnnotationError
from sliceprop.labels import sparse_labels
from sliceprop.tools.fill_between_slices import fill_between_slices


def cones():
    """Label 1 shrinks evenly along the slices 1 to 9, label 2 lies on the slices 3 to 5 only."""
    rows, columns = np.mgrid[:40, :40]
    labels = np.zeros((11, 40, 40), np.int32)
    for s in range(1, 10):
        labels[s][(rows - 14) ** 2 + (columns - 14) ** 2 < (12 - s) ** 2] = 1
    labels[3:6, 30:36, 30:36] = 2
    return labels


def test_a_prism_is_filled_exactly():
    prism = np.zeros_like(cones())
    prism[2:9, 5:20, 8:30] = 3
    painted = np.zeros_like(prism)
    painted[[2, 8]] = prism[[2, 8]]
    np.testing.assert_array_equal(fill_between_slices(sparse_labels(painted)), prism)


def test_a_cone_narrows_and_ends_where_it_was_painted():
    painted = np.zeros_like(cones())
    painted[[1, 9]] = cones()[[1, 9]]
    filled = fill_between_slices(sparse_labels(painted))
    areas = [np.count_nonzero(plane) for plane in filled]
    assert all(larger >= smaller for larger, smaller in pairwise(areas[1:10]))
    assert areas[1] > areas[5] > areas[9]
    assert not filled[0].any() and not filled[10].any()
    np.testing.assert_array_equal(filled[[1, 9]], painted[[1, 9]])


def test_each_label_ends_at_its_own_outermost_slice():
    painted = np.zeros_like(cones())
    painted[[1, 3, 5, 9]] = cones()[[1, 3, 5, 9]]
    filled = fill_between_slices(sparse_labels(painted))
    assert (filled[4] == 2).any() and not (filled[[0, 1, 2, 6, 7, 8, 9, 10]] == 2).any()


@pytest.mark.parametrize("slices", [[], [4]])
def test_less_than_two_slices_are_refused(slices):
    painted = np.zeros_like(cones())
    painted[slices] = cones()[slices]
    with pytest.raises(NoAnnotationError, match="two slices"):
        fill_between_slices(sparse_labels(painted))
