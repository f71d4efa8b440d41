"""Scans and references as they are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cases import Case, load, pad_and_crop
from layouts import Source
from phantoms import moving_disc
from sliceprop.io import Image, write_image

RAS = {"sagittal": 0, "coronal": 1, "axial": 2}


def phantom() -> Case:
    image, labels = moving_disc()
    return Case("phantom", Image(image, np.diag([4.0, 1.0, 2.0, 1.0])), labels, 0)


def written(folder: Path, image: Image, labels: np.ndarray, **facts: object) -> Source:
    write_image(folder / "image.nii.gz", image.array, image)
    write_image(folder / "labels.nii.gz", labels, image)
    return Source("volume", folder / "image.nii.gz", folder / "labels.nii.gz", **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", RAS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_anatomical_axes_are_found_in_any_orientation(tmp_path: Path, axis: str, order: tuple[int, ...]) -> None:
    affine = np.zeros((4, 4))
    for n, target in enumerate(order):
        affine[target, n] = -1.5
    affine[3, 3] = 1
    array = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    case = load(written(tmp_path, Image(array, affine), array % 3), axis)
    assert order[case.slice_axis] == RAS[axis]


def test_the_data_set_knows_its_axis_unless_another_is_asked_for(tmp_path: Path) -> None:
    case = phantom()
    source = written(tmp_path, case.image, case.reference, slice_axis=1)
    assert load(source).slice_axis == 1
    assert load(source, "2").slice_axis == 2
    assert load(written(tmp_path, case.image, case.reference)).slice_axis == 0  # across the thickest slices


def test_labels_are_numbered_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    case = phantom()
    renumbered = load(written(tmp_path, case.image, case.reference, values=(7, 1)), "0").reference
    np.testing.assert_array_equal(renumbered == 1, case.reference == 7)
    np.testing.assert_array_equal(renumbered == 2, case.reference == 1)
    ascending = load(written(tmp_path, case.image, case.reference), "0").reference
    np.testing.assert_array_equal(ascending == 1, case.reference == 1)
    np.testing.assert_array_equal(ascending == 2, case.reference == 7)


def test_spacing_follows_the_slices() -> None:
    case = phantom()
    assert case.spacing == (4, 1, 2)
    assert Case("", case.image, case.reference, 2).spacing == (2, 4, 1)


def test_crops_move_each_slice_of_scan_and_reference_together() -> None:
    case, pad_px = phantom(), 6
    moved = pad_and_crop(case, pad_px, seed=3)
    assert moved.reference.shape == case.reference.shape
    shifts = []
    for s, (before, after) in enumerate(zip(case.image.array, moved.image.array, strict=True)):
        fits = [
            (row, column)
            for row in range(-pad_px, pad_px + 1)
            for column in range(-pad_px, pad_px + 1)
            if np.array_equal(*overlapping(before, after, row, column))
        ]
        (shift,) = fits
        np.testing.assert_array_equal(*overlapping(case.reference[s], moved.reference[s], *shift))
        shifts.append(shift)
    assert len(set(shifts)) > 5  # concordance is broken


def test_crops_depend_on_seed_and_name_only() -> None:
    case = phantom()
    np.testing.assert_array_equal(pad_and_crop(case, 5, 1).image.array, pad_and_crop(case, 5, 1).image.array)
    other = Case("other", case.image, case.reference, 0)
    assert not np.array_equal(pad_and_crop(case, 5, 1).image.array, pad_and_crop(case, 5, 2).image.array)
    assert not np.array_equal(pad_and_crop(case, 5, 1).image.array, pad_and_crop(other, 5, 1).image.array)


def overlapping(before: np.ndarray, after: np.ndarray, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """What both show if `after` is `before` moved up by `row` and left by `column` pixels."""
    height, width = before.shape
    return (
        before[max(row, 0) : height + min(row, 0), max(column, 0) : width + min(column, 0)],
        after[max(-row, 0) : height + min(-row, 0), max(-column, 0) : width + min(-column, 0)],
    )
