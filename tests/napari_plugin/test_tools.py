"""The side tools on shapes with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from sliceprop.errors import InputError
from sliceprop.napari_plugin.tools import dice_per_label, parse_slices, remove_small_objects


def test_slices_by_text() -> None:
    assert parse_slices("3, 5-7,9 - 9") == {3, 5, 6, 7, 9}
    for text in ("", "a", "3-", "-2", "3;4"):
        with pytest.raises(InputError):
            parse_slices(text)


def test_small_objects_go_per_label_and_per_slice() -> None:
    labels = np.zeros((4, 10, 10), np.int32)
    labels[:, 1:4, 1:4] = 1
    labels[0, 6, 6] = labels[1, 7, 7] = 1
    labels[2, 1:4, 4] = 2
    kept, removed = remove_small_objects(labels, 4)
    assert removed == 3 and kept.sum() == 4 * 9
    kept, removed = remove_small_objects(labels, 2, corners=True)
    assert removed == 0
    kept, removed = remove_small_objects(labels, 10, slice_axis=0)
    assert removed == 7 and not kept.any()


def test_dice_counts_only_where_asked() -> None:
    one, other = np.zeros((2, 4, 4), np.int32), np.zeros((2, 4, 4), np.int32)
    one[0, :2], other[0, 1:3] = 3, 3
    one[1], other[1] = 5, 3
    counted = np.zeros(one.shape, bool)
    counted[0] = True
    assert dice_per_label(one, other, counted) == {3: 0.5}
    assert dice_per_label(one, other, ~counted) == {3: 0.0, 5: 0.0}
