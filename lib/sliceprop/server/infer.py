"""The infer tasks: a study's annotation in, the whole volume (or one label of it) out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from sliceprop.config import FUSIONS, METHODS, PropagateConfig, SuggestConfig
from sliceprop.errors import InputError
from sliceprop.io import FOLDER
from sliceprop.labels import LabelArray
from sliceprop.manifest import Making, Recipe, making
from sliceprop.server.cases import Case
from sliceprop.server.checkpoints import Chosen
from sliceprop.server.manifests import Manifests
from sliceprop.server.provenance import Sent
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import Options, first_choices, flag, label_options, number, propagate_config
from sliceprop.server.results import named, named_suggestion, removed_if_refused, result_format, write_result
from sliceprop.server.workspace import Opened, Workspace
from sliceprop.study import Propagation, propagate, suggest

NO_NAMES = {"background": 0}
"""Names of a result without any label. 3D Slicer empties the segments that are named; what the user drew and has not
submitted yet would go."""

SHOWN = "shown"
"""Option that is false where no client gets to see the result, as in a batch: none comes back with it, corrected."""


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


class Reply(NamedTuple):
    """A request's answer.

    Attributes:
        file: the result, which the caller removes.
        params: of the answer.
        drawn: `(i, j, k)`, voxels of the result that the user decided about.
        scan: on which it was made; None for one of a session or a request, which is nobody else's.
    """

    file: str
    params: dict[str, Any]
    drawn: NDArray[np.bool_]
    scan: str | None


class Taken(NamedTuple):
    """What a result is made from, as it was when the request came.

    Attributes:
        opened: the study.
        chosen: the model.
        scribbles: version of the scribbles.
        labels: versions of all that was drawn.
    """

    opened: Opened
    chosen: Chosen
    scribbles: str
    labels: list[str]


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
        """File and params of `reply`."""
        reply = self.reply(request)
        return reply.file, reply.params

    def reply(self, request: Mapping[str, Any]) -> Reply:
        """Answer one request of `LabelPropApp.infer`.

        The study is free while the result is made: whoever submits or reads meanwhile does not wait. A result that is
        older than the annotation by then says so (`current` in `panel.study_state`).

        Args:
            request: `image_id`, or `image` (a file that MONAI Label stored) and perhaps `session`; `label`, the file
                that came with the request; the client's options.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(request)
        case, upload = self._case(options), options.get("label")
        result_format(options)
        advice, config = SuggestConfig(target=number(options, "target", self._target)), propagate_config(options)
        with self._workspace.lock(case):
            scan = self._scan_name(case)
            taken = self._take(case, options, Path(upload) if upload else None)
        with self._workspace.names.used(taken.opened.study.annotation.values):
            return self._reply(case, taken, options, config, advice, scan)

    def _reply(
        self,
        case: Case,
        taken: Taken,
        options: Options,
        config: PropagateConfig,
        advice: SuggestConfig,
        scan: str | None,
    ) -> Reply:
        opened = taken.opened
        with making() as made:
            result = self._propagate(taken, config, advice)
        labels = np.zeros(self._workspace.scan(case).array.shape, np.int32) if result is None else result.labels
        answer = self._answer(opened, labels, options)
        file = write_result(answer.labels, self._workspace.scan(case), options)
        with removed_if_refused(file), self._workspace.lock(case):
            self._workspace.check_scan(case, scan)  # somebody may have put another one there by now
            if result is None:
                report = self._empty_report(taken, config, advice)
            else:
                recipe = Recipe({}, opened.drawing.options, config, target=advice.target)
                report = self._keep(case, taken, recipe, made, result)
            self._workspace.remember(case)
            if case.record is not None and flag(options, SHOWN, True):
                case.record.save_sent(_sent(opened, answer, report))
            if not options.get("label") and report["method"] == "auto":
                self._workspace.keep_estimate(case, report["suggestion"], advice.target, taken.labels)
            version = case.record.version() if case.record else ""
        names = answer.names if opened.study.annotation.values else NO_NAMES
        return Reply(str(file), {**report, "label_names": names, "version": version}, opened.study.drawn, scan)

    def _scan_name(self, case: Case) -> str | None:
        return self._workspace.scan_name(case) if case.image_id else None

    def _answer(self, opened: Opened, labels: LabelArray, options: Options) -> Answer:
        return Answer(labels, self._workspace.names.indices, in_client=labels)

    def _case(self, options: Options) -> Case:
        if options.get("image_id"):
            return self._workspace.case(options["image_id"])
        session = options.get("session")
        if not session:
            return Case(Path(options["image"]), None)
        folder = Path(session["path"]) / FOLDER
        folder.mkdir(exist_ok=True)
        return Case(Path(options["image"]), StudyRecord(folder))

    def _take(self, case: Case, options: Options, upload: Path | None) -> Taken:
        workspace, selected = self._workspace, options.get("selected_label_name")
        workspace.models.check(options.get("init"))  # before names that are new become known
        opened = workspace.open(case, label_options(options), upload, selected)
        chosen = workspace.models.choose(case, opened.study, options.get("init"), keep=True)
        drawn = workspace.drawings.label_versions(case.image_id) if case.image_id else []
        return Taken(opened, chosen, workspace.drawings.scribbles_version(case), drawn)

    def _propagate(self, taken: Taken, config: PropagateConfig, advice: SuggestConfig) -> Propagation | None:
        """The result; None for a study without annotation."""
        study, names = taken.opened.study, self._workspace.names.by_index
        if not study.annotation.values:
            return None
        return propagate(study, taken.chosen.model, config, target=advice.target, names=names)

    def _keep(self, case: Case, taken: Taken, recipe: Recipe, made: Making, result: Propagation) -> dict[str, Any]:
        """Keep a result with its manifest; its report, for the client."""
        opened, chosen = taken.opened, taken.chosen
        noted: dict[str, Any] = {"note": chosen.note} if chosen.note else {}
        noted["manifest"] = self._write_manifest(case, opened, chosen, recipe, made, result)
        result = replace(result, report={**result.report, **noted})
        if case.record is not None:
            source = opened.annotation.source if opened.annotation else ""
            case.record.save_result(result, source, taken.scribbles, opened.study.drawn)
        return named(result.report, self._workspace.names.by_index)

    def _empty_report(self, taken: Taken, config: PropagateConfig, advice: SuggestConfig) -> dict[str, Any]:
        """The report for a study without annotation."""
        study, model, note = taken.opened.study, taken.chosen.model, taken.chosen.note
        return {
            "slice_axis": study.volume.slice_axis,
            "annotated_slices": list(study.annotation.annotated_slices),
            "method": config.method,
            "methods": {},
            "intervals": {},
            "trained": False,
            "quality": {},
            "suggestion": named_suggestion(suggest(study, model, advice)[0], self._workspace.names.by_index),
            **({"note": note} if note else {}),
        }

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


def _sent(opened: Opened, answer: Answer, report: dict[str, Any]) -> Sent:
    drawn = np.zeros_like(answer.in_client) if opened.annotation is None else opened.annotation.labels
    return Sent(answer.in_client, drawn, report["slice_axis"], tuple(report["annotated_slices"]))


class ScribblesTask(PropagateTask):
    """`labelprop_scribbles`: the same for the current segmentation of 3D Slicer's Scribbles tab, one label at a time.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        description = "Propagates the current segmentation; answers with the selected label only"
        super().__init__(workspace, target, InferType.SCRIBBLES, description)

    def _take(self, case: Case, options: Options, upload: Path | None) -> Taken:
        taken = super()._take(case, options, upload)
        self._selected(options)  # not only when the result is there
        return taken

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
