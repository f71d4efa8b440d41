import sys
from pathlib import Path

import pytest

pytest.importorskip("vtk")

MODULE = Path(__file__).resolve().parents[2] / "plugins" / "slicer" / "SliceProp"


@pytest.fixture
def slicer(monkeypatch):
    """A scene of its own; the module's parts are imported anew, since they hold on to it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(MODULE))
    for name in [name for name in sys.modules if name.startswith("SlicePropLib")]:
        monkeypatch.delitem(sys.modules, name)
    import standin

    monkeypatch.setitem(sys.modules, "slicer", None)
    return standin.install()
