import tracemalloc

import numpy as np
import pytest

from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.tools import threshold_islands as module
from sliceprop.tools.presets import PRESETS
from sliceprop.tools.seeds import Range
from sliceprop.tools.threshold_islands import threshold_islands

AIR, LUNG = -1000, -800
BODY, LUNGS = Range(-200, 200), Range(*PRESETS["lung"])


def chest():
    """Two lungs of different size in a body, air around it, and a speck of fat in the air."""
    scan = np.full((40, 30, 10), AIR, np.int16)
    scan[4:36, 4:26] = 40
    scan[8:16, 8:20, 2:8], scan[22:32, 8:20, 2:8] = LUNG, LUNG
    scan[0, 0, 0] = -100
    return scan


def test_the_largest_island_is_the_larger_lung_not_the_air():
    found = threshold_islands(chest(), {3: Range(-900, -500)})
    expected = np.zeros(found.shape, np.int32)
    expected[22:32, 8:20, 2:8] = 3
    np.testing.assert_array_equal(found, expected)


def test_marked_islands_are_kept_each_for_its_label():
    seeds = np.zeros(chest().shape, np.int32)
    seeds[10, 10, 5], seeds[30, 10, 5], seeds[0, 20, 5] = 1, 2, -1
    found = threshold_islands(chest(), {1: LUNGS, 2: LUNGS}, keep="selected", seeds=seeds)
    assert (found[8:16, 8:20, 2:8] == 1).all() and (found[22:32, 8:20, 2:8] == 2).all()
    assert np.count_nonzero(found) == 8 * 12 * 6 + 10 * 12 * 6


def test_marks_of_several_labels_divide_an_island_that_runs_from_one_into_the_other():
    scan = np.zeros((40, 10, 6), np.int16)
    scan[5:35, 2:8, 1:5] = 100
    seeds = np.zeros(scan.shape, np.int32)
    seeds[10, 5, 3], seeds[20, 5, 3] = 1, 2
    ranges = {1: Range(50), 2: Range(60)}
    found = threshold_islands(scan, ranges, keep="selected", seeds=seeds, spacing=(2.0, 1.0, 1.0))
    assert (found[5:15, 2:8, 1:5] == 1).all() and (found[16:35, 2:8, 1:5] == 2).all() and not found[scan == 0].any()
    seeds[30, 5, 3] = -1
    found = threshold_islands(scan, ranges, keep="selected", seeds=seeds)
    assert (found[16:25, 2:8, 1:5] == 2).all() and not found[26:].any(), "the background's mark cuts its part away"


def test_in_large_scans_marks_divide_islands_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_VOXELS", 1)
    scan = np.full((41, 11, 7), 100, np.int16)
    seeds = np.zeros(scan.shape, np.int32)
    seeds[10, 5, 3], seeds[30, 5, 3] = 1, 2
    found = threshold_islands(scan, {1: Range(50), 2: Range(60)}, keep="selected", seeds=seeds)
    assert (found[:19] == 1).all() and (found[22:] == 2).all()


def test_all_islands_and_open_ends():
    assert (threshold_islands(chest(), {1: Range(upper=-500)}, keep="all") == (chest() <= -500)).all()
    assert (threshold_islands(chest(), {1: Range(lower=0)}, keep="all") == (chest() >= 0)).all()


def test_the_ends_belong_to_the_range():
    found = threshold_islands(chest(), {1: Range(LUNG, LUNG)}, keep="all")
    assert (found == (chest() == LUNG)).all()


def test_a_voxel_in_two_ranges_goes_to_the_lower_label():
    found = threshold_islands(chest(), {2: Range(-850, 100), 1: BODY}, keep="all")
    assert (found[chest() == 40] == 1).all() and (found[chest() == LUNG] == 2).all()


def test_many_ranges_take_no_more_memory_than_a_few(monkeypatch):
    scan = np.random.default_rng(0).integers(0, 100, (64, 64, 32)).astype(np.int16)
    peaks = []
    for n_ranges in (2, module.MOST_RANGES):
        tracemalloc.start()
        found = threshold_islands(scan, {i + 1: Range(3 * i, 3 * i + 2) for i in range(n_ranges)}, keep="all")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        np.testing.assert_array_equal(found, np.where(scan < 3 * n_ranges, scan // 3 + 1, 0))
    assert peaks[1] < 1.2 * peaks[0]


def test_islands_that_touch_by_an_edge_only_are_two():
    scan = np.zeros((4, 4, 2), np.int16)
    scan[:2, :2], scan[2:, 2:3] = 10, 10
    assert np.count_nonzero(threshold_islands(scan, {1: Range(5)})) == 8


SEED = np.zeros(chest().shape, np.int32)
SEED[0, 0, 5] = 1


@pytest.mark.parametrize(
    ("ranges", "options", "error", "words"),
    [
        ({1: Range(3000)}, {}, InputError, "values are -1000 to 40"),
        ({1: Range()}, {}, InputError, "label 1: give a lower threshold"),
        ({1: BODY}, {"keep": "selected"}, NoAnnotationError, "mark the islands"),
        ({2: BODY}, {"keep": "selected", "seeds": SEED}, NoAnnotationError, "label 2: no voxel is marked"),
        ({1: BODY}, {"keep": "selected", "seeds": SEED}, InputError, "no mark lies within"),
        ({1: BODY}, {"keep": "some"}, InputError, "must be one of"),
        (dict.fromkeys(range(1, 33), BODY), {}, InputError, "32 ranges"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(ranges, options, error, words):
    with pytest.raises(error, match=words):
        threshold_islands(chest(), ranges, **options)


@pytest.mark.parametrize("ends", [(5, 4), (float("nan"), None)])
def test_ranges_are_checked(ends):
    with pytest.raises(InputError):
        Range(*ends)
