"""The infer tasks: a study's annotation in, the whole volume (or one label of it) out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from sliceprop.config import FUSIONS, METHODS, SuggestConfig
from sliceprop.errors import InputError
from sliceprop.labels import LabelArray
from sliceprop.manifest import Making, Recipe, making
from sliceprop.server.checkpoints import Chosen
from sliceprop.server.manifests import Manifests
from sliceprop.server.provenance import Sent
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import Options, first_choices, label_options, number, propagate_config
from sliceprop.server.results import named, named_suggestion, write_result
from sliceprop.server.workspace import Case, Opened, Workspace
from sliceprop.study import Propagation, propagate, suggest

NO_NAMES = {"background": 0}
"""Names of a result without any label. 3D Slicer empties the segments that are named; what the user drew and has not
submitted yet would go."""


class Answer(NamedTuple):
    """What goes back to the client.

    Attributes:
        labels: `(i, j, k)` values of the result file.
        names: `{name: value}` of the result file.
        in_client: `(i, j, k)` label indices that the client has once it has shown the result.
    """

    labels: LabelArray
    names: dict[str, int]
    in_client: LabelArray


class PropagateTask(InferTask):  # type: ignore[misc]
    """`labelprop`: carries the annotated slices through the study.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation.
    """

    def __init__(
        self,
        workspace: Workspace,
        target: float,
        type: InferType = InferType.SEGMENTATION,
        description: str = "Propagates the annotated slices through the volume",
    ) -> None:
        choices = {"method": list(METHODS), "fusion": list(FUSIONS), "extrapolate": ["auto", "none"]}
        config = {**choices, "slice_axis": ["auto", "0", "1", "2"]}
        super().__init__(type=type, labels=None, dimension=3, description=description, config=config)
        self._workspace, self._target = workspace, target

    def info(self) -> dict[str, Any]:
        """What `/info/` shows; the labels grow as clients submit new names."""
        return {**super().info(), "labels": self._workspace.names.indices}

    def is_valid(self) -> bool:
        """Always: there is nothing to download."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer one request of `LabelPropApp.infer`.

        Args:
            request: `image_id`, or `image` (a file that MONAI Label stored) and perhaps `session`; `label`, the file
                that came with the request; the client's options.

        Returns:
            the result file, which the caller removes, and the params of the answer.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(request)
        case, upload = self._case(options), options.get("label")
        with self._workspace.lock(case):
            selected = options.get("selected_label_name")
            opened = self._workspace.open(case, label_options(options), Path(upload) if upload else None, selected)
            advice = SuggestConfig(target=number(options, "target", self._target))
            labels, report = self._propagate(case, opened, options, advice)
            answer = self._answer(opened, labels, options)
            file = write_result(answer.labels, self._workspace.scan(case), options)
            self._remember(case, opened, answer, report)
            if upload is None and report["method"] == "auto":
                self._workspace.keep_estimate(case, report["suggestion"], advice.target)
            version = case.record.version() if case.record else ""
        names = answer.names if opened.study.annotation.values else NO_NAMES
        return str(file), {**report, "label_names": names, "version": version}

    def _answer(self, opened: Opened, labels: LabelArray, options: Options) -> Answer:
        return Answer(labels, self._workspace.names.indices, in_client=labels)

    def _case(self, options: Options) -> Case:
        if options.get("image_id"):
            return self._workspace.case(options["image_id"])
        session = options.get("session")
        record = StudyRecord(Path(session["path"]) / ".labelprop") if session else None
        return Case(Path(options["image"]), record)

    def _propagate(
        self, case: Case, opened: Opened, options: Options, advice: SuggestConfig
    ) -> tuple[LabelArray, dict[str, Any]]:
        """Labels and report; an empty mask for a study without annotation."""
        study, config = opened.study, propagate_config(options)
        chosen = self._workspace.choose_model(case, study, options.get("init"), keep=True)
        model, names = chosen.model, self._workspace.names.by_index
        noted: dict[str, Any] = {"note": chosen.note} if chosen.note else {}
        if study.annotation.values:
            with making() as made:
                result = propagate(study, model, config, target=advice.target, names=names)
            recipe = Recipe({}, opened.drawing.options, config, target=advice.target)
            noted["manifest"] = self._write_manifest(case, opened, chosen, recipe, made, result)
            result = replace(result, report={**result.report, **noted})
            if case.record is not None:
                source = opened.annotation.source if opened.annotation else ""
                case.record.save_result(result, source, self._workspace.scribbles_version(case), study.drawn)
            return result.labels, named(result.report, names)
        report = {
            "slice_axis": study.volume.slice_axis,
            "annotated_slices": list(study.annotation.annotated_slices),
            "method": config.method,
            "methods": {},
            "intervals": {},
            "trained": False,
            "quality": {},
            "suggestion": named_suggestion(suggest(study, model, advice)[0], names),
            **noted,
        }
        return np.zeros(self._workspace.scan(case).array.shape, np.int32), report

    def _write_manifest(
        self, case: Case, opened: Opened, chosen: Chosen, recipe: Recipe, made: Making, result: Propagation
    ) -> int | None:
        """Number of the manifest of a result; None for a scan that is not the server's."""
        if case.record is None or not case.image_id:
            return None
        files = {"image": case.image, **({"model": chosen.file} if chosen.file else {})}
        if chosen.model is not None and chosen.file is None:
            return None  # without its model the result cannot be made again
        scan, manifests = self._workspace.scan(case), Manifests(case.record.folder)
        return manifests.add(scan, replace(recipe, files=files), made, result, opened.drawing.arrays)

    def _remember(self, case: Case, opened: Opened, answer: Answer, report: dict[str, Any]) -> None:
        self._workspace.remember(case)
        if case.record is not None:
            drawn = np.zeros_like(answer.in_client) if opened.annotation is None else opened.annotation.labels
            slices = tuple(report["annotated_slices"])
            case.record.save_sent(Sent(answer.in_client, drawn, report["slice_axis"], slices))


class ScribblesTask(PropagateTask):
    """`labelprop_scribbles`: the same for the current segmentation of 3D Slicer's Scribbles tab, one label at a time.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        description = "Propagates the current segmentation; answers with the selected label only"
        super().__init__(workspace, target, InferType.SCRIBBLES, description)

    def _answer(self, opened: Opened, labels: LabelArray, options: Options) -> Answer:
        name, index = self._selected(options)
        before = np.zeros_like(labels) if opened.labels is None else opened.labels
        others = np.where(before == index, 0, before)
        chosen = labels == index
        return Answer(chosen.astype(np.int32), {name: 1}, in_client=np.where(chosen, index, others).astype(np.int32))

    def _selected(self, options: Options) -> tuple[str, int]:
        """The label that the client works on; need not be given if there is only one.

        Raises:
            InputError: if it is missing or unknown.
        """
        names, selected = self._workspace.names.indices, options.get("selected_label_name")
        if selected is None and len(names) == 1:
            return next(iter(names.items()))
        if selected not in names:
            raise InputError(f"selected_label_name must be one of {list(names)}, not {selected!r}")
        return str(selected), names[selected]
