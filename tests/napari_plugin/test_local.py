"""Computing on this computer, in a process of its own: what it learns outlives it, the viewer, and the session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serving import AFFINE, DRAWN, eventually, only, scan, truth
from sliceprop import study as use_cases
from sliceprop.checkpoint import save_checkpoint
from sliceprop.config import TrainConfig
from sliceprop.errors import CheckpointError, InputError, NoAnnotationError
from sliceprop.napari_plugin import worker_process
from sliceprop.napari_plugin.backend import Job, Progress
from sliceprop.napari_plugin.geometry import reversed_axes
from sliceprop.napari_plugin.local import ComputingError, LocalBackend, computer, preview
from sliceprop.napari_plugin.settings import make_settings
from sliceprop.warm_start import ENVIRONMENT

LONG_S = 3000


def job(seed: int = 0, **options: Any) -> Job:
    settings = make_settings(**{"budget_s": 2, **options})
    return Job(scan(seed).T, reversed_axes(AFFINE), only(truth(seed)).T, settings=settings)


def never() -> bool:
    return False


def ignore(_: Progress) -> None:
    pass


def first(events: list[Progress]) -> Callable[[], bool]:
    """Cancels after the first event."""
    return lambda: bool(events)


def test_the_viewer_does_not_load_torch() -> None:
    code = (
        "import sys, sliceprop.napari_plugin.session, sliceprop.napari_plugin.remote; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_learning_is_reported_cancelled_and_kept(tmp_path: Path) -> None:
    events: list[Progress] = []
    LocalBackend(tmp_path).train(job(budget_s=LONG_S), events.append, first(events))
    assert 0 < events[0].share < 1 and events[0].seconds_left > 0

    later = LocalBackend(tmp_path)
    result = later.propagate(job(), ignore, never)
    assert result.report["trained"]
    np.testing.assert_array_equal(result.labels[list(DRAWN)], truth().T[list(DRAWN)])
    assert not later.propagate(job(3), ignore, never).report["trained"], "another scan"
    assert later.suggest(job())["slice"] not in DRAWN
    with pytest.raises(InputError, match="nothing was learned on this scan"):
        later.save_model(tmp_path / "other.safetensors", job(3))


def test_a_checkpoint_of_another_scan_is_a_start_but_no_result(tmp_path: Path) -> None:
    events: list[Progress] = []
    backend, file = LocalBackend(tmp_path / "models"), tmp_path / "leg.safetensors"
    backend.train(job(save_to=str(file), budget_s=LONG_S), events.append, first(events))
    assert file.is_file()
    assert not backend.propagate(job(3, start=str(file)), ignore, never).report["trained"]
    backend.train(job(3, start=str(file)), ignore, lambda: True)
    assert backend.propagate(job(3, start=str(file)), ignore, never).report["trained"]
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        backend.train(job(5, start=str(file)), ignore, lambda: True)


def test_the_first_learning_starts_from_a_pretrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is damaged, so that its use is told; learning goes on without it."""
    task, told = worker_process.Task(0, lambda *_: None), "learning starts from nothing"
    task.cancelled.set()
    (tmp_path / "any.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "any.safetensors"))
    worker_process.train(task, job(go_on=False), tmp_path / "afresh")
    assert told not in caplog.text
    worker_process.train(task, job(), tmp_path / "models")
    assert caplog.text.count(told) == 1
    worker_process.train(task, job(), tmp_path / "models")
    assert caplog.text.count(told) == 1, "the second time it goes on from its own"


def test_the_pretrained_model_fits_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = use_cases.open_study(scan(), affine=AFFINE, slice_axis=2)
    for n, modality in enumerate(("CT", "MR"), start=1):
        config = TrainConfig(max_epochs=0, refine_steps=0, seed=n)
        save_checkpoint(tmp_path / f"{modality}.safetensors", use_cases.train(study, config, device="cpu"))
        (tmp_path / f"{modality}.card.json").write_text(
            json.dumps({"data": {"modality": modality}, "date": f"2026-{n}"})
        )
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    (tmp_path / "knee.json").write_text('{"Modality": "CT"}')  # as dcm2niix writes it
    started = [worker_process.pretrained(image) for image in (str(tmp_path / "knee.nii.gz"), "")]
    assert [model and model.config.seed for model in started] == [1, 2], "what is known, else the newest"


def test_a_kept_model_that_was_damaged_is_as_good_as_none(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    backend.train(job(), ignore, lambda: True)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"damaged")
    assert not backend.propagate(job(), ignore, never).report["trained"]


def test_errors_come_back_with_their_type(tmp_path: Path) -> None:
    empty = replace(job(), labels=np.zeros_like(job().labels))
    with pytest.raises(NoAnnotationError, match="nothing is annotated"):
        LocalBackend(tmp_path).propagate(empty, ignore, never)
    with pytest.raises(NoAnnotationError):
        preview(empty)


def test_a_process_that_is_killed_is_told_of_and_replaced(tmp_path: Path) -> None:
    pid = computer().pid

    def kill(_: Progress) -> None:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ComputingError, match="ended by itself"):
        LocalBackend(tmp_path).train(job(budget_s=LONG_S), kill, never)
    assert computer().pid != pid
    assert LocalBackend(tmp_path).propagate(job(), ignore, never).report["trained"], "kept after the first epoch"


def test_the_process_ends_with_the_viewer_and_keeps_what_it_learned(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from napari_plugin.test_local import LONG_S, computer, job, never, LocalBackend

def leave(_):
    print(computer().pid, flush=True)
    os._exit(0)

LocalBackend(Path({str(tmp_path)!r})).train(job(budget_s=LONG_S), leave, never)
"""
    tests = str(Path(__file__).parents[1])
    viewer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": tests},
    )
    pid = int(viewer.stdout)
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "its end")
    assert LocalBackend(tmp_path).propagate(job(), ignore, never).report["trained"]


def test_parts_are_previewed_alone() -> None:
    whole, part = preview(job()), preview(job().part(0, DRAWN[0], DRAWN[1]))
    assert part.labels.shape[0] == DRAWN[1] - DRAWN[0] + 1
    np.testing.assert_array_equal(part.labels, whole.labels[DRAWN[0] : DRAWN[1] + 1])
