"""The tour of docs/napari.md as a script: works in a real viewer on the sample data, and takes the pictures.

python docs/napari_tour.py docs        # needs pip install -e .[napari] and a display, for instance xvfb-run
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from sliceprop.napari_plugin.sample import thigh
from sliceprop.napari_plugin.widget import Panel
from sliceprop.phantom import make_phantom

WIDTH, HEIGHT = 1360, 860
SETTLE_S, PATIENCE_S = 0.5, 900


def main(folder: Path) -> None:
    """Go through the loop once."""
    viewer = napari.Viewer()
    window = viewer.window._qt_window
    window.resize(WIDTH, HEIGHT)
    for data, options, kind in thigh():
        getattr(viewer, f"add_{kind}")(data, **options)
    panel = Panel(viewer)
    viewer.window.add_dock_widget(panel, name="sliceprop", area="right")
    viewer.layers[0].reset_contrast_limits()
    panel.session.go_to(12)
    take(viewer, folder / "napari_annotated.png")

    panel.options.go_on.setChecked(False)
    panel.learn()
    until(lambda: "left" in panel.bar.format() or not panel.session.busy)
    take(viewer, folder / "napari_learning.png", settle_s=0)
    until(lambda: idle(panel))

    panel.suggest()
    until(lambda: idle(panel))
    take(viewer, folder / "napari_suggested.png")

    truth = make_phantom().reference.T
    s = panel.session.current_slice()
    result = panel.session.results["labels"]
    wrong = np.nonzero((result.data[s] != truth[s])[None])
    result.data_setitem((wrong[0] + s, wrong[1], wrong[2]), truth[s][wrong[1:]].tolist())
    until(lambda: s in panel.session.annotated)
    panel.propagate()
    until(lambda: idle(panel))
    panel.suggest()
    show_only(viewer, panel.session.results["uncertainty"], viewer.layers[0])
    take(viewer, folder / "napari_uncertainty.png")
    viewer.close()


def idle(panel: Panel) -> bool:
    """Whether nothing runs and all of the last result is shown."""
    return not panel.session.busy and panel.session.results.complete


def show_only(viewer: Any, *layers: Any) -> None:
    """Hide the other layers."""
    for layer in viewer.layers:
        layer.visible = layer in layers


def until(condition: Callable[[], bool]) -> None:
    """Let the viewer work until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        QApplication.processEvents()
        time.sleep(0.01)
        if time.monotonic() > end:
            raise SystemExit("it took too long")


def take(viewer: Any, file: Path, settle_s: float = SETTLE_S) -> None:
    """A picture of the window once it has settled."""
    end = time.monotonic() + settle_s
    until(lambda: time.monotonic() > end)
    viewer.window.screenshot(str(file), canvas_only=False, flash=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
