"""The semi-automatic tools as infer models: seeds, thresholds, contours, points or a bundle in, a draft out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.config import BACKGROUND_SCRIBBLE
from sliceprop.errors import InputError
from sliceprop.labels import LabelArray, present_values, sparse_labels
from sliceprop.server.cases import Case
from sliceprop.server.file_names import named_by_file, segments_in
from sliceprop.server.infer import SHOWN, PropagateTask, Reply
from sliceprop.server.label_files import read_labels, replace_values
from sliceprop.server.names import BACKGROUND as BACKGROUND_NAME
from sliceprop.server.names import (
    BACKGROUND_SCRIBBLES,
    FOREGROUND_SCRIBBLES,
    MAX_LABELS,
    LabelNames,
    check_names,
    names_by_value,
)
from sliceprop.server.provenance import (
    Annotation,
    Sent,
    as_shown,
    beneath,
    drawn_by_hand,
    lay_over,
    marked_slices,
)
from sliceprop.server.records import DRAFTS
from sliceprop.server.requests import LabelOptions, Options, first_choices, flag, label_options, number
from sliceprop.server.results import removed_if_refused, result_format, write_result
from sliceprop.server.workspace import Workspace
from sliceprop.tools.boundary_points import PointsConfig, boundary_points, points_of_marks
from sliceprop.tools.fast_marching import MarchConfig, fast_marching
from sliceprop.tools.fill_between_slices import fill_between_slices
from sliceprop.tools.grow_from_seeds import GrowConfig, grow_from_seeds
from sliceprop.tools.presets import KEEPS, PRESETS
from sliceprop.tools.seeds import BACKGROUND, Range
from sliceprop.tools.threshold_islands import threshold_islands
from sliceprop.volume import check_image, resolve_slice_axis, voxel_spacing

FIRST_NEW = 10 * MAX_LABELS
"""Above the index of any label."""


class Numbers:
    """Numbers of labels while a request is worked on: their indices, and from `FIRST_NEW` where a name is new.

    Args:
        table: of the server; new names come into it once the request has turned out to be valid, and only then.
    """

    def __init__(self, table: LabelNames) -> None:
        self._table, self._numbers = table, dict[str, int]()

    def of_values(self, present: Iterable[int], label_info: Any) -> dict[int, int]:
        """`{value: number}` of the values of a client's file; see `LabelNames.mapping`."""
        named, new = self._table.named(present, label_info)
        known = self._table.indices
        for name in (*new, *named.values()):
            self._numbers.setdefault(name, known.get(name, FIRST_NEW + len(self._numbers)))
        return {value: self._numbers[name] for value, name in named.items()}

    def of_names(self, names: Iterable[str]) -> dict[str, int]:
        """`{name: number}`.

        Raises:
            InputError: for a name that is none of a structure, or not among the configured ones.
        """
        asked = list(names)
        check_names(asked)
        numbers = self.of_values(
            range(1, len(asked) + 1), [{"name": name, "idx": i} for i, name in enumerate(asked, start=1)]
        )
        return {name: numbers.get(i) or _no_structure(name) for i, name in enumerate(asked, start=1)}

    def named(self, reason: str) -> str:
        """A tool's reason for refusing, with names in place of the numbers of labels."""
        names = {str(number): name for name, number in self._numbers.items()}
        return re.sub(r"(?<=\blabel )\d+", lambda found: names.get(found[0], found[0]), reason)

    def register(self) -> dict[int, int]:
        """Put the new names into the table, all of them or none; `{number: index}` of theirs.

        Raises:
            InputError: if they are too many.
            FileError: if the table cannot be written.
        """
        label_info = [{"name": name, "idx": number} for name, number in self._numbers.items()]
        if not label_info:
            return {}
        with self._table.lock:
            indices, new = self._table.mapping(self._numbers.values(), label_info)
            self._table.register(new)
        return {number: index for number, index in indices.items() if number >= FIRST_NEW}


@dataclass(frozen=True)
class Scene:
    """What a tool works on.

    Attributes:
        scan: the image.
        marks: `(i, j, k)` label indices that the user marked, `BACKGROUND`, 0 elsewhere.
        scribbles: those of the marks that are scribbles, which a result keeps; `(i, j, k)`, 0 elsewhere.
        annotation: the annotation in force, None without any; with labels that came with the request as those have it.
        before: `(i, j, k)` label indices that the client shows, as far as the request tells.
        selected: index of the label that the client works on, None if it does not say.
        numbers: of the labels in all of these.
    """

    scan: io.Image
    marks: LabelArray
    scribbles: LabelArray
    annotation: Annotation | None
    before: LabelArray
    selected: int | None
    numbers: Numbers

    def with_indices(self, indices: Mapping[int, int]) -> Scene:
        """The same with `{number: index}` in place of what a tool's labels are laid under, and compared with."""
        annotation, selected = self.annotation, self.selected
        if annotation is not None:
            annotation = replace(annotation, labels=replace_values(annotation.labels, indices, keep=True))
        selected = None if selected is None else indices.get(selected, selected)
        return replace(
            self, annotation=annotation, before=replace_values(self.before, indices, keep=True), selected=selected
        )

    def with_drawn(self, labels: LabelArray) -> tuple[LabelArray, NDArray[np.bool_]]:
        """A tool's labels under what was drawn, and which voxels that decides; slices before scribbles on them."""
        marked = np.maximum(self.scribbles, 0)
        labels = np.where(self.scribbles != 0, marked, labels).astype(np.int32)
        if self.annotation is not None:
            labels = lay_over(labels, self.annotation)
        drawn: NDArray[np.bool_] = (self.scribbles != 0) & (labels == marked)
        return labels, drawn if self.annotation is None else drawn | drawn_by_hand(self.annotation)

    @property
    def seeds(self) -> LabelArray:
        """The marks over the annotated slices, on which everything without a label is background."""
        if self.annotation is None:
            return self.marks
        known = self.annotation.labels.copy()
        if not self.annotation.partial:
            slices, empty = np.moveaxis(known, self.annotation.slice_axis, 0), BACKGROUND
            for index in self.annotation.annotated_slices:
                slices[index][slices[index] == 0] = empty
        return np.where(self.marks != 0, self.marks, known).astype(np.int32)


Tool = Callable[[Scene, Options], LabelArray]


@dataclass(frozen=True)
class Model:
    """How a tool shows itself to clients.

    Attributes:
        run: the tool.
        type: `scribbles` models get the client's segmentation from 3D Slicer, `segmentation` ones do not.
        description: one line.
        config: options and their defaults, lists for choices; an empty text for what is open.
    """

    run: Tool
    type: InferType
    description: str
    config: Mapping[str, Any]


class ToolTask(PropagateTask):
    """A tool for one study; its result is a draft: what the client changes in it is the annotation.

    Args:
        workspace: of the server.
        name: of the model.
        model: what it does.
    """

    def __init__(self, workspace: Workspace, name: str, model: Model) -> None:
        super().__init__(workspace, target=1.0, type=model.type, description=model.description)
        self._config = dict(model.config)
        self._name, self._model = name, model

    def reply(self, request: Mapping[str, Any]) -> Reply:
        """Answer one request of `LabelPropApp.infer`; see `PropagateTask`.

        With `selected_label_name` the result is that label only, as 0 and 1, which is what 3D Slicer's Scribbles tab
        wants; else all labels of the tool by their indices. Slices that are annotated stay as they are, on these as
        the client has corrected them since, and so do scribbles elsewhere.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(request)
        result_format(options)
        case, upload, kept = self._case(options), options.get("label"), flag(options, SHOWN, True)
        with self._workspace.lock(case):
            scan = self._scan_name(case)
            scene = self._scene(case, label_options(options), Path(upload) if upload else None, options)
        try:
            made = self._model.run(scene, options)
        except InputError as error:
            raise type(error)(scene.numbers.named(str(error))) from error
        labels, drawn = scene.with_drawn(made)
        if indices := scene.numbers.register():
            labels, scene = replace_values(labels, indices, keep=True), scene.with_indices(indices)
        if scene.selected is None:
            in_client, shown, names = labels, labels, self._workspace.names.indices
        else:
            chosen = labels == scene.selected
            rest = np.where(scene.before == scene.selected, 0, scene.before)
            in_client, shown = np.where(chosen, scene.selected, rest).astype(np.int32), chosen.astype(np.int32)
            names = {str(options["selected_label_name"]): 1}
        file = write_result(shown, scene.scan, options)
        with removed_if_refused(file), self._workspace.lock(case):
            self._workspace.check_scan(case, scan)  # somebody may have put another one there by now
            self._workspace.remember(case)
            if case.record is not None and kept:
                case.record.save_sent(_draft(scene, in_client), DRAFTS)
        return Reply(str(file), {"label_names": names, "tool": self._name, "draft": True}, drawn, scan)

    def _scene(self, case: Case, described: LabelOptions, upload: Path | None, options: Options) -> Scene:
        scan = self._workspace.scan(case)
        check_image(scan.array)
        numbers, name = Numbers(self._workspace.names), str(options.get("selected_label_name") or "")
        selected = numbers.of_names([name])[name] if name else None
        if upload is not None:
            described = named_by_file(described, segments_in(upload))
            marks, scribbles, before = self._uploaded(numbers, read_labels(upload, scan), described, selected)
            annotation, before = self._as_shown(case, before, scribbles != 0, selected)
            return Scene(scan, marks, scribbles, annotation, before, selected, numbers)
        stored = self._workspace.drawings.scribbles(case) if case.image_id else None
        marks = np.zeros(scan.array.shape, np.int32) if stored is None else _signed(stored, BACKGROUND_SCRIBBLE)
        annotation = self._workspace.drawings.annotation(case)
        before = np.zeros_like(marks) if annotation is None else annotation.labels
        return Scene(scan, marks, marks, annotation, before, selected, numbers)

    def _as_shown(
        self, case: Case, before: LabelArray, hidden: NDArray[np.bool_], selected: int | None
    ) -> tuple[Annotation | None, LabelArray]:
        """The annotation as a client has it that sent `before`, and that with what lies under its scribbles.

        Without a selected label the file may hold marks alone, and where it holds none says nothing.
        """
        known, sent = self._workspace.drawings.annotation(case), self._workspace.drawings.answered(case, before)
        before = beneath(before, hidden, sent, known)
        if known is None:
            return None, before
        told = before if selected is not None else np.where(before != 0, before, known.labels)
        return as_shown(known, told, sent), before

    def _uploaded(
        self, numbers: Numbers, values: LabelArray, described: LabelOptions, selected: int | None
    ) -> tuple[LabelArray, LabelArray, LabelArray]:
        """Marks, the scribbles among them, and the labels that the client shows.

        Where 3D Slicer's scribbles are in the file, they mark the selected label, and what it has otherwise is an
        earlier result; segments of other labels are theirs.
        """
        present = present_values(values)
        if described.label_info is None:
            present -= {described.background_scribble}
        before = replace_values(values, numbers.of_values(present, described.label_info))
        scribbles = np.zeros_like(before)
        if described.label_info is None:
            scribbles[values == described.background_scribble] = BACKGROUND
            return np.where(scribbles != 0, scribbles, before), scribbles, before
        names = names_by_value(present, described.label_info)
        behind = [value for value, name in names.items() if name in (BACKGROUND_NAME, BACKGROUND_SCRIBBLES)]
        drawn = [value for value, name in names.items() if name == FOREGROUND_SCRIBBLES]
        marks = before.copy()
        if drawn and selected is None:
            raise InputError(f"selected_label_name is missing; it says to what {FOREGROUND_SCRIBBLES} belong")
        if drawn and selected is not None:
            marks[before == selected] = 0
            scribbles[np.isin(values, drawn)] = selected
        scribbles[np.isin(values, behind)] = BACKGROUND
        return np.where(scribbles != 0, scribbles, marks), scribbles, before


def _no_structure(name: str) -> int:
    raise InputError(f"{name!r} is no name of a structure")


def _signed(marks: LabelArray, background: int) -> LabelArray:
    return np.where(marks == background, BACKGROUND, marks).astype(np.int32)


def _draft(scene: Scene, in_client: LabelArray) -> Sent:
    annotation = scene.annotation
    if annotation is not None:
        return Sent(in_client, annotation.labels, annotation.slice_axis, annotation.annotated_slices)
    axis = resolve_slice_axis("auto", scene.scan.array.shape, scene.scan.affine, None)
    return Sent(in_client, np.zeros_like(in_client), axis, ())


def _grow(scene: Scene, options: Options) -> LabelArray:
    keys = ("margin", "locality_per_mm", "smoothing_mm")
    config = GrowConfig(_range(options), **{key: number(options, key, getattr(GrowConfig, key)) for key in keys})
    return grow_from_seeds(scene.scan.array, scene.seeds, affine=scene.scan.affine, config=config)


def _march(scene: Scene, options: Options) -> LabelArray:
    given = options.get("max_volume_ml")
    volume: float | dict[int, float] | None
    if isinstance(given, Mapping):
        volumes = {name: number(given, name, 0) for name in given}
        volume = {label: volumes[name] for name, label in scene.numbers.of_names(volumes).items()}
    else:
        volume = _optional(options, "max_volume_ml")
    config = MarchConfig(volume, _range(options), number(options, "tolerance", MarchConfig.tolerance))
    return fast_marching(scene.scan.array, scene.seeds, affine=scene.scan.affine, config=config)


def _threshold(scene: Scene, options: Options) -> LabelArray:
    keep, seeds = _choice(options, "keep", KEEPS), None if not scene.seeds.any() else scene.seeds
    spacing = voxel_spacing(scene.scan.affine)
    return threshold_islands(scene.scan.array, _ranges(scene, options), keep=keep, seeds=seeds, spacing=spacing)


def _ranges(scene: Scene, options: Options) -> dict[int, Range]:
    """`thresholds`, `{name: [lower, upper]}`, or one range for one label."""
    given = options.get("thresholds")
    if given is not None:
        try:
            ends = {name: {"lower": lower, "upper": upper} for name, (lower, upper) in given.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError('thresholds must look like {"lung": [-1024, -500]}, null for an open end') from error
        ranges = {name: _range(given) for name, given in ends.items()}
        return {label: ranges[name] for name, label in scene.numbers.of_names(ranges).items()}
    preset = _choice(options, "preset", ("", *PRESETS))
    single = Range(*PRESETS[preset]) if preset else _range(options)
    if scene.selected is not None:
        return {scene.selected: single}
    name = options.get("label_name")
    if not name:
        raise InputError("say what is to be labelled: label_name, selected_label_name or thresholds")
    return {scene.numbers.of_names([str(name)])[str(name)]: single}


def _fill(scene: Scene, options: Options) -> LabelArray:
    painted = np.maximum(scene.seeds, 0)
    axis = options.get("slice_axis") or "auto"
    if scene.annotation is not None:
        axis = scene.annotation.slice_axis
    axis = resolve_slice_axis(axis, painted.shape, scene.scan.affine, painted > 0 if painted.any() else None)
    slices = np.ascontiguousarray(np.moveaxis(painted, axis, 0))
    annotated = (
        None
        if scene.annotation is None
        else sorted(set(scene.annotation.annotated_slices) | marked_slices(painted > 0, axis))
    )
    return np.moveaxis(fill_between_slices(sparse_labels(slices, annotated_slices=annotated)), 0, axis)


def _points(scene: Scene, options: Options) -> LabelArray:
    given = options.get("points")
    if given is not None and not isinstance(given, Mapping):
        raise InputError('points must look like {"liver": [[i, j, k], ...]}, voxel indices from 0')
    if given is None:
        points = points_of_marks(scene.marks)
    else:
        points = {label: given[name] for name, label in scene.numbers.of_names(given).items()}
    config = PointsConfig(number(options, "margin_mm", PointsConfig.margin_mm))
    return boundary_points(scene.scan.array, points, affine=scene.scan.affine, config=config)


def _automatic(folder: str) -> Tool:
    from sliceprop.tools.bundle import open_bundle, run_bundle  # only a server with a bundle pays for loading this

    bundle = open_bundle(folder)

    def run(scene: Scene, options: Options) -> LabelArray:
        found = run_bundle(bundle, scene.scan)
        values = {value: bundle.names.get(value, f"label_{value}") for value in sorted(present_values(found))}
        labels = scene.numbers.of_names(dict.fromkeys(values.values()))
        return replace_values(found, {value: labels[name] for value, name in values.items()})

    return run


def _range(options: Options) -> Range:
    return Range(_optional(options, "lower"), _optional(options, "upper"))


def _optional(options: Options, key: str) -> float | None:
    return None if options.get(key) in (None, "") else number(options, key, 0)


def _choice(options: Options, key: str, choices: tuple[str, ...]) -> Any:
    given = options.get(key, choices[0])
    given = given[0] if isinstance(given, list) and given else given
    if given not in choices:
        raise InputError(f"{key} must be one of {', '.join(filter(None, choices))}, not {given!r}")
    return given


_ENDS = {"lower": "", "upper": ""}

MODELS: Mapping[str, Model] = {
    "grow_from_seeds": Model(
        _grow,
        InferType.SCRIBBLES,
        "Divides the surroundings of marks of every structure and of background",
        {**_ENDS, **{key: getattr(GrowConfig, key) for key in ("margin", "locality_per_mm", "smoothing_mm")}},
    ),
    "fast_marching": Model(
        _march,
        InferType.SCRIBBLES,
        "Runs from the marks of a structure up to a largest volume",
        {**_ENDS, "max_volume_ml": "", "tolerance": MarchConfig.tolerance},
    ),
    "threshold_islands": Model(
        _threshold,
        InferType.SCRIBBLES,
        "Labels what lies between two thresholds, and keeps the largest island or the marked ones",
        {**_ENDS, "preset": ["", *PRESETS], "keep": list(KEEPS), "label_name": ""},
    ),
    "fill_between_slices": Model(
        _fill, InferType.SEGMENTATION, "Interpolates the contours of the annotated slices", {}
    ),
    "boundary_points": Model(
        _points,
        InferType.SCRIBBLES,
        "Segments structures from marks on their six outermost points",
        {"margin_mm": PointsConfig.margin_mm},
    ),
}


def tool_tasks(workspace: Workspace, bundle: str | None = None) -> dict[str, InferTask]:
    """The infer tasks of all tools.

    Args:
        workspace: of the server.
        bundle: folder of a MONAI bundle, which becomes the model `automatic`.

    Raises:
        FileError: if there is no bundle.
    """
    models = dict(MODELS)
    if bundle:
        text = f"Runs the bundle {Path(bundle).name}; its labels are a draft"
        models["automatic"] = Model(_automatic(bundle), InferType.SEGMENTATION, text, {})
    return {name: ToolTask(workspace, name, model) for name, model in models.items()}
