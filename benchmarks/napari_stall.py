"""How long napari stands still while the plugin works: the longest gap between two turns of the viewer's event loop.

A synthetic thigh is annotated on five slices in a real viewer (a display or Xvfb, pip install -e .[napari]), then
previewed after a stroke, learned and propagated on this computer. A timer that asks for a turn every few milliseconds
tells the gaps; those of a viewer at rest are measured too, since a busy machine delays every program.

    python benchmarks/napari_stall.py --size 400 --slices 29 --budget-s 30 --output benchmarks/results/napari_stall.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from sliceprop.io import Image, write_json
from sliceprop.napari_plugin.geometry import layer_placement
from sliceprop.napari_plugin.widget import Panel
from sliceprop.phantom import make_phantom

TURN_MS = 2
GOAL_S = 0.1
REST_S = 3.0


class Turns:
    """Collects the seconds between turns of the event loop."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._last: float | None = None
        self._timer = QTimer()
        self._timer.timeout.connect(self._turn)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.gaps.append(now - self._last)
        self._last = now

    def during(self, act: Callable[[], Any], done: Callable[[], bool]) -> dict[str, float]:
        """Longest gap, 99th percentile and seconds while something runs, from the press of the button on."""
        self.gaps, self._last, began = [], time.perf_counter(), time.perf_counter()
        self._timer.start(TURN_MS)
        QTimer.singleShot(0, act)
        QApplication.processEvents()
        while not done():
            QApplication.processEvents()
            time.sleep(TURN_MS / 2000)
        self._timer.stop()
        seconds = time.perf_counter() - began
        gaps = np.array(self.gaps or [seconds])
        return {
            "longest_stall_s": round(float(gaps.max()), 4),
            "p99_s": round(float(np.percentile(gaps, 99)), 4),
            "seconds": round(seconds, 2),
        }


def annotated(slices: int) -> list[int]:
    """Middles of five equal bins."""
    return [int((n + 0.5) * slices / 5) for n in range(5)]


def measure(size: int, slices: int, budget_s: float) -> dict[str, Any]:
    """One round of the loop in a viewer of its own."""
    phantom = make_phantom(size, slices)
    viewer = napari.Viewer()
    place = layer_placement(Image(phantom.image, phantom.affine))
    viewer.add_image(phantom.image.T.copy(), name="thigh", **place)
    truth = phantom.reference.T.astype(np.uint16)
    labels = viewer.add_labels(np.zeros_like(truth), name="labels", **place)
    for s in annotated(slices):
        labels.data[s] = truth[s]
    panel = Panel(viewer)
    viewer.window.add_dock_widget(panel)
    panel.options.budget.setValue(budget_s)
    turns, started = Turns(), time.perf_counter()

    def idle() -> bool:
        return not (panel.runner.busy("work") or panel.runner.busy("preview") or panel.timer.isActive())

    def stroke() -> None:
        labels.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)

    while time.perf_counter() - started < 1:
        QApplication.processEvents()
    rest_ends = time.perf_counter() + REST_S
    rows = {"at rest": turns.during(lambda: None, lambda: time.perf_counter() > rest_ends)}
    panel.instant.setChecked(True)
    while not idle():
        QApplication.processEvents()
    rows["preview after a stroke"] = turns.during(stroke, lambda: 0 in panel.session.annotated and idle())
    rows["learn and propagate"] = turns.during(panel.learn, idle_after(panel, idle))
    viewer.close()
    return {"shape": [slices, size, size], "budget_s": budget_s, "goal_s": GOAL_S, "rows": rows}


def idle_after(panel: Panel, idle: Callable[[], bool]) -> Callable[[], bool]:
    """True once something ran and ended."""
    began = False

    def done() -> bool:
        nonlocal began
        began = began or panel.session.busy
        return began and idle()

    return done


def main() -> None:
    """Measure and print; with `--output` also keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--slices", type=int, default=29)
    parser.add_argument("--budget-s", type=float, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measure(options.size, options.slices, options.budget_s)
    found |= {"napari": napari.__version__, "python": platform.python_version()}
    print(json.dumps(found, indent=2))
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
