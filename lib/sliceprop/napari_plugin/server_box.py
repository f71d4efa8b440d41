"""Where to compute: on this computer, or on a server with its list of studies."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QLineEdit, QSizePolicy, QVBoxLayout, QWidget

from sliceprop.client import Client
from sliceprop.config import BACKGROUND_SCRIBBLE
from sliceprop.errors import InputError
from sliceprop.io import Image, compact_labels
from sliceprop.napari_plugin.fields import button, row
from sliceprop.napari_plugin.geometry import file_affine, layer_placement
from sliceprop.napari_plugin.label_names import LabelStyle, label_options
from sliceprop.napari_plugin.layers import SERVER as ADDRESS_OF
from sliceprop.napari_plugin.layers import STUDY, check_image_layer
from sliceprop.napari_plugin.remote import LAST_AXIS, Known, RemoteBackend
from sliceprop.napari_plugin.session import ACCEPTED, COUNTING, DRAWING, Session

HERE, SERVER = "This computer", "Server"
ADDRESS = "http://127.0.0.1:8000"


class ServerBox(QWidget):
    """The switch, the address, and the studies of the server.

    Args:
        session: its backend is switched.
        opened: called with image, labels and scribbles layer of a study that was opened; None for no scribbles.
        with_settings: does something with the options as they are, and says what is wrong.

    Attributes:
        checkpoints: the ids of those on the server, none on this computer.
    """

    checkpoints = Signal(list)

    def __init__(
        self,
        session: Session,
        opened: Callable[[Any, Any, Any], None],
        with_settings: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__()
        self._session, self._opened = session, opened
        self._known: Known = {}
        self._local = session.backend
        self.where = QComboBox()
        self.where.addItems([HERE, SERVER])
        self.where.setToolTip("where to learn and propagate")
        self.address = QLineEdit(ADDRESS)
        self.token = QLineEdit()
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.setPlaceholderText("token, where the server asks who you are")
        self.connect_button = button("Connect", self.connect_server, "list the studies of this server")
        self.studies = QComboBox()
        self.studies.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.open_button = button("Open", self.open_study, "open this study with what is annotated on it")
        self.send_button = button("Send image", self.send_image, "add the image to the server")
        self.submit_button = button(
            "Send labels", lambda: with_settings(self.submit), "store what is painted; every step does so by itself"
        )
        self.remote = QWidget()
        inner = QVBoxLayout(self.remote)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.addWidget(row(self.address, self.connect_button))
        inner.addWidget(self.token)
        inner.addWidget(row(self.studies, self.open_button))
        inner.addWidget(row(self.send_button, self.submit_button))
        self.remote.setVisible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.where)
        layout.addWidget(self.remote)
        self.where.currentTextChanged.connect(self._switch)

    def _switch(self, where: str) -> None:
        self.remote.setVisible(where == SERVER)
        if where == HERE:
            self._session.backend = self._local
            self.checkpoints.emit([])
        else:
            self.connect_server()

    def connect_server(self) -> None:
        """Look who is at the address, and list the studies."""
        try:
            client = Client(self.address.text(), self.token.text())
        except InputError as error:
            self._session.refused.emit(str(error))
            return
        self._session.backend = RemoteBackend(client, self._known)

        def ask() -> tuple[list[str], list[str]]:
            client.check()
            return client.studies(), client.checkpoints()

        self._session.run("Connecting", ask, self._list)

    def _list(self, found: tuple[list[str], list[str]]) -> None:
        studies, checkpoints = found
        self.studies.clear()
        self.studies.addItems(studies)
        self.checkpoints.emit(checkpoints)
        self._session.said.emit(f"Connected; {len(studies)} studies, {len(checkpoints)} checkpoints.")

    def open_study(self) -> None:
        """Fetch a study and what is annotated on it."""
        study, backend = self.studies.currentText(), self._session.backend
        if not study or not isinstance(backend, RemoteBackend):
            self._session.refused.emit("Connect to a server and choose a study first.")
            return
        self._session.run("Opening", partial(_fetch, backend.client, study), partial(self._add, backend))

    def _add(self, backend: RemoteBackend, fetched: _Fetched) -> None:
        """Show a study; the labels layer keeps how its slices count, and which of them are empty."""
        study, viewer = fetched.study, self._session.viewer
        place = layer_placement(fetched.scan)
        place["metadata"] |= {STUDY: study, ADDRESS_OF: backend.client.address}
        image = viewer.add_image(np.ascontiguousarray(fetched.scan.array.T), name=study, **place)

        def add(title: str, array: NDArray[Any], version: str, styles: dict[int, LabelStyle], **kept: Any) -> Any:
            drawing = uuid4().hex
            backend.know(study, drawing, version, fetched.numbers, fetched.scan_name)
            options = label_options(styles, {**place["metadata"], **kept, DRAWING: drawing})
            layer = viewer.add_labels(np.array(array.T, np.uint16), name=f"{study} {title}", **{**place, **options})
            layer.n_edit_dimensions = 2
            return layer

        marks = None
        if fetched.scribbles is not None:
            meanings = {**fetched.styles, BACKGROUND_SCRIBBLE: LabelStyle("background", (1.0, 1.0, 1.0))}
            marks = add("scribbles", fetched.scribbles, fetched.scribbles_version, meanings)
        labels = add("labels", fetched.annotation, fetched.version, fetched.styles, **fetched.counting)
        self._opened(image, labels, marks)

    def submit(self) -> None:
        """Store what is painted on the server."""
        session, backend = self._session, self._session.backend
        session.sync()
        try:
            if not isinstance(backend, RemoteBackend):
                raise InputError("connect to a server first")
            job = session.job()
        except InputError as error:
            session.refused.emit(str(error))
            return
        session.run(
            "Sending",
            lambda: backend.submit(job),
            lambda study: session.said.emit(f"The labels of {study} are stored."),
        )

    def send_image(self) -> None:
        """Add the image to the server, under its layer's name."""
        session, image = self._session, self._session.image
        backend = session.backend
        try:
            check_image_layer(image)
            if not isinstance(backend, RemoteBackend):
                raise InputError("connect to a server first")
        except InputError as error:
            session.refused.emit(str(error))
            return
        study = "".join(c if c.isalnum() or c in "-_" else "_" for c in image.name)
        data, affine = image.data, file_affine(image)
        layers = [layer for layer in (session.annotation, session.scribbles) if layer is not None]

        def send() -> tuple[list[str], list[str]]:
            if study in backend.client.studies():
                raise InputError(f"there is a study {study} on the server; rename the image layer, or open that study")
            backend.client.upload_image(study, Image(np.asarray(data).T, affine))
            return backend.client.studies(), backend.client.checkpoints()

        def sent(found: tuple[list[str], list[str]]) -> None:
            for layer in (image, *layers):
                layer.metadata = {**layer.metadata, STUDY: study, ADDRESS_OF: backend.client.address}
            self._list(found)
            self.studies.setCurrentText(study)
            session.said.emit(f"{study} is on the server.")

        session.run("Sending", send, sent)


@dataclass(frozen=True)
class _Fetched:
    """A study of the server.

    Attributes:
        study: its id.
        scan: the image.
        annotation: `(i, j, k)`, what is painted.
        scribbles: `(i, j, k)`, marks in any plane, 255 for background; None without any.
        styles: how its labels are called and shown.
        counting: how its slices count, as the labels layer's metadata keep it; empty without annotation.
        version: of the annotation.
        scribbles_version: of the scribbles.
        numbers: of the server's labels by name.
        scan_name: tells the scan from others of its name.
    """

    study: str
    scan: Image
    annotation: NDArray[Any]
    scribbles: NDArray[Any] | None
    styles: dict[int, LabelStyle]
    counting: dict[str, Any]
    version: str
    scribbles_version: str
    numbers: dict[str, int]
    scan_name: str


def _fetch(client: Client, study: str) -> _Fetched:
    """The versions are asked for first: what is painted elsewhere meanwhile is told of later, not overlooked."""
    state = client.study(study)
    styles = {int(value): LabelStyle(name, _rgb(state["colors"][name])) for name, value in state["label_names"].items()}
    annotation = compact_labels(client.voxels(study, "annotation"))
    scribbles = compact_labels(client.voxels(study, "scribbles")) if state["scribbles"] else None
    version, scribbles_version = state["annotation_version"], state["scribbles_version"]
    counting = _counting(state, annotation) if version else {}
    scan = client.download_image(study)
    numbers = state["label_names"]
    about = (version, scribbles_version, numbers, state["scan"])
    return _Fetched(study, scan, annotation, scribbles, styles, counting, *about)


def _counting(state: dict[str, Any], annotation: NDArray[Any]) -> dict[str, Any]:
    """How the slices of an annotation count: along which axis, whether completely, and which of them are empty."""
    axis, slices = LAST_AXIS - state["slice_axis"], np.moveaxis(annotation, state["slice_axis"], 0)
    empty = () if state["partial"] else tuple(s for s in state["annotated_slices"] if not slices[s].any())
    return {COUNTING: (axis, state["partial"]), ACCEPTED: {axis: empty}}


def _rgb(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return red, green, blue
