"""How a method is run on a case, with its time and peak memory: ours, the classical ones alone, peers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cases import Case
from memory import PeakMemory
from methods import CLASSICAL, Method
from peering import run_peer
from refinements import unseen
from sliceprop import study as use_cases
from sliceprop.checkpoint import load_checkpoint
from sliceprop.config import PREDICTORS, PropagateConfig, TrainConfig
from sliceprop.engine.interpolation import interpolate
from sliceprop.warm_start import SHIPPED

Labels = NDArray[np.int32]


class Runner:
    """One case under several methods; what is learnt is learnt once for all methods that learn alike."""

    def __init__(self, case: Case, annotated: Sequence[int], device: str, pythons: Mapping[str, str]) -> None:
        self._case, self._annotated, self._pythons = case, annotated, pythons
        self._study = case.study(annotated)
        self._device = use_cases.resolve_device(device)
        self._learnt: dict[TrainConfig, tuple[Any, dict[str, float]]] = {}

    def __call__(self, method: Method) -> tuple[Labels, dict[str, Any]]:
        """Labels `(S, H, W)`, and the columns of `table.Row` about the run.

        Raises:
            CannotRun: a peer that is not there.
        """
        return self._peer(method) if method.is_peer else self._ours(method)

    def keep(self, method: Method, path: Path) -> None:
        """Write what a method that learns found, for `quality.py`."""
        assert method.train is not None and method.propagate is not None
        model, _ = self._learn(method.train)
        filled = use_cases.fill_study(self._study, model, unseen(self._case.name, method.propagate)).filled
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            volume=self._case.name,
            annotated=self._annotated,
            labels=filled.labels,
            from_lower=filled.from_lower,
            from_upper=filled.from_upper,
            uncertainty=filled.uncertainty.astype(np.float16),
            expected_dice=filled.expected_dice,
        )

    def _ours(self, method: Method) -> tuple[Labels, dict[str, Any]]:
        model, learning = self._learn(method.train) if method.train else (None, {"train_s": 0.0, "peak_mib": 0.0})
        start = time.perf_counter()
        with PeakMemory() as memory:
            labels, note = self._propagated(method, model)
        seconds = time.perf_counter() - start
        device = "cpu" if method.kind in CLASSICAL else _device_name(self._device)
        peak_mib = max(learning["peak_mib"], memory.mib + memory.children_mib)
        return labels, _measured(learning["train_s"], seconds, peak_mib) | {"note": note, "device": device}

    def _peer(self, method: Method) -> tuple[Labels, dict[str, Any]]:
        """Its memory is that of its own processes."""
        scan, given = (self._case.slices(array) for array in (self._case.image.array, self._case.reference))
        sparse = np.zeros_like(given)
        sparse[self._annotated] = given[self._annotated]
        with PeakMemory() as memory:
            labels, told = run_peer(
                method, self._pythons.get(method.kind), scan, sparse, self._annotated, self._case.spacing
            )
        measured = _measured(told["train_s"], told["propagate_s"], memory.children_mib)
        settings = json.dumps(told["settings"])
        return labels, measured | {"device": told["device"], "versions": told["versions"], "settings": settings}

    def _propagated(self, method: Method, model: Any) -> tuple[Labels, str]:
        """The labels and a word on how they came about."""
        assert method.propagate is not None
        if method.kind in CLASSICAL:
            return self._interpolated(method.propagate), ""
        chosen = {"device": str(self._device)} if method.kind in PREDICTORS else {}
        config = unseen(self._case.name, method.propagate)
        note = "" if config == method.propagate else "refinement network fitted without this volume"
        result = use_cases.propagate(self._study, model, config, **chosen)
        return self._study.volume.to_canonical(result.labels), str(result.report.get("network", note))

    def _interpolated(self, config: PropagateConfig) -> Labels:
        """The classical method alone; beyond the outermost annotated slices these are held, or nothing with `none`."""
        labels = interpolate(self._study.annotation, config.method).labels
        if config.extrapolate == "none":
            first, *_, last = self._study.annotation.annotated_slices
            labels[:first], labels[last + 1 :] = 0, 0
        return labels

    def _learn(self, config: TrainConfig) -> tuple[Any, dict[str, float]]:
        if config not in self._learnt:
            start = time.perf_counter()
            with PeakMemory() as memory:
                model = use_cases.train(self._study, config, init=load_checkpoint(SHIPPED), device=str(self._device))
            peak = memory.mib + memory.children_mib
            self._learnt[config] = model, {"train_s": time.perf_counter() - start, "peak_mib": peak}
        return self._learnt[config]


def _measured(train_s: float, propagate_s: float, peak_mib: float) -> dict[str, Any]:
    return {
        "train_s": round(train_s, 3),
        "propagate_s": round(propagate_s, 3),
        "total_s": round(train_s + propagate_s, 3),
        "peak_mib": round(peak_mib, 1),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
