"""The Python interface: arrays and files give the same, an opened study can be used again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sliceprop
from sliceprop.config import PropagateConfig, SuggestConfig, TrainConfig
from sliceprop.errors import InputError
from sliceprop.io import Image, write_image
from sliceprop.phantom import Phantom, make_phantom

SHAPES = PropagateConfig(method="shape")


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(48, 9)


def test_public_names_are_there_and_documented() -> None:
    assert set(sliceprop.__all__) == {"__version__", "evaluate", "open_study", "propagate", "suggest", "train"}
    assert all(getattr(sliceprop, name).__doc__ for name in sliceprop.__all__)
    assert set(dir(sliceprop)) >= set(sliceprop.__all__)
    with pytest.raises(AttributeError, match="fly"):
        _ = sliceprop.fly


def test_arrays_and_files_give_the_same(tmp_path: Path, phantom: Phantom) -> None:
    scan = Image(phantom.image, phantom.affine)
    write_image(tmp_path / "scan.nii.gz", phantom.image, scan)
    write_image(tmp_path / "labels.nii.gz", phantom.sparse, scan)
    from_files = sliceprop.propagate(tmp_path / "scan.nii.gz", str(tmp_path / "labels.nii.gz"), config=SHAPES)
    from_arrays = sliceprop.propagate(phantom.image, phantom.sparse, affine=phantom.affine, config=SHAPES)
    np.testing.assert_array_equal(from_files.labels, from_arrays.labels)
    assert from_files.labels.shape == phantom.image.shape
    slices = list(phantom.annotated_slices)
    np.testing.assert_array_equal(from_files.labels[..., slices], phantom.sparse[..., slices])


def test_an_opened_study_serves_every_step(phantom: Phantom) -> None:
    study = sliceprop.open_study(phantom.image, phantom.sparse, affine=phantom.affine)
    seen = []
    model = sliceprop.train(study, config=TrainConfig(budget_s=2), progress=seen.append)
    assert seen
    result = sliceprop.propagate(study, model=model)
    assert result.report["trained"] is True
    (suggestion,) = sliceprop.suggest(study, model=model)
    assert suggestion.slice not in phantom.annotated_slices
    plan = sliceprop.suggest(study, config=SuggestConfig(9, plan="keep_n"))
    assert [s.slice for s in plan] == [s for s in range(9) if s not in phantom.annotated_slices]
    measured = sliceprop.evaluate(
        result.labels, phantom.reference, labels=phantom.sparse, slice_axis=2, affine=phantom.affine
    )
    assert measured["whole"]["mean"]["dice"] > measured["without_annotated"]["mean"]["dice"] > 0.5


def test_propagate_learns_when_it_has_no_model(phantom: Phantom) -> None:
    result = sliceprop.propagate(phantom.image, phantom.sparse, slice_axis=2, training=TrainConfig(budget_s=1))
    assert result.report["trained"] is True


def test_an_opened_study_takes_no_further_options(phantom: Phantom) -> None:
    study = sliceprop.open_study(phantom.image, phantom.sparse)
    with pytest.raises(InputError, match="open_study"):
        sliceprop.propagate(study, phantom.sparse)
    with pytest.raises(InputError, match="open_study"):
        sliceprop.suggest(study, partial=True)


def test_identical_label_maps_are_perfect(phantom: Phantom) -> None:
    mean = sliceprop.evaluate(phantom.reference, phantom.reference)["whole"]["mean"]
    assert mean == {"dice": 1.0, "average_hausdorff_mm": 0.0, "hausdorff95_mm": 0.0}
