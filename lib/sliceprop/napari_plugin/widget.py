"""The panel: lays out, connects, shows. What it does is in `session`."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

from napari.layers import Image, Labels
from napari.utils.notifications import show_warning
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QProgressBar,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from sliceprop.errors import InputError
from sliceprop.napari_plugin.backend import Progress
from sliceprop.napari_plugin.fields import LayerBox, ask_file, button, row, sentence
from sliceprop.napari_plugin.files import models_folder
from sliceprop.napari_plugin.label_table import LabelTable
from sliceprop.napari_plugin.layers import TITLES, new_labels_layer
from sliceprop.napari_plugin.local import LocalBackend, computer
from sliceprop.napari_plugin.options import CHECKPOINTS, OptionsForm
from sliceprop.napari_plugin.server_box import ServerBox
from sliceprop.napari_plugin.session import COUNTING, Session
from sliceprop.napari_plugin.settings import Settings
from sliceprop.napari_plugin.strip import SliceStrip
from sliceprop.napari_plugin.tools_box import ToolsBox
from sliceprop.napari_plugin.worker import QtRunner

SETTLE_MS = 60
"""Strokes are looked at once napari has drawn them, and together where several come at once."""

KEYS = {"G": "learn", "R": "propagate", "N": "suggest", "K": "accept", "U": "undo"}
"""Keys of the viewer; none of them is one of napari's, for images or labels."""

SCALE = 1000


class Panel(QWidget):
    """The dock widget.

    Args:
        napari_viewer: the viewer that it works in.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.runner = QtRunner()
        computer().start()
        self.session = Session(napari_viewer, self.runner, LocalBackend(models_folder()))
        self._watched: list[Any] = []
        self._counting: tuple[str | int, bool] = (Settings.slice_axis, Settings.partial)
        self.timer = QTimer(self)
        self.timer.setSingleShot(True)
        self.timer.setInterval(SETTLE_MS)
        self.timer.timeout.connect(self._look)
        self._build()
        self._connect()
        self._state("")
        self._choose()

    # ------------------------------------------------------------------ build

    def _build(self) -> None:
        self.setMinimumWidth(330)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        self.server = ServerBox(self.session, self._opened, self._with_settings)
        layout.addWidget(self.server)
        layout.addWidget(self._layer_fields())
        layout.addWidget(self._actions())
        self.strip = SliceStrip()
        layout.addWidget(self.strip)
        layout.addWidget(self._loop())
        self.message = sentence("Paint labels on a few slices, then press Learn.")
        self.message.setMinimumHeight(48)
        self.message.setAlignment(Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self.message)
        layout.addWidget(self._tabs(), 1)

    def _layer_fields(self) -> QWidget:
        def ours(layer: Any) -> bool:
            return layer in (self.session.results[kind] for kind in TITLES)

        self.image = LayerBox(self.viewer, Image, hidden=ours)
        self.labels = LayerBox(self.viewer, Labels, hidden=ours)
        self.scribbles = LayerBox(self.viewer, Labels, hidden=ours, optional=True)
        box = QWidget()
        form = QFormLayout(box)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        new = "a new layer on the image's voxels"
        form.addRow("Image", self.image)
        form.addRow("Labels", row(self.labels, button("New", lambda: self._new(self.labels, "labels"), new)))
        marks = f"{new}: marks in any plane, label 255 is background"
        form.addRow(
            "Scribbles", row(self.scribbles, button("New", lambda: self._new(self.scribbles, "scribbles"), marks))
        )
        return box

    def _actions(self) -> QWidget:
        self.learn_button = button("Learn and propagate  (G)", self.learn, "learn on this scan, then fill the volume")
        self.propagate_button = button("Propagate  (R)", self.propagate, "fill the volume with what was learned before")
        self.preview_button = button("Preview", self.preview, "interpolate shapes at once")
        self.cancel_button = button("Cancel", self.session.cancel, "end now and keep the best so far")
        self.bar = QProgressBar()
        self.bar.setRange(0, SCALE)
        self.bar.setFormat("")
        box = QWidget()
        grid = QGridLayout(box)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.learn_button, 0, 0, 1, 2)
        grid.addWidget(self.propagate_button, 1, 0)
        grid.addWidget(self.preview_button, 1, 1)
        grid.addWidget(row(self.bar, self.cancel_button), 2, 0, 1, 2)
        return box

    def _loop(self) -> QWidget:
        self.next_button = button("Next slice  (N)", self.suggest, "go to the slice that should gain most")
        self.accept_button = button("Keep slice  (K)", self.accept, "the slice in view is right: count it as annotated")
        self.undo_button = button("Undo  (U)", self.undo, "take back the last propagation, acceptance or tool")
        self.instant = QCheckBox("Preview after every stroke")
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.setContentsMargins(0, 0, 0, 0)
        buttons = QHBoxLayout()
        for one in (self.next_button, self.accept_button, self.undo_button):
            buttons.addWidget(one, 1)
        layout.addLayout(buttons)
        layout.addWidget(self.instant)
        return box

    def _tabs(self) -> QWidget:
        self.table = LabelTable(self.session, self.attempt)
        self.options = OptionsForm()
        self.tools = ToolsBox(self.viewer, self.session, self.attempt)
        self.options.form.addRow("Model", button("Save checkpoint", self._save_model, "what was learned on this scan"))
        tabs = QTabWidget()
        for title, page in (("Labels", self.table), ("Options", self.options), ("Tools", self.tools)):
            scroll = QScrollArea()
            scroll.setWidgetResizable(True)
            scroll.setFrameShape(QScrollArea.Shape.NoFrame)
            scroll.setWidget(page)
            tabs.addTab(scroll, title)
        return tabs

    # ------------------------------------------------------------------ connect

    def _connect(self) -> None:
        for box in (self.image, self.labels, self.scribbles):
            box.chosen.connect(self._choose)
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.renamed):
            event.connect(self._refill)
        self.viewer.dims.events.point.connect(self._show_strip)
        self.session.changed.connect(self._changed)
        self.session.said.connect(self._say)
        self.session.refused.connect(self._refuse)
        self.session.progressed.connect(self._progress)
        self.session.state.connect(self._state)
        self.server.checkpoints.connect(self.options.show_checkpoints)
        self.strip.picked.connect(self.session.go_to)
        self.instant.toggled.connect(self._instant)
        self.options.axis.currentTextChanged.connect(lambda _: self._count())
        self.options.partial.toggled.connect(lambda _: self._count())
        for key, name in KEYS.items():
            self.viewer.bind_key(key, self._pressed(name), overwrite=True)
        self.destroyed.connect(partial(_left, self.runner))

    def _pressed(self, name: str) -> Callable[[Any], None]:
        """What a key does; the viewer that holds it does not keep a closed panel alive."""
        panel = ref(self)

        def press(_viewer: Any) -> None:
            if (alive := panel()) is not None:
                getattr(alive, name)()

        press.__doc__ = f"sliceprop: {name}"
        return press

    def closeEvent(self, event: Any) -> None:
        """End what runs and let go of the viewer."""
        self.close_session()
        super().closeEvent(event)

    def close_session(self) -> None:
        """End what runs, forget its results, and leave the viewer alone."""
        _left(self.runner)
        self.timer.stop()
        self._watch([])
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.renamed):
            event.disconnect(self._refill)
        self.viewer.dims.events.point.disconnect(self._show_strip)
        for key in KEYS:
            self.viewer.bind_key(key, None, overwrite=True)

    # ------------------------------------------------------------------ layers

    def _refill(self, _event: Any = None) -> None:
        for box in (self.image, self.labels, self.scribbles, self.tools.reference):
            box.refill()

    def _choose(self) -> None:
        self.session.choose(self.image.layer, self.labels.layer, self.scribbles.layer)
        self._watch([layer for layer in (self.labels.layer, self.scribbles.layer) if layer is not None])
        self._recall_counting()
        if self.image.layer is not None:
            self.attempt(self.session.check_image)

    def _recall_counting(self) -> None:
        """Show how the labels layer counts; one that was never chosen before counts as the user chose last."""
        own = self._counting
        if self.labels.layer is not None:
            self.options.count_as(*self.labels.layer.metadata.get(COUNTING, own))
        self._count()
        self._counting = own

    def _count(self) -> None:
        """How slices count takes effect at once, since strokes on the propagated layer are taken over by it."""
        self._look()
        axis, partly = self.options.axis.currentText(), self.options.partial.isChecked()
        self._counting = axis if axis == "auto" else int(axis), partly
        self.session.use(replace(self.session.settings, slice_axis=self._counting[0], partial=partly))

    def _watch(self, layers: list[Any]) -> None:
        """Look at strokes on these layers; `set_data` tells of napari's undo too."""
        for layer in self._watched:
            layer.events.paint.disconnect(self._painted)
            layer.events.set_data.disconnect(self._painted)
        self._watched = layers
        for layer in layers:
            layer.events.paint.connect(self._painted)
            layer.events.set_data.connect(self._painted)

    def _painted(self, _event: Any = None) -> None:
        self.timer.start()

    def _look(self) -> None:
        self.attempt(self.session.sync)

    def _new(self, box: LayerBox, title: str) -> None:
        def make() -> None:
            layer = new_labels_layer(self.viewer, self.image.layer, title)
            box.choose(layer)

        self.attempt(make)

    def _opened(self, image: Any, labels: Any, scribbles: Any) -> None:
        self.scribbles.choose(scribbles)
        self.image.choose(image)
        self.labels.choose(labels)

    # ------------------------------------------------------------------ acts

    def learn(self) -> None:
        """Learn, then propagate."""
        self._with_settings(self.session.learn)

    def propagate(self) -> None:
        """Propagate."""
        self._with_settings(self.session.propagate)

    def preview(self) -> None:
        """Interpolate shapes at once."""
        self._with_settings(self.session.show_preview)

    def suggest(self) -> None:
        """Go to the slice to annotate next."""
        self._with_settings(self.session.suggest)

    def accept(self) -> None:
        """Count the slice in view as annotated."""
        self._with_settings(self.session.accept_slice)

    def undo(self) -> None:
        """Take back the last propagation, acceptance or tool."""
        self.session.undo()

    def _with_settings(self, act: Callable[[], None]) -> None:
        def run() -> None:
            self.session.use(self.options.settings())
            act()

        self.attempt(run)

    def attempt(self, act: Callable[[], object]) -> bool:
        """Do something; what the user can mend is said in the panel and as a notification."""
        try:
            act()
        except InputError as error:
            self._refuse(str(error))
            return False
        return True

    def _instant(self, on: bool) -> None:
        self.session.instant = on
        if on and self.session.annotation is not None and self.session.annotation.data.any():
            self.preview()

    def _save_model(self) -> None:
        name = ask_file(self, "Save checkpoint", CHECKPOINTS, save=True)
        if name:
            file = Path(name)
            self.session.save_model(file if file.suffix else file.with_suffix(".safetensors"))

    # ------------------------------------------------------------------ show

    def _changed(self) -> None:
        shown = self.session.results["labels"]
        wanted = [layer for layer in (self.labels.layer, self.scribbles.layer, shown) if layer is not None]
        if wanted != self._watched:
            self._watch(wanted)
        self._refill()
        self.undo_button.setEnabled(self.session.can_undo)
        self.table.refill()
        self._show_strip()

    def _show_strip(self, _event: Any = None) -> None:
        slices = self.session.slices()
        self.strip.show_slices(slices, self.session.current_slice() if slices else 0)

    def _say(self, text: str) -> None:
        self.message.setText(text)

    def _refuse(self, text: str) -> None:
        self.message.setText(text)
        show_warning(text)

    def _progress(self, event: Progress) -> None:
        self.bar.setValue(round(SCALE * event.share))
        self.bar.setFormat(f"Learning, {event.seconds_left:.0f} s left")

    def _state(self, text: str) -> None:
        self.bar.setRange(0, SCALE)
        self.bar.setValue(0)
        if text == "Propagating":
            self.bar.setRange(0, 0)
        self.bar.setFormat(text)
        busy = bool(text)
        self.cancel_button.setEnabled(busy)
        for one in (self.learn_button, self.propagate_button):
            one.setEnabled(not busy)


def _left(runner: QtRunner) -> None:
    """End what runs for a panel, or a viewer, that was closed."""
    learning = runner.busy("work")
    runner.close()
    if learning:
        show_warning(
            "Learning was ended since the panel was closed. What was learned is kept and used when this scan is opened "
            f"again; what was painted when it began is in {models_folder()}."
        )
