"""MONAI Label's own module for 3D Slicer against a real server: its handlers, its client, its HTTP calls."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("monailabel")

from serving import DRAWN, SHAPE, Server, eventually, only, scan, truth

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("work")) as client:
        yield client


@pytest.fixture
def stock(slicer, server, monkeypatch, tmp_path):
    """Opens the module, with a study of the server loaded by Next Sample."""
    import stock

    if stock.folder() is None:
        pytest.skip("the installed MONAI Label brings no module for 3D Slicer")

    def open_module(image=None, **settings):
        module = stock.Module(slicer, monkeypatch, server.url, tmp_path)
        module.settings |= settings
        if image is not None:
            server.add_image(image)
            next_sample(module, server, image)
        return module

    return open_module


def next_sample(module, server, image):
    """Next Sample, with the study that was in use last."""
    server.next_slice(image)
    module.widget.ui.strategyBox.currentText = "next_slice"
    module.widget.onNextSampleButton()
    assert module.said == [] and module.widget.current_sample["id"] == image
    np.testing.assert_array_equal(module.volume, scan())


def submit(module):
    module.widget.onSaveLabel()
    assert module.said == []


def auto_segmentation(module):
    module.widget.onClickSegmentation()
    assert module.said == []


def draw(module, labels, *names):
    for value, name in enumerate(names, start=1):
        module.draw(name, labels == value)


def overlap(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_submit_then_auto_segmentation_propagates_and_nothing_is_lost(stock, server):
    module = stock("story")
    draw(module, only(truth()), "disc", "core")
    submit(module)
    assert server.study("story")["annotated_slices"] == list(DRAWN)

    auto_segmentation(module)
    found = module.labels("disc", "core")
    np.testing.assert_array_equal(found[..., list(DRAWN)], truth()[..., list(DRAWN)])
    assert overlap(found == 1, truth() == 1) > 0.8 and overlap(found == 2, truth() == 2) > 0.8

    module.draw("core", np.indices(SHAPE)[2] == 5)
    submit(module)
    assert server.study("story")["annotated_slices"] == [2, 5, 7, 11]

    next_sample(module, server, "story")
    assert "close current scene" in module.asked[-1]
    np.testing.assert_array_equal(module.labels("disc", "core")[..., list(DRAWN)], truth()[..., list(DRAWN)])
    assert (module.labels("disc", "core")[..., 5] == 2).all()


def test_what_was_submitted_before_next_sample_stays_though_slicer_no_longer_shows_it(stock, server):
    module = stock("emptied", autoRunSegmentationOnNextSample=False)
    draw(module, only(truth(), (2, 7)), "disc", "core")
    submit(module)
    next_sample(module, server, "emptied")
    assert not any(mask.any() for _, mask in module.segments)
    draw(module, only(truth(), (11,)), "disc", "core")
    submit(module)
    assert server.study("emptied")["annotated_slices"] == [2, 7, 11]
    np.testing.assert_array_equal(server.voxels("emptied", "annotation"), only(truth(), (2, 7, 11)))


def test_auto_segmentation_of_a_study_without_annotation_leaves_what_is_drawn(stock, server):
    server.submit(server.add_image("names"), only(truth()))
    module = stock("bare")
    draw(module, only(truth()), "disc", "core")
    auto_segmentation(module)
    np.testing.assert_array_equal(module.labels("disc", "core"), only(truth()))


def test_labels_map_by_their_place_in_the_list(stock, server):
    module = stock("places")
    module.draw("background", truth() == 0)
    module.draw("background_scribbles", np.indices(SHAPE)[2] == 1, "background_scribbles")
    draw(module, np.array([0, 2, 1])[only(truth())], "core", "disc")
    submit(module)
    expected = np.array([0, *(server.study("places")["label_names"][name] for name in ("disc", "core"))])
    np.testing.assert_array_equal(server.voxels("places", "annotation"), expected[only(truth())])
    auto_segmentation(module)
    np.testing.assert_array_equal(module.labels("disc", "core")[..., list(DRAWN)], truth()[..., list(DRAWN)])


@pytest.mark.parametrize("model", ["labelprop_scribbles", "grow_from_seeds"])
def test_scribbles_answer_for_the_selected_label_only(stock, server, model):
    module = stock(f"scribbled_{model}", autoRunSegmentationOnNextSample=False)
    draw(module, only(truth()), "disc", "core")
    outside = np.zeros(SHAPE, bool)
    outside[..., [0, 5, 13]] = True
    module.draw("background_scribbles", outside & (truth() != 1), "background_scribbles")
    module.draw("foreground_scribbles", (np.indices(SHAPE)[2] == 5) & (truth() == 1), "foreground_scribbles")
    module.widget.ui.scribblesMethodSelector.currentText = model
    module.widget.ui.scribLabelComboBox.currentText = "disc"
    module.choose_options("infer", model, margin="0.5")
    module.widget.onUpdateScribbles()
    assert module.said == []
    assert overlap(module.labels("disc") == 1, truth() == 1) > 0.85
    np.testing.assert_array_equal(module.labels("core") == 1, only(truth()) == 2)


def test_the_bar_moves_while_a_training_runs_and_it_stops(stock, server):
    module = stock("learning")
    draw(module, only(truth()), "disc", "core")
    submit(module)
    widget = module.widget
    assert widget.ui.trainingButton.enabled
    widget.ui.trainerBox.currentText = "labelprop"
    module.choose_options("train", "labelprop", budget_s="120")
    widget.onTraining()
    widget.onStopTraining()
    eventually(lambda: not widget.isTrainingRunning(), "the training to be stopped before it began")
    widget.onTraining()
    widget.updateGUIFromParameterNode()

    def moved():
        widget.monitorTraining()
        return 1 < widget.ui.trainingProgressBar.value < 100

    eventually(moved, "the bar to move")
    widget.onStopTraining()
    eventually(lambda: not widget.isTrainingRunning(), "the training to be stopped")
    widget.monitorTraining()
    assert module.said == [] and widget.ui.trainingProgressBar.value == 100


def test_a_scan_that_is_only_in_slicer(stock, server, slicer):
    import standin

    from serving import AFFINE

    module = stock()
    standin.add_volume(slicer, scan(), AFFINE, "mine")
    module.widget.fetchInfo()
    assert module.widget.current_sample["session"]
    draw(module, only(truth()), "disc", "core")
    auto_segmentation(module)
    np.testing.assert_array_equal(module.labels("disc", "core"), only(truth()))
    submit(module)
    auto_segmentation(module)
    np.testing.assert_array_equal(module.labels("disc", "core")[..., list(DRAWN)], truth()[..., list(DRAWN)])
    assert overlap(module.labels("disc") == 1, truth() == 1) > 0.8


def test_a_server_on_another_machine_gives_the_scan_away(stock, server, monkeypatch):
    server.add_image("remote")
    module = stock()
    exists = module.code.os.path.exists
    monkeypatch.setattr(module.code.os.path, "exists", lambda file: "studies" not in str(file) and exists(file))
    next_sample(module, server, "remote")
