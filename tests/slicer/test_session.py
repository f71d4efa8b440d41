"""The module's session on a loaded volume, against a real server."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest

pytest.importorskip("monailabel")

from serving import AFFINE, DRAWN, Server, eventually, nifti, only, scan, truth

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("work")) as client:
        yield client


def test_from_a_loaded_scan_to_the_next_slice(slicer, server):
    import standin
    from SlicePropLib.client import Client, ServerError
    from SlicePropLib.session import Session, describe

    client = Client(server.url)
    volume = standin.add_volume(slicer, scan(), AFFINE, "my scan")
    mine = standin.add_segments(slicer, only(truth()), ["disc", "core"])
    session = Session.of(client, volume, mine)
    assert session.image == "my_scan" and "my_scan" in client.studies() and not session.told
    assert Session.of(client, volume, mine).image == "my_scan", "a scan that the server has is not given to it again"

    assert "slice" in describe(session.suggest()), "a study without annotation has a suggestion too"
    session.go_to(13)
    assert session.mark_shown() == 13
    assert session.submit() == [*DRAWN, 13]

    report = session.propagate()
    assert report["annotated_slices"] == [*DRAWN, 13]
    session.show()
    [ours] = [node for node in slicer.mrmlScene.nodes if node.name == "SliceProp result"]
    found = np.zeros(truth().shape, int)
    for value, segment in enumerate(ours.segmentation.segments.values(), start=1):
        found[segment.mask.T] = value
    np.testing.assert_array_equal(found[..., list(DRAWN)], truth()[..., list(DRAWN)])
    assert not found[..., 13].any() and (found[..., 4] == truth()[..., 4]).mean() > 0.9
    assert [segment.name for segment in ours.segmentation.segments.values()] == ["disc", "core"]
    assert slicer.layers["foreground"].array.max() <= 1

    suggestion = session.suggest()
    plane = standin.numpy_matrix(slicer.views["Red"].node.GetSliceToRAS())
    assert (np.linalg.inv(AFFINE) @ plane[:, 3])[2] == pytest.approx(suggestion["slice"])
    assert [index for index, _ in session.quality()] == [*DRAWN, 13]

    client.train("my_scan", 1.0)
    client.stop()
    assert client.progress("my_scan")["image"] == "my_scan"

    with pytest.raises(ServerError, match="unknown image"):
        client.study("absent")
    with pytest.raises(ServerError, match="does not answer"):
        Client("http://127.0.0.1:9").studies()


@pytest.mark.parametrize("moved", ["volume", "segmentation"])
def test_what_is_under_a_transform_is_neither_sent_nor_brought(slicer, server, moved):
    """Slicer would put what comes back elsewhere."""
    import standin
    from SlicePropLib.client import Client
    from SlicePropLib.session import Session

    client, volume = Client(server.url), standin.add_volume(slicer, scan(), AFFINE, f"moved {moved}")
    mine = standin.add_segments(slicer, only(truth()), ["disc", "core"])
    session = Session.of(client, volume, mine)
    session.submit()
    before = client.study(session.image)["annotation_version"]
    {"volume": volume, "segmentation": mine}[moved].transform = object()
    for use in (session.submit, session.take_over, session.show, lambda: Session.of(client, volume, mine)):
        with pytest.raises(LookupError, match="under a transform"):
            use()
    assert client.study(session.image)["annotation_version"] == before


def test_a_scan_from_slicers_dicom_database_is_found_by_its_series(slicer, server):
    import standin
    from SlicePropLib.client import Client
    from SlicePropLib.session import Session

    server.add_image("1.2.826.77")
    volume = standin.add_volume(slicer, scan(), AFFINE, "3: T2 sagittal")
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.1 1.2.2")
    slicer.dicomDatabase.series["1.2.1", "0020,000E"] = "1.2.826.77"
    mine = standin.add_segments(slicer, truth() * 0, [])
    assert Session.of(Client(server.url), volume, mine).image == "1.2.826.77"


def test_the_buttons_of_the_panel(slicer, server, monkeypatch):
    import panels
    import standin

    panel = panels.open_panel(slicer, monkeypatch, server.url)
    panel.press("Propagate")
    assert "load a scan" in panel.said
    panel.volume = standin.add_volume(slicer, scan(), AFFINE, "by buttons")
    panel.segmentation = standin.add_segments(slicer, only(truth()), ["disc", "core"])
    panel.press("Connect")
    assert panel.said == "connected to by_buttons"
    panel.press("Submit drawn slices")
    assert panel.said == "annotated: 2, 7, 11" and [line.split()[0] for line in panel.lines] == ["2", "7", "11"]

    panel.budget = 15  # long enough to be seen at work on a busy machine
    panel.press("Learn")
    seen = set()
    eventually(lambda: seen.add(panel.poll()) or not panel.ticking, "the learning to end")
    assert 0 in seen and len(seen) > 1 and panel.said == "annotated: 2, 7, 11", "the bar moves, nothing went wrong"

    sent, send = [], urllib.request.urlopen
    with monkeypatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", lambda one, **more: sent.append(one) or send(one, **more))
        panel.press("Stop learning")
    assert sent[-1].full_url == f"{server.url}/train/?image=by_buttons", "not what this user learns elsewhere"

    panel.press("Propagate")
    eventually(lambda: panel.poll() is not None and "propagated" in panel.said, "the propagation to end")
    assert sum(node.name == "SliceProp result" for node in slicer.mrmlScene.nodes) == 1
    assert all("disc 0." in line or "disc 1." in line for line in panel.lines)
    panel.shortcut()
    assert panel.said.startswith(("Next: slice", "Enough is annotated")) and "gain" in panel.said
    panel.choose(1)
    plane = standin.numpy_matrix(slicer.views["Red"].node.GetSliceToRAS())
    assert (np.linalg.inv(AFFINE) @ plane[:, 3])[2] == pytest.approx(7)


def test_what_was_drawn_on_another_scan_of_the_same_name_is_not_counted(slicer, tmp_path):
    import standin
    from SlicePropLib.client import Client, ServerError
    from SlicePropLib.session import Session

    (tmp_path / "studies").mkdir()
    with Server(tmp_path / "studies", tmp_path) as server:
        volume = standin.add_volume(slicer, scan(), AFFINE, "exchanged")
        session = Session.of(Client(server.url), volume, standin.add_segments(slicer, only(truth()), ["disc", "core"]))
        (file,) = (tmp_path / "studies").glob("exchanged.*")
        file.unlink()
        file.with_name("exchanged.nii").write_bytes(nifti(scan(3)))
        with pytest.raises(ServerError, match="another scan"):
            session.submit()
        assert session.state()["annotated_slices"] == []


def test_the_scribbles_tab_grows_from_seeds(server):
    """The call of Slicer's own module: all segments as they are, and the one that is worked on."""
    image = server.add_image("scribbled")
    info = server.ok("GET", "/info/")["models"]
    assert next(iter(info)) == "labelprop" and info["grow_from_seeds"]["type"] == "scribbles"
    marks = np.zeros(truth().shape, np.uint8)
    marks[..., 5][truth()[..., 5] == 1] = 2
    marks[..., [0, 7, 13]] = np.where(truth()[..., [0, 7, 13]] == 1, 2, 1)
    names = ["background_scribbles", "foreground_scribbles"]
    segments = [{"name": name, "id": number} for number, name in enumerate(names, start=1)]
    result, params = server.infer(
        f"image={image}",
        "grow_from_seeds",
        ("label.nii", nifti(marks)),
        label_info=segments,
        selected_label_name="disc",
        roi=[],
    )
    assert params["label_names"] == {"disc": 1} and set(np.unique(result)) == {0, 1}
    overlap = 2 * (result[truth() == 1] == 1).sum() / ((result == 1).sum() + (truth() == 1).sum())
    assert overlap > 0.85
    refused = server.call("POST", f"/infer/fast_marching?image={image}", data={"params": "{}"}, files={"a": ("", b"")})
    assert refused.status_code == 400 and "no seeds" in refused.json()["detail"]
