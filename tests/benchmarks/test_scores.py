"""Measures of a volume, on known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cases import Case
from scores import score, scored_slices
from sliceprop.io import Image

ANNOTATED = [2, 5]


def block() -> Case:
    """Label 1 fills 4x4 pixels of slices 2 to 7 of 10, label 2 one row beside it on slices 2 to 5; 3 mm slices."""
    labels = np.zeros((10, 12, 12), np.int32)
    labels[2:8, 4:8, 4:8] = 1
    labels[2:6, 9, 4:8] = 2
    return Case("block", Image(labels.astype(np.float32), np.diag([3.0, 1.0, 1.0, 1.0])), labels, 0)


def test_the_reference_scores_best() -> None:
    case = block()
    result = score(case, case.reference, ANNOTATED)
    assert (result["dice"], result["dice_volume"], result["overshoot"], result["lost_labels"]) == (1, 1, 0, 0)
    assert (result["average_hausdorff_mm"], result["hausdorff95_mm"]) == (0, 0)


def test_only_slices_that_were_not_annotated_count_in_dice() -> None:
    case = block()
    assert scored_slices(case, ANNOTATED) == [3, 4, 6, 7]
    predicted = case.reference.copy()
    predicted[3] = 0  # of label 1 a quarter of the scored voxels, of label 2 half of them
    result = score(case, predicted, ANNOTATED)
    first, second = 2 * 3 / 7, 2 * 1 / 3
    assert result["dice"] == pytest.approx((first + second) / 2, abs=1e-5)
    assert json.loads(result["dice_labels"]) == pytest.approx({"1": first, "2": second}, abs=1e-5)
    assert result["dice_volume"] == pytest.approx((2 * 5 / 11 + 2 * 3 / 7) / 2, abs=1e-5)


def test_overshoot_is_what_lies_past_the_ends() -> None:
    case = block()
    predicted = case.reference.copy()
    predicted[8, 4:8, 4:8] = 1
    result = score(case, predicted, ANNOTATED)
    assert result["overshoot"] == pytest.approx((1 / 6 + 0) / 2, abs=1e-5)
    assert result["dice"] == 1  # outside the labelled range
    assert result["hausdorff95_mm"] == pytest.approx((3 + 0) / 2)  # one slice of 3 mm for one of the two labels


def test_a_lost_label_has_no_distance_and_no_dice() -> None:
    case = block()
    result = score(case, np.where(case.reference == 1, 1, 0).astype(np.int32), ANNOTATED)
    assert (result["lost_labels"], result["average_hausdorff_mm"], result["dice"]) == (1, 0, 0.5)


def test_labels_that_nobody_gave_are_background() -> None:
    case = block()
    predicted = np.where(case.reference == 0, 9, case.reference).astype(np.int32)
    assert score(case, predicted, ANNOTATED) == score(case, case.reference, ANNOTATED)
