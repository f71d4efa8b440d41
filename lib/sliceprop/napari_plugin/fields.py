"""Small Qt parts that the panel is made of."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QLabel, QLineEdit, QPushButton, QSizePolicy, QWidget

NONE = "none"


def button(text: str, act: Callable[[], Any], tip: str = "") -> QPushButton:
    """A push button."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.clicked.connect(lambda _checked=False: act())
    return made


def row(*widgets: QWidget) -> QWidget:
    """Widgets side by side, the first one takes the room."""
    box = QWidget()
    layout = QHBoxLayout(box)
    layout.setContentsMargins(0, 0, 0, 0)
    for n, widget in enumerate(widgets):
        layout.addWidget(widget, 1 if n == 0 else 0)
    return box


def sentence(text: str = "") -> QLabel:
    """Text that breaks into lines."""
    label = QLabel(text)
    label.setWordWrap(True)
    return label


class LayerBox(QComboBox):
    """Chooses a layer of a kind.

    Attributes:
        chosen: the layer changed.
    """

    chosen = Signal()

    def __init__(self, viewer: Any, kind: type, *, optional: bool = False, hidden: Callable[[Any], bool]) -> None:
        super().__init__()
        self._viewer, self._kind, self._optional, self._hidden = viewer, kind, optional, hidden
        self._layers: list[Any] = []
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setMinimumContentsLength(10)
        self.currentIndexChanged.connect(lambda _: self.chosen.emit())
        self.refill()

    @property
    def layer(self) -> Any:
        """The layer that is chosen, None for none."""
        index = self.currentIndex()
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def choose(self, layer: Any) -> None:
        """Choose a layer of the viewer."""
        self.refill()
        if layer in self._layers:
            self.setCurrentIndex(self._layers.index(layer))

    def refill(self) -> None:
        """Take the viewer's layers as they are now, and keep the choice while it is there."""
        before = self.layer
        found = [layer for layer in self._viewer.layers if isinstance(layer, self._kind) and not self._hidden(layer)]
        layers = [None, *found] if self._optional else found
        if layers == self._layers and [self.itemText(n) for n in range(self.count())] == _names(layers):
            return
        self.blockSignals(True)
        self.clear()
        self._layers = layers
        self.addItems(_names(layers))
        self.setCurrentIndex(layers.index(before) if before in layers else 0 if layers else -1)
        self.blockSignals(False)
        if self.layer is not before:
            self.chosen.emit()


def _names(layers: list[Any]) -> list[str]:
    return [NONE if layer is None else layer.name for layer in layers]


class FileBox(QWidget):
    """A file name to type or to browse for.

    Args:
        title: of the dialogue.
        pattern: of the files, such as `Checkpoints (*.safetensors)`.
        save: whether the file will be written.
    """

    def __init__(self, title: str, pattern: str, *, save: bool = False) -> None:
        super().__init__()
        self._title, self._pattern, self._save = title, pattern, save
        self.text = QLineEdit()
        self.text.setPlaceholderText(NONE)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text, 1)
        layout.addWidget(button("...", self._browse, title))

    def _browse(self) -> None:
        name = ask_file(self, self._title, self._pattern, save=self._save)
        if name:
            self.text.setText(name)


def ask_file(parent: QWidget, title: str, pattern: str, *, save: bool) -> str:
    """The file that the user chooses, empty for none."""
    ask = QFileDialog.getSaveFileName if save else QFileDialog.getOpenFileName
    name, _ = ask(parent, title, "", pattern)
    return str(name)
