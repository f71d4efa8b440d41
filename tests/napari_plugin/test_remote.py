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

from serving import AFFINE, DRAWN, SHAPE, Server, free_port, nifti, only, scan, truth
from sliceprop import io
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
    studies: Path

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
        yield Remote(client.url, token, studies)


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


@pytest.mark.e2e
def test_what_was_drawn_on_another_scan_of_the_same_name_is_not_counted(
    panel: Any, remote: Remote, viewer: Any, idle: Callable[[], None]
) -> None:
    (remote.studies / "exchanged.nii").write_bytes(nifti(scan()))
    remote.connect(panel, idle)
    panel.server.connect_button.click()
    idle()
    panel.server.studies.setCurrentText("exchanged")
    panel.server.open_button.click()
    idle()
    panel.labels.layer.data[4, 3:9, 3:9] = 1
    panel.labels.layer.refresh()
    (remote.studies / "exchanged.nii").write_bytes(nifti(scan(3)))
    panel.server.submit_button.click()
    idle()
    assert "another scan" in panel.message.text()
    client = Client(remote.address, remote.token)
    assert client.study("exchanged")["annotated_slices"] == []
    (remote.studies / "exchanged.nii").unlink()


@pytest.fixture(scope="module")
def worklist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose studies others annotate too; each test has one of its own."""
    work = tmp_path_factory.mktemp("worklist")
    studies = work / "studies"
    studies.mkdir()
    with Server(studies, work) as client:
        yield client


@pytest.fixture
def study(worklist: Any, request: pytest.FixtureRequest) -> str:
    """A study with the name of the test."""
    return str(worklist.add_image(request.node.name.replace("_", "-")[:60]))


Open = Callable[[str], Any]


@pytest.fixture
def opened(panel: Any, worklist: Any, idle: Callable[[], None]) -> Open:
    """Opens a study; answers the labels layer."""

    def act(study: str) -> Any:
        if panel.server.address.text() != worklist.url:
            panel.server.address.setText(worklist.url)
            panel.server.where.setCurrentText(SERVER)
            idle()
        panel.server.connect_button.click()
        idle()
        panel.server.studies.setCurrentText(study)
        panel.server.open_button.click()
        idle()
        return panel.labels.layer

    return act


@pytest.fixture
def sent(panel: Any, idle: Callable[[], None]) -> Callable[[], str]:
    """Sends what is painted; answers what the panel says."""

    def act() -> str:
        panel.server.submit_button.click()
        idle()
        return str(panel.message.text())

    return act


def stroke(layer: Any, s: int = 5, value: int = 1) -> None:
    layer.data_setitem((np.array([s, s]), np.array([4, 5]), np.array([4, 5])), value)


def marks() -> np.ndarray:
    """A line of label 1, and one of background."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[3:6, 4], drawn[3:6, 9] = 1, 255
    return drawn


STORED = "are stored"


@pytest.mark.e2e
def test_slices_that_are_empty_stay_annotated(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str], idle: Callable[[], None], viewer: Any
) -> None:
    worklist.submit(study, only(truth()), annotated_slices=[0, *DRAWN, 13])
    labels = opened(study)
    assert panel.session.annotated == {0, *DRAWN, 13}
    stroke(labels)
    stroke(labels, 13)
    idle()
    labels.undo()  # an empty slice is empty again, not unknown
    idle()
    # Another layer in between does not forget them.
    panel.labels.choose(viewer.add_labels(labels.data.copy(), name="mine", scale=labels.scale))
    assert panel.session.annotated == {5, *DRAWN}
    panel.labels.choose(labels)
    assert STORED in sent()
    assert worklist.study(study)["annotated_slices"] == [0, 2, 5, 7, 11, 13]


@pytest.mark.e2e
def test_partial_annotation_stays_partial(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str]
) -> None:
    part = only(truth())
    part[part == 2] = 0
    worklist.submit(study, part, partial=True)
    complete = worklist.add_image("complete")
    worklist.submit(complete, only(truth()), annotated_slices=[0, *DRAWN])
    labels, other = opened(study), opened(complete)
    assert not panel.options.partial.isChecked()
    panel.labels.choose(labels)
    panel.image.choose(panel.viewer.layers[study])
    assert panel.options.partial.isChecked() and panel.session.settings.partial
    stroke(labels)
    assert STORED in sent()
    state = worklist.study(study)
    assert state["partial"] and worklist.voxels(study, "drawn").sum() == (part > 0).sum() + 2

    panel.image.choose(panel.viewer.layers[complete])
    panel.labels.choose(other)
    assert STORED in sent()
    state = worklist.study(complete)
    assert not state["partial"] and state["annotated_slices"] == [0, *DRAWN]

    # The option counts at once, also for labels that are only sent.
    panel.options.partial.setChecked(True)
    assert STORED in sent()
    assert worklist.study(complete)["partial"]


@pytest.mark.e2e
def test_slices_along_another_axis_stay_so(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str]
) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[10] = truth()[10]
    worklist.submit(study, drawn, slice_axis=0, annotated_slices=[3, 10])
    labels = opened(study)
    assert panel.session.axis == 2 and panel.session.annotated == {3, 10}
    labels.data_setitem((np.array([4, 5]), np.array([4, 5]), np.array([20, 20])), 1)
    assert STORED in sent()
    state = worklist.study(study)
    assert state["slice_axis"] == 0 and state["annotated_slices"] == [3, 10, 20]


@pytest.mark.e2e
def test_scribbles_of_others_stay(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str], idle: Callable[[], None]
) -> None:
    worklist.submit(study, only(truth()))
    worklist.submit(study, marks(), tag="scribbles")
    bare = worklist.add_image("bare")
    labels = opened(study)
    shown = panel.scribbles.layer
    np.testing.assert_array_equal(shown.data, marks().T)
    stroke(labels)
    assert STORED in sent()
    np.testing.assert_array_equal(worklist.voxels(study, "scribbles"), marks())

    # A study without scribbles is not given those of another one.
    stroke(opened(bare))
    assert panel.scribbles.layer is None
    panel.scribbles.choose(shown)
    assert f"belongs to the study {study}" in sent()
    panel.scribbles.choose(None)
    assert STORED in sent() and not worklist.study(bare)["scribbles"]

    # None in view leaves them; drawing elsewhere meanwhile is not replaced; erasing what was opened removes them.
    panel.image.choose(panel.viewer.layers[study])
    panel.labels.choose(labels)
    assert STORED in sent() and worklist.study(study)["scribbles"]
    panel.scribbles.choose(shown)
    worklist.submit(study, marks() // 255, tag="scribbles")
    stroke(shown, 6)
    assert "annotated elsewhere" in sent() and "Open brings it" in panel.message.text()
    np.testing.assert_array_equal(worklist.voxels(study, "scribbles"), marks() // 255)
    opened(study)
    panel.scribbles.layer.data[...] = 0
    panel.scribbles.layer.refresh()
    assert STORED in sent() and not worklist.study(study)["scribbles"]


@pytest.mark.e2e
def test_what_was_not_opened_replaces_nothing(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str], viewer: Any, idle: Callable[[], None]
) -> None:
    worklist.submit(study, only(truth()))
    worklist.submit(study, marks(), tag="scribbles")
    labels, shown = opened(study), panel.scribbles.layer
    place = {"scale": labels.scale}
    mine = viewer.add_labels(np.zeros_like(labels.data), name="mine", **place)
    panel.labels.choose(mine)
    stroke(mine)
    assert "annotated elsewhere" in sent()
    panel.labels.choose(labels)
    lines = viewer.add_labels(np.zeros_like(labels.data), name="lines", **place)
    panel.scribbles.choose(lines)
    stroke(lines)
    assert "annotated elsewhere" in sent()
    panel.scribbles.choose(shown)
    assert STORED in sent()
    np.testing.assert_array_equal(worklist.voxels(study, "scribbles"), marks())

    # Connecting anew, or opening the study anew, does not make older layers newer.
    worklist.submit(study, only(truth(), (6,)))
    opened(study)
    panel.labels.choose(labels)
    panel.scribbles.choose(None)
    panel.image.choose(viewer.layers[study])
    assert "annotated elsewhere" in sent()
    assert worklist.study(study)["annotated_slices"] == [6]


@pytest.mark.e2e
def test_labels_that_a_server_would_mix_up_are_refused(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str], viewer: Any
) -> None:
    labels = opened(study)
    labels.data[5] = np.where(TRUTH[5] == 2, 3, TRUTH[5])
    labels.metadata = {**labels.metadata, "label_names": {1: "label 3"}}
    assert "several labels are called label 3" in sent()
    labels.metadata = {**labels.metadata, "label_names": {1: "background", 3: "core"}}
    assert "cannot be called background" in sent()
    assert not worklist.study(study)["annotated_slices"]

    image = viewer.layers[study]
    image.metadata = {**image.metadata, "server": "http://elsewhere:8000"}
    panel.labels.choose(viewer.add_labels(only(truth()).T.copy(), name="mine", scale=labels.scale))
    assert "connect to that server" in sent()


@pytest.mark.e2e
@pytest.mark.parametrize("between", [False, True])
def test_a_former_name_that_another_label_has_now_is_refused(
    worklist: Any, opened: Open, sent: Callable[[], str], between: bool
) -> None:
    study, disc, former = worklist.add_image(f"swap{between}"), f"disc{between}", f"former{between}"
    worklist.submit(study, only(truth()), label_info=[{"name": disc, "idx": 1}, {"name": "core", "idx": 2}])
    labels = opened(study)
    before = worklist.voxels(study, "annotation")
    stroke(labels, 5, next(value for value, name in names_of(labels).items() if name == disc))
    worklist.ok("PUT", "/labelprop/labels", json={"labels": [{"name": former, "renamed_from": disc}]})
    if between:
        assert STORED in sent()
        before = worklist.voxels(study, "annotation")
    worklist.ok("PUT", "/labelprop/labels", json={"labels": [{"name": disc}]})
    assert f"{disc} is another label on the server now; open the study again" in sent()
    np.testing.assert_array_equal(worklist.voxels(study, "annotation"), before)
    opened(study)
    assert STORED in sent()
    np.testing.assert_array_equal(worklist.voxels(study, "annotation"), before)


@pytest.mark.e2e
def test_a_scan_that_was_replaced_on_the_server(
    panel: Any, worklist: Any, study: str, opened: Open, sent: Callable[[], str]
) -> None:
    labels = opened(study)
    file = next(worklist.folder.glob(f"studies/{study}.nii*"))
    mirrored = AFFINE @ np.diag([1, 1, -1, 1])
    io.write_image(file, scan(), io.Image(scan(), mirrored))
    stroke(labels)
    assert "another one than in view" in sent()
    assert not worklist.study(study)["annotated_slices"]


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
