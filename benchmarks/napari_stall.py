"""How long napari stands still while the plugin works: the longest gap between two turns of the viewer's event loop.

A synthetic thigh is annotated on five slices in a real viewer (a display or Xvfb, pip install -e .[napari]), previewed,
previewed again after a stroke (until the interval that it touches is shown), then learned and propagated on this
computer. A timer that asks for a turn every few milliseconds tells the gaps; those of a viewer at rest are measured
too, since a busy machine delays every program.

    python benchmarks/napari_stall.py --size 400 --slices 29 --budget-s 30 --output benchmarks/results/napari_stall.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from sliceprop.io import Image, write_json
from sliceprop.napari_plugin.geometry import layer_placement
from sliceprop.napari_plugin.widget import Panel
from sliceprop.phantom import make_phantom

TURN_MS = 2
GOAL_S = 0.1
REST_S = 3.0
WARM_UP_S = 10.0
"""Until the process that computes has loaded the library; a user looks at the scan meanwhile."""

DOT = np.nonzero(np.hypot(*np.mgrid[-5:6, -5:6]) <= 5)
DOT = (np.zeros_like(DOT[0]), *DOT)


class Turns:
    """Collects the seconds between turns of the event loop, and those of them that the viewer's thread worked."""

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float]] = []
        self._last = _clocks()
        self._timer = QTimer()
        self._timer.timeout.connect(self._turn)

    def _turn(self) -> None:
        now = _clocks()
        self.gaps.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now

    def during(self, act: Callable[[], Any], done: Callable[[], bool]) -> dict[str, float]:
        """Longest gap, 99th percentile and seconds while something runs, from the press of the button on.

        `longest_work_s` is the most that the viewer's own thread computed in one gap: on a machine that others keep
        busy, the rest of a gap is their share.
        """
        self.gaps, self._last, began = [], _clocks(), time.perf_counter()
        self._timer.start(TURN_MS)
        QTimer.singleShot(0, act)
        QApplication.processEvents()
        while not done():
            QApplication.processEvents()
            time.sleep(TURN_MS / 2000)
        self._timer.stop()
        seconds = time.perf_counter() - began
        gaps, work = np.array(self.gaps or [(seconds, seconds)]).T
        return {
            "longest_stall_s": round(float(gaps.max()), 4),
            "longest_work_s": round(float(work.max()), 4),
            "p99_s": round(float(np.percentile(gaps, 99)), 4),
            "seconds": round(seconds, 2),
        }


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


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
    turns = Turns()

    def idle() -> bool:
        busy = panel.runner.busy("work") or panel.runner.busy("preview") or panel.timer.isActive()
        return not busy and panel.session.results.complete

    def stroke() -> None:
        """A dot of the first label in an interval, painted as with the brush."""
        s = (annotated(slices)[1] + annotated(slices)[2]) // 2
        labels.data_setitem(
            tuple(index + start for index, start in zip(DOT, (s, size // 2, size // 2), strict=True)), 1
        )

    turns.during(lambda: None, after(WARM_UP_S))
    rows = {"at rest": turns.during(lambda: None, after(REST_S))}
    extra = Labels(np.zeros_like(truth), **place)
    rows["napari itself adds a labels layer"] = turns.during(lambda: viewer.layers.append(extra), after(REST_S))
    viewer.layers.remove(extra)
    rows["first preview"] = turns.during(lambda: panel.instant.setChecked(True), idle_after(panel, idle, "preview"))
    before = panel.session.shown
    rows["stroke to preview"] = turns.during(stroke, lambda: panel.session.shown is not before)
    turns.during(lambda: None, idle)
    panel.instant.setChecked(False)
    rows["learn and propagate"] = turns.during(panel.learn, idle_after(panel, idle, "work"))
    viewer.close()
    return {"shape": [slices, size, size], "budget_s": budget_s, "goal_s": GOAL_S, "rows": rows}


def after(seconds: float) -> Callable[[], bool]:
    """True once so much time has passed since the first question."""
    began: float | None = None

    def done() -> bool:
        nonlocal began
        began = began or time.perf_counter()
        return time.perf_counter() - began > seconds

    return done


def idle_after(panel: Panel, idle: Callable[[], bool], lane: str) -> Callable[[], bool]:
    """True once something ran and ended."""
    began = False

    def done() -> bool:
        nonlocal began
        began = began or panel.runner.busy(lane)
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
    machine = {"processors": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    found |= {"napari": napari.__version__, "python": platform.python_version(), **machine}
    print(json.dumps(found, indent=2))
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
