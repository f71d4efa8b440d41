"""What the tasks and routes of one server share: takes what clients submit, and opens studies for what they ask."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import LabelArray, present_values
from sliceprop.server.cases import Case, Cases
from sliceprop.server.checkpoints import Checkpoints
from sliceprop.server.colors import LabelColors
from sliceprop.server.datastore import Studies
from sliceprop.server.drawings import BACKGROUND, Drawings
from sliceprop.server.errors import ConflictError
from sliceprop.server.file_names import named_by_file, segments_in
from sliceprop.server.guard import plain_name
from sliceprop.server.label_files import read_labels, replace_values
from sliceprop.server.models import Models
from sliceprop.server.names import BACKGROUND_SCRIBBLES, FOREGROUND_SCRIBBLES, LabelNames, names_by_value
from sliceprop.server.provenance import (
    Annotation,
    beneath,
    marked_slices,
)
from sliceprop.server.requests import LabelOptions
from sliceprop.study import Study, open_study
from sliceprop.versions import (
    FINAL,
    NAMES,
    SCRIBBLES,
    SPARSE,
    Event,
    Version,
)
from sliceprop.warm_start import WarmStart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """What `open_study` takes beside a scan.

    Attributes:
        labels: `(i, j, k)` hand-made label indices; None without any.
        scribbles: `(i, j, k)`, the same and background scribbles; None without any.
        options: the other arguments.
    """

    labels: LabelArray | None
    scribbles: LabelArray | None
    options: Mapping[str, Any]

    @property
    def arrays(self) -> dict[str, LabelArray]:
        """Those that there are, by name."""
        named = {"labels": self.labels, "scribbles": self.scribbles}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Opened:
    """A study ready for use.

    Attributes:
        study: scan and annotation.
        annotation: the hand-made labels, None without any.
        labels: `(i, j, k)` label indices as the client has them, None without any.
        drawing: what the study was made from beside the scan.
    """

    study: Study
    annotation: Annotation | None
    labels: LabelArray | None
    drawing: Drawing


class Workspace(Cases):
    """The studies of one server with all that was drawn on them and learned from them.

    Args:
        store: scans and label files; the workspace keeps its own files beside it, in `.labelprop`.
        names: the operator's list of labels; None to learn it from the clients.
        start: where studies without a model of their own start learning from.
    """

    def __init__(self, store: Studies, names: list[str] | None = None, start: WarmStart | None = None) -> None:
        super().__init__(store)
        self.names = LabelNames(self.folder / NAMES, names, self.recorded_labels)
        self.colors = LabelColors(self.folder / "colors.json")
        self.drawings = Drawings(self, self.names, self.colors)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.models = Models(self.checkpoints, start or WarmStart())

    def submit(
        self, image_id: str, tag: str, file: Path, options: LabelOptions, by: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Check a client's label file and keep it as a version; nothing is kept if anything is wrong with it.

        Args:
            image_id: of the study.
            tag: `sparse`, `final`, `scribbles`, or another one, which is stored and counts for nothing.
            file: what the client sent.
            options: what the client says about it.
            by: `user` and `client`, as far as they are known.

        Returns:
            `label_names`, `version`, `annotation_version`, `scribbles_version`, `scan`, and for labels `slice_axis` and
            the `annotated_slices` that count as the user's.

        Raises:
            ConflictError: if the client started from another annotation than the one in force; what it sent is kept as
                a version that does not count. Also if it drew on another scan of this name; that is not kept.
            NoAnnotationError: for an empty label, unless the annotated slices are listed (none, to clear them).
            InputError: or a subclass, for anything else that cannot be used.
        """
        plain_name(tag, "tag")
        case, segments = self.case(image_id), segments_in(file)
        options = named_by_file(options, segments)
        with self.lock(case), ExitStack() as stored:
            scan = self.scan_name(case)
            self.check_scan(case, options.scan)
            with self.names.lock:
                background = options.background_scribble if tag == SCRIBBLES else None
                labels, new = self.drawings.renumbered(read_labels(file, self.scan(case)), options, background)
                annotation = None if tag == SCRIBBLES else self.drawings.annotate(case, labels, options)
                _check_not_empty(labels, tag, options)
                _open(self.scan(case), _drawing(annotation, labels if tag == SCRIBBLES else None))
                self.names.register(new)
                stored.enter_context(self.names.used(present_values(labels)))
                self.colors.take({one.name: one.color for one in segments if one.name in new})
            self._check_base(case, tag, labels, annotation, options, by or {})
            event: Event = "removed" if tag == SCRIBBLES and not labels.any() else "submitted"
            based_on = options.annotation_version or ""
            self.check_scan(case, options.scan)  # somebody may have put another one there by now
            kept = self.drawings.keep(case, tag, labels, annotation, event, based_on=based_on, by=by)
            self.remember(case)
            return {**self._receipt(case, labels, annotation, kept), "scan": scan, **self.export(case, tag)}

    def check_scan(self, case: Case, drawn_on: str | None) -> None:
        """Refuse what was drawn on another scan of this name, whose slices these are not.

        Raises:
            ConflictError: unless the client does not say which one.
        """
        if drawn_on not in (None, self.scan_name(case)):
            raise ConflictError(
                f"{case.image_id!r} is another scan by now, not the one that was drawn on; open it again"
            )

    def _check_base(
        self,
        case: Case,
        tag: str,
        labels: LabelArray,
        annotation: Annotation | None,
        options: LabelOptions,
        by: Mapping[str, str],
    ) -> None:
        """Refuse, but keep, what was drawn on an older version than the one that counts.

        Raises:
            ConflictError: naming both versions.
        """
        known = self.drawings.scribbles_version(case) if tag == SCRIBBLES else self.drawings.annotation_version(case)
        if options.annotation_version in (None, known):
            return
        based_on = options.annotation_version or ""
        kept = self.drawings.keep(case, tag, labels, annotation, "conflict", based_on=based_on, by=by)
        number = known.split(":")[1] if known else 0
        raise ConflictError(
            f"this study was annotated elsewhere meanwhile (version {number}); "
            f"load that first, then submit again. What you sent is kept as version {kept.number}"
        )

    def _receipt(self, case: Case, labels: LabelArray, annotation: Annotation | None, kept: Version) -> dict[str, Any]:
        """What a client gets to know of what it sent: its own version, though another one may count by now."""
        told: dict[str, Any] = {"label_info": self.drawings.label_info(labels), "label_names": self.names.indices}
        told["annotation_version"] = kept.name if kept.entry.in_force else self.drawings.annotation_version(case)
        marks = kept.entry.tag == SCRIBBLES and kept.labels_file
        told["scribbles_version"] = kept.name if marks else self.drawings.scribbles_version(case)
        if annotation is None:
            return told
        slices = {"annotated_slices": list(annotation.annotated_slices)}
        return told | slices | {"slice_axis": annotation.slice_axis, "partial": annotation.partial}

    def export(self, case: Case, tag: str) -> dict[str, Any]:
        """What became of a label that the archive was to get: `dicom_seg`, and a `sentence`; empty for other labels."""
        info = self.store.get_label_info(case.image_id, tag)
        return {key: info[key] for key in ("dicom_seg", "sentence") if key in info}

    def open(
        self, case: Case, options: LabelOptions, upload: Path | None = None, selected: str | None = None
    ) -> Opened:
        """A study with the labels that came with the request, else those of tag `sparse`, else of `final`.

        Args:
            case: which study.
            options: `slice_axis`, and what describes the upload.
            upload: label file of the request.
            selected: name of the label that 3D Slicer's foreground scribbles belong to.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        scan, marks = self.scan(case), self.drawings.marks(case)
        if upload is None:
            annotation = self.drawings.annotation(case)
            labels = None if annotation is None else annotation.labels
            _check_axis(annotation, options.slice_axis)
        else:
            values, options = read_labels(upload, scan), named_by_file(options, segments_in(upload))
            hidden = _scribbled(values, options)
            known = self.drawings.annotation(case) if hidden.any() else None
            with self.names.lock:
                labels, new = self.drawings.renumbered(values, options)
                if hidden.any():
                    labels = beneath(labels, hidden, self.drawings.answered(case, labels), known)
                annotation = self.drawings.annotate(case, labels, options)
                self.names.register(new)
            marks = self._slicer_scribbles(values, options, selected, marks)
        if marks is not None:
            with self.names.lock:
                self.names.register(self.names.configured_up_to(present_values(marks) - {BACKGROUND}))
        drawing = _drawing(annotation, marks, options.slice_axis)
        return Opened(_open(scan, drawing), annotation, labels, drawing)

    def _slicer_scribbles(
        self, values: LabelArray, options: LabelOptions, selected: str | None, marks: LabelArray | None
    ) -> LabelArray | None:
        """The marks of 3D Slicer's two scribble segments on top of the stored ones."""
        names = _named_values(values, options)
        index = self.names.indices.get(selected or "")
        meaning = {FOREGROUND_SCRIBBLES: index, BACKGROUND_SCRIBBLES: BACKGROUND}
        drawn = {value: mark for value, name in names.items() if (mark := meaning.get(name))}
        if not drawn:
            return marks
        new = replace_values(values, drawn)
        return new if marks is None else np.where(new > 0, new, marks)

    def annotated_images(self) -> list[str]:
        """Ids of the images for which there is a label file or a file of scribbles."""
        return [image for image in sorted(self.store.list_images()) if self.drawings.label_versions(image)]

    def keep_estimate(self, case: Case, suggestion: Mapping[str, Any], target: float, labels: list[str]) -> None:
        """Remember how good a study of the datastore is estimated to be, for the choice between studies.

        Args:
            case: which study.
            suggestion: from `study.suggest`.
            target: estimated Dice that it goes by.
            labels: `label_versions` that it was made from.
        """
        if case.record is not None and case.image_id:
            estimate = {key: suggestion[key] for key in ("expected_dice", "stop")}
            case.record.save_estimate({**estimate, "target": target, "labels": labels})

    def studies_by_need(self, target: float) -> tuple[list[str], list[str]]:
        """Ids of the images to work on, the most urgent first, and of those that are done.

        The worst estimated Dice comes first, then what is annotated but was never estimated, then what is not
        annotated. Done is what was estimated to be, with this target and the labels as they are.
        """
        waiting, done = list[tuple[int, float, str]](), list[tuple[int, float, str]]()
        for image in sorted(self.store.list_images()):
            labels, estimate = self.drawings.label_versions(image), self.record(image).estimate()
            dice = estimate.get("expected_dice") if labels else None
            need = (0 if dice is not None else 1 if labels else 2, dice or 0.0, image)
            current = (estimate.get("target"), estimate.get("labels")) == (target, labels)
            (done if current and estimate.get("stop") else waiting).append(need)
        return [image for *_, image in sorted(waiting)], [image for *_, image in sorted(done)]


def _drawing(annotation: Annotation | None, scribbles: LabelArray | None, slice_axis: str | int = "auto") -> Drawing:
    common = {"background_scribble": BACKGROUND}
    if annotation is None:
        return Drawing(None, scribbles, {**common, "slice_axis": slice_axis})
    axis = annotation.slice_axis if slice_axis == "auto" else slice_axis
    blank = set(annotation.annotated_slices) - marked_slices(annotation.labels != 0, annotation.slice_axis)
    listed = annotation.annotated_slices if blank and axis == annotation.slice_axis else None
    options = {**common, "slice_axis": axis, "annotated_slices": listed, "partial": annotation.partial}
    return Drawing(annotation.labels, scribbles, options)


def _named_values(values: LabelArray, options: LabelOptions) -> dict[int, str]:
    """Names of the values in a file, as far as the client gave any."""
    return names_by_value(present_values(values), options.label_info) if options.label_info else {}


def _scribbled(values: LabelArray, options: LabelOptions) -> NDArray[np.bool_]:
    """Where 3D Slicer's scribble segments hide its other ones in a file; a stroke is no correction of the slice."""
    scribbles = [
        value
        for value, name in _named_values(values, options).items()
        if name in (FOREGROUND_SCRIBBLES, BACKGROUND_SCRIBBLES)
    ]
    return np.isin(values, scribbles)


def _check_axis(annotation: Annotation | None, slice_axis: str | int) -> None:
    """Refuse to count the slices of an annotation along another axis, where they are none.

    Raises:
        InputError: telling the way out.
    """
    if annotation is not None and annotation.annotated_slices and slice_axis not in ("auto", annotation.slice_axis):
        raise InputError(
            f"this study is annotated along axis {annotation.slice_axis}, not {slice_axis}; leave slice_axis out, or "
            "submit an annotation along the other axis first"
        )


def _open(scan: io.Image, drawing: Drawing) -> Study:
    arrays = drawing.arrays
    labels, scribbles = (replace(scan, array=arrays[k]) if k in arrays else None for k in ("labels", "scribbles"))
    return open_study(scan, labels, scribbles=scribbles, **drawing.options)


def _check_not_empty(labels: LabelArray, tag: str, options: LabelOptions) -> None:
    """Refuse an annotation with nothing in it that does not say which slices it is about.

    Raises:
        NoAnnotationError: since it would replace what was painted before.
    """
    listed = options.annotated_slices is not None or options.reviewed_slices
    if tag in (SPARSE, FINAL) and not listed and not labels.any():
        raise NoAnnotationError("nothing is painted; paint a slice, or list the slices that are complete")
