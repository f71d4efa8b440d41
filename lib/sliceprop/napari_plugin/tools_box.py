"""The tab of side tools."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Labels
from qtpy.QtWidgets import QCheckBox, QGroupBox, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from sliceprop.errors import InputError
from sliceprop.napari_plugin.fields import LayerBox, button, row, sentence
from sliceprop.napari_plugin.label_names import full_names
from sliceprop.napari_plugin.layers import check_labels_layer
from sliceprop.napari_plugin.session import Session
from sliceprop.napari_plugin.tools import dice_per_label, parse_slices, remove_small_objects


class ToolsBox(QWidget):
    """Remove annotated slices, remove small objects, Dice against a reference.

    Args:
        viewer: of napari.
        session: the study.
        attempt: runs what may raise `InputError`, and shows why.
    """

    def __init__(self, viewer: Any, session: Session, attempt: Callable[[Callable[[], object]], bool]) -> None:
        super().__init__()
        self._session = session
        self.removed = QLineEdit()
        self.removed.setPlaceholderText("3, 5-9")
        self.least = QSpinBox()
        self.least.setRange(2, 1_000_000)
        self.least.setValue(50)
        self.least.setSuffix(" voxels")
        self.each_slice = QCheckBox("each slice by itself")
        self.corners = QCheckBox("corners touch")
        self.reference = LayerBox(viewer, Labels, hidden=lambda layer: False)
        self.whole = QCheckBox("annotated slices too")
        self.measured = sentence()
        layout = QVBoxLayout(self)
        layout.addWidget(
            _group(
                "Remove annotated slices",
                row(self.removed, button("Remove", lambda: attempt(self.remove), "take what is painted there out")),
            )
        )
        layout.addWidget(
            _group(
                "Remove small objects of the propagated labels",
                row(self.least, button("Remove", lambda: attempt(self._clean), "annotated slices stay as they are")),
                row(self.each_slice, self.corners),
            )
        )
        layout.addWidget(
            _group(
                "Dice of the propagated labels",
                row(self.reference, button("Measure", lambda: attempt(self.measure), "against this layer")),
                self.whole,
                self.measured,
            )
        )
        layout.addStretch()

    def remove(self) -> None:
        """Take the annotated slices that are named out.

        Raises:
            InputError: if none of them is annotated, or the text names none.
        """
        self._session.remove_slices(parse_slices(self.removed.text()))

    def _propagated(self) -> Any:
        shown = self._session.shown
        if shown is None:
            raise InputError("there is nothing propagated yet")
        return shown.labels

    def _clean(self) -> None:
        self._session.sync()
        axis = self._session.axis if self.each_slice.isChecked() else None
        kept, removed = remove_small_objects(
            self._propagated(), self.least.value(), slice_axis=axis, corners=self.corners.isChecked()
        )
        if not removed:
            raise InputError("there is no object as small as that")
        self._session.replace_labels(kept)
        self._session.said.emit(f"Removed {removed} objects; Undo brings them back.")

    def measure(self) -> None:
        """Show Dice per label, without the annotated slices unless asked for.

        Raises:
            InputError: for a reference that cannot be used.
        """
        session, reference = self._session, self.reference.layer
        session.sync()
        labels = self._propagated()
        check_labels_layer(reference, session.image, "reference")
        counted = np.ones(labels.shape, np.bool_)
        if not self.whole.isChecked():
            np.moveaxis(counted, session.axis, 0)[sorted(session.annotated)] = False
        found = dice_per_label(labels, np.asarray(reference.data).astype(np.int32), counted)
        names = full_names(session.annotation, set(found))
        rows = [f"{names[value]}: {dice:.3f}" for value, dice in found.items()]
        mean = f"Mean: {np.mean(list(found.values())):.3f}" if found else "no labels there"
        self.measured.setText("\n".join([*rows, mean]))


def _group(title: str, *widgets: QWidget) -> QGroupBox:
    box = QGroupBox(title)
    layout = QVBoxLayout(box)
    for widget in widgets:
        layout.addWidget(widget)
    return box
