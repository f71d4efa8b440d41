"""Fill between slices: morphological contour interpolation, nothing beyond the outermost slices of a label."""

from __future__ import annotations

import numpy as np

from sliceprop.engine.interpolation import interpolate
from sliceprop.errors import NoAnnotationError
from sliceprop.labels import LabelArray, SparseLabels


def fill_between_slices(annotation: SparseLabels) -> LabelArray:
    """Labels between the annotated slices that hold them; the scan is not looked at.

    Args:
        annotation: canonical, `(S, H, W)`.

    Returns:
        `(S, H, W)` labels; what is annotated comes back as it is.

    Raises:
        NoAnnotationError: if no label lies on two slices.
        ContourError: if the interpolator fails.
    """
    held = {value: np.flatnonzero((annotation.labels == value).any(axis=(1, 2))) for value in annotation.values}
    if not any(len(slices) > 1 for slices in held.values()):
        raise NoAnnotationError("no label is painted on two slices; paint another one")
    filled = interpolate(annotation, "contour").labels
    for value, slices in held.items():
        if len(slices):
            for beyond in (filled[: slices[0]], filled[slices[-1] + 1 :]):
                beyond[beyond == value] = 0
    return filled
