import numpy as np
import pytest

import balls
from sliceprop.errors import GeometryError, InputError, NoAnnotationError, TooLargeError
from sliceprop.tools import fast_marching as module
from sliceprop.tools.fast_marching import MarchConfig, fast_marching
from sliceprop.tools.seeds import Range

VOXEL_ML = np.prod(balls.SPACING) / 1000


def volume_ml(mask):
    return mask.sum() * VOXEL_ML


@pytest.mark.parametrize("affine", [balls.STRAIGHT, balls.OBLIQUE])
def test_balls_are_filled_and_not_left(affine):
    found = fast_marching(balls.scan(), balls.seeds(), affine=affine)
    for label in (1, 2):
        assert balls.dice(found == label, balls.truth() == label) > 0.93


@pytest.mark.parametrize("limit", [0.3, {1: 0.3, 2: 0.1}])
def test_a_structure_is_not_larger_than_its_volume(limit):
    found = fast_marching(balls.scan(), balls.seeds(), affine=balls.STRAIGHT, config=MarchConfig(limit))
    largest = limit if isinstance(limit, dict) else {1: limit, 2: limit}
    for label, most in largest.items():
        assert most - 2 * VOXEL_ML <= volume_ml(found == label) <= most + VOXEL_ML


def test_a_front_is_a_ball_in_millimetres():
    flat = np.zeros((41, 41, 15), np.float32)
    flat[0, 0, 0] = 1e-3
    seeds = np.zeros(flat.shape, np.int32)
    seeds[20, 20, 7] = 5
    limit = 4 / 3 * np.pi * 15**3 / 1000
    found = fast_marching(flat, seeds, affine=np.diag([1.0, 1, 3, 1]), config=MarchConfig(limit)) == 5
    i, j, k = np.nonzero(found)
    assert abs(np.ptp(i) / 2 - 15) < 1.5 and abs(np.ptp(j) / 2 - 15) < 1.5 and abs(np.ptp(k) * 3 / 2 - 15) < 1.5


def test_marks_of_others_and_of_background_are_walls():
    flat, seeds = np.zeros((30, 6, 6), np.float32), np.zeros((30, 6, 6), np.int32)
    flat[0, 0, 0] = 1e-3
    seeds[4, 3, 3], seeds[10], seeds[15, 3, 3], seeds[20] = 1, -1, 2, -1
    found = fast_marching(flat, seeds, affine=np.eye(4), config=MarchConfig(100))
    assert (found[2:10] == 1).all() and (found[11:20] == 2).all() and not found[20:].any() and not found[10].any()


def test_fronts_meet_half_way():
    flat, seeds = np.zeros((30, 6, 6), np.float32), np.zeros((30, 6, 6), np.int32)
    flat[0, 0, 0] = 1e-3
    seeds[5, 3, 3], seeds[24, 3, 3] = 3, 4
    found = fast_marching(flat, seeds, affine=np.eye(4), config=MarchConfig(100))
    assert (found[2:15] == 3).all() and (found[15:] == 4).all()


def test_a_range_keeps_fronts_out():
    config = MarchConfig(within=Range(None, 150))
    found = fast_marching(balls.scan(), balls.seeds(), affine=balls.STRAIGHT, config=config)
    seeds = balls.seeds()
    assert ((found == 2) == (seeds == 2)).all() and (found == 1).sum() > (seeds == 1).sum()


@pytest.mark.parametrize(
    ("seeds", "affine", "config", "error", "words"),
    [
        (np.minimum(balls.seeds(), 0), balls.STRAIGHT, {}, NoAnnotationError, "all seeds are of the background"),
        (balls.seeds() * 0, balls.STRAIGHT, {}, NoAnnotationError, "no seeds"),
        (balls.seeds(), balls.SHEARED, {}, GeometryError, "right angle"),
        (balls.seeds(), balls.STRAIGHT, {"within": Range(900)}, InputError, "no voxel lies at or above 900"),
        (np.arange(np.prod(balls.SHAPE)).reshape(balls.SHAPE) % 300, balls.STRAIGHT, {}, InputError, "at most"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(seeds, affine, config, error, words):
    with pytest.raises(error, match=words):
        fast_marching(balls.scan(), seeds, affine=affine, config=MarchConfig(**config))


def test_a_volume_beyond_the_scan_is_all_of_it():
    found = fast_marching(balls.scan(), balls.seeds(), affine=balls.STRAIGHT, config=MarchConfig(1e308))
    whole = fast_marching(balls.scan(), balls.seeds(), affine=balls.STRAIGHT, config=MarchConfig(1e3))
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("wrong", [{"max_volume_ml": 0}, {"max_volume_ml": {1: -2}}, {"tolerance": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        MarchConfig(**wrong)


def test_a_front_for_which_there_is_no_memory_is_refused(monkeypatch):
    monkeypatch.setattr(module, "BYTES_PER_REACHED_VOXEL", 1 << 50)
    with pytest.raises(TooLargeError, match="what the front may reach"):
        fast_marching(balls.scan(), balls.seeds(), affine=balls.STRAIGHT)
