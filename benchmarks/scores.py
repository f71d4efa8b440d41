"""How good a volume is: the same measures for every method, ours or a peer's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import Case
from sliceprop.engine.metrics import dice, evaluate

DIGITS = 5


def scored_slices(case: Case, annotated: Sequence[int]) -> list[int]:
    """The slices of the labelled range that were not annotated."""
    first, last = case.labelled_range
    return sorted(set(range(first, last + 1)) - set(annotated))


def score(case: Case, predicted: NDArray[np.int32], annotated: Sequence[int]) -> dict[str, Any]:
    """The measures of a `table.Row`.

    Args:
        case: with the reference.
        predicted: labels `(S, H, W)`.
        annotated: slices that were given.
    """
    reference, scored = case.slices(case.reference), scored_slices(case, annotated)
    labels = [int(v) for v in np.unique(reference[reference > 0])]
    per_label = {str(v): dice(predicted[scored], reference[scored], v) for v in labels}
    whole = evaluate(np.where(predicted > case.n_labels, 0, predicted), reference, case.spacing)["whole"]
    return {
        "dice": _rounded(np.nanmean(list(per_label.values()))),
        "dice_volume": _rounded(whole["mean"]["dice"]),
        "average_hausdorff_mm": _rounded(whole["mean"]["average_hausdorff_mm"]),
        "hausdorff95_mm": _rounded(whole["mean"]["hausdorff95_mm"]),
        "lost_labels": sum(not (predicted == v).any() for v in labels),
        "overshoot": _rounded(np.mean([_overshoot(predicted == v, reference == v) for v in labels])),
        "dice_labels": json.dumps({value: _rounded(x) for value, x in per_label.items() if not np.isnan(x)}),
    }


def _overshoot(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    slices = np.flatnonzero(true.any(axis=(1, 2)))
    past = int(predicted[: slices[0]].sum()) + int(predicted[slices[-1] + 1 :].sum())
    return past / int(true.sum())


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), DIGITS)
