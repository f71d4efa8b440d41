"""The panel in a real viewer: paint, learn, propagate, follow suggestions, correct, take back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QTimer

from serving import AFFINE, DRAWN, SHAPE, only, scan, truth
from sliceprop import io
from sliceprop.napari_plugin.geometry import AFFINE as PLACE
from sliceprop.napari_plugin.geometry import layer_affine
from sliceprop.napari_plugin.label_names import LabelStyle, names_of, set_styles
from sliceprop.napari_plugin.widget import KEYS

STYLES = {1: LabelStyle("disc", (1.0, 0.0, 0.0)), 2: LabelStyle("core", (0.0, 1.0, 0.0))}
TRUTH = truth().T
Idle = Callable[[], None]


@pytest.fixture
def image(viewer: Any) -> Any:
    return viewer.add_image(scan().T.copy(), name="leg", scale=(4, 1, 1), metadata={PLACE: AFFINE})


@pytest.fixture
def labels(panel: Any, image: Any) -> Any:
    """Nothing painted yet."""
    next(b for b in panel.labels.parent().children() if getattr(b, "text", lambda: "")() == "New").click()
    layer = panel.labels.layer
    set_styles(layer, STYLES)
    return layer


@pytest.fixture
def painted(labels: Any) -> Any:
    paint(labels, DRAWN)
    return labels


def paint(layer: Any, slices: tuple[int, ...], source: np.ndarray = TRUTH) -> None:
    """Strokes over whole structures, as the brush leaves them."""
    for s in slices:
        for value in (1, 2):
            k, j, i = np.nonzero(source[s][None] == value)
            layer.data_setitem((k + s, j, i), value)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_the_new_layer_lies_on_the_image(labels: Any, image: Any) -> None:
    assert labels.data.shape == image.data.shape and np.issubdtype(labels.data.dtype, np.integer)
    np.testing.assert_allclose(labels.scale, image.scale)
    np.testing.assert_allclose(layer_affine(labels), layer_affine(image))
    assert labels.n_edit_dimensions == 2


def test_paint_learn_and_follow_the_suggestion(panel: Any, painted: Any, image: Any, idle: Idle, viewer: Any) -> None:
    before, turns, progress = painted.data.copy(), [], []
    timer = QTimer()
    timer.timeout.connect(lambda: turns.append(panel.session.busy))
    panel.session.progressed.connect(progress.append)
    timer.start(5)
    panel.learn_button.click()
    idle()
    timer.stop()
    assert sum(turns) >= 5, "the viewer's events were processed while it learned"
    assert progress and progress[-1].seconds_left >= 0
    result = panel.session.results
    np.testing.assert_array_equal(painted.data, before)
    np.testing.assert_array_equal(result["labels"].data[list(DRAWN)], TRUTH[list(DRAWN)])
    assert min(dice(result["labels"].data == value, value == TRUTH) for value in (1, 2)) > 0.8
    assert panel.session.shown.report["trained"]
    for kind in ("labels", "from_lower", "from_upper", "uncertainty"):
        np.testing.assert_allclose(layer_affine(result[kind]), layer_affine(image))
        np.testing.assert_allclose(result[kind].scale, image.scale)
    assert names_of(result["labels"]) == {1: "disc", 2: "core"}
    np.testing.assert_allclose(result["labels"].get_color(2), painted.get_color(2))
    assert result["uncertainty"].data.max() > 0 and not result["uncertainty"].data[list(DRAWN)].any()
    assert viewer.layers.selection.active is painted

    states = panel.session.slices()
    assert [s for s, state in enumerate(states) if state.annotated] == list(DRAWN)
    assert all(state.quality is not None for s, state in enumerate(states) if DRAWN[0] < s < DRAWN[-1])
    wanted = [s for s, state in enumerate(states) if state.suggested]
    assert len(wanted) <= 1
    press(viewer, "N")
    assert panel.session.current_slice() == panel.session.suggestion["slice"]
    assert panel.session.current_slice() not in DRAWN
    assert panel.message.text() == panel.session.suggestion["reason"]


def press(viewer: Any, key: str) -> None:
    """Press a key of the viewer."""
    next(act for bound, act in viewer.keymap.items() if str(bound) == key)(viewer)


def test_the_strip_goes_to_a_slice(panel: Any, painted: Any, qtbot: Any, idle: Idle) -> None:
    from qtpy.QtCore import QPoint, Qt

    idle()
    panel.strip.setFixedSize(300, 84)
    place = panel.strip.column(9).center()
    qtbot.mouseClick(panel.strip, Qt.MouseButton.LeftButton, pos=QPoint(round(place.x()), round(place.y())))
    assert panel.session.current_slice() == 9
    assert panel.strip.text(DRAWN[0]) == f"Slice {DRAWN[0]}, annotated"


def test_cancel_keeps_the_best(panel: Any, painted: Any, idle: Idle, qtbot: Any) -> None:
    panel.options.budget.setValue(3000)
    progress: list[Any] = []
    panel.session.progressed.connect(progress.append)
    panel.learn_button.click()
    qtbot.waitUntil(lambda: bool(progress), timeout=300_000)
    panel.cancel_button.click()
    idle()
    assert progress[-1].share < 1
    assert panel.session.learned and panel.session.shown.report["trained"]


def test_a_stroke_is_previewed_and_never_changed(panel: Any, painted: Any, idle: Idle) -> None:
    panel.instant.setChecked(True)
    idle()
    result = panel.session.results["labels"]
    assert dice(result.data == 1, TRUTH == 1) > 0.7
    assert not panel.session.shown.report["trained"]

    # A stroke on the propagated layer makes the slice annotated, as corrected.
    before = result.data[5].copy()
    result.data_setitem((np.array([5, 5]), np.array([0, 1]), np.array([3, 3])), 2)
    wanted = result.data[5].copy()
    idle()
    np.testing.assert_array_equal(painted.data[5], wanted)
    np.testing.assert_array_equal(result.data[5], wanted)
    assert 5 in panel.session.annotated
    panel.propagate()
    idle()
    np.testing.assert_array_equal(result.data[5], wanted)
    np.testing.assert_array_equal(painted.data[5], wanted)

    # napari's own undo takes the stroke back, in both layers.
    result.undo()
    idle()
    np.testing.assert_array_equal(painted.data[5], before)
    np.testing.assert_array_equal(result.data[5], before)

    # A stroke on the annotation layer shows at once.
    painted.data_setitem((np.array([9]), np.array([0]), np.array([0])), 1)
    idle()
    assert 9 in panel.session.annotated and result.data[9].sum() == 1


def test_a_stroke_on_the_first_result_counts(panel: Any, painted: Any, idle: Idle) -> None:
    panel.propagate()
    idle()
    result = panel.session.results["labels"]
    result.data_setitem((np.array([5]), np.array([0]), np.array([3])), 2)
    idle()
    assert 5 in panel.session.annotated
    np.testing.assert_array_equal(painted.data[5], result.data[5])


def test_a_stroke_previews_what_it_touches(panel: Any, painted: Any, image: Any, idle: Idle) -> None:
    panel.options.extrapolate.setCurrentText("none")
    panel.propagate()
    idle()
    before = panel.session.shown.labels.copy()
    seen: list[np.ndarray] = []

    def look() -> None:
        labels = panel.session.shown.labels
        if not np.array_equal(labels[3:7], before[3:7]) and not seen:
            seen.append(labels.copy())

    painted.data[DRAWN[2]] = 0
    painted.refresh()
    idle()
    panel.session.settings = panel.options.settings()
    panel.session.changed.connect(look)
    panel.session.instant = True
    paint(painted, (5,))
    idle()
    panel.session.changed.disconnect(look)
    first, shape = seen[0], panel.session.shown.labels
    np.testing.assert_array_equal(first[: DRAWN[0]], before[: DRAWN[0]])
    np.testing.assert_array_equal(first[5], TRUTH[5])
    assert panel.session.annotated == {DRAWN[0], 5, DRAWN[1]} and not shape[DRAWN[1] + 1 :].any()


def test_strokes_while_propagating_are_kept(panel: Any, painted: Any, idle: Idle, qtbot: Any) -> None:
    panel.learn_button.click()
    assert panel.session.busy
    painted.data_setitem((np.array([4]), np.array([0]), np.array([0])), 2)
    idle()
    assert panel.session.results["labels"].data[4].nonzero() == ([0], [0])
    assert 4 in panel.session.shown.report["annotated_slices"]


def test_accepting_and_taking_back(panel: Any, painted: Any, idle: Idle, viewer: Any) -> None:
    panel.propagate()
    idle()
    result = panel.session.results["labels"].data
    first = result.copy()
    panel.session.go_to(4)
    press(viewer, "K")
    assert 4 in panel.session.annotated
    np.testing.assert_array_equal(painted.data[4], result[4])
    panel.undo_button.click()
    assert 4 not in panel.session.annotated and not painted.data[4].any()
    np.testing.assert_array_equal(panel.session.results["labels"].data, first)
    np.testing.assert_array_equal(painted.data[list(DRAWN)], TRUTH[list(DRAWN)])

    # An empty slice can be accepted too, and is background from then on.
    panel.session.remove_slices({DRAWN[-1]})
    panel.session.replace_labels(np.where(np.arange(SHAPE[2])[:, None, None] == 12, 0, first))
    panel.session.go_to(12)
    press(viewer, "K")
    assert 12 in panel.session.annotated
    panel.propagate()
    idle()
    assert 12 in panel.session.shown.report["annotated_slices"]
    assert not panel.session.results["labels"].data[12].any()
    for _ in range(4):
        press(viewer, "U")
    assert panel.session.annotated == set(DRAWN)
    press(viewer, "U")
    assert panel.session.results["labels"] is None
    np.testing.assert_array_equal(painted.data, only(truth()).T)


def test_partial_annotation_counts_per_label(panel: Any, labels: Any, idle: Idle) -> None:
    paint(labels, DRAWN)
    labels.data[labels.data == 2] = 0
    labels.data[4][TRUTH[4] == 2] = labels.data[9][TRUTH[9] == 2] = 2
    labels.refresh()
    panel.options.partial.setChecked(True)
    panel.propagate()
    idle()
    result = panel.session.results["labels"].data
    assert (result[4] == 1).any() and (result[7] == 2).any()
    assert (result[labels.data > 0] == labels.data[labels.data > 0]).all()


def test_scribbles_count(panel: Any, painted: Any, viewer: Any, image: Any, idle: Idle) -> None:
    marks = np.zeros(image.data.shape, np.uint8)
    marks[5, 10:26, 8:20] = 255
    layer = viewer.add_labels(marks, name="marks", scale=image.scale)
    panel.scribbles.choose(layer)
    panel.labels.choose(painted)
    panel.propagate()
    idle()
    result = panel.session.results["labels"].data
    assert not result[5, 10:26, 8:20].any() and TRUTH[5, 10:26, 8:20].any() and result[5].any()


def test_side_tools(panel: Any, painted: Any, viewer: Any, image: Any, idle: Idle, qtbot: Any) -> None:
    panel.propagate()
    idle()
    reference = viewer.add_labels(TRUTH.copy(), name="reference", scale=image.scale)
    panel.tools.reference.choose(reference)
    panel.tools.measure()
    assert "disc: 0." in panel.tools.measured.text() and "Mean: 0." in panel.tools.measured.text()
    panel.tools.removed.setText(f"{DRAWN[1]}, 12-13")
    panel.attempt(panel.tools.remove)
    assert panel.session.annotated == {DRAWN[0], DRAWN[2]}
    assert not painted.data[DRAWN[1]].any()
    painted.data_setitem((np.array([6]), np.array([0]), np.array([0])), 1)
    panel.session.results["labels"].data_setitem((np.array([8]), np.array([35]), np.array([0])), 1)
    panel.session.sync()
    assert {6, 8} <= panel.session.annotated


def test_labels_are_named_and_shown_alike(panel: Any, painted: Any, idle: Idle, tmp_path: Any) -> None:
    panel.propagate()
    idle()
    table = panel.table
    assert [table.table.item(n, 2).text() for n in range(2)] == ["disc", "core"]
    table.table.item(0, 2).setText("annulus")
    assert names_of(painted)[1] == names_of(panel.session.results["labels"])[1] == "annulus"
    table.add()
    assert painted.selected_label == 3 and names_of(painted)[3] == "label 3"
    table.save(tmp_path / "labels.txt")
    set_styles(painted, STYLES)
    table.refill()
    table.load(tmp_path / "labels.txt")
    assert names_of(painted) == {1: "annulus", 2: "core", 3: "label 3"}


def test_labels_that_lie_elsewhere_are_refused(panel: Any, image: Any, viewer: Any) -> None:
    """Those of the same scan, stored mirrored; and those that napari shows beside the image."""
    mirrored = AFFINE @ np.diag([-1, 1, 1, 1])
    options = {"of the file": {"scale": image.scale, "metadata": {PLACE: mirrored}}, "in napari": {"scale": (1, 1, 1)}}
    for name, place in options.items():
        panel.labels.choose(viewer.add_labels(only(truth()).T.copy(), name=name, **place))
        panel.propagate()
        assert f"{name}: its affine places voxels up to" in panel.message.text()


def test_options_for_counting_go_with_the_labels(panel: Any, painted: Any, viewer: Any, image: Any, idle: Idle) -> None:
    panel.options.partial.setChecked(True)
    panel.options.axis.setCurrentText("1")
    assert panel.session.settings.partial and panel.session.axis == 1
    other = viewer.add_labels(TRUTH.copy(), name="other", scale=image.scale)
    panel.labels.choose(other)
    panel.options.partial.setChecked(False)
    panel.options.axis.setCurrentText("auto")
    panel.labels.choose(painted)
    assert panel.options.partial.isChecked() and panel.session.settings.partial and panel.session.axis == 1
    panel.labels.choose(other)
    assert not panel.session.settings.partial and panel.session.settings.slice_axis == "auto"

    # How a layer counts does not become how others count.
    panel.labels.choose(painted)
    panel.labels.choose(viewer.add_labels(TRUTH.copy(), name="third", scale=image.scale))
    assert not panel.session.settings.partial and panel.session.settings.slice_axis == "auto"


def test_an_empty_slice_belongs_to_its_axis(panel: Any, painted: Any, idle: Idle) -> None:
    panel.propagate()
    idle()
    panel.session.replace_labels(np.where(np.arange(SHAPE[2])[:, None, None] == 12, 0, panel.session.shown.labels))
    panel.session.go_to(12)
    panel.accept()
    assert panel.session.job().annotated_slices == (*DRAWN, 12)
    panel.options.axis.setCurrentText("1")
    assert panel.session.job().annotated_slices is None


def wrong_layers() -> dict[str, tuple[Any, Any, str]]:
    volume, labels = scan().T, only(truth()).T
    return {
        "colour": (np.zeros((*volume.shape, 3), np.uint8), labels, "colour image"),
        "4D": (np.stack([volume, volume]), labels, "4 axes"),
        "multiscale": ([volume, volume[::2, ::2, ::2]], labels, "multiscale"),
        "other shape": (volume, labels[1:], "differs"),
        "empty": (volume, labels * 0, "nothing is annotated"),
        "constant": (volume * 0, labels, "constant"),
    }


@pytest.mark.parametrize("case", wrong_layers())
def test_layers_that_cannot_be_used_are_refused_in_words(panel: Any, viewer: Any, case: str, idle: Idle) -> None:
    array, drawn, words = wrong_layers()[case]
    viewer.add_image(array, name="image", multiscale=case == "multiscale", rgb=case == "colour")
    layer = viewer.add_labels(drawn.copy(), name="drawn")
    for act in (panel.learn, panel.preview, panel.accept, panel.suggest, panel.session.undo):
        panel.message.clear()
        act()
        idle()
        assert panel.message.text()
    panel.propagate()
    idle()
    assert words in panel.message.text()
    np.testing.assert_array_equal(layer.data, drawn)
    assert panel.session.results["labels"] is None and not panel.session.busy


def test_an_image_that_is_read_as_needed(panel: Any, viewer: Any, idle: Idle) -> None:
    import dask.array

    viewer.add_image(dask.array.from_array(scan().T), name="lazy", scale=(4, 1, 1))
    viewer.add_labels(only(truth()).T.copy(), name="drawn", scale=(4, 1, 1))
    panel.propagate()
    idle()
    assert panel.session.results["labels"].data[4].any()
    lazy = viewer.add_labels(dask.array.from_array(only(truth()).T), name="lazy labels", scale=(4, 1, 1))
    panel.labels.choose(lazy)
    panel.propagate()
    idle()
    assert "is not in memory" in panel.message.text()


def test_keys_are_free_in_napari(viewer: Any, panel: Any) -> None:
    """None of ours does something else in a viewer, an image or a labels layer."""
    from napari.layers import Image, Labels
    from napari.settings import get_settings

    bound = get_settings().shortcuts.shortcuts
    taken = {str(key) for name, keys in bound.items() for key in keys if not _of_other_layers(name)}
    assert not taken & KEYS.keys()
    assert not {str(key) for kind in (Image, Labels) for key in kind.class_keymap} & KEYS.keys()
    assert set(map(str, viewer.keymap)) >= KEYS.keys()


def _of_other_layers(command: str) -> bool:
    return any(kind in command for kind in ("points", "shapes", "rectangle", "ellipse", "line", "path", "polygon"))


def test_the_propagate_key(panel: Any, painted: Any, viewer: Any, idle: Idle) -> None:
    press(viewer, "R")
    idle()
    assert panel.session.results["labels"] is not None and not panel.session.shown.report["trained"]


def test_no_layers_at_all(panel: Any) -> None:
    for act in (panel.learn, panel.propagate, panel.preview, panel.suggest, panel.accept, panel.session.undo):
        act()
    assert panel.message.text() and panel.session.slices() == []


def test_layers_that_go_while_learning(panel: Any, painted: Any, viewer: Any, idle: Idle) -> None:
    panel.learn_button.click()
    viewer.layers.clear()
    idle()
    assert len(viewer.layers) == 0


def test_a_checkpoint_is_saved_and_starts_the_next_one(
    panel: Any, painted: Any, idle: Idle, tmp_path: Path, models: Path
) -> None:
    file = tmp_path / "best.safetensors"
    panel.options.save_to.text.setText(str(file))
    panel.learn_button.click()
    idle()
    assert file.is_file()
    panel.options.save_to.text.setText("")
    panel.options.start.text.setText(str(file))
    for kept in models.iterdir():
        kept.unlink()
    panel.propagate()
    idle()
    assert panel.session.shown.report["trained"]
    panel.options.start.text.setText(str(tmp_path / "missing.safetensors"))
    panel.propagate()
    idle()
    assert "missing.safetensors: no such checkpoint" in panel.message.text()


def test_a_viewer_that_is_closed_while_learning(qapp: Any, qtbot: Any, ended: Idle, models: Path) -> None:
    import napari
    from napari.utils.notifications import notification_manager

    viewer = napari.Viewer(show=False)
    viewer.add_image(scan().T)
    viewer.add_labels(only(truth()).T.astype(np.uint8))
    _, panel = viewer.window.add_plugin_dock_widget("sliceprop")
    panel.options.budget.setValue(3000)
    progress: list[Any] = []
    panel.session.progressed.connect(progress.append)
    panel.learn_button.click()
    qtbot.waitUntil(lambda: bool(progress), timeout=300_000)
    notification_manager.records.clear()
    runner = panel.runner
    viewer.close()
    qtbot.waitUntil(lambda: not runner.busy("work"), timeout=300_000)
    ended()
    assert any("Learning was ended" in str(record.message) for record in notification_manager.records)
    assert len(list(models.glob("*.safetensors"))) == 1
    kept = io.read_image(next(models.glob("*.labels.nii.gz")))
    np.testing.assert_array_equal(kept.array, only(truth()))
