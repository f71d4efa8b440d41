"""MONAI Label's own module for 3D Slicer, as pip installs it, at work in the stand-in of Slicer.

Its handlers and its HTTP client run unchanged; what stands in are the boxes and dialogs of Qt and the calls of Slicer.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
import urllib.request
from importlib.metadata import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import SimpleITK as sitk
import standin


def folder():
    """Where pip put the module; None if it did not."""
    listed = (one for one in files("monailabel") or () if one.match("plugins/slicer/MONAILabel/MONAILabel.py"))
    found = next((Path(one.locate()).resolve() for one in listed), None)
    return found.parent if found is not None and found.is_file() else None


class ComboBox:
    def __init__(self):
        self.items, self.currentIndex = [], -1

    count = property(lambda self: len(self.items))

    @property
    def currentText(self):
        return self.items[self.currentIndex] if 0 <= self.currentIndex < len(self.items) else ""

    @currentText.setter
    def currentText(self, text):
        self.currentIndex = self.findText(text)

    def clear(self):
        self.items, self.currentIndex = [], -1

    def addItem(self, text):
        self.items.append(text)
        self.currentIndex = max(self.currentIndex, 0)

    def itemText(self, index):
        return self.items[index] if 0 <= index < len(self.items) else ""

    def findText(self, text):
        return self.items.index(text) if text in self.items else -1

    def setCurrentIndex(self, index):
        self.currentIndex = index

    def blockSignals(self, blocked):
        return False

    def setItemData(self, *given):
        pass

    setToolTip = setEnabled = setItemData


class Bar:
    value, toolTip = 0, ""

    def setValue(self, value):
        self.value = value

    def setToolTip(self, text):
        self.toolTip = text

    def setStyleSheet(self, text):
        pass


class Button:
    enabled = False

    def setEnabled(self, enabled):
        self.enabled = bool(enabled)


class Item:
    """A cell of the table of options."""

    def __init__(self, text):
        self._text = text

    def text(self):
        return self._text

    def flags(self):
        return 0

    def setFlags(self, flags):
        pass


class Choice(ComboBox):
    """A box that Slicer makes for options with choices."""


class Table:
    """The table of options, which users of the developer's mode edit."""

    def __init__(self):
        self.rowCount, self.cells = 0, {}

    def clear(self):
        self.cells = {}

    def setRowCount(self, count):
        self.rowCount = count

    def setItem(self, row, column, item):
        self.cells[row, column] = item

    def setCellWidget(self, row, column, box):
        self.cells[row, column] = box

    def item(self, row, column):
        found = self.cells[row, column]
        return None if isinstance(found, Choice) else found

    def cellWidget(self, row, column):
        return self.cells[row, column]

    def setColumnCount(self, *given):
        pass

    setHorizontalHeaderLabels = setColumnWidth = setColumnCount


class ParameterNode:
    def __init__(self):
        self.parameters = {}

    def GetParameter(self, name):
        return self.parameters.get(name, "")

    def SetParameter(self, name, value):
        self.parameters[name] = value

    def GetNodeReference(self, name):
        return None

    def SetNodeReferenceID(self, name, one):
        pass

    def StartModify(self):
        return 0

    def EndModify(self, before):
        pass


class Module:
    """The module in a scene of its own.

    Args:
        slicer: from `standin.install`.
        monkeypatch: takes everything back when the test is over.
        url: of the server.
        work: for the module's temporary files.
    """

    def __init__(self, slicer, monkeypatch, url, work):
        self.slicer, self.said, self.asked, self.settings = slicer, [], [], {}
        self.code = _load(self, monkeypatch)
        self.widget = widget = self.code.MONAILabelWidget()
        widget.parent = SimpleNamespace(isEntered=True)
        widget.tmpdir = str(work / "slicer")
        (work / "slicer").mkdir(exist_ok=True)
        widget.logic = self.code.MONAILabelLogic(widget.tmpdir)
        widget.ui = ui = MagicMock()
        boxes = ("segmentationModel", "deepgrowModel", "input", "scribblesMethod")
        for name in (*(f"{box}Selector" for box in boxes), "strategyBox", "trainerBox", "labelComboBox"):
            setattr(ui, name, ComboBox())
        for name in ("scribLabelComboBox", "appComboBox", "optionsSection", "optionsName"):
            setattr(ui, name, ComboBox())
        for name in ("trainingProgressBar", "activeLearningProgressBar", "accuracyProgressBar"):
            setattr(ui, name, Bar())
        ui.trainingButton = Button()
        ui.configTable, ui.serverComboBox.currentText = Table(), url
        ui.scribblesPlaceWidget.currentNode.return_value = None
        for name in ("infer", "train", "activelearning"):
            ui.optionsSection.addItem(name)
        widget.logic.getParameterNode = ParameterNode
        slicer.mrmlScene.module = widget
        widget.enter()
        widget.onClickFetchInfo()

    @property
    def volume(self):
        """The array of the loaded scan, `(i, j, k)`."""
        return self.widget._volumeNode.array.T

    @property
    def segments(self):
        """The segments of the scene by name, `(i, j, k)`; a list, since names may be doubled."""
        shape = self.widget._volumeNode.array.shape
        found = self.widget._segmentNode.segmentation.segments.values()
        return [(one.name, (np.zeros(shape, bool) if one.mask is None else one.mask).T) for one in found]

    def labels(self, *names):
        """The scene as one label map: value 1 is the first name; segments of one name together."""
        result = np.zeros(self.volume.shape, np.uint8)
        for value, name in enumerate(names, start=1):
            for found, mask in self.segments:
                result[mask] = value if found == name else result[mask]
        return result

    def draw(self, name, mask, one=None):
        """Add voxels to a segment, which is made where there is none, as Segment Editor does.

        Others lose them, but not to scribbles, which the module lets overlap.
        """
        segmentation = self.widget._segmentNode.segmentation
        one = one or segmentation.GetSegmentIdBySegmentName(name) or f"Segment_{len(segmentation.segments) + 1}"
        if one not in segmentation.segments:
            segmentation.AddEmptySegment(one, name, None)
        for other in () if "scribbles" in name else segmentation.segments.values():
            other.mask = None if other.mask is None else other.mask & ~mask.T
        segment = segmentation.segments[one]
        segment.mask = mask.T.copy() if segment.mask is None else segment.mask | mask.T
        self.widget.updateGUIFromParameterNode()

    def choose_options(self, section, name, **values):
        """Fill the table of options as a user does, without leaving it."""
        ui = self.widget.ui
        ui.optionsSection.currentText = section
        self.widget.updateConfigTable()
        ui.optionsName.currentText = name
        self.widget.updateConfigTable(refresh=False)
        for row in range(ui.configTable.rowCount):
            key = ui.configTable.item(row, 0).text()
            if key in values:
                cell = ui.configTable.cellWidget(row, 1)
                if isinstance(cell, Choice):
                    cell.currentText = values[key]
                else:
                    cell._text = values[key]


class _Scene(standin.Scene):
    module = None

    def AddNewNodeByClass(self, kind, name=""):
        if "Markups" in kind:
            return MagicMock()
        return super().AddNewNodeByClass(kind, name)

    def GetFirstNodeByClass(self, kind):
        return next((node for node in self.nodes if node.kind == kind), None)

    def Clear(self, singletons):
        self.module.onSceneStartClose(self, None)
        self.nodes.clear()
        self.module.onSceneEndClose(self, None)

    def RemoveNode(self, node):
        if not isinstance(node, MagicMock):
            super().RemoveNode(node)


class _Widget:
    """Of a scripted module, or of Qt."""

    def __init__(self, *given):
        pass

    def addObserver(self, *given):
        pass

    removeObserver = addObserver


def _read_volume(slicer, file, kind="vtkMRMLScalarVolumeNode"):
    picture = sitk.ReadImage(str(file))
    node = slicer.mrmlScene.AddNewNodeByClass(kind, Path(file).name.split(".")[0])
    _fill(node, picture)
    return node


def _fill(node, picture):
    node.array = sitk.GetArrayFromImage(picture)
    lps = np.eye(4)
    lps[:3, :3] = np.array(picture.GetDirection()).reshape(3, 3) * picture.GetSpacing()
    lps[:3, 3] = picture.GetOrigin()
    node.SetIJKToRASMatrix(standin.vtk_matrix(standin.LPS_TO_RAS @ lps))


def _load(module, monkeypatch):
    """The code of MONAI Label's module, imported anew; every other module that Slicer has stands in."""
    slicer = module.slicer
    scene = _Scene()
    scene.nodes = slicer.mrmlScene.nodes
    slicer.mrmlScene = scene
    qt, ctk = MagicMock(QDialog=_Widget, QTableWidgetItem=Item, QComboBox=Choice), MagicMock(ctkSettingsPanel=_Widget)
    qt.QCheckBox = type("QCheckBox", (), {})
    qt.QSettings().value.return_value = ""
    names = ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleLogic")
    scripted = ModuleType("slicer.ScriptedLoadableModule")
    for name in (*names, "ScriptedLoadableModuleTest"):
        setattr(scripted, name, type(name, (_Widget,), {}))
    words = ModuleType("slicer.i18n")
    words.tr, words.translate = str, lambda context, text: text
    util = ModuleType("slicer.util")
    vars(util).update(vars(slicer.util))
    util.VTKObservationMixin = type("VTKObservationMixin", (), {"__init__": lambda self: None})
    util.toBool = bool
    util.settingsValue = lambda key, default, converter=None: module.settings.get(key.split("/")[1], default)
    util.errorDisplay = lambda text, detailedText="": module.said.append(f"{text}\n{detailedText}")
    util.warningDisplay = lambda text: module.said.append(text)
    util.infoDisplay = lambda text, detailedText="": None
    util.confirmOkCancelDisplay = lambda text, **options: module.asked.append(text) or True
    util.loadVolume = lambda file: _read_volume(slicer, file)
    util.createProgressDialog = MagicMock()
    slicer.util, slicer.__path__ = util, []
    slicer.app = SimpleNamespace(layoutManager=slicer.app.layoutManager, processEvents=lambda: None)
    slicer.vtkOrientedImageData = MagicMock
    slicer.vtkMRMLMarkupsNode = slicer.vtkMRMLSegmentEditorNode = MagicMock()
    slicer.vtkSlicerSegmentationsModuleLogic = SimpleNamespace(
        SetBinaryLabelmapToSegment=lambda mask, node, one, mode: setattr(node.segmentation.segments[one], "mask", None),
        MODE_REPLACE=0,
    )

    def push(picture, node, className):
        node = slicer.mrmlScene.AddNewNodeByClass(className)
        _fill(node, picture)
        return node

    samples = SimpleNamespace(SampleDataLogic=lambda: SimpleNamespace(downloadFromURL=download))

    def download(nodeNames, fileNames, uris, checksums):
        file = Path(module.widget.tmpdir) / fileNames
        with urllib.request.urlopen(uris) as answer, file.open("wb") as saved:
            shutil.copyfileobj(answer, saved)
        kind, _, expected = (checksums or "").partition(":")
        assert not expected or hashlib.new(kind, file.read_bytes()).hexdigest() == expected
        node = _read_volume(slicer, file)
        node.SetName(nodeNames)
        return [node]

    made = {"slicer.ScriptedLoadableModule": scripted, "slicer.i18n": words, "slicer.util": util}
    made |= {"qt": qt, "ctk": ctk, "SampleData": samples, "sitkUtils": SimpleNamespace(PushVolumeToSlicer=push)}
    made["vtkSegmentationCore"] = MagicMock()
    for name in [name for name in sys.modules if name.startswith("MONAILabel")]:
        monkeypatch.delitem(sys.modules, name)
    for name, one in made.items():
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.syspath_prepend(folder())
    return importlib.import_module("MONAILabel")
