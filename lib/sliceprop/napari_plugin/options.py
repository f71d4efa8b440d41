"""The tab of options."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QWidget

from sliceprop.config import FUSIONS, METHODS, PREDICTORS, SuggestConfig, TrainConfig
from sliceprop.napari_plugin.fields import NONE, FileBox
from sliceprop.napari_plugin.settings import Settings, make_settings

CHECKPOINTS = "Checkpoints (*.safetensors)"


class OptionsForm(QWidget):
    """Fields for all of `Settings`."""

    def __init__(self) -> None:
        super().__init__()
        self.method = _choice(
            [*METHODS, *PREDICTORS], "auto weighs registration and shapes by the evidence of the scan"
        )
        self.fusion = _choice(FUSIONS, "how what comes from the lower and the upper annotated slice is merged")
        self.extrapolate = _choice(
            ["auto", "none", "1", "2", "3", "5", "10"],
            "slices beyond the outermost annotated one; auto stops where the structure ends",
        )
        self.extrapolate.setEditable(True)
        self.axis = _choice(["auto", "0", "1", "2"], "axis of the layer that counts slices")
        self.partial = _check("labels by themselves", "a slice counts only for the labels on it")
        self.budget = _number(TrainConfig.budget_s, 1, 3600, " s", "seconds that learning may take")
        self.target = _number(SuggestConfig.target, 0.5, 1, "", "expected Dice above which a slice needs no annotation")
        self.device = _choice(["auto", "cpu", "cuda"], "where to compute; a server decides by itself")
        self.device.setEditable(True)
        self.go_on = _check("goes on from before", "from what was learned on this scan, if anything was")
        self.go_on.setChecked(True)
        self.start = FileBox("Start learning from a checkpoint", CHECKPOINTS)
        self.start_on_server = _choice([NONE], "a checkpoint on the server to start learning from")
        self.save_to = FileBox("Keep the best model while learning", CHECKPOINTS, save=True)
        self.form = form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for text, field in (
            ("Method", self.method),
            ("Fusion", self.fusion),
            ("Beyond the ends", self.extrapolate),
            ("Slice axis", self.axis),
            ("Partial", self.partial),
            ("Time budget", self.budget),
            ("Target Dice", self.target),
            ("Device", self.device),
            ("Learning", self.go_on),
            ("Start from file", self.start),
            ("Start from server", self.start_on_server),
            ("Save model to", self.save_to),
        ):
            form.addRow(text, field)
        self.show_checkpoints([])

    def show_checkpoints(self, names: list[str]) -> None:
        """Offer these checkpoints of a server, and keep the one that is chosen."""
        chosen = self.start_on_server.currentText()
        self.start_on_server.clear()
        self.start_on_server.addItems([NONE, *names])
        self.start_on_server.setCurrentText(chosen if chosen in names else NONE)
        self.form.setRowVisible(self.start_on_server, bool(names))

    def count_as(self, slice_axis: str | int, partial: bool) -> None:
        """Show along which axis slices count, and whether completely."""
        self.axis.setCurrentText(str(slice_axis))
        self.partial.setChecked(partial)

    def settings(self) -> Settings:
        """What the fields hold.

        Raises:
            InputError: for a value that cannot be used.
        """
        return make_settings(
            slice_axis=self.axis.currentText(),
            partial=self.partial.isChecked(),
            method=self.method.currentText(),
            fusion=self.fusion.currentText(),
            extrapolate=self.extrapolate.currentText(),
            budget_s=self.budget.value(),
            target=self.target.value(),
            device=self.device.currentText(),
            go_on=self.go_on.isChecked(),
            start=self.start.text.text(),
            start_on_server=self.start_on_server.currentText() if self.start_on_server.currentIndex() > 0 else "",
            save_to=self.save_to.text.text(),
        )


def _check(text: str, tip: str) -> QCheckBox:
    box = QCheckBox(text)
    box.setToolTip(tip)
    return box


def _choice(items: object, tip: str) -> QComboBox:
    box = QComboBox()
    box.addItems(list(items))  # type: ignore[call-overload]
    box.setToolTip(tip)
    return box


def _number(value: float, low: float, high: float, suffix: str, tip: str) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(low, high)
    box.setDecimals(0 if suffix else 2)
    box.setSingleStep(5 if suffix else 0.01)
    box.setSuffix(suffix)
    box.setValue(value)
    box.setToolTip(tip)
    return box
