"""Whether windows can be tested here."""

from __future__ import annotations


def qt_loads() -> bool:
    """Whether there are pytest-qt, a Qt binding, and the system libraries that it needs."""
    try:
        import pytestqt  # noqa: F401
        import qtpy.QtWidgets  # noqa: F401
    except ImportError:
        return False
    return True
