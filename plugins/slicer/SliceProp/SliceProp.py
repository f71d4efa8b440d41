"""3D Slicer's module SliceProp: annotate a few slices, learn, propagate, go to the slice that is worth it next.

Builds and connects the widget; what it does is in `SlicePropLib`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ctk
from SlicePropLib.client import Client, ServerError
from SlicePropLib.grids import GridError
from SlicePropLib.session import Session, describe
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

import qt
import slicer

POLL_MS = 500
RUNNING = ("SUBMITTED", "RUNNING")
MENDABLE = (ServerError, GridError, LookupError)


class SliceProp(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "SliceProp"
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["sliceprop"]
        parent.helpText = "Annotate a few slices of a scan, get the volume. Research use only; not a medical device."


class SlicePropWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def setup(self) -> None:
        """Lay out and connect."""
        super().setup()
        self.session: Session | None = None
        self._work: threading.Thread | None = None
        self._outcome: list[Any] = []
        self._after: Callable[[Any], None] | None = None
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.address = qt.QLineEdit(qt.QSettings().value("SliceProp/address", "http://127.0.0.1:8000"))
        self.token = qt.QLineEdit()
        self.token.echoMode = qt.QLineEdit.Password
        self.token.placeholderText = "only if the server asks for one; not stored"
        self.volume = self._selector("vtkMRMLScalarVolumeNode")
        self.segmentation = self._selector("vtkMRMLSegmentationNode", create=True)
        self.budget = ctk.ctkDoubleSpinBox()
        self.budget.value, self.budget.suffix, self.budget.maximum = 30, " s", 3600
        for text, box in (
            ("Server", self.address),
            ("Token", self.token),
            ("Scan", self.volume),
            ("Your segmentation", self.segmentation),
            ("Learn for", self.budget),
        ):
            form.addRow(text, box)
        for text, action in (
            ("Connect", self.connect),
            ("Mark this slice as complete", self.mark),
            ("Submit drawn slices", self.submit),
            ("Learn", self.train),
            ("Stop learning", self.stop),
            ("Propagate", self.propagate),
            ("Next suggestion (Ctrl+Shift+N)", self.suggest),
        ):
            button = qt.QPushButton(text)
            button.connect("clicked()", lambda action=action: self._try(action))
            self.layout.addWidget(button)
        self.bar, self.status, self.slices = qt.QProgressBar(), qt.QLabel(), qt.QListWidget()
        self.status.wordWrap = True
        for widget in (self.bar, self.status, self.slices):
            self.layout.addWidget(widget)
        self.slices.connect("itemDoubleClicked(QListWidgetItem*)", self._go_to_item)
        self.shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Shift+N"), slicer.util.mainWindow())
        self.shortcut.connect("activated()", lambda: self._try(self.suggest))
        self.timer = qt.QTimer()
        self.timer.interval = POLL_MS
        self.timer.connect("timeout()", self._poll)
        self.layout.addStretch(1)

    def cleanup(self) -> None:
        """Leave nothing behind when the module is closed or reloaded."""
        self.timer.stop()
        self.shortcut.setParent(None)

    def connect(self) -> None:
        """Find the study of the selected scan, or give it to the server; show what is annotated."""
        qt.QSettings().setValue("SliceProp/address", self.address.text)
        if self.volume.currentNode() is None:
            raise LookupError("load a scan and select it first")
        if self.segmentation.currentNode() is None:
            raise LookupError("make a segmentation for what you draw, and select it")
        client = Client(self.address.text, self.token.text)
        self.session = Session.of(client, self.volume.currentNode(), self.segmentation.currentNode())
        self._list_slices(self.session)
        self.status.text = "; ".join(filter(None, (f"connected to {self.session.image}", self.session.told)))

    def mark(self) -> None:
        """Call the slice in view complete, also if nothing is drawn on it."""
        self.status.text = f"slice {self._session().mark_shown()} counts as complete with the next submit"

    def submit(self) -> None:
        """Send the drawn and the marked slices."""
        session = self._session()
        slices = session.submit()
        self._list_slices(session)
        self.status.text = f"annotated: {', '.join(map(str, slices))}"

    def train(self) -> None:
        """Start learning and show how far it is."""
        session = self._session()
        session.client.train(session.image, float(self.budget.value))
        self.timer.start()

    def stop(self) -> None:
        """End learning."""
        session = self._session()
        session.client.stop(session.image)

    def propagate(self) -> None:
        """Submit, fill the volume without blocking Slicer, then show it."""
        self.submit()
        session = self._session()
        self._start(session.propagate, lambda answer: self._shown(session))

    def suggest(self) -> None:
        """Go to the slice that is worth annotating next."""
        self.status.text = describe(self._session().suggest())

    def _session(self) -> Session:
        """Of scan and segmentation that are selected; what comes into a segmentation is looked at first."""
        chosen = self.volume.currentNode(), self.segmentation.currentNode()
        if self.session is None or chosen != (self.session.volume, self.session.segmentation):
            self.connect()
            assert self.session is not None
            if self.session.told:
                raise LookupError(f"{self.status.text}. Look at it, then do this again")
        return self.session

    def _shown(self, session: Session) -> None:
        session.show()
        self._list_slices(session)
        self.status.text = "propagated; the result is a segmentation of its own, yours is as you drew it"

    def _list_slices(self, session: Session) -> None:
        self.slices.clear()
        for index, quality in session.quality():
            self.slices.addItem(f"{index}  {quality}")

    def _go_to_item(self, item: Any) -> None:
        self._try(lambda: self._session().go_to(int(item.text().split()[0])))

    def _start(self, work: Callable[[], Any], after: Callable[[Any], None]) -> None:
        """Run `work` in a thread; it must not touch the scene."""
        if self._work is not None:
            raise LookupError("wait for the end of what is running")

        def run() -> None:
            try:
                self._outcome.append(work())
            except MENDABLE as error:
                self._outcome.append(error)

        self._outcome, self._after = [], after
        self._work = threading.Thread(target=run, daemon=True)
        self._work.start()
        self.bar.maximum = 0
        self.timer.start()

    def _poll(self) -> None:
        if self._work is not None and self._outcome:
            answer, self._work = self._outcome[0], None
            self.bar.maximum = 1
            if isinstance(answer, Exception):
                self.status.text = str(answer)
            elif self._after is not None:
                self._try(lambda: self._after(answer))
        if self._work is None:
            self._try(self._show_progress)

    def _show_progress(self) -> None:
        session = self.session
        if session is None:
            return
        state = session.client.progress(session.image)
        self.bar.maximum, self.bar.value = max(int(state.get("total_epochs") or 1), 1), int(state.get("epoch") or 0)
        if state.get("status") not in RUNNING:
            self.bar.value = self.bar.maximum
            self.timer.stop()

    def _try(self, action: Callable[[], Any]) -> None:
        """Do it; what the user can mend is said in the panel."""
        try:
            action()
        except MENDABLE as error:
            self.timer.stop()
            self.status.text = str(error)

    def _selector(self, kind: str, create: bool = False) -> Any:
        box = slicer.qMRMLNodeComboBox()
        box.nodeTypes = [kind]
        box.addEnabled = box.removeEnabled = box.renameEnabled = create
        box.noneEnabled = False
        box.setMRMLScene(slicer.mrmlScene)
        return box
