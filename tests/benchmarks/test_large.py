"""The benchmark of volumes that do not fit into memory, on one that does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import large

pytest.importorskip("zarr")
SHAPE = (9, 40, 48)


def test_the_written_study_is_the_thigh_and_its_truth_scores_one(tmp_path: Path) -> None:
    annotated = large.annotated_slices(SHAPE[0], 3)
    assert annotated == [0, 4, 8]
    large.write_study(tmp_path, SHAPE, annotated)
    sparse, truth = (
        np.asarray(large.open_zarr(tmp_path / f"{name}.zarr").array[:]) for name in ("sparse", "reference")
    )
    assert set(np.unique(truth)) == set(range(large.LABELS + 1))
    np.testing.assert_array_equal(sparse[annotated], truth[annotated])
    assert not np.delete(sparse, annotated, axis=0).any()
    shutil.copytree(tmp_path / "reference.zarr", tmp_path / "out.zarr")
    assert large.mean_dice(tmp_path, annotated) == 1
    shutil.rmtree(tmp_path / "out.zarr")
    shutil.copytree(tmp_path / "sparse.zarr", tmp_path / "out.zarr")
    assert large.mean_dice(tmp_path, annotated) == 0
