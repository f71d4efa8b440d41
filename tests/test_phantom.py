"""The synthetic thigh: what its docstring promises, and that the committed sample data are what the generator makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from sliceprop.io import read_image
from sliceprop.phantom import LABEL_NAMES, Phantom, make_phantom, write_sample_data
from sliceprop.volume import voxel_spacing

SAMPLE_DATA = Path(__file__).resolve().parents[1] / "sample-data"


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(96, 24)


def area_mm2(phantom: Phantom, name: str) -> np.ndarray:
    """Cross-section of a muscle on every slice."""
    i, j, _ = voxel_spacing(phantom.affine)
    return (phantom.reference == LABEL_NAMES.index(name) + 1).sum((0, 1)) * i * j


def test_same_arguments_give_the_same_voxels() -> None:
    one, two, other = make_phantom(32, 4), make_phantom(32, 4), make_phantom(32, 4, seed=1)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.reference, two.reference)
    assert (one.image != other.image).any()


def test_geometry_is_oblique_and_right_handed(phantom: Phantom) -> None:
    np.testing.assert_allclose(voxel_spacing(phantom.affine), (2, 2, 5))
    assert np.linalg.det(phantom.affine[:3, :3]) > 0
    assert (np.abs(phantom.affine[:3, :3]) > 0.05).sum() > 3


def test_muscles_change_shape_position_and_topology(phantom: Phantom) -> None:
    area = {name: area_mm2(phantom, name) for name in LABEL_NAMES}
    assert area["rectus_femoris"][18] > 2 * area["rectus_femoris"][0]
    assert area["vastus_medialis"][0] > 2000
    assert area["vastus_medialis"][-1] == 0
    longus = np.flatnonzero(area["adductor_longus"])
    assert 0 < longus[0] < longus[-1] < 23
    sartorius = phantom.reference == LABEL_NAMES.index("sartorius") + 1
    low, high = (np.argwhere(sartorius[..., k]).mean(0) * 2 for k in (0, 23))
    assert np.linalg.norm(high - low) > 50
    biceps = phantom.reference == LABEL_NAMES.index("biceps_femoris") + 1
    heads = [np.unique(ndimage.label(biceps[..., k])[0], return_counts=True)[1][1:] for k in (1, 22)]
    assert [(head > 20).sum() for head in heads] == [2, 1]


def test_image_looks_like_t1_weighted_mr(phantom: Phantom) -> None:
    muscle = phantom.image[phantom.reference > 0]
    air = phantom.image[:8, :8]
    assert 200 < np.median(muscle) < 450
    assert phantom.image.max() > 2.5 * np.median(muscle), "fat and marrow are bright"
    assert 1.6 < air.mean() / air.std() < 2.2, "noise without signal is Rayleigh distributed: sqrt(pi / (4 - pi))"
    assert ((phantom.reference > 0) & (phantom.image > 600)).sum() < 0.02 * muscle.size, "fat is not labelled as muscle"


def test_annotation_holds_three_slices_of_the_reference(phantom: Phantom) -> None:
    assert phantom.annotated_slices == (4, 12, 20)
    assert tuple(np.flatnonzero(phantom.sparse.any((0, 1)))) == phantom.annotated_slices
    np.testing.assert_array_equal(phantom.sparse[..., 12], phantom.reference[..., 12])


def test_written_folder_is_what_the_server_expects(tmp_path: Path, phantom: Phantom) -> None:
    write_sample_data(tmp_path, phantom)
    assert [file.name for file in tmp_path.glob("*.nii.gz")] == ["phantom.nii.gz"]
    assert json.loads((tmp_path / "labels.json").read_text()) == {name: n + 1 for n, name in enumerate(LABEL_NAMES)}
    scan, sparse = read_image(tmp_path / "phantom.nii.gz"), read_image(tmp_path / "labels/sparse/phantom.nii.gz")
    assert scan.array.dtype == np.int16
    np.testing.assert_array_equal(sparse.array, phantom.sparse)
    np.testing.assert_allclose(sparse.affine, scan.affine)


def test_committed_sample_data_come_from_the_generator() -> None:
    """Where another machine rounds otherwise grey values may differ by one, and on a border a few by more."""
    phantom = make_phantom()
    committed = read_image(SAMPLE_DATA / "phantom.nii.gz")
    assert (np.abs(committed.array.astype(int) - phantom.image) > 1).mean() < 1e-4
    np.testing.assert_allclose(committed.affine, phantom.affine, atol=1e-4)
    reference = read_image(SAMPLE_DATA / "reference/phantom.nii.gz").array
    assert (reference != phantom.reference).mean() < 1e-4
    sparse = read_image(SAMPLE_DATA / "labels/sparse/phantom.nii.gz").array
    assert (sparse != phantom.sparse).mean() < 1e-4
    assert sum(file.stat().st_size for file in SAMPLE_DATA.rglob("*.nii.gz")) < 3_000_000
