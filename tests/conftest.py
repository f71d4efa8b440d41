"""Loads pytest-qt where Qt can be loaded: by itself it would end all tests on a machine that lacks Qt's libraries."""

from __future__ import annotations

import sys

from qt import qt_loads

pytest_plugins = ["pytestqt.plugin"] if "pytestqt.plugin" not in sys.modules and qt_loads() else []
