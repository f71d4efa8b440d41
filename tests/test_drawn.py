"""What the user drew is in every result as it was drawn, whatever fills the rest."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sliceprop.config import FUSIONS, METHODS, PREDICTORS, PropagateConfig, TrainConfig
from sliceprop.engine.filling import Filled
from sliceprop.engine.interpolation import INTERPOLATIONS
from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.study import fill_study, open_study, train

SHAPE, VALUES, BACKGROUND = (7, 18, 20), (0, 0, 1, 2, 300), 255
QUICK = TrainConfig(max_epochs=1, refine_steps=4)


@st.composite
def drawings(draw):
    """A scan, painted slices, scribbles, and how they are meant, along any axis."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = np.cumsum(rng.normal(size=SHAPE), axis=1).astype(np.float32)
    labels, marks = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, np.int32)
    slices = draw(st.sets(st.integers(0, SHAPE[0] - 1), min_size=1, max_size=4))
    for s in slices:
        for _ in range(draw(st.integers(1, 3))):
            labels[s][_box(draw)] = draw(st.sampled_from(VALUES))
    for _ in range(draw(st.integers(0, 3))):
        marks[draw(st.integers(0, SHAPE[0] - 1))][_box(draw)] = draw(st.sampled_from((1, 2, 7, BACKGROUND)))
    partial = draw(st.booleans())
    listed = None if partial else draw(st.sampled_from((None, tuple(sorted({*slices, SHAPE[0] - 1})))))
    axis = draw(st.integers(0, 2))
    turned = (np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in (image, labels, marks))
    return *turned, {"partial": partial, "annotated_slices": listed, "slice_axis": axis}


def _box(draw):
    return tuple(slice(start := draw(st.integers(0, size - 4)), start + draw(st.integers(2, 9))) for size in SHAPE[1:])


def decided(labels, marks, partial, annotated_slices, slice_axis):
    """The values that the user decided about and where, told voxel by voxel."""
    labels, marks = np.moveaxis(labels, slice_axis, 0), np.moveaxis(marks, slice_axis, 0)
    values, where = np.zeros_like(labels), np.zeros(labels.shape, bool)
    possible = set(np.unique(labels)) | set(np.unique(marks)) - {0, BACKGROUND}
    for s in range(len(labels)):
        painted = labels[s] > 0
        complete = s in annotated_slices if annotated_slices is not None else painted.any() and not partial
        known = set(np.unique(labels[s][painted])) if partial else set()
        free = (marks[s] > 0) & ~np.isin(marks[s], list(known)) & ~painted
        values[s] = np.where(painted, labels[s], np.where(free & (marks[s] != BACKGROUND), marks[s], 0))
        where[s] = painted | free
        if complete or (painted.any() and known >= possible - {0}):  # then no other label can be there
            values[s], where[s] = labels[s], True
    if annotated_slices is not None:
        unlisted = np.setdiff1d(np.arange(len(labels)), annotated_slices)
        assert not labels[unlisted].any()
    return np.moveaxis(values, 0, slice_axis), np.moveaxis(where, 0, slice_axis)


def a_network_that_sees_things(annotation, images, config):
    """Stands where an overfitted network does, and answers noise."""
    rng = np.random.default_rng(0)
    noise = [rng.choice([0, *annotation.values], annotation.labels.shape).astype(np.int32) for _ in range(3)]
    return Filled(*noise, np.zeros(annotation.labels.shape, np.float32)), "noise"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    drawings(),
    st.sampled_from((*METHODS, *PREDICTORS)),
    st.sampled_from(FUSIONS),
    st.sampled_from(("auto", "none", 0, 1, 3)),
    st.booleans(),
)
def test_no_method_changes_a_drawn_voxel(drawing, method, fusion, extrapolate, trained):
    image, labels, marks, meant = drawing
    try:
        study = open_study(image, labels, scribbles=marks, **meant)
    except InputError as error:
        assert "plane" in str(error)  # what was painted at random may look like a painting across the slices
        return
    values, where = decided(labels, marks, **meant)
    model = train(study, QUICK) if trained and method not in (*INTERPOLATIONS, *PREDICTORS) else None
    config = PropagateConfig(method, fusion, extrapolate)
    try:
        filled = fill_study(study, model, config, a_network_that_sees_things).filled
    except NoAnnotationError:
        assert not labels.any() and not np.isin(marks, (1, 2, 7)).any()
        return
    result = study.volume.to_original(filled.labels)
    np.testing.assert_array_equal(result[where], values[where])
    np.testing.assert_array_equal(study.drawn, where)


@pytest.mark.parametrize("listed", [(), (0, 3)])
def test_listed_slices_without_labels_are_drawn_too(listed):
    image = np.random.default_rng(0).normal(size=SHAPE)
    study = open_study(image, np.zeros(SHAPE, np.int32), annotated_slices=listed, slice_axis=0)
    assert [s for s in range(SHAPE[0]) if study.drawn[s].all()] == list(listed)
    assert study.drawn.sum() == len(listed) * 18 * 20
