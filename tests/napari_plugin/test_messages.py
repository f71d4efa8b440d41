"""What the viewer asks of its computing process and what comes back, through a file in place of the pipe."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import AFFINE, only, scan, truth
from sliceprop.engine.predictors.process import PredictorError
from sliceprop.errors import CheckpointError, InputError, NoAnnotationError, SlicePropError
from sliceprop.napari_plugin.backend import Job, Progress, Result
from sliceprop.napari_plugin.messages import (
    Answer,
    Cancel,
    Request,
    Value,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from sliceprop.napari_plugin.settings import make_settings

SETTINGS = make_settings(
    slice_axis="1",
    partial=True,
    method="unet",
    fusion="lncc-mask",
    extrapolate="3",
    budget_s=12.5,
    target=0.9,
    device="cuda:1",
    go_on=False,
    start="a model.safetensors",
    start_on_server="case",
    save_to="/models/b\udc80.safetensors",
)

PLAIN = Job(scan().T, AFFINE, only(truth()).T)
FULL = replace(
    PLAIN,
    scribbles=truth().T,
    annotated_slices=(2, 7),
    names={1: "disc", 3: "Kern"},
    settings=SETTINGS,
    study="1.2.3",
    file="/scans/knee.nii.gz",
)


def requested(message: Request | Cancel) -> tuple[int, Request | Cancel]:
    stream = io.BytesIO()
    write_request(stream, 7, message)
    stream.seek(0)
    return read_request(stream)


def answered(answer: Answer) -> Answer:
    stream = io.BytesIO()
    write_answer(stream, 7, answer)
    stream.seek(0)
    number, got = read_answer(stream)
    assert number == 7
    return got


@pytest.mark.parametrize("job", [PLAIN, FULL], ids=["plain", "full"])
def test_a_request_arrives_as_it_was(job: Job) -> None:
    paths = {"folder": Path("models"), "file": Path("out.safetensors")}
    number, got = requested(Request("save_model", job, paths))
    assert isinstance(got, Request) and (number, got.what, got.paths) == (7, "save_model", paths)
    for one in fields(Job):
        before, now = getattr(job, one.name), getattr(got.job, one.name)
        assert type(now) is type(before), one.name
        assert np.array_equal(now, before) if isinstance(before, np.ndarray) else now == before, one.name


def test_a_request_can_be_cancelled() -> None:
    assert requested(Cancel()) == (7, Cancel())


@pytest.mark.parametrize(
    "value", [None, Progress(1 / 3, 2.0), {"slice": 3, "expected_dice": None, "labels": [1, 2]}], ids=str
)
def test_an_answer_arrives_as_it_was(value: Value) -> None:
    assert answered(Answer(value)) == Answer(value)


def test_a_result_arrives_as_it_was() -> None:
    labels = truth().T.astype(np.uint16)
    report: dict[str, Any] = {"slice_axis": 0, "quality": {"1": {"dice": 0.1 + 0.2, "slices": {"3": 0.5}}}}
    result = Result(labels, labels * 2, labels * 3, (labels / 3).astype(np.float32), report)
    got = answered(Answer(result)).value
    assert isinstance(got, Result) and got.report == report
    for name in ("labels", "from_lower", "from_upper", "uncertainty"):
        before, now = getattr(result, name), getattr(got, name)
        np.testing.assert_array_equal(now, before)
        assert now.dtype == before.dtype and now.flags.writeable


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NoAnnotationError("paint a slice"), NoAnnotationError),
        (CheckpointError("damaged"), CheckpointError),
        (InputError("no"), InputError),
        (PredictorError("crashed"), SlicePropError),
    ],
)
def test_an_error_arrives_as_the_nearest_kind_that_both_sides_know(error: SlicePropError, kind: type) -> None:
    got = answered(Answer(error=error)).error
    assert type(got) is kind and str(got) == str(error)


@pytest.mark.parametrize("noise", [b"", b"Segmentation fault\n"])
def test_an_end_or_noise_is_told_from_a_message(noise: bytes) -> None:
    for read in (read_request, read_answer):
        with pytest.raises((EOFError, ValueError)):
            read(io.BytesIO(noise * 10))
