"""The simulated user, on mistakes that are known."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from marks import BRUSH_PX, LONGEST_PX, PLANES, PLANES_APART, centre_line, draw, find_mistakes
from sliceprop.config import BACKGROUND_SCRIBBLE

SHAPE = (12, 40, 50)


def empty() -> np.ndarray:
    return np.zeros(SHAPE, np.int32)


def test_the_largest_mistakes_are_found_apart_from_each_other() -> None:
    reference, predicted = empty(), empty()
    for s, width in {2: 10, 3: 20, 4: 18, 6: 12, 9: 4}.items():
        reference[s, 10:14, 5 : 5 + width] = 3
    found = find_mistakes(predicted, reference, PLANES["slices"], 3)
    assert [mistake.index for mistake in found] == [3, 6, 9]
    assert PLANES_APART == 3
    np.testing.assert_array_equal(found[0].region, reference[3] == 3)


def test_a_mistake_has_one_true_label() -> None:
    reference, predicted = empty(), np.full(SHAPE, 7, np.int32)
    reference[5, :, :30], reference[5, :, 30:] = 1, 2
    predicted[np.arange(12) != 5] = 0
    (mistake,) = find_mistakes(predicted, reference, PLANES["slices"], 5)
    np.testing.assert_array_equal(mistake.region, reference[5] == 1)


def test_nothing_is_wrong_with_the_truth() -> None:
    reference = empty()
    reference[3:6, 4:9, 4:9] = 1
    assert find_mistakes(reference, reference, PLANES["slices"], 3) == []


def test_a_line_runs_along_the_middle_and_stays_inside() -> None:
    region = np.zeros((40, 120), bool)
    region[10:17, 10:110] = True
    line = centre_line(region)
    rows, columns = np.nonzero(line)
    assert rows.min() >= 11 and rows.max() <= 15
    assert 0.8 * LONGEST_PX <= np.ptp(columns) + 1 <= LONGEST_PX + BRUSH_PX - 1
    assert abs(columns.mean() - 59.5) < 3
    assert ndimage.label(line, np.ones((3, 3)))[1] == 1


def test_a_line_follows_a_bend() -> None:
    rows, columns = np.mgrid[:60, :60]
    radius = np.hypot(rows - 30, columns - 30)
    region = (radius > 16) & (radius < 21) & (rows < 40)
    line = centre_line(region)
    assert not (line & ~region).any()
    assert line.sum() > LONGEST_PX


def test_a_single_voxel_can_be_marked() -> None:
    region = np.zeros((5, 5), bool)
    region[2, 4] = True
    np.testing.assert_array_equal(centre_line(region), region)


def test_scribbles_hold_the_truth_also_across_the_slices() -> None:
    reference, predicted = empty(), empty()
    reference[1:9, 10:30, 20:26] = 2  # missed
    predicted[3:10, 32:38, 40] = 1  # not there
    scribbles, regions = draw(find_mistakes(predicted, reference, PLANES["cross"], 50), reference)
    assert set(np.unique(scribbles)) == {0, 2, BACKGROUND_SCRIBBLE}
    assert (reference[scribbles == 2] == 2).all() and (reference[scribbles == BACKGROUND_SCRIBBLE] == 0).all()
    assert (predicted != reference)[scribbles > 0].all() and regions[scribbles > 0].all()
    across = find_mistakes(predicted, reference, PLANES["cross"], 1)
    drawn, _ = draw(across, reference)
    assert across[0].axis == 2 and np.flatnonzero(drawn.any(axis=(0, 1))).tolist() == [across[0].index]
