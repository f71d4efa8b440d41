"""Volumes, segmentations and views of 3D Slicer's scene; arrays are `(i, j, k)` of the volume node."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import vtk

import slicer

RESULT, UNCERTAINTY, ELSEWHERE = "SliceProp result", "SliceProp uncertainty", "SliceProp elsewhere"
_OURS = "SliceProp.Volume"
"""Attribute of the nodes that we made: the id of the volume that they belong to."""

_KNOWN = "SliceProp.Known"
"""Attribute of the user's segmentation, saved with the scene: what it is based on."""

_SCRIBBLES = ("foreground_scribbles", "background_scribbles")
"""Segments of Slicer's own module, which are no drawing."""


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


def check_place(*nodes: Any) -> None:
    """Refuse nodes under a transform: Slicer applies it when it exports segments, and not when it imports them.

    Raises:
        LookupError: naming the node.
    """
    for node in nodes:
        if node.GetParentTransformNode() is not None:
            raise LookupError(
                f"{node.GetName()} is under a transform, with which it lies elsewhere than the server's scan; "
                "take it out of that (module Data, column of transforms) first"
            )


def is_ours(segmentation: Any) -> bool:
    """Whether it shows what the server answered, and is not the user's."""
    return bool(segmentation.GetAttribute(_OURS)) and segmentation.GetName() in (RESULT, ELSEWHERE)


def known(segmentation: Any) -> dict[str, Any]:
    """What `remember` was given last, also before the scene was saved and opened again; empty before that."""
    told: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segmentation.GetAttribute(_KNOWN) or "e30="))
    return told


def remember(segmentation: Any, told: dict[str, Any]) -> None:
    """Keep something with the user's segmentation; in letters that a scene's file keeps as they are."""
    segmentation.SetAttribute(_KNOWN, base64.urlsafe_b64encode(json.dumps(told).encode()).decode())


def read_segments(segmentation: Any, volume: Any) -> tuple[np.ndarray, dict[int, str]]:
    """The segments on the grid of a volume, and their names by value. Where segments overlap the later one counts."""
    segments = _segments(segmentation)
    array = _exported(segmentation, list(segments), volume)
    return array, dict(enumerate(segments.values(), start=1))


def put_labels(
    segmentation: Any, volume: Any, labels: np.ndarray, where: np.ndarray, names: dict[int, str], colors: dict[str, str]
) -> None:
    """Put labels into the user's segments of their names, or into new ones; beside `where` everything stays.

    Args:
        segmentation: the user's.
        volume: that they lie on.
        labels: `(i, j, k)`.
        where: `(i, j, k)`, the voxels that get them.
        names: by value.
        colors: `#rrggbb` by name.
    """
    whole, _ = read_segments(segmentation, volume)
    wanted = {names[value]: (labels == value) & where for value in np.unique(labels[where & (labels > 0)]).tolist()}
    changes: dict[str, np.ndarray | bool] = {}
    for value, (one, name) in enumerate(_segments(segmentation).items(), start=1):
        mask, new = _exported(segmentation, [one], volume) > 0, wanted.pop(name, False)
        if (~mask & (whole == value)).any():
            raise LookupError(f"the segment {name} cannot be read by itself; try a new segmentation")
        if ((mask != new) & where).any():
            changes[one] = new
    for one, new in changes.items():
        _import(np.where(where, new, _exported(segmentation, [one], volume) > 0), segmentation, [one], volume)
    for name, mask in wanted.items():
        one = segmentation.GetSegmentation().AddEmptySegment("", name, _rgb(colors[name]))
        _import(mask, segmentation, [one], volume)


def _segments(segmentation: Any) -> dict[str, str]:
    """Names by id; without scribbles."""
    held = segmentation.GetSegmentation()
    named = {one: held.GetSegment(one).GetName() for one in held.GetSegmentIDs()}
    return {one: name for one, name in named.items() if name not in _SCRIBBLES}


def _exported(segmentation: Any, ids: list[str], volume: Any) -> np.ndarray:
    if not ids:
        return np.zeros(shape(volume), np.uint16)
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    try:
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(segmentation, _string_array(ids), labelmap, volume):
            return np.zeros(shape(volume), np.uint16)  # what Slicer says of empty segments
        return slicer.util.arrayFromVolume(labelmap).T.astype(np.uint16)
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)


def _import(labels: np.ndarray, segmentation: Any, ids: list[str], volume: Any) -> None:
    """Value 1 fills the first of the segments, and so on."""
    labelmap = _volume_node("vtkMRMLLabelMapVolumeNode", "", volume, labels.astype(np.int16))
    try:
        logic = slicer.modules.segmentations.logic()
        logic.ImportLabelmapToSegmentationNode(labelmap, segmentation, _string_array(ids))
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)


def _rgb(color: str) -> list[float]:
    return [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]


def show_labels(
    volume: Any, labels: np.ndarray, label_names: dict[str, int], colors: dict[str, str], title: str = RESULT
) -> Any:
    """Put labels into the segmentation of ours that belongs to a volume; the user's own is not touched.

    Args:
        volume: that they lie on.
        labels: `(i, j, k)`; values 1..K.
        label_names: name to value, all of 1..K.
        colors: `#rrggbb` by name.
        title: `RESULT` or `ELSEWHERE`.
    """
    node = _own_node("vtkMRMLSegmentationNode", title, volume)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    names = sorted(label_names, key=label_names.__getitem__)
    for name in names:
        segmentation.AddEmptySegment(f"label_{label_names[name]}", name, _rgb(colors[name]))
    _import(labels, node, [f"label_{label_names[name]}" for name in names], volume)
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
