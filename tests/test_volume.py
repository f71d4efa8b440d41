"""The canonical frame, and what is refused at the border."""

import numpy as np
import pytest

from sliceprop.errors import GeometryError, InputError, ShapeError
from sliceprop.volume import (
    Volume,
    check_affine,
    check_image,
    normalise_intensity,
    resolve_slice_axis,
    voxel_spacing,
)

AFFINE = np.array([[0.0, 2.0, 0.0, 5.0], [-1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 4.0, 11.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_canonical_and_back_is_exact(axis: int) -> None:
    array = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    volume = Volume(np.moveaxis(array, axis, 0), axis, AFFINE)
    assert volume.shape[0] == array.shape[axis]
    assert np.array_equal(volume.to_original(volume.to_canonical(array)), array)


@pytest.mark.parametrize(("axis", "spacing"), [(0, (1, 2, 4)), (1, (2, 1, 4)), (2, (4, 1, 2))])
def test_spacing_follows_the_axes(axis: int, spacing: tuple[float, float, float]) -> None:
    assert voxel_spacing(AFFINE) == (1, 2, 4)
    assert Volume(np.zeros((2, 2, 2), np.float32), axis, AFFINE).spacing == spacing


def test_slice_centre_in_millimetres() -> None:
    volume = Volume(np.zeros((4, 3, 5), np.float32), 2, AFFINE)
    assert np.allclose(volume.slice_centre_ras(3), (AFFINE @ [1, 2, 3, 1])[:3])


def test_normalisation_is_robust_and_ignores_scale() -> None:
    image = np.random.default_rng(1).gamma(2.0, 100.0, size=(10, 40, 40))
    spiked = image.copy()
    spiked[0, 0, 0] = 1e6
    assert np.abs(normalise_intensity(image) - normalise_intensity(spiked)).mean() < 1e-2
    assert np.allclose(normalise_intensity(image), normalise_intensity(3 * image - 500), atol=1e-4)
    assert normalise_intensity(image).min() == 0
    assert normalise_intensity(image).max() == 1


def test_normalisation_of_two_values() -> None:
    image = np.zeros((4, 4, 4))
    image[0] = 5
    assert set(np.unique(normalise_intensity(image))) == {0, 1}


def test_axis_given_wins() -> None:
    marked = np.zeros((6, 6, 6), bool)
    marked[2] = True
    assert resolve_slice_axis("1", (6, 6, 6), AFFINE, marked) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [[3], [1, 5], [2, 3, 7]])
def test_axis_is_found_from_the_painted_plane(axis: int, slices: list[int]) -> None:
    marked = np.zeros((9, 9, 9), bool)
    np.moveaxis(marked, axis, 0)[slices, 2:7, 3:6] = True
    assert resolve_slice_axis("auto", (9, 9, 9), np.diag([1.0, 1, 1, 1]), marked) == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_few_adjacent_slices_of_cubic_voxels(axis: int) -> None:
    marked = np.zeros((30, 30, 30), bool)
    np.moveaxis(marked, axis, 0)[12:15, 10:18, 5:25] = True
    assert resolve_slice_axis("auto", marked.shape, np.diag([1.0, 1, 1, 1]), marked) == axis
    assert resolve_slice_axis("auto", marked.shape, np.diag([1.0, 1, 3, 1]), marked) == 2


def test_without_annotation_the_thickest_axis_counts_slices() -> None:
    assert resolve_slice_axis("auto", (9, 9, 9), np.diag([1.0, 5, 1, 1]), None) == 1
    assert resolve_slice_axis("auto", (9, 9, 9), np.diag([1.0, 1, 1, 1]), None) == 2


@pytest.mark.parametrize("axis", ["3", "-1", "axial"])
def test_unknown_axis(axis: str) -> None:
    with pytest.raises(InputError, match="auto, 0, 1 or 2"):
        resolve_slice_axis(axis, (9, 9, 9), AFFINE, None)


def test_one_slice_is_not_enough() -> None:
    with pytest.raises(ShapeError, match="one slice"):
        resolve_slice_axis(2, (9, 9, 1), AFFINE, None)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((4, 4)), ShapeError),
        (np.zeros((4, 4, 4, 2)), ShapeError),
        (np.zeros((0, 4, 4)), InputError),
        (np.full((4, 4, 4), 3), InputError),
        (np.where(np.arange(64).reshape(4, 4, 4) == 5, np.nan, 1.0), InputError),
        (np.where(np.arange(64).reshape(4, 4, 4) == 5, np.inf, 1.0), InputError),
        (np.zeros((4, 4, 4), complex), InputError),
    ],
)
def test_unusable_images(array: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_image(array)


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_unusable_affines(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        check_affine(affine)


@pytest.mark.parametrize("image", [np.random.default_rng(0).random((4, 5, 6))])
@pytest.mark.parametrize(("scale", "offset"), [(1, 1e9), (1e300, 0), (1e-300, 0)])
def test_normalisation_does_not_lose_what_single_precision_cannot_hold(
    image: np.ndarray, scale: float, offset: float
) -> None:
    assert np.allclose(normalise_intensity(image * scale + offset), normalise_intensity(image), atol=1e-4)


def test_adjacent_slices_show_their_plane_although_the_structures_leave_gaps_within_it() -> None:
    marked = np.zeros((20, 9, 20), bool)
    for corner in (2, 12):
        marked[corner : corner + 6, 4:6, 3:9] = True
    assert resolve_slice_axis("auto", marked.shape, np.eye(4), marked) == 1


def test_a_dense_annotation_has_no_plane_of_its_own() -> None:
    marked = np.zeros((20, 20, 20), bool)
    marked[2:8, 2:9, 2:18] = marked[12:18, 2:9, 2:18] = True
    assert resolve_slice_axis("auto", marked.shape, np.diag([1.0, 5, 1, 1]), marked) == 1
