import numpy as np
import pytest

import balls
from sliceprop.errors import GeometryError, InputError, NoAnnotationError, ShapeError
from sliceprop.tools import grow_from_seeds as module
from sliceprop.tools.grow_from_seeds import GrowConfig, grow_from_seeds
from sliceprop.tools.seeds import BACKGROUND, Range


@pytest.mark.parametrize("affine", [balls.STRAIGHT, balls.OBLIQUE])
def test_two_balls_are_found_from_a_stroke_each_and_background(affine):
    grown = grow_from_seeds(balls.scan(), balls.seeds(), affine=affine)
    for label in (1, 2):
        assert balls.dice(grown == label, balls.truth() == label) > 0.97
    assert set(np.unique(grown)) == {0, 1, 2}


def test_large_scans_are_divided_from_coarse_to_fine(monkeypatch):
    monkeypatch.setattr(module, "FINE_VOXELS", 8000)
    seeds = balls.seeds()
    seeds[20, 18, 7] = 2
    for within in (Range(), Range(50, None)):
        grown = grow_from_seeds(balls.scan(), seeds, affine=balls.OBLIQUE, config=GrowConfig(within))
        for label in (1, 2):
            assert balls.dice(grown == label, balls.truth() == label) > 0.95
        assert grown[20, 18, 7] == 2, "a seed beside others that the coarse grid does not see"
        assert within == Range() or not grown[(balls.scan() < 50) & (seeds == 0)].any()


def test_smoothing_withstands_noise():
    noisy = balls.scan(noise=60)

    def found(smoothing_mm):
        config = GrowConfig(smoothing_mm=smoothing_mm)
        return balls.dice(
            grow_from_seeds(noisy, balls.seeds(), affine=balls.STRAIGHT, config=config) > 0, balls.truth() > 0
        )

    assert found(1) > found(0) + 0.1


def test_seeds_keep_their_label_where_the_scan_says_otherwise():
    seeds = balls.seeds()
    seeds[12, 18, 7], seeds[3, 3, 7] = BACKGROUND, 2
    grown = grow_from_seeds(balls.scan(), seeds, affine=balls.STRAIGHT)
    assert grown[12, 18, 7] == 0 and grown[3, 3, 7] == 2


def test_values_of_labels_do_not_matter():
    seeds = balls.seeds()
    renamed = np.where(seeds == 1, 60_000, np.where(seeds == 2, 7, seeds))
    grown = grow_from_seeds(balls.scan(), renamed, affine=balls.STRAIGHT)
    expected = grow_from_seeds(balls.scan(), seeds, affine=balls.STRAIGHT)
    np.testing.assert_array_equal(grown == 60_000, expected == 1)
    np.testing.assert_array_equal(grown == 7, expected == 2)


def test_nothing_grows_into_other_intensities_or_beyond_the_box():
    seeds = balls.seeds(background=False)
    grown = grow_from_seeds(balls.scan(), seeds, affine=balls.STRAIGHT, config=GrowConfig(Range(50, 150)))
    free = grown * (seeds == 0)
    assert (grown == 1).any() and not free[(balls.scan() < 50) | (balls.scan() > 150)].any()
    box = grow_from_seeds(balls.scan(), seeds, affine=balls.STRAIGHT, config=GrowConfig(margin=0))
    assert not box[..., :6].any() and not box[..., 9:].any() and box[..., 6:9].any()


def test_a_margin_beyond_the_scan_is_all_of_it():
    grown = [
        grow_from_seeds(balls.scan(), balls.seeds(), affine=balls.STRAIGHT, config=GrowConfig(margin=margin))
        for margin in (1e308, 100)
    ]
    np.testing.assert_array_equal(*grown)


def test_locality_favours_the_nearer_seed_on_a_flat_scan():
    flat, seeds = np.zeros((30, 9, 9), np.float32), np.zeros((30, 9, 9), np.int32)
    flat[0, 0, 0] = 1
    seeds[2, 4, 4], seeds[26, 4, 4] = 1, 2
    grown = grow_from_seeds(flat, seeds, affine=np.eye(4), config=GrowConfig(margin=1, locality_per_mm=0.1))
    assert (grown[:14, 4, 4] == 1).all() and (grown[15:, 4, 4] == 2).all()


@pytest.mark.parametrize(
    ("seeds", "affine", "error", "words"),
    [
        (np.zeros(balls.SHAPE, int), balls.STRAIGHT, NoAnnotationError, "no seeds"),
        (np.maximum(balls.seeds(), 0) // 2, balls.STRAIGHT, NoAnnotationError, "all seeds are of label 1"),
        (np.minimum(balls.seeds(), 0), balls.STRAIGHT, NoAnnotationError, "all seeds are of the background"),
        (balls.seeds()[1:], balls.STRAIGHT, ShapeError, "same grid"),
        (balls.seeds() * 0.5, balls.STRAIGHT, InputError, "whole numbers"),
        (balls.seeds(), balls.SHEARED, GeometryError, "18.4 degrees"),
        (np.arange(np.prod(balls.SHAPE)).reshape(balls.SHAPE) % 300, balls.STRAIGHT, InputError, "at most 254"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(seeds, affine, error, words):
    with pytest.raises(error, match=words):
        grow_from_seeds(balls.scan(), seeds, affine=affine)


@pytest.mark.parametrize("wrong", [{"margin": -1}, {"locality_per_mm": float("nan")}, {"smoothing_mm": -1}])
def test_settings_are_checked(wrong):
    with pytest.raises(InputError):
        GrowConfig(**wrong)
