"""A study of 12 slices along its last axis: a column of one label, and what clients do with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sliceprop.server.provenance import Sent
from sliceprop.server.requests import LabelOptions
from sliceprop.server.workspace import Opened, Workspace

SHAPE, AFFINE = (20, 18, 12), np.diag([1.0, 1, 3, 1])
NAMES = [{"name": "disc", "idx": 1}, {"name": "core", "idx": 2}]
ALL = tuple(range(12))


def column(slices: tuple[int, ...] | list[int] | range = ALL, value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint16)
    labels[5:12, 6:14, list(slices)] = value
    return labels


def opened(workspace: Workspace, **options: Any) -> Opened:
    return workspace.open(workspace.case("case"), LabelOptions(**options))


def answered(workspace: Workspace, labels: np.ndarray) -> None:
    """As if `labels` had been the answer to an infer request."""
    case = workspace.case("case")
    drawn = workspace.drawings.annotation(case)
    case.record.save_sent(Sent(labels.astype(np.int32), drawn.labels, drawn.slice_axis, drawn.annotated_slices))
