"""Synthetic scans of any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from phantoms import dice
from sliceprop.errors import InputError
from synthetic import thigh

SHAPE = (30, 48, 64)


def test_every_label_is_on_every_slice() -> None:
    case = thigh(SHAPE, 4)
    assert case.image.array.shape == case.reference.shape == SHAPE
    assert all(set(np.unique(plane)) == {0, 1, 2, 3, 4} for plane in case.reference)
    np.testing.assert_allclose(case.spacing, (4, 4, 3))


def test_however_many_labels_cover_the_same() -> None:
    four = thigh(SHAPE, 4).reference
    np.testing.assert_array_equal(thigh(SHAPE, 1).reference, four > 0)
    many = thigh(SHAPE, 12).reference
    assert many.max() == 12
    np.testing.assert_array_equal((many + 2) // 3, four)


def test_neighbouring_slices_are_alike_and_shapes_change() -> None:
    reference = thigh(SHAPE, 4).reference > 0
    alike = [dice(one, other) for one, other in pairwise(reference)]
    assert min(alike) > 0.8 and max(alike) < 1
    assert dice(reference[0], reference[-1]) < 0.8


def test_labels_fit_the_image_in_any_size() -> None:
    """Muscle is dark beside the fat around it, wherever the grid puts it."""
    for shape in (SHAPE, (7, 100, 80)):
        case = thigh(shape, 1)
        muscle = case.image.array[case.reference > 0]
        assert 250 < np.median(muscle) < 450
        assert (muscle < 650).mean() > 0.9


def test_muscles_are_cut_into_equal_numbers() -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        thigh(SHAPE, 6)
