"""Carrying labels of a volume whose annotated slices alone are in memory."""

from __future__ import annotations

import tracemalloc
from typing import cast

import numpy as np
import pytest
import torch

from sliceprop.engine.propagation import Carrier
from sliceprop.engine.registration import SliceTransforms
from sliceprop.engine.streaming import ResizedTransforms, StreamedCarrier, annotated_only, stream
from sliceprop.labels import SparseLabels, sparse_labels

LABELS, SIDE = 16, 96
ANNOTATED = list(range(0, 25, 2))


@pytest.fixture
def whole() -> SparseLabels:
    """Every label in two bands, so that its window is most of the slice, on every second slice."""
    bands = np.arange(SIDE) // 3 % LABELS + 1
    labels = np.zeros((ANNOTATED[-1] + 1, SIDE, SIDE), np.int32)
    for s in ANNOTATED:
        labels[s] = np.roll(bands, s)[:, None]
    return sparse_labels(labels)


@pytest.fixture
def transforms() -> ResizedTransforms:
    velocity = torch.randn(ANNOTATED[-1], 2, 12, 12, generator=torch.Generator().manual_seed(0))
    return ResizedTransforms(SliceTransforms(velocity, SIDE // 2, SIDE // 2), SIDE, SIDE)


@pytest.fixture
def streamed(whole: SparseLabels, transforms: ResizedTransforms) -> StreamedCarrier:
    return StreamedCarrier(annotated_only(whole, whole.labels[ANNOTATED]), transforms)


def test_scores_are_those_of_the_whole_volume(
    whole: SparseLabels, transforms: ResizedTransforms, streamed: StreamedCarrier
) -> None:
    """Also where the signed distances of a label were forgotten meanwhile."""
    moving, still = (Carrier(whole, torch.empty(0), each) for each in (cast(SliceTransforms, transforms), None))
    for s in (1, 13, 3):
        for k in range(LABELS):
            place = k, s, s - 1, s + 1, "sdf"
            with_motion, without = streamed.scores(*place).fused, streamed.without_motion().scores(*place).fused
            assert not torch.equal(with_motion, without)
            assert torch.equal(with_motion, moving.scores(*place).fused)
            assert torch.equal(without, still.scores(*place).fused)


def test_memory_does_not_grow_with_the_annotated_slices(streamed: StreamedCarrier) -> None:
    """Signed distances, which NumPy makes, are there once for both carriers, and those of two annotated slices.

    Twice would be 4 slices of distances and what makes the next; what other threads allocate meanwhile is counted too.
    """
    half, supported = np.full(LABELS, 0.5), np.ones(streamed.annotation.known.shape, bool)
    candidates = [(streamed, half), (streamed.without_motion(), half)]
    pixels = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in streamed.windows)
    tracemalloc.start()
    try:
        n_slices = sum(1 for _ in stream(streamed.annotation, candidates, supported))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_slices == ANNOTATED[-1] + 1
    assert 2 * 4 * pixels < peak < 4 * 4 * pixels
