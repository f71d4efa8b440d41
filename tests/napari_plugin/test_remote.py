"""The panel on a server: a real one, none, and somebody else's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from serving import DRAWN, Server, free_port, nifti, only, scan, truth
from sliceprop.client import Client, ServerError, UnreachableError, WrongServerError
from sliceprop.napari_plugin.label_names import names_of
from sliceprop.napari_plugin.server_box import SERVER
from sliceprop.tokens import add_token

TRUTH = truth().T


class GuardedServer(Server):
    """One that asks for a token."""

    def _ready(self, client: Any) -> bool:
        try:
            return bool(client.call("GET", "/healthz").ok)
        except requests.ConnectionError:
            return False


@dataclass(frozen=True)
class Remote:
    """A running server and a token for it."""

    address: str
    token: str

    def connect(self, panel: Any, idle: Callable[[], None]) -> None:
        panel.server.address.setText(self.address)
        panel.server.token.setText(self.token)
        panel.server.where.setCurrentText(SERVER)
        idle()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    work = tmp_path_factory.mktemp("server")
    studies = work / "studies"
    studies.mkdir()
    (studies / "leg.nii").write_bytes(nifti(scan()))
    token = add_token(work / "tokens", "ada", "train")
    with GuardedServer(studies, work, {"token_file": str(work / "tokens")}) as client:
        yield Remote(client.url, token)


@pytest.mark.e2e
def test_paint_learn_and_propagate_on_a_server(
    panel: Any, remote: Remote, viewer: Any, idle: Callable[[], None], tmp_path: Path
) -> None:
    panel.server.address.setText(remote.address)
    panel.server.where.setCurrentText(SERVER)
    idle()
    assert "enter your token" in panel.message.text()
    panel.server.token.setText(remote.token)
    panel.server.connect_button.click()
    idle()
    assert [panel.server.studies.itemText(n) for n in range(panel.server.studies.count())] == ["leg"]
    panel.server.open_button.click()
    idle()
    image, labels = panel.image.layer, panel.labels.layer
    np.testing.assert_array_equal(image.data, scan().T)
    assert not labels.data.any()

    for s in DRAWN:
        labels.data[s] = np.where(TRUTH[s] == 1, 4, np.where(TRUTH[s] == 2, 2, 0))
    labels.metadata = {**labels.metadata, "label_names": {4: "disc", 2: "core"}}
    labels.refresh()
    progress: list[Any] = []
    panel.session.progressed.connect(progress.append)
    panel.options.budget.setValue(3)
    panel.learn_button.click()
    idle()
    result = panel.session.results["labels"]
    assert progress and panel.session.shown.report["trained"]
    np.testing.assert_array_equal(result.data[list(DRAWN)], labels.data[list(DRAWN)])
    assert set(np.unique(result.data)) == {0, 2, 4}
    overlap = (result.data == 4) & (TRUTH == 1)
    assert 2 * overlap.sum() / ((result.data == 4).sum() + (TRUTH == 1).sum()) > 0.7
    assert panel.session.results["uncertainty"].data.max() > 0
    states = panel.session.slices()
    assert [s for s, state in enumerate(states) if state.annotated] == list(DRAWN)
    assert any(state.quality is not None for state in states)
    panel.suggest()
    idle()
    assert panel.session.suggestion["slice"] == panel.session.current_slice() not in DRAWN

    panel.session.save_model(tmp_path / "leg.safetensors")
    idle()
    assert (tmp_path / "leg.safetensors").is_file()

    # The model of the study is among the checkpoints that learning can start from.
    panel.server.connect_button.click()
    idle()
    offered = panel.options.start_on_server
    assert "leg" in [offered.itemText(n) for n in range(offered.count())]

    # Opened again, the study comes with what is annotated on it, by name.
    panel.server.open_button.click()
    idle()
    again = panel.labels.layer
    assert again is not labels
    values = {name: value for value, name in names_of(again).items()}
    np.testing.assert_array_equal(again.data == values["disc"], labels.data == 4)
    np.testing.assert_array_equal(again.data == values["core"], labels.data == 2)


@pytest.mark.e2e
def test_an_image_is_sent_and_a_training_cancelled(
    panel: Any, remote: Remote, viewer: Any, idle: Callable[[], None], qtbot: Any
) -> None:
    viewer.add_image(scan(3).T.copy(), name="other leg", scale=(4, 1, 1))
    viewer.add_labels(only(truth(3)).T.copy(), name="drawn", scale=(4, 1, 1))
    remote.connect(panel, idle)
    panel.propagate()
    idle()
    assert "press Send image" in panel.message.text()
    panel.server.send_button.click()
    idle()
    assert panel.server.studies.currentText() == "other_leg"
    panel.options.budget.setValue(3000)
    progress: list[Any] = []
    panel.session.progressed.connect(progress.append)
    panel.learn_button.click()
    qtbot.waitUntil(lambda: any(event.share for event in progress), timeout=300_000)
    panel.cancel_button.click()
    idle()
    assert panel.session.shown.report["trained"]


@pytest.mark.e2e
def test_what_others_painted_meanwhile_is_not_replaced(
    panel: Any, remote: Remote, viewer: Any, idle: Callable[[], None]
) -> None:
    remote.connect(panel, idle)
    panel.server.studies.setCurrentText("leg")
    panel.server.open_button.click()
    idle()
    mine = panel.labels.layer
    mine.data[4, 3:9, 3:9] = 1
    mine.refresh()
    colleague, theirs = Client(remote.address, remote.token), only(truth(), (5,))
    colleague.submit("leg", theirs, {1: "disc", 2: "core"}, {"slice_axis": 2, "annotated_slices": [5]})
    panel.server.submit_button.click()
    idle()
    assert "annotated elsewhere" in panel.message.text()
    assert mine.data[4, 3:9, 3:9].all()
    assert (colleague.voxels("leg", "annotation") > 0).any(axis=(0, 1)).nonzero()[0].tolist() == [5]

    # Opened anew, the study can be gone on with.
    panel.server.open_button.click()
    idle()
    assert panel.session.annotated == {5}
    panel.propagate()
    idle()
    assert panel.session.results["labels"].data[4].any()
    panel.labels.layer.data[8] = TRUTH[8]
    panel.labels.layer.refresh()
    panel.server.submit_button.click()
    idle()
    assert (colleague.voxels("leg", "annotation") > 0).any(axis=(0, 1)).nonzero()[0].tolist() == [5, 8]
    panel.labels.layer.data[:] = 0
    panel.labels.layer.refresh()
    panel.server.submit_button.click()
    idle()
    assert "nothing is annotated" in panel.message.text()


def test_a_server_that_is_down_is_said_in_words(panel: Any, idle: Callable[[], None]) -> None:
    panel.server.address.setText(f"127.0.0.1:{free_port()}")
    panel.server.where.setCurrentText(SERVER)
    idle()
    assert "does not answer; check the address" in panel.message.text()
    panel.server.open_button.click()
    assert "Connect to a server" in panel.message.text()


def test_typed_errors() -> None:
    with pytest.raises(UnreachableError):
        Client(f"127.0.0.1:{free_port()}").studies()
    with pytest.raises(ServerError, match="not a token"):
        Client("127.0.0.1", "two\nlines")


@pytest.mark.parametrize("answer", [b"<html>hello</html>", json.dumps({"models": {"deepedit": {}}}).encode()])
def test_somebody_elses_server(answer: bytes) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(WrongServerError, match="not a server of the MONAI Label app labelprop"):
            Client(f"http://127.0.0.1:{server.server_port}").check()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
