"""The panel of our module, with boxes that stand in for those of Qt."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock


class Box:
    """An entry, a label, a bar or a list: what is written into it stays."""

    def __init__(self, text=""):
        self.text, self.value, self.maximum, self.items = text, 0, 1, []

    def connect(self, signal, action):
        self.action = action

    def addItem(self, text):
        self.items.append(text)

    def clear(self):
        self.items.clear()


class Selector(MagicMock):
    """Of a node of the scene."""

    node = None

    def currentNode(self):
        return self.node


class Timer(Box):
    ticking = False

    def start(self):
        self.ticking = True

    def stop(self):
        self.ticking = False


class Panel:
    """What a user sees of the widget, and does with it."""

    def __init__(self, widget, buttons):
        self._widget, self._buttons = widget, buttons
        widget.setup()

    said = property(lambda self: self._widget.status.text)
    lines = property(lambda self: list(self._widget.slices.items))
    ticking = property(lambda self: self._widget.timer.ticking)
    shortcut = property(lambda self: self._widget.shortcut.action)
    volume = property(None, lambda self, node: setattr(self._widget.volume, "node", node))
    segmentation = property(None, lambda self, node: setattr(self._widget.segmentation, "node", node))
    budget = property(None, lambda self, seconds: setattr(self._widget.budget, "value", seconds))

    def press(self, text):
        self._buttons[text].action()

    def poll(self):
        """One tick of the timer; how far the bar is."""
        self._widget.timer.action()
        return self._widget.bar.value

    def choose(self, line):
        """A double click on a line of the list."""
        text = self.lines[line]
        self._widget.slices.action(SimpleNamespace(text=lambda: text))


def open_panel(slicer, monkeypatch, url):
    """The widget, laid out, with the address of a server."""
    buttons, scripted = {}, ModuleType("slicer.ScriptedLoadableModule")

    def button(text):
        buttons[text] = Box(text)
        return buttons[text]

    names = {"QLineEdit": Box, "QLabel": Box, "QProgressBar": Box, "QListWidget": Box, "QTimer": Timer}
    qt = MagicMock(**names, QPushButton=button, QShortcut=lambda *given: Box())
    qt.QSettings().value.side_effect = lambda key, default: url
    base = {"__init__": lambda self: setattr(self, "layout", MagicMock()), "setup": lambda self: None}
    scripted.ScriptedLoadableModuleWidget = type("ScriptedLoadableModuleWidget", (), base)
    scripted.ScriptedLoadableModule = type("ScriptedLoadableModule", (), {})
    slicer.__path__, slicer.qMRMLNodeComboBox, slicer.util.mainWindow = [], Selector, lambda: None
    Box.Password = 2
    made = {"qt": qt, "ctk": MagicMock(ctkDoubleSpinBox=Box), "slicer.ScriptedLoadableModule": scripted}
    for name, one in made.items():
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.delitem(sys.modules, "SliceProp", raising=False)
    return Panel(importlib.import_module("SliceProp").SlicePropWidget(), buttons)
