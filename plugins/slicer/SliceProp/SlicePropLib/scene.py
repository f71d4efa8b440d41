"""Volumes, segmentations and views of 3D Slicer's scene; arrays are `(i, j, k)` of the volume node."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

import slicer

RESULT, UNCERTAINTY = "SliceProp result", "SliceProp uncertainty"
_OURS = "SliceProp.Volume"
"""Attribute of the nodes that we made: the id of the volume that they belong to."""


def ijk_to_ras(volume: Any) -> np.ndarray:
    """`(4, 4)`, voxel to RAS mm."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def shape(volume: Any) -> tuple[int, ...]:
    """Voxels along `(i, j, k)`."""
    return tuple(volume.GetImageData().GetDimensions())


def series_uid(volume: Any) -> str:
    """SeriesInstanceUID of a volume that was loaded from Slicer's DICOM database; empty for others."""
    instances = (volume.GetAttribute("DICOM.instanceUIDs") or "").split()
    return str(slicer.dicomDatabase.instanceValue(instances[0], "0020,000E")) if instances else ""


def read_segments(segmentation: Any, volume: Any) -> tuple[np.ndarray, list[str]]:
    """The segments on the grid of a volume: value 1 is the first name. Where segments overlap the later one counts."""
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    names = [segmentation.GetSegmentation().GetSegment(one).GetName() for one in ids]
    if not names:
        return np.zeros(shape(volume), np.uint16), []
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    try:
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(segmentation, _string_array(ids), labelmap, volume):
            return np.zeros(shape(volume), np.uint16), names  # what Slicer says of empty segments
        return slicer.util.arrayFromVolume(labelmap).T.astype(np.uint16), names
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)


def show_labels(volume: Any, labels: np.ndarray, label_names: dict[str, int], colors: dict[str, str]) -> Any:
    """Put labels into the segmentation of ours that belongs to a volume; the user's own is not touched.

    Args:
        volume: that they lie on.
        labels: `(i, j, k)`; values 1..K.
        label_names: name to value, all of 1..K.
        colors: `#rrggbb` by name.
    """
    node = _own_node("vtkMRMLSegmentationNode", RESULT, volume)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    names = sorted(label_names, key=label_names.__getitem__)
    for name in names:
        rgb = [int(colors[name][n : n + 2], 16) / 255 for n in (1, 3, 5)]
        segmentation.AddEmptySegment(f"label_{label_names[name]}", name, rgb)
    labelmap = _volume_node("vtkMRMLLabelMapVolumeNode", "", volume, labels.astype(np.int16))
    try:
        ids = _string_array([f"label_{label_names[name]}" for name in names])
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labelmap, node, ids)
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)
    node.CreateDefaultDisplayNodes()
    return node


def show_uncertainty(volume: Any, uncertainty: np.ndarray, opacity: float = 0.4) -> Any:
    """Lay uncertainty over the views, 0 to 1."""
    for old in _own_nodes("vtkMRMLScalarVolumeNode", UNCERTAINTY, volume):
        slicer.mrmlScene.RemoveNode(old)
    node = _volume_node("vtkMRMLScalarVolumeNode", UNCERTAINTY, volume, uncertainty.astype(np.float32) / 255)
    node.SetAttribute(_OURS, volume.GetID())
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileHotToColdRainbow.txt")
    slicer.util.setSliceViewerLayers(background=volume, foreground=node, foregroundOpacity=opacity)
    return node


def jump(volume: Any, view: str, position_ras: list[float]) -> None:
    """Turn a view into the planes of the volume and go to a point."""
    node = _slice_node(view)
    node.RotateToVolumePlane(volume)
    node.JumpSliceByCentering(*position_ras)


def position(view: str) -> list[float]:
    """Where a view is, RAS mm."""
    matrix = _slice_node(view).GetSliceToRAS()
    return [matrix.GetElement(row, 3) for row in range(3)]


def _slice_node(view: str) -> Any:
    widget = slicer.app.layoutManager().sliceWidget(view)
    if widget is None:
        raise LookupError(f"the view {view} is not part of this layout; choose the layout Four-Up")
    return widget.mrmlSliceNode()


def _own_nodes(kind: str, name: str, volume: Any) -> list[Any]:
    nodes = slicer.util.getNodesByClass(kind)
    return [node for node in nodes if node.GetAttribute(_OURS) == volume.GetID() and node.GetName() == name]


def _own_node(kind: str, name: str, volume: Any) -> Any:
    for node in _own_nodes(kind, name, volume):
        return node
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetAttribute(_OURS, volume.GetID())
    return node


def _volume_node(kind: str, name: str, volume: Any, array: np.ndarray) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array.T))
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    return node


def _string_array(values: Any) -> Any:
    array = vtk.vtkStringArray()
    for value in values:
        array.InsertNextValue(value)
    return array
