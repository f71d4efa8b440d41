"""The module on studies that others annotate too: what is there is shown, and nothing drawn on either side is lost."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("monailabel")

from serving import AFFINE, SHAPE, Server, only, scan, truth

pytestmark = pytest.mark.e2e

NAMES = ["disc", "core"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("work")) as client:
        yield client


class Desk:
    """One study, open in 3D Slicer, and what is drawn there."""

    def __init__(self, slicer, server, image, drawn, names):
        import standin
        from SlicePropLib.client import Client

        self.slicer, self.server, self.image = slicer, server, image
        self.client = Client(server.url)
        self.volume = standin.add_volume(slicer, scan(), AFFINE, image)
        self.mine = standin.add_segments(slicer, truth() * 0 if drawn is None else drawn, names)

    def connect(self, client=None):
        from SlicePropLib.session import Session

        self.session = Session.of(client or self.client, self.volume, self.mine)
        return self.session.told

    def show(self, index):
        """Scroll the views to a slice."""
        self.session.go_to(index)

    def mark(self, index):
        self.show(index)
        self.session.mark_shown()

    def draw(self, labels, *slices):
        for value, name in enumerate(NAMES, start=1):
            mask = self.segment(name).mask
            for index in slices:
                mask[index] = value == labels[..., index].T

    def segment(self, name, node=None):
        held = (node or self.mine).segmentation
        return held.segments[held.GetSegmentIdBySegmentName(name)]

    def drawn(self, node=None):
        """`(i, j, k)`, by the names of the segments."""
        found = np.zeros(SHAPE, np.uint8)
        for value, name in enumerate(NAMES, start=1):
            mask = self.segment(name, node).mask
            found[mask.T if mask is not None else np.zeros(SHAPE, bool)] = value
        return found

    @property
    def elsewhere(self):
        [node] = [node for node in self.slicer.mrmlScene.nodes if node.name == "SliceProp elsewhere"]
        return self.drawn(node)

    @property
    def annotated(self):
        return self.server.study(self.image)["annotated_slices"]


def opened(slicer, server, image, drawn=None, names=NAMES, **annotated):
    """A study that somebody annotated with `labels`, opened in Slicer; not connected yet."""
    server.add_image(image)
    if annotated:
        server.submit(image, **annotated)
    return Desk(slicer, server, image, drawn, names)


def moved(labels):
    """The same, drawn otherwise."""
    return np.roll(labels, 3, axis=0)


def test_what_was_annotated_before_is_shown_and_stays_in_force(slicer, server):
    desk = opened(slicer, server, "leg", labels=only(truth()), annotated_slices=[0, 2, 7, 11])
    desk.mine.segmentation.RemoveAllSegments()
    desk.volume.array = np.ascontiguousarray(desk.volume.array[:, ::-1])  # Slicer counts one axis the other way round
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = SHAPE[1] - 1
    import standin

    desk.volume.SetIJKToRASMatrix(standin.vtk_matrix(AFFINE @ flip))
    assert desk.connect() == "from the server: slices 2, 7, 11; empty and complete there: slice 0"
    np.testing.assert_array_equal(desk.drawn()[:, ::-1], only(truth()))
    colors = server.study("leg")["colors"]
    assert desk.segment("core").color == [int(colors["core"][n : n + 2], 16) / 255 for n in (1, 3, 5)]
    desk.draw(truth()[:, ::-1], 5)
    assert desk.session.submit() == desk.annotated == [0, 2, 5, 7, 11]
    np.testing.assert_array_equal(server.voxels("leg", "annotation"), only(truth(), (2, 5, 7, 11)))
    assert not desk.connect(), "all of it is here"


def test_what_was_drawn_on_both_sides_is_the_users_and_the_other_is_shown(slicer, server):
    before = moved(only(truth(), (5, 7)))
    desk = opened(slicer, server, "arm", before, labels=only(truth()))
    told = desk.connect()
    assert "from the server: slices 2, 11" in told and "drawn here and elsewhere: slice 7; yours count" in told
    np.testing.assert_array_equal(desk.drawn(), before + only(truth(), (2, 11)))
    np.testing.assert_array_equal(desk.elsewhere, only(truth(), (7,)))
    assert desk.session.submit() == [2, 5, 7, 11]
    np.testing.assert_array_equal(server.voxels("arm", "annotation"), before + only(truth(), (2, 11)))
    assert not desk.connect()


def test_what_others_submit_meanwhile_comes_first(slicer, server):
    desk = opened(slicer, server, "hip", only(truth(), (2, 5, 7, 9)))
    desk.connect()
    assert desk.session.submit() == [2, 5, 7, 9]
    desk.draw(moved(truth()), 5, 11)
    theirs = only(truth(), (2, 5, 11, 12)) + moved(only(truth(), (7,)))
    theirs[..., 5] = moved(moved(truth()))[..., 5]
    server.submit("hip", theirs, annotated_slices=[2, 5, 7, 11, 12, 13])
    versions = len(server.ok("GET", "/labelprop/versions?image=hip")["versions"])
    with pytest.raises(LookupError, match="nothing is sent yet") as stopped:
        desk.session.submit()
    for sentence in (
        "from the server: slice 12",
        "changed there, and here with it: slice 7",
        "complete there: slice 13",
        "elsewhere: slices 5, 11; yours",
        "not counted on the server any more: slice 9",
    ):
        assert sentence in str(stopped.value)
    assert len(server.ok("GET", "/labelprop/versions?image=hip")["versions"]) == versions
    np.testing.assert_array_equal(desk.elsewhere, only(theirs, (5, 11)))
    merged = only(theirs, (2, 7, 12)) + moved(only(truth(), (5, 11))) + only(truth(), (9,))
    np.testing.assert_array_equal(desk.drawn(), merged)
    assert desk.session.submit() == [2, 5, 7, 9, 11, 12, 13]
    np.testing.assert_array_equal(server.voxels("hip", "annotation"), merged)


def test_single_labels_on_a_slice_stay_what_they_are(slicer, server):
    core = np.where(truth() == 2, 2, 0).astype(np.uint8)
    desk = opened(slicer, server, "partial", labels=only(core), partial=True)
    assert "just its labels count" in desk.connect()
    desk.draw(truth(), 5)
    assert desk.session.submit() == [2, 5, 7, 11] and server.study("partial")["partial"]
    np.testing.assert_array_equal(server.voxels("partial", "annotation"), only(core) + only(truth(), (5,)))
    for index in (2, 5, 7, 11, 13):
        desk.mark(index)
    assert desk.session.submit() == [2, 5, 7, 11, 13] and not server.study("partial")["partial"]
    assert not desk.connect()


def test_a_scene_that_is_opened_another_day_goes_on(slicer, server):
    desk = opened(slicer, server, "later", only(truth()))
    desk.connect()
    desk.session.submit()
    desk.mark(0)
    assert not set("".join(desk.mine.attributes.values())) & set(':;&+%"<'), "as the file of a scene keeps it"
    theirs = only(truth(), (2, 7)) + moved(only(truth(), (11,)))
    server.submit("later", theirs)
    assert desk.connect() == "changed there, and here with it: slice 11", "it was not touched here since"
    np.testing.assert_array_equal(desk.drawn(), theirs)
    assert desk.session.submit() == [0, 2, 7, 11]


def test_of_another_server_nothing_is_taken_for_known(slicer, server, tmp_path):
    from SlicePropLib.client import Client

    desk = opened(slicer, server, "moved", only(truth()))
    desk.connect()
    desk.session.submit()
    desk.mark(13)
    server.submit("moved", moved(only(truth())))
    told = desk.connect(Client(server.url.replace("127.0.0.1", "localhost")))
    assert told.startswith("drawn here and elsewhere: slices 2, 7, 11")
    np.testing.assert_array_equal(desk.drawn(), only(truth()))
    assert desk.session.submit() == [2, 7, 11, 13]


def test_labels_go_by_name_whatever_happened_to_their_numbers(slicer, server):
    desk = opened(slicer, server, "names", only(truth(), (3,)), ["disc", "tumour"], labels=only(truth()))
    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "tumour"}]})
    server.ok("PUT", "/labelprop/labels", json={"removed": ["tumour"]})
    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "vessel"}]})
    assert "labels that the server does not have: tumour" in desk.connect()
    desk.mine.segmentation.AddEmptySegment("", "unused", [1, 0, 0])
    desk.session.submit()
    names = server.study("names")["label_names"]
    assert "unused" not in names, "it may be gone on the server"
    found = server.voxels("names", "annotation")
    np.testing.assert_array_equal(found[..., 3] == names["tumour"], truth()[..., 3] == 2)
    assert not (found == names["vessel"]).any() and (found[..., 7] == names["core"]).any()

    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "growth", "renamed_from": "tumour"}]})
    desk.session.submit()
    assert "tumour" not in server.study("names")["label_names"], "the server knows its former name"
    assert desk.connect() == "changed there, and here with it: slice 3"
    np.testing.assert_array_equal(desk.segment("growth").mask[3].T, truth()[..., 3] == 2)
    assert not desk.segment("tumour").mask.any()
    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "tumour", "renamed_from": "growth"}]})


def test_slices_are_cleared_only_by_one_who_means_it(slicer, server):
    desk = opened(slicer, server, "cleared", labels=only(truth()))
    desk.connect()
    desk.draw(truth() * 0, 2, 7)
    with pytest.raises(LookupError, match="empty here now: slices 2, 7"):
        desk.session.submit()
    assert "from the server: slices 2, 7" in desk.connect() and desk.drawn()[..., 7].any()
    desk.draw(truth() * 0, 2, 7, 11)
    with pytest.raises(LookupError, match="nothing is drawn or marked"):
        desk.session.submit()
    desk.draw(truth(), 11)
    desk.mark(7)
    with pytest.raises(LookupError, match=r"empty here now: slice 2\."):
        desk.session.submit()
    assert desk.session.submit() == [7, 11]


def test_slices_are_cleared_although_another_client_was_given_the_scan_alone(slicer, server):
    desk = opened(slicer, server, "bare", labels=only(truth()))
    desk.connect()
    server.ok("POST", "/activelearning/next_slice", json={"image": "bare", "client_id": "Slicer's own module"})
    desk.draw(truth() * 0, 7)
    with pytest.raises(LookupError, match="empty here now"):
        desk.session.submit()
    assert desk.session.submit() == desk.annotated == [2, 11], "they are not taken for never shown"
    assert not desk.connect()


def in_a_copy_of_the_result(desk):
    """Propagate, and copy the result into the user's own segments."""
    desk.connect()
    desk.session.propagate()
    desk.session.show()
    [result] = [node for node in desk.slicer.mrmlScene.nodes if node.name == "SliceProp result"]
    for name in NAMES:
        desk.segment(name).mask = desk.segment(name, result).mask.copy()


def test_a_slice_that_is_cleared_in_a_copy_of_the_result_is_not_called_empty(slicer, server):
    desk = opened(slicer, server, "copy", labels=only(truth(), (2, 4, 7, 11)))
    in_a_copy_of_the_result(desk)
    desk.draw(truth() * 0, 4)
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot tell both at once"):
            desk.session.submit()
    assert desk.annotated == [2, 4, 7, 11] and server.voxels("copy", "annotation")[..., 4].any()


def test_a_slice_that_is_cleared_among_approved_ones_is_not_called_empty(slicer, server):
    desk = opened(slicer, server, "approved", labels=only(truth(), (2, 4, 7, 11)))
    in_a_copy_of_the_result(desk)
    approved = set(np.flatnonzero(desk.drawn().any(axis=(0, 1))).tolist())
    server.submit("approved", desk.drawn(), annotated_slices=sorted(approved))
    desk.connect()
    assert desk.annotated == sorted(approved)
    desk.draw(truth() * 0, 5)
    with pytest.raises(LookupError, match="do this again"):
        desk.session.submit()
    assert desk.session.submit() == desk.annotated == sorted(approved - {5})


def test_an_empty_slice_that_somebody_took_back_stays_so(slicer, server):
    desk = opened(slicer, server, "taken", labels=only(truth()), annotated_slices=[0, 2, 7, 11])
    desk.connect()
    server.submit("taken", only(truth()), annotated_slices=[2, 7, 11])
    desk.draw(truth(), 5)
    desk.mark(13)
    with pytest.raises(LookupError, match="not empty and complete on the server any more: slice 0; mark again"):
        desk.session.submit()
    assert desk.session.submit() == [2, 5, 7, 11, 13], "marks of this user that were not sent yet count"
    desk.mark(0)
    assert desk.session.submit() == [0, 2, 5, 7, 11, 13]


def test_single_slices_of_a_partial_study_are_not_marked_in_vain(slicer, server):
    core = np.where(truth() == 2, 2, 0).astype(np.uint8)
    desk = opened(slicer, server, "single", labels=only(core), partial=True)
    desk.connect()
    desk.mark(5)
    with pytest.raises(LookupError, match=r"so slice 5 cannot be complete without the others: mark slices 2, 7, 11"):
        desk.session.submit()
    assert desk.session.submit() == [2, 7, 11], "without the mark, as was said"
    for index in (2, 7, 11):
        desk.mark(index)
    assert desk.session.submit() == [2, 7, 11] and not server.study("single")["partial"]


@pytest.mark.parametrize("step", ["at once", "submitted in between"])
def test_a_former_name_that_another_label_has_now_is_refused(slicer, server, step):
    image = f"swap-{step.replace(' ', '-')}"
    desk = opened(slicer, server, image, labels=only(truth()))
    desk.connect()
    desk.draw(truth(), 5)
    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "former", "renamed_from": "disc"}]})
    if step != "at once":
        assert desk.session.submit() == [2, 5, 7, 11]
    server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "disc"}]})
    try:
        for again in (desk.session.submit, desk.session.submit, desk.connect):
            with pytest.raises(LookupError, match=r"disc is another label on the server now.* called former there"):
                again()
        desk.segment("disc").name = "former"
        told = desk.connect()
        desk.session.submit()
        found, number = server.voxels(image, "annotation"), server.study(image)["label_names"]["former"]
        np.testing.assert_array_equal(found == number, only(truth(), (2, 5, 7, 11)) == 1)
        assert not told
    finally:
        names = [{"name": f"{image} new", "renamed_from": "disc"}]
        server.ok("PUT", "/labelprop/labels", json={"labels": names})
        server.ok("PUT", "/labelprop/labels", json={"labels": [{"name": "disc", "renamed_from": "former"}]})


def test_what_the_server_answered_is_not_drawn(slicer, server):
    from SlicePropLib.session import Session

    desk = opened(slicer, server, "copied", only(truth()))
    desk.connect()
    desk.session.submit()
    desk.session.propagate()
    desk.session.show()
    [result] = [node for node in slicer.mrmlScene.nodes if node.name == "SliceProp result"]
    with pytest.raises(LookupError, match="SliceProp result is the server's"):
        Session.of(desk.client, desk.volume, result)
    for name in NAMES:
        desk.segment(name).mask = desk.segment(name, result).mask.copy()
    desk.draw(moved(truth()), 5)
    assert desk.session.submit() == [2, 5, 7, 11]


def test_slices_along_another_direction(slicer, server):
    from SlicePropLib.grids import GridError

    sagittal = np.zeros(SHAPE, np.uint8)
    sagittal[[10, 15]] = truth()[[10, 15]]
    desk = opened(slicer, server, "side", sagittal)
    desk.connect()
    assert desk.session.submit() == [10, 15] and server.study("side")["slice_axis"] == 0
    desk.mark(20)
    assert desk.session.submit() == [10, 15, 20]
    server.submit("side", only(truth()), slice_axis=2)
    for again in (desk.session.submit, desk.connect):
        with pytest.raises(GridError, match="another direction"):
            again()
    np.testing.assert_array_equal(desk.drawn(), sagittal)


def test_what_was_saved_as_final_is_shown_too(slicer, server):
    desk = opened(slicer, server, "final", labels=only(truth()), tag=None)
    assert desk.connect() == "from the server: slices 2, 7, 11"
    desk.draw(truth(), 4)
    assert desk.session.submit() == desk.annotated == [2, 4, 7, 11]


def test_scribbles_stay(slicer, server):
    desk = opened(slicer, server, "marks", labels=only(truth()))
    marks = np.zeros(SHAPE, np.uint8)
    marks[5, 5, :] = 255
    server.submit("marks", marks, "scribbles")
    desk.connect()
    desk.mine.segmentation.AddEmptySegment("stroke", "background_scribbles", [0, 0, 0])
    desk.mine.segmentation.segments["stroke"].mask = np.ones(SHAPE[::-1], bool)
    desk.draw(truth(), 4)
    assert desk.session.submit() == [2, 4, 7, 11]
    np.testing.assert_array_equal(server.voxels("marks", "scribbles"), marks)
    np.testing.assert_array_equal(server.voxels("marks", "annotation"), only(truth(), (2, 4, 7, 11)))


def test_a_segmentation_belongs_to_one_study(slicer, server):
    desk = opened(slicer, server, "one", only(truth()))
    desk.connect()
    desk.volume.SetName("other")
    with pytest.raises(LookupError, match="that of the study one"):
        desk.connect()
    assert "other" not in desk.client.studies()


def test_a_submission_that_came_in_between_is_kept_and_told_of(slicer, server, monkeypatch):
    from SlicePropLib.client import ServerError

    desk = opened(slicer, server, "race", only(truth()))
    desk.connect()
    desk.session.submit()
    state = desk.session.state()
    server.submit("race", only(truth(), (3,)))
    monkeypatch.setattr(desk.session, "state", lambda: state)
    with pytest.raises(ServerError, match="annotated elsewhere meanwhile"):
        desk.session.submit()


def test_the_panel_shows_what_is_annotated_before_it_sends(slicer, server, monkeypatch):
    import panels

    desk = opened(slicer, server, "pressed", moved(only(truth(), (5,))), labels=only(truth()))
    panel = panels.open_panel(slicer, monkeypatch, server.url)
    panel.volume = desk.volume
    panel.press("Connect")
    assert panel.said.startswith("make a segmentation")
    panel.segmentation = desk.mine
    panel.press("Propagate")
    assert "from the server: slices 2, 7, 11" in panel.said and panel.said.endswith("do this again")
    assert desk.annotated == [2, 7, 11] and not panel.ticking
    panel.press("Submit drawn slices")
    assert panel.said == "annotated: 2, 5, 7, 11"

    import standin

    panel.segmentation = standin.add_segments(slicer, truth() * 0, [])
    panel.press("Submit drawn slices")
    assert "from the server: slices 2, 5, 7, 11" in panel.said and desk.annotated == [2, 5, 7, 11]


def test_a_study_that_changes_all_the_time(slicer, server, monkeypatch):
    from SlicePropLib.client import Client, ServerError

    desk = opened(slicer, server, "restless", labels=only(truth()))
    monkeypatch.setattr(Client, "annotation", lambda self, image: (truth(), "sparse:99"))
    with pytest.raises(ServerError, match="at this moment"):
        desk.connect()
