"""Measures on shapes with known answers, and beside MONAI's."""

import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from scipy.spatial.distance import cdist

from sliceprop.engine.metrics import average_hausdorff_mm, dice, evaluate, hausdorff95_mm, surface_distances_mm
from sliceprop.errors import ShapeError

SPACING = (4.0, 1.5, 0.5)


def box(shape, *spans):
    mask = np.zeros(shape, np.int32)
    mask[tuple(slice(*span) for span in spans)] = 1
    return mask


def ball(shape, centre, radius):
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2).astype(np.int32)


def surface_voxels(mask):
    """Indices of the voxels with a face on the outside, found by looking at all six neighbours."""
    outside = ~np.pad(mask, 1)
    neighbours = [np.roll(outside, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (1, -1)]
    return np.argwhere(mask & np.any(neighbours, axis=0))


def test_equal_maps_are_perfect():
    labels = box((6, 8, 9), (1, 5), (2, 7), (3, 8))
    assert dice(labels, labels, 1) == 1
    assert average_hausdorff_mm(labels, labels, 1, SPACING) == 0
    assert hausdorff95_mm(labels, labels, 1, SPACING) == 0


def test_dice_of_half_overlapping_boxes():
    left, right = box((5, 5, 12), (1, 4), (1, 4), (0, 4)), box((5, 5, 12), (1, 4), (1, 4), (2, 6))
    assert dice(left, right, 1) == 0.5


@pytest.mark.parametrize(("axis", "spacing_mm"), enumerate(SPACING))
def test_plane_moved_along_an_axis_is_that_many_mm_away(axis, spacing_mm):
    here, there = np.zeros((9, 9, 9), np.int32), np.zeros((9, 9, 9), np.int32)
    np.moveaxis(here, axis, 0)[2], np.moveaxis(there, axis, 0)[5] = 1, 1
    assert average_hausdorff_mm(here, there, 1, SPACING) == pytest.approx(3 * spacing_mm)
    assert hausdorff95_mm(here, there, 1, SPACING) == pytest.approx(3 * spacing_mm)


def test_average_hausdorff_weighs_both_directions_equally():
    point, line = box((1, 1, 20), (0, 1), (0, 1), (0, 1)), box((1, 1, 20), (0, 1), (0, 1), (0, 11))
    assert average_hausdorff_mm(point, line, 1, (1, 1, 1)) == pytest.approx((0 + 5) / 2)
    assert hausdorff95_mm(point, line, 1, (1, 1, 1)) == pytest.approx(9.5)


def test_concentric_balls_are_their_radii_apart():
    small, large = ball((41, 41, 41), (20, 20, 20), 10), ball((41, 41, 41), (20, 20, 20), 15)
    assert average_hausdorff_mm(small, large, 1, (2, 2, 2)) == pytest.approx(10, abs=0.7)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_distances_are_those_between_all_pairs_of_surface_voxels(spacing):
    """One of the balls is cut by the border of the array, which counts as its surface."""
    prediction, reference = ball((20, 24, 28), (9, 11, 13), 7), ball((20, 24, 28), (17, 12, 12), 6)
    pairs = cdist(*(surface_voxels(labels == 1) * spacing for labels in (prediction, reference)))
    there, back = surface_distances_mm(prediction == 1, reference == 1, spacing)
    assert np.sort(there) == pytest.approx(np.sort(pairs.min(axis=1)), rel=1e-6)
    assert np.sort(back) == pytest.approx(np.sort(pairs.min(axis=0)), rel=1e-6)
    average = (pairs.min(axis=1).mean() + pairs.min(axis=0).mean()) / 2
    assert average_hausdorff_mm(prediction, reference, 1, spacing) == pytest.approx(average, rel=1e-6)
    percentiles = [np.percentile(pairs.min(axis=axis), 95) for axis in (0, 1)]
    assert hausdorff95_mm(prediction, reference, 1, spacing) == pytest.approx(max(percentiles), rel=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_agrees_with_the_measures_of_monai(spacing):
    prediction, reference = ball((20, 24, 28), (9, 11, 13), 7), ball((20, 24, 28), (11, 12, 12), 6)
    p, r = (torch.from_numpy(np.stack([x == 0, x == 1]))[None].float() for x in (prediction, reference))
    directed = [compute_average_surface_distance(a, b, spacing=spacing).item() for a, b in ((p, r), (r, p))]
    assert average_hausdorff_mm(prediction, reference, 1, spacing) == pytest.approx(sum(directed) / 2, rel=1e-5)
    expected = compute_hausdorff_distance(p, r, percentile=95, spacing=spacing).item()
    assert hausdorff95_mm(prediction, reference, 1, spacing) == pytest.approx(expected, rel=1e-5)
    assert dice(prediction, reference, 1) == pytest.approx(compute_dice(p, r, include_background=False).item())


def test_label_missing_in_both_has_no_measure_and_in_one_has_dice_zero():
    empty, filled = np.zeros((3, 4, 5), np.int32), box((3, 4, 5), (0, 2), (0, 2), (0, 2))
    assert np.isnan(dice(empty, empty, 1))
    assert dice(empty, filled, 1) == dice(filled, empty, 1) == 0
    assert np.isnan(average_hausdorff_mm(empty, filled, 1, SPACING))
    assert np.isnan(hausdorff95_mm(filled, empty, 1, SPACING))


def test_evaluate_is_plain_json_and_averages_over_labels():
    reference = box((6, 8, 9), (1, 5), (2, 7), (3, 8)) * 7
    prediction = reference.copy()
    prediction[0, 0, 0] = 300
    result = json.loads(json.dumps(evaluate(prediction, reference, SPACING), allow_nan=False))
    assert result["whole"]["labels"] == {
        "7": {"dice": 1.0, "average_hausdorff_mm": 0.0, "hausdorff95_mm": 0.0},
        "300": {"dice": 0.0, "average_hausdorff_mm": None, "hausdorff95_mm": None},
    }
    assert result["whole"]["mean"] == {"dice": 0.5, "average_hausdorff_mm": 0.0, "hausdorff95_mm": 0.0}
    assert set(result) == {"whole"}


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_annotated_slices_are_left_out_on_request(slice_axis):
    reference = np.moveaxis(box((5, 6, 7), (0, 5), (1, 5), (1, 6)), 0, slice_axis)
    prediction = np.zeros_like(reference)
    np.moveaxis(prediction, slice_axis, 0)[2] = np.moveaxis(reference, slice_axis, 0)[2]
    result = evaluate(prediction, reference, (1, 1, 1), slice_axis=slice_axis, annotated_slices=[2])
    assert result["whole"]["mean"]["dice"] == pytest.approx(2 / 6)
    assert result["without_annotated"]["labels"]["1"]["dice"] == 0


def test_leaving_slices_out_makes_no_new_surface():
    reference = box((9, 20, 20), (0, 9), (4, 16), (4, 16))
    prediction = reference.copy()
    prediction[4] = box((20, 20), (8, 12), (8, 12))
    result = evaluate(prediction, reference, (1, 1, 1), slice_axis=0, annotated_slices=[3, 4, 5])
    assert result["without_annotated"]["mean"] == {"dice": 1.0, "average_hausdorff_mm": 0.0, "hausdorff95_mm": 0.0}
    assert result["whole"]["mean"]["average_hausdorff_mm"] > 0


def test_nothing_to_measure():
    empty = np.zeros((3, 4, 5), np.int32)
    mean = {"dice": None, "average_hausdorff_mm": None, "hausdorff95_mm": None}
    assert evaluate(empty, empty, SPACING) == {"whole": {"labels": {}, "mean": mean}}


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match="differ in shape"):
        evaluate(np.zeros((3, 4, 5), np.int32), np.zeros((3, 5, 4), np.int32), SPACING)
