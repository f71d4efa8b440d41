"""The few calls of 3D Slicer that our module and MONAI Label's make, on VTK's own matrices and images.

What it does is taken from Slicer's documentation: an exported labelmap lies on the reference volume, its values count
the ids from 1, where segments overlap the later one counts, and `ExportSegmentsToLabelmapNode` fails where nothing is
drawn; an imported one empties the segments of the ids and fills them with the values from 1, making those that do not
exist, with the id as the name, and leaves other segments alone; arrays are `(k, j, i)`; a view turned into a volume's
planes keeps looking along the axis of the volume that is nearest to where it looked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import SimpleITK as sitk
import vtk

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
NORMALS = {"Red": (0, 0, 1), "Yellow": (1, 0, 0), "Green": (0, 1, 0)}


def vtk_matrix(array):
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row][column]))
    return matrix


def numpy_matrix(matrix):
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


class Node:
    def __init__(self, kind, name, number):
        self.kind, self.name, self.id, self.attributes, self.display = kind, name, f"{kind}{number}", {}, None
        self.transform = None

    def GetName(self):
        return self.name

    def GetID(self):
        return self.id

    def GetParentTransformNode(self):
        return self.transform

    def SetName(self, name):
        self.name = name

    def SetAttribute(self, key, value):
        self.attributes[key] = value

    def GetAttribute(self, key):
        return self.attributes.get(key)

    def CreateDefaultDisplayNodes(self):
        self.display = self.display or SimpleNamespace(SetAndObserveColorNodeID=lambda color: None)

    def GetDisplayNode(self):
        return self.display


class VolumeNode(Node):
    def __init__(self, kind, name, number):
        super().__init__(kind, name, number)
        self.array, self.matrix = np.zeros((0, 0, 0)), vtk.vtkMatrix4x4()

    def GetIJKToRASMatrix(self, matrix):
        matrix.DeepCopy(self.matrix)

    def SetIJKToRASMatrix(self, matrix):
        self.matrix.DeepCopy(matrix)

    def GetImageData(self):
        image = vtk.vtkImageData()
        image.SetDimensions(*self.array.shape[::-1])
        return image


class Segment:
    def __init__(self, name, color):
        self.name, self.color, self.mask = name, color, None

    def GetName(self):
        return self.name


class Segmentation:
    def __init__(self):
        self.segments = {}

    def GetSegmentIDs(self, array=None):
        for one in self.segments if array is not None else ():
            array.InsertNextValue(one)
        return tuple(self.segments)

    def GetNumberOfSegments(self):
        return len(self.segments)

    def GetNthSegmentID(self, number):
        return list(self.segments)[number]

    def GetSegmentIdBySegmentName(self, name):
        return next((one for one, segment in self.segments.items() if segment.name == name), "")

    def GetSegment(self, one):
        return self.segments.get(one)

    def RemoveAllSegments(self):
        self.segments.clear()

    def AddEmptySegment(self, one, name, color):
        one = one or f"Made_{len(self.segments)}"
        self.segments[one] = Segment(name, color)
        return one


class SegmentationNode(Node):
    def __init__(self, kind, name, number):
        super().__init__(kind, name, number)
        self.segmentation, self.reference = Segmentation(), None

    def GetSegmentation(self):
        return self.segmentation

    def SetReferenceImageGeometryParameterFromVolumeNode(self, volume):
        self.reference = volume

    def SetDisplayVisibility(self, visible):
        pass

    def GetBinaryLabelmapRepresentation(self, one, image):
        pass


class Scene:
    def __init__(self):
        self.nodes, self.made = [], 0

    def AddNewNodeByClass(self, kind, name=""):
        self.made += 1
        self.nodes.append((SegmentationNode if "Segmentation" in kind else VolumeNode)(kind, name, self.made))
        return self.nodes[-1]

    def RemoveNode(self, node):
        self.nodes.remove(node)


class Logic:
    def ExportSegmentsToLabelmapNode(self, node, ids, labelmap, reference):
        drawn = [node.segmentation.segments[ids.GetValue(n)].mask for n in range(ids.GetNumberOfValues())]
        if all(mask is None or not mask.any() for mask in drawn):
            return False
        labelmap.array = np.zeros(reference.array.shape, np.int16)
        labelmap.matrix.DeepCopy(reference.matrix)
        for value, mask in enumerate(drawn, start=1):
            if mask is not None:
                labelmap.array[mask] = value
        return True

    def ImportLabelmapToSegmentationNode(self, labelmap, node, ids):
        for n in range(ids.GetNumberOfValues()):
            one = ids.GetValue(n)
            if one not in node.segmentation.segments:
                node.segmentation.AddEmptySegment(one, one, None)
            node.segmentation.segments[one].mask = labelmap.array == n + 1
        return True


class SliceNode:
    def __init__(self, normal):
        self.to_ras = np.eye(4)
        self.to_ras[:3, 2] = normal

    def RotateToVolumePlane(self, volume):
        axes = numpy_matrix(volume.matrix)[:3, :3]
        axes = axes / np.linalg.norm(axes, axis=0)
        along = int(np.abs(axes.T @ self.to_ras[:3, 2]).argmax())
        order = [axis for axis in range(3) if axis != along] + [along]
        self.to_ras[:3, :3] = axes[:, order]

    def JumpSliceByCentering(self, r, a, s):
        self.to_ras[:3, 3] = r, a, s

    def GetSliceToRAS(self):
        return vtk_matrix(self.to_ras)


def save_node(node, path):
    picture = sitk.GetImageFromArray(node.array)
    lps = LPS_TO_RAS @ numpy_matrix(node.matrix)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    picture.SetSpacing(spacing.tolist())
    picture.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    picture.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(picture, path)
    return Path(path).is_file()


def update_volume(node, array):
    assert array.flags.c_contiguous
    node.array = array.copy()


def install():
    """A fresh `slicer` for `import slicer`; the module's folder is put on the path."""
    slicer, logic = ModuleType("slicer"), Logic()
    views = {view: SimpleNamespace(node=SliceNode(normal)) for view, normal in NORMALS.items()}
    for view in views.values():
        view.mrmlSliceNode = lambda view=view: view.node
    layers = {}
    slicer.mrmlScene = Scene()
    slicer.modules = SimpleNamespace(segmentations=SimpleNamespace(logic=lambda: logic))
    slicer.app = SimpleNamespace(layoutManager=lambda: SimpleNamespace(sliceWidget=views.get))
    slicer.views, slicer.layers = views, layers
    series = {}
    slicer.dicomDatabase = SimpleNamespace(series=series, instanceValue=lambda uid, tag: series[uid, tag])
    slicer.util = SimpleNamespace(
        arrayFromVolume=lambda node: node.array,
        updateVolumeFromArray=update_volume,
        getNodesByClass=lambda kind: [node for node in slicer.mrmlScene.nodes if node.kind == kind],
        setSliceViewerLayers=lambda **given: layers.update(given),
        saveNode=save_node,
    )
    sys.modules["slicer"] = slicer
    return slicer


def add_volume(slicer, array, affine, name="scan"):
    """A loaded scan; `array` is `(i, j, k)`, `affine` voxel to RAS mm."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.array = np.ascontiguousarray(array.T)
    node.SetIJKToRASMatrix(vtk_matrix(affine))
    return node


def add_segments(slicer, labels, names):
    """A user's segmentation; `labels` is `(i, j, k)`, value 1 is the first name."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    for value, name in enumerate(names, start=1):
        node.segmentation.AddEmptySegment(f"Segment_{value}", name, (1, 0, 0))
        node.segmentation.segments[f"Segment_{value}"].mask = (labels == value).T
    return node
