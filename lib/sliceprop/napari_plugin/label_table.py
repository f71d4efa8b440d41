"""The tab of labels: value, name and colour, and files of ITK-SNAP."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from sliceprop.napari_plugin.fields import ask_file, button, row
from sliceprop.napari_plugin.label_names import LabelStyle, read_itksnap, set_styles, styles_of, write_itksnap
from sliceprop.napari_plugin.session import Session

ITKSNAP = "ITK-SNAP labels (*.txt *.label)"
COLOR, VALUE, NAME = range(3)


class LabelTable(QWidget):
    """Names and colours of the annotation's labels.

    Args:
        session: its annotation layer is shown.
        attempt: runs what may raise `InputError`, and shows why.
    """

    def __init__(self, session: Session, attempt: Callable[[Callable[[], object]], bool]) -> None:
        super().__init__()
        self._session, self._attempt, self._filling = session, attempt, False
        self._styles: dict[int, LabelStyle] = {}
        self.table = QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["", "Value", "Name"])
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        header, side = self.table.horizontalHeader(), self.table.verticalHeader()
        assert header is not None and side is not None
        side.hide()
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.table.setColumnWidth(COLOR, 34)
        self.table.setColumnWidth(VALUE, 50)
        self.table.itemChanged.connect(self._renamed)
        self.table.cellClicked.connect(self._paint_with)
        self.table.cellDoubleClicked.connect(self._recolor)
        layout = QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addWidget(
            row(
                button("New label", self.add, "a further label to paint with"),
                button("Load", lambda: self._file(save=False), "names and colours from a file of ITK-SNAP"),
                button("Save", lambda: self._file(save=True), "names and colours to a file of ITK-SNAP"),
            )
        )

    def refill(self) -> None:
        """Show the annotation layer's labels as they are now."""
        layer = self._session.annotation
        styles = {} if layer is None else styles_of(layer, self._session.values)
        if styles == self._styles and self.table.rowCount() == len(styles):
            return
        self._styles, self._filling = styles, True
        self.table.setRowCount(len(styles))
        for n, (value, style) in enumerate(styles.items()):
            swatch = QTableWidgetItem()
            swatch.setBackground(QColor.fromRgbF(*style.color))
            swatch.setFlags(Qt.ItemFlag.ItemIsEnabled)
            swatch.setToolTip("double click to change the colour")
            number = QTableWidgetItem(str(value))
            number.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            for column, item in ((COLOR, swatch), (VALUE, number), (NAME, QTableWidgetItem(style.name))):
                self.table.setItem(n, column, item)
        self._filling = False

    def add(self) -> None:
        """A label with the next free value, ready to paint with."""
        layer = self._session.annotation
        if layer is None:
            self._session.refused.emit("Make a labels layer with New first.")
            return
        value = max(self._styles, default=0) + 1
        color = tuple(float(part) for part in layer.get_color(value)[:3])
        self._apply({**self._styles, value: LabelStyle(f"label {value}", color)})  # type: ignore[arg-type]
        layer.selected_label = value
        self.table.selectRow(len(self._styles) - 1)

    def _apply(self, styles: dict[int, LabelStyle]) -> None:
        layer = self._session.annotation
        set_styles(layer, styles)
        self._session.restyle()
        self.refill()

    def _value(self, table_row: int) -> int:
        return list(self._styles)[table_row]

    def _renamed(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != NAME:
            return
        value = self._value(item.row())
        name = item.text().strip()
        others = {style.name for other, style in self._styles.items() if other != value}
        if not name or name in others:
            self._session.refused.emit("Labels need names of their own.")
            self._styles = {}
            self.refill()
            return
        self._apply({**self._styles, value: LabelStyle(name, self._styles[value].color)})

    def _paint_with(self, table_row: int, _column: int) -> None:
        value = self._value(table_row)
        for layer in (self._session.annotation, self._session.results["labels"]):
            if layer is not None:
                layer.selected_label = value

    def _recolor(self, table_row: int, column: int) -> None:
        if column != COLOR:
            return
        value = self._value(table_row)
        chosen = QColorDialog.getColor(QColor.fromRgbF(*self._styles[value].color), self)
        if chosen.isValid():
            color = (chosen.redF(), chosen.greenF(), chosen.blueF())
            self._apply({**self._styles, value: LabelStyle(self._styles[value].name, color)})

    def _file(self, *, save: bool) -> None:
        name = ask_file(self, "Label description of ITK-SNAP", ITKSNAP, save=save)
        if name:
            self._attempt(lambda: self.save(Path(name)) if save else self.load(Path(name)))

    def load(self, file: Path) -> None:
        """Take names and colours from a file of ITK-SNAP."""
        self._apply({**self._styles, **read_itksnap(file)})

    def save(self, file: Path) -> None:
        """Write names and colours to a file of ITK-SNAP."""
        write_itksnap(file, self._styles)
