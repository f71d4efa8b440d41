"""The judge of estimated quality, on estimates whose worth is known."""

import numpy as np
import pytest

from quality import Seen, _hit, _patient, _surface_px, estimate, fit
from sliceprop.engine.filling import Filled


def seen(volume: str, error: np.ndarray, signs: np.ndarray, *, two_sided: bool = True) -> Seen:
    n = len(error)
    surface = np.full(n, 1.0)
    return Seen(volume, signs, np.full(n, two_sided), 1 - error, surface, np.zeros(n, int), np.ones(n), [(1.0, 1.0)])


@pytest.mark.parametrize("two_sided", [True, False])
def test_weights_that_made_the_errors_are_found(two_sided: bool) -> None:
    random = np.random.default_rng(0)
    volumes = []
    for name in "ab":
        signs = random.uniform(0, 0.5, (200, 3))
        volumes.append(seen(name, 0.1 + signs @ [0.5, 0.3, 0.2], signs, two_sided=two_sided))
    found = fit(volumes, two_sided=two_sided)
    assert np.allclose(found, [0.1, 0.5, 0.3, 0.2], atol=0.01)
    unused = np.zeros(4)
    guess = estimate(volumes[0], *((found, unused) if two_sided else (unused, found)))
    assert np.allclose(guess, volumes[0].dice, atol=0.01)


def test_a_large_volume_does_not_outvote_a_small_one() -> None:
    """Two volumes that contradict each other: the least absolute error lies between them, wherever most slices are."""
    large = seen("a", np.full(900, 0.2), np.zeros((900, 3)))
    small = seen("b", np.full(10, 0.6), np.zeros((10, 3)))
    twin = seen("c", np.full(10, 0.6), np.zeros((10, 3)))
    assert fit([large, small, twin], two_sided=True)[0] == pytest.approx(0.6, abs=0.01)


def test_doubt_in_the_right_place_holds_all_errors() -> None:
    reference = np.zeros((3, 20, 20), np.int32)
    reference[:, 5:15, 5:15] = 1
    labels, doubt = reference.copy(), np.zeros(reference.shape, np.float32)
    labels[1, 5, 5:15] = 0
    doubt[1, 5, 5:15] = 1
    right = Filled(labels, labels, labels, doubt)
    wrong = Filled(labels, labels, labels, doubt[:, ::-1].copy())
    assert _hit(right, reference, [0, 2]) == (1.0, pytest.approx(0.5))  # 5 % of the box are 5 voxels, 10 are wrong
    assert _hit(wrong, reference, [0, 2])[0] == 0


def test_border_distance_of_two_shifted_squares() -> None:
    square = np.zeros((30, 30), bool)
    square[8:20, 8:20] = True
    assert _surface_px(square, square) == 0
    assert 0 < _surface_px(square, np.roll(square, 2, axis=1)) < 2
    assert np.isnan(_surface_px(square, np.zeros_like(square)))


def test_scans_of_one_patient_are_told_by_their_names() -> None:
    assert _patient("lumbar_muscle_fat_tum01") == _patient("lumbar_muscle_water_tum01")
    assert _patient("lumbar_disc_mr_11") != _patient("lumbar_vertebra_mr_vb1_10")
