"""Filling a volume that does not fit into memory: registration on a coarse grid, labels carried slice by slice.

Only the annotated slices are held in full resolution; every other slice is made, given away and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sliceprop.config import Fusion
from sliceprop.engine.flow import resize_flow
from sliceprop.engine.interpolation import sources
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.registration import SliceTransforms
from sliceprop.labels import LabelArray, SparseLabels

FULL_FIELDS = 4
"""Displacements kept in full resolution: those from both annotated slices to the slice in work, and the next."""

BYTES_PER_WINDOW_PIXEL = 16
"""Signed distances of a label on both annotated slices around the slice in work, and the same as carried to it."""


class ResizedTransforms:
    """Displacements of a coarse grid, on a finer one; asked like `SliceTransforms`."""

    def __init__(self, coarse: SliceTransforms, height: int, width: int) -> None:
        """Args: coarse: on their own grid; height, width: of the finer one, pixels."""
        self._resized = lru_cache(maxsize=FULL_FIELDS)(
            lambda source, target: resize_flow(coarse.between(source, target), height, width)
        )

    def between(self, source: int, target: int) -> Tensor:
        """See `SliceTransforms.between`."""
        return self._resized(source, target)


class StreamedCarrier(Carrier):
    """Carries labels of annotated slices that alone are there, by their places in the whole volume.

    Signed distances are remembered for the two annotated slices around the slice in work.
    """

    def __init__(self, annotation: SparseLabels, transforms: ResizedTransforms | None) -> None:
        """Prepare to carry.

        Args:
            annotation: `labels` are the annotated slices one after the other, `(n, H, W)`; `known` and
                `annotated_slices` speak of the whole volume.
            transforms: of the whole volume; None carries labels straight through.
        """
        self._place: Mapping[int, int] = {s: n for n, s in enumerate(annotation.annotated_slices)}
        kept = 2 * len(annotation.values)
        super().__init__(annotation, torch.empty(0), cast(SliceTransforms, transforms), kept=kept)

    def distance(self, k: int, source: int) -> Tensor:
        """See `Carrier.distance`."""
        return super().distance(k, self._place[source])

    def without_motion(self) -> StreamedCarrier:
        """One that carries the same labels straight through, by the same signed distances."""
        still = copy(self)
        still.transforms = None
        return still


def stream(
    annotation: SparseLabels,
    candidates: Sequence[tuple[StreamedCarrier, NDArray[np.float64]]],
    supported: NDArray[np.bool_],
    rule: Fusion = "sdf",
) -> Iterator[tuple[LabelArray, NDArray[np.float32]]]:
    """Labels and uncertainty of each slice, `(H, W)`, from the first to the last; annotated slices as they are.

    Args:
        annotation: of the carriers.
        candidates: carriers with their weight per label, `(K,)`; weights sum to 1.
        supported: `(K, S)`, slices on which each label may appear.
        rule: how the lower and the upper side are merged, by position.
    """
    lower, upper = sources(annotation.known)
    drawn = {s: annotation.labels[n] for n, s in enumerate(annotation.annotated_slices)}
    for s in range(annotation.known.shape[1]):
        if s in drawn and annotation.known[:, s].all():
            yield drawn[s], np.zeros(drawn[s].shape, np.float32)
        else:
            yield _fill_slice(annotation, candidates, supported[:, s], s, lower[:, s], upper[:, s], rule)


def _fill_slice(
    annotation: SparseLabels,
    candidates: Sequence[tuple[StreamedCarrier, NDArray[np.float64]]],
    supported: NDArray[np.bool_],
    s: int,
    lower: NDArray[np.intp],
    upper: NDArray[np.intp],
    rule: Fusion,
) -> tuple[LabelArray, NDArray[np.float32]]:
    """The label of the highest score above 0, and how close the decision was."""
    shape = annotation.labels.shape[1:]
    best, second = torch.full(shape, -1.0), torch.full(shape, -1.0)
    labels = torch.zeros(shape, dtype=torch.int32)
    for k in np.flatnonzero(supported).tolist():
        window = candidates[0][0].windows[k]
        scores = (
            weights[k] * carrier.scores(k, s, int(lower[k]), int(upper[k]), rule).fused
            for carrier, weights in candidates
        )
        score = cast(Tensor, sum(scores)).float()
        wins = score > best[window]
        second[window] = torch.maximum(second[window], torch.minimum(score, best[window]))
        labels[window] = torch.where(wins, annotation.values[k], labels[window])
        best[window] = torch.maximum(score, best[window])
    margin = torch.where(best > 0, torch.minimum(best, best - second), -best)
    return torch.where(best > 0, labels, 0).numpy(), (1 - margin).clamp(0, 1).numpy()


def annotated_only(annotation: SparseLabels, labels: LabelArray) -> SparseLabels:
    """The annotation with the annotated slices alone, for `StreamedCarrier`.

    Args:
        annotation: says what is known of the whole volume, on whatever grid.
        labels: `(n, H, W)`, the annotated slices.
    """
    return replace(annotation, labels=labels, scribbles=None)
