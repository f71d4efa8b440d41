from pathlib import Path

import numpy as np
import pytest

import balls

LABELS = balls.truth()


@pytest.fixture(params=[balls.STRAIGHT, balls.OBLIQUE], ids=["straight", "oblique"])
def volume(slicer, request):
    import standin

    return standin.add_volume(slicer, balls.scan(), request.param)


def test_segments_come_on_the_grid_of_the_volume_in_their_order(slicer, volume):
    import standin
    from SlicePropLib import scene

    array, names = scene.read_segments(standin.add_segments(slicer, LABELS, ["left", "right"]), volume)
    np.testing.assert_array_equal(array, LABELS)
    assert names == {1: "left", 2: "right"}
    assert [node.kind for node in slicer.mrmlScene.nodes] == ["vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"]


def test_empty_segmentations_are_empty_arrays(slicer, volume):
    import standin
    from SlicePropLib import scene

    for labels, names in ((LABELS * 0, ["left"]), (LABELS * 0, [])):
        array, found = scene.read_segments(standin.add_segments(slicer, labels, names), volume)
        assert array.shape == LABELS.shape and not array.any() and list(found.values()) == names


def test_labels_come_into_the_users_segments_and_change_nothing_beside(slicer, volume):
    import standin
    from SlicePropLib import scene

    mine = standin.add_segments(slicer, LABELS, ["left", "left", "foreground_scribbles"])
    first, second, scribbles = (one for one in mine.segmentation.segments.values())
    first.mask = second.mask | first.mask  # two segments of one name, which overlap
    scribbles.mask = np.ones_like(first.mask)
    before = first.mask.copy(), second.mask.copy()
    labels, where = np.roll(LABELS, 2, axis=1), np.zeros(LABELS.shape, bool)
    where[..., 7] = True
    scene.put_labels(mine, volume, labels, where, {1: "right", 2: "left"}, {"right": "#ff8000", "left": "#00ff00"})
    right = list(mine.segmentation.segments.values())[3]
    assert right.name == "right" and right.color == pytest.approx([1, 128 / 255, 0]) and scribbles.mask.all()
    others = [index for index in range(LABELS.shape[2]) if index != 7]
    for segment, mask in zip((first, second), before, strict=True):
        np.testing.assert_array_equal(segment.mask[others], mask[others])
    for segment, value in ((first, 2), (second, 9), (right, 1)):
        np.testing.assert_array_equal(segment.mask[7].T, labels[..., 7] == value)
    assert not right.mask[others].any()


def test_a_segment_that_cannot_be_read_by_itself_is_not_written(slicer, volume, monkeypatch):
    import standin
    from SlicePropLib import scene

    mine, logic = standin.add_segments(slicer, LABELS, ["left", "right"]), slicer.modules.segmentations.logic()
    export = logic.ExportSegmentsToLabelmapNode
    monkeypatch.setattr(
        logic,
        "ExportSegmentsToLabelmapNode",
        lambda node, ids, *more: ids.GetNumberOfValues() > 1 and export(node, ids, *more),
    )
    with pytest.raises(LookupError, match="cannot be read by itself"):
        scene.put_labels(mine, volume, LABELS * 0, LABELS >= 0, {}, {})
    np.testing.assert_array_equal(scene.read_segments(mine, volume)[0], LABELS)


def test_results_go_into_a_segmentation_of_their_own_with_names_and_colours(slicer, volume):
    import standin
    from SlicePropLib import scene

    mine = standin.add_segments(slicer, LABELS, ["left", "right"])
    colors = dict.fromkeys(("left", "right", "absent"), "#ff8000")
    for labels in (LABELS * 0, np.where(LABELS == 2, 3, LABELS)):
        node = scene.show_labels(volume, labels, {"right": 3, "left": 1, "absent": 2}, colors)
    assert node is not mine and node.reference is volume
    segments = list(node.segmentation.segments.values())
    assert [segment.name for segment in segments] == ["left", "absent", "right"]
    assert segments[0].color == pytest.approx([1, 128 / 255, 0])
    for segment, value in zip(segments, (1, 9, 2), strict=True):
        np.testing.assert_array_equal(segment.mask.T, balls.truth() == value)
    np.testing.assert_array_equal(scene.read_segments(mine, volume)[0], LABELS)
    assert sum(one.kind == "vtkMRMLSegmentationNode" for one in slicer.mrmlScene.nodes) == 2


def test_uncertainty_lies_over_the_scan(slicer, volume):
    from SlicePropLib import scene

    doubt = (LABELS * 100).astype(np.uint8)
    scene.show_uncertainty(volume, doubt)
    node = scene.show_uncertainty(volume, doubt)
    assert slicer.layers["background"] is volume and slicer.layers["foreground"] is node
    np.testing.assert_allclose(node.array.T, doubt / 255, rtol=1e-6)
    np.testing.assert_array_equal(scene.ijk_to_ras(node), scene.ijk_to_ras(volume))
    assert sum(one.kind == "vtkMRMLScalarVolumeNode" for one in slicer.mrmlScene.nodes) == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_jump_shows_the_slice_itself(slicer, volume, axis):
    import standin
    from SlicePropLib import scene
    from SlicePropLib.grids import view_of

    affine = scene.ijk_to_ras(volume)
    voxel = (np.array(balls.SHAPE) - 1) / 2
    voxel[axis] = 3
    view = view_of({"affine_lps": (np.diag([-1.0, -1, 1, 1]) @ affine).tolist(), "slice_axis": axis})
    scene.jump(volume, view, (affine @ [*voxel, 1])[:3].tolist())
    plane = standin.numpy_matrix(slicer.views[view].node.GetSliceToRAS())
    corners = np.array([[0, 0, 0, 1], [50, 0, 0, 1], [0, 50, 0, 1], [-30, 20, 0, 1]])
    np.testing.assert_allclose((np.linalg.inv(affine) @ plane @ corners.T)[axis], 3, atol=1e-9)
    np.testing.assert_allclose(scene.position(view), (affine @ [*voxel, 1])[:3])


def test_a_layout_without_the_view_says_so(slicer, volume):
    from SlicePropLib import scene

    with pytest.raises(LookupError, match="Four-Up"):
        scene.jump(volume, "Blue", [0, 0, 0])


def test_every_part_of_the_module_compiles():
    folder = Path(__file__).resolve().parents[2] / "plugins" / "slicer"
    files = list(folder.rglob("*.py"))
    for file in files:
        compile(file.read_text(encoding="utf-8"), str(file), "exec")
    listed = (folder / "SliceProp" / "CMakeLists.txt").read_text()
    assert all(str(file.relative_to(folder / "SliceProp")) in listed for file in files)
