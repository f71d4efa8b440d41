"""How far a segmentation is from a reference.

Label maps are integer arrays of equal shape, `spacing` is the voxel size in mm in array-axis order. The surface of a
mask is made of its voxels with a face on the outside, or on the border of the array; distances run between the centres
of surface voxels. A measure that has no meaning is NaN: any of them for a label that both maps lack, a distance for a
label that one of them lacks (its Dice is 0).

Surfaces and distances are MONAI's. Only what it has no words for is our own: Dice with these rules for missing labels,
the mean of both directed averages, and distances from some of the slices to the whole other surface.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sliceprop.errors import ShapeError

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]

MEASURES = ("dice", "average_hausdorff_mm", "hausdorff95_mm")


def dice(prediction: Labels, reference: Labels, label: int) -> float:
    """`2 |P and R| / (|P| + |R|)` of one label; NaN where both maps lack it, 0 where one does."""
    predicted, true = prediction == label, reference == label
    size = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / size if size else float("nan")


def average_hausdorff_mm(prediction: Labels, reference: Labels, label: int, spacing: Sequence[float]) -> float:
    """`(mean d(P, R) + mean d(R, P)) / 2` over the surface voxels of one label, in mm.

    References:
        Aydin et al.: On the usage of average Hausdorff distance for segmentation performance assessment, European
        Radiology Experimental 5:4, 2021, doi:10.1186/s41747-020-00200-2.
    """
    return _average(*surface_distances_mm(prediction == label, reference == label, spacing))


def hausdorff95_mm(prediction: Labels, reference: Labels, label: int, spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of the surface distances of one label, in mm."""
    return _percentile95(*surface_distances_mm(prediction == label, reference == label, spacing))


def surface_distances_mm(
    predicted: Mask, true: Mask, spacing: Sequence[float], counted: Mask | None = None
) -> tuple[Distances, Distances]:
    """Distance of each surface voxel of one mask to the nearest one of the other, there and back.

    Args:
        predicted: any number of axes.
        true: same shape.
        spacing: mm, array-axis order.
        counted: surface voxels that are measured, all without it; the other surface stays whole.

    Returns:
        two arrays of mm, both empty if one of the masks is.
    """
    if not (predicted.any() and true.any()):
        return np.empty(0), np.empty(0)
    from monai.metrics.utils import get_mask_edges  # takes seconds, which only those who measure need wait

    (box,) = ndimage.find_objects((predicted | true).view(np.uint8))
    here, there = get_mask_edges(predicted[box], true[box], crop=False)
    inside = np.ones_like(here) if counted is None else counted[box]
    return _distances(here & inside, there, spacing), _distances(there & inside, here, spacing)


def evaluate(
    prediction: Labels,
    reference: Labels,
    spacing: Sequence[float],
    *,
    slice_axis: int | None = None,
    annotated_slices: Iterable[int] | None = None,
) -> dict[str, Any]:
    """Dice and surface distances of every label that occurs in one of the maps.

    Args:
        prediction: label map.
        reference: label map of the same shape.
        spacing: mm, array-axis order.
        slice_axis: axis that counts slices; needed with `annotated_slices`.
        annotated_slices: 0-based; with them everything is measured a second time without these slices: Dice over the
            voxels of the other slices, distances over the surface voxels on the other slices (to the whole surface of
            the other map, so that leaving slices out makes no new surface).

    Returns:
        `{"whole": {"labels": {"3": {"dice", "average_hausdorff_mm", "hausdorff95_mm"}}, "mean": {...}}}`, with
        `annotated_slices` also `"without_annotated"`; plain values for JSON, None for a measure without meaning. The
        mean of a measure runs over the labels for which it has one.

    Raises:
        ShapeError: maps of different shapes.
    """
    if prediction.shape != reference.shape:
        raise ShapeError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape; both need the same grid"
        )
    result = {"whole": _region(prediction, reference, spacing, np.ones(prediction.shape, dtype=bool))}
    if annotated_slices is not None and slice_axis is not None:
        counted = np.ones(prediction.shape, dtype=bool)
        np.moveaxis(counted, slice_axis, 0)[list(annotated_slices)] = False
        result["without_annotated"] = _region(prediction, reference, spacing, counted)
    return result


def _region(prediction: Labels, reference: Labels, spacing: Sequence[float], counted: Mask) -> dict[str, Any]:
    values = np.union1d(np.unique(prediction[counted]), np.unique(reference[counted]))
    labels = {str(v): _measures(prediction, reference, int(v), spacing, counted) for v in values if v > 0}
    mean = {name: _mean([measures[name] for measures in labels.values()]) for name in MEASURES}
    return {"labels": labels, "mean": mean}


def _measures(
    prediction: Labels, reference: Labels, label: int, spacing: Sequence[float], counted: Mask
) -> dict[str, float | None]:
    distances = surface_distances_mm(prediction == label, reference == label, spacing, counted)
    measured = dice(prediction[counted], reference[counted], label), _average(*distances), _percentile95(*distances)
    return {name: None if np.isnan(x) else x for name, x in zip(MEASURES, measured, strict=True)}


def _mean(values: Iterable[float | None]) -> float | None:
    meaningful = [x for x in values if x is not None]
    return sum(meaningful) / len(meaningful) if meaningful else None


def _average(there: Distances, back: Distances) -> float:
    return float(there.mean() + back.mean()) / 2 if there.size and back.size else float("nan")


def _percentile95(there: Distances, back: Distances) -> float:
    if not (there.size and back.size):
        return float("nan")
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))


def _distances(start: Mask, surface: Mask, spacing: Sequence[float]) -> Distances:
    """From each voxel of `start` to the nearest one of `surface`, mm."""
    from monai.metrics.utils import get_surface_distance

    if not start.any():  # MONAI would answer with infinite distances
        return np.empty(0)
    return np.asarray(get_surface_distance(start, surface, spacing=spacing), dtype=np.float64)
