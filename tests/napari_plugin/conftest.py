"""A real viewer on a real or virtual display; left out where napari, pytest-qt or a display are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qt import qt_loads

PATIENCE_MS = 300_000

if find_spec("napari") is None or not qt_loads():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def display() -> Iterator[None]:
    """A display: that of the session, else a virtual one. napari draws with OpenGL, which Qt's offscreen one lacks."""
    if os.environ.get("DISPLAY"):
        yield
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("needs a display, or Xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start")
    os.environ["DISPLAY"] = f":{number}"
    yield
    del os.environ["DISPLAY"]
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def qapp(display: None, qapp_args: list[str], qapp_cls: Any, pytestconfig: Any) -> Any:
    """Qt's application, only once there is a display."""
    return qapp_cls.instance() or qapp_cls(qapp_args)


@pytest.fixture(scope="session")
def viewer(qapp: Any) -> Iterator[Any]:
    """One viewer for all tests, since opening one takes seconds."""
    import napari
    from npe2 import PluginManager, PluginManifest

    manager = PluginManager.instance()
    manager.discover()
    if "sliceprop" not in manager:
        import sliceprop

        manager.register(PluginManifest.from_file(Path(sliceprop.__file__).parent / "napari_plugin" / "napari.yaml"))
    made = napari.Viewer(show=False)
    yield made
    made.close()


def no_thread() -> bool:
    """Whether all work beside the viewer has ended."""
    from qtpy.QtCore import QThreadPool

    return bool(QThreadPool.globalInstance().activeThreadCount() == 0)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is learned in a test is kept: not in the user's folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "sliceprop" / "models"


@pytest.fixture
def panel(viewer: Any, qtbot: Any, models: Path) -> Iterator[Any]:
    """The plugin's panel in the viewer, without layers."""
    dock, made = viewer.window.add_plugin_dock_widget("sliceprop")
    made.options.budget.setValue(60)
    yield made
    made.close_session()
    qtbot.waitUntil(no_thread, timeout=PATIENCE_MS)
    viewer.window.remove_dock_widget(dock)
    viewer.layers.clear()


@pytest.fixture
def ended(qtbot: Any) -> Callable[[], None]:
    """Waits until no thread works any more."""
    return lambda: qtbot.waitUntil(no_thread, timeout=PATIENCE_MS)


@pytest.fixture
def idle(panel: Any, qtbot: Any) -> Callable[[], None]:
    """Waits until nothing runs any more."""

    def settled() -> bool:
        busy = panel.runner.busy("work") or panel.runner.busy("preview") or panel.timer.isActive()
        return not busy and panel.session.results.complete

    return lambda: qtbot.waitUntil(settled, timeout=PATIENCE_MS)
