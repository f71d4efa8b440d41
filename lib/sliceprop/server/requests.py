"""A client's options (JSON, everything optional, often wrapped in lists) as checked settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sliceprop.config import (
    BACKGROUND_SCRIBBLE,
    MAX_LABEL,
    PREDICTORS,
    PredictorConfig,
    PropagateConfig,
    SuggestConfig,
    TrainConfig,
    parse_extrapolate,
)
from sliceprop.errors import InputError
from sliceprop.memory import MAX_SIDE
from sliceprop.server.guard import parse_json
from sliceprop.server.names import MAX_LABELS

Options = Mapping[str, Any]

PREDICTOR_BUDGET_S, MAX_PREDICTOR_BUDGET_S = 60.0, 600.0
"""Seconds that a network may be overfitted during an infer request: where it does not say, and at most."""

MAX_TRAINING_S = 24 * 3600.0
"""Seconds that a training may learn."""

_SINGLE_VALUED = frozenset(
    {"method", "fusion", "extrapolate", "slice_axis", "budget_s", "init", "seed", "partial", "background_scribble"}
    | {"plan", "n", "target"}
    | {"image", "selected_label_name", "result_extension", "result_dtype", "result_compress", "label_tag", "save_label"}
)


def parse_params(text: str | None) -> dict[str, Any]:
    """The form field `params`.

    Raises:
        InputError: if it is not a JSON object.
    """
    return first_choices(parse_json(text or "{}", "params is"))


def first_choices(options: Any) -> dict[str, Any]:
    """Options with element 0 of every list that stands for a single value; OHIF sends the whole list of choices back.

    Raises:
        InputError: if `options` is not an object.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"options must be a JSON object, found {type(options).__name__}")
    return {key: _first(value) if key in _SINGLE_VALUED else value for key, value in options.items()}


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def propagate_config(options: Options) -> PropagateConfig:
    """`method`, `fusion` and `extrapolate` of a request, with an overfitted network also `budget_s` and `seed`.

    Absent ones take the defaults.

    Raises:
        InputError: for an unknown value.
    """
    given = {key: options[key] for key in ("method", "fusion", "extrapolate") if options.get(key) is not None}
    if "extrapolate" in given:
        given["extrapolate"] = parse_extrapolate(given["extrapolate"])
    if given.get("method") in PREDICTORS:
        given["predictor"] = _predictor_config(options)
    return PropagateConfig(**given)


def _predictor_config(options: Options) -> PredictorConfig:
    """Encoder and weights are not a client's to choose: they name files of the server, or downloads."""
    budget_s = number(options, "budget_s", PREDICTOR_BUDGET_S)
    if budget_s > MAX_PREDICTOR_BUDGET_S:
        raise InputError(f"budget_s of an infer request must be at most {MAX_PREDICTOR_BUDGET_S:g}, not {budget_s:g}")
    return PredictorConfig(budget_s=budget_s, seed=int(number(options, "seed", PredictorConfig.seed)))


def train_config(options: Options, default_budget_s: float) -> TrainConfig:
    """`budget_s` and `seed` of a request.

    Raises:
        InputError: if they are not numbers or out of range.
    """
    budget_s = number(options, "budget_s", default_budget_s)
    if budget_s > MAX_TRAINING_S:
        raise InputError(f"budget_s of a training must be at most {MAX_TRAINING_S:g}, not {budget_s:g}")
    return TrainConfig(budget_s=budget_s, seed=int(number(options, "seed", TrainConfig.seed)))


def suggest_config(options: Options, default_target: float) -> SuggestConfig:
    """`n`, `target`, `plan` and `seed` of a request; files with weights are not a client's to choose.

    Raises:
        InputError: if they are of the wrong kind or out of range.
    """
    return SuggestConfig(
        n=whole_number(options, "n", SuggestConfig.n),
        target=number(options, "target", default_target),
        plan=options.get("plan") or SuggestConfig.plan,
        seed=whole_number(options, "seed", SuggestConfig.seed),
    )


def whole_number(options: Options, key: str, default: int) -> int:
    """A whole number of the request, also as text.

    Raises:
        InputError: for anything else.
    """
    given = options.get(key)
    if type(given) is int:  # not through a float, which cannot hold every seed
        return given
    value = number(options, key, default)
    if not value.is_integer():
        raise InputError(f"{key} must be a whole number, not {given!r}")
    return int(value)


def number(options: Options, key: str, default: float) -> float:
    """A finite number of the request.

    Raises:
        InputError: for anything else.
    """
    value = options.get(key)
    try:
        result = float(default if value is None else value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"{key} must be a finite number, not {value!r}")
    return result


def flag(options: Options, key: str, default: bool = False) -> bool:
    """A yes or no of the request: a boolean, 0, 1 or one of these as text.

    Raises:
        InputError: for anything else.
    """
    value = options.get(key)
    known = {"true": True, "1": True, "false": False, "0": False, "none": default}
    if str(value).lower() not in known:
        raise InputError(f"{key} must be true or false, not {value!r}")
    return known[str(value).lower()]


def slice_axis(options: Options) -> str | int:
    """`auto`, 0, 1 or 2.

    Raises:
        InputError: for anything else.
    """
    value = options.get("slice_axis")
    if value is None or value == "auto":
        return "auto"
    if str(value) not in ("0", "1", "2"):
        raise InputError(f"slice_axis must be auto, 0, 1 or 2, not {value!r}")
    return int(value)


def slice_list(options: Options, key: str) -> tuple[int, ...] | None:
    """0-based slice indices of the request, ascending; None if absent.

    Raises:
        InputError: if it is not a list of integers.
    """
    value = options.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(index) is int and 0 <= index < MAX_SIDE for index in value):
        raise InputError(f"{key} must be a list of 0-based slice indices, not {value!r}")
    return tuple(sorted(set(value)))


@dataclass(frozen=True)
class LabelOptions:
    """What a client says about a label file.

    Attributes:
        label_info: `[{"name", "idx"}]`, the names of its values; None if the values are the app's own indices.
        slice_axis: `auto`, 0, 1 or 2.
        annotated_slices: slices that count as annotated completely; None if the client leaves that to the server.
        reviewed_slices: slices that the user approves as they are.
        partial: a slice counts only for the labels on it.
        background_scribble: value that means background in a scribble file.
        annotation_version: of the annotation that the client changed; None if it does not say.
        scan: what tells the scan that was drawn on from others of its name; None if the client does not say.
    """

    label_info: tuple[Mapping[str, Any], ...] | None = None
    slice_axis: str | int = "auto"
    annotated_slices: tuple[int, ...] | None = None
    reviewed_slices: tuple[int, ...] = ()
    partial: bool = False
    background_scribble: int = BACKGROUND_SCRIBBLE
    annotation_version: str | None = None
    scan: str | None = None

    def __post_init__(self) -> None:
        if self.partial and (self.annotated_slices is not None or self.reviewed_slices):
            raise InputError("give either partial or a list of slices, not both")


def label_options(options: Options) -> LabelOptions:
    """The part of a request that describes a label file.

    Raises:
        InputError: for wrong types.
    """
    info = options.get("label_info")
    if info is not None and not (isinstance(info, list) and all(isinstance(entry, Mapping) for entry in info)):
        raise InputError('label_info must be a list like [{"name": "liver", "idx": 1}]')
    if info is not None and len(info) > MAX_LABELS:
        raise InputError(f"label_info names {len(info)} labels, at most {MAX_LABELS} are allowed")
    background = int(number(options, "background_scribble", BACKGROUND_SCRIBBLE))
    if not 0 < background <= MAX_LABEL:
        raise InputError(f"background_scribble must lie in 1..{MAX_LABEL}, not {background}")
    version, scan = options.get("annotation_version"), options.get("scan")
    return LabelOptions(
        label_info=tuple(info) if info else None,
        slice_axis=slice_axis(options),
        annotated_slices=slice_list(options, "annotated_slices"),
        reviewed_slices=slice_list(options, "reviewed_slices") or (),
        partial=flag(options, "partial"),
        background_scribble=background,
        annotation_version=None if version is None else str(version),
        scan=None if scan is None else str(scan),
    )
