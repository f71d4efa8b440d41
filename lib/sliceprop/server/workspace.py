"""The studies of one server: finds image, annotation and model of a request, and keeps what clients submit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import numpy as np

from sliceprop import io
from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.engine.registration import Model
from sliceprop.errors import CheckpointError, FileError, InputError, NoAnnotationError
from sliceprop.labels import LabelArray, present_values
from sliceprop.server.checkpoints import Checkpoints
from sliceprop.server.colors import LabelColors
from sliceprop.server.datastore import Studies
from sliceprop.server.errors import ConflictError, NotFoundError
from sliceprop.server.files import read_json, write_json
from sliceprop.server.guard import plain_name
from sliceprop.server.label_files import read_labels, replace_values
from sliceprop.server.names import BACKGROUND_SCRIBBLES, FOREGROUND_SCRIBBLES, LabelNames, names_by_value
from sliceprop.server.provenance import Annotation, hand_made, is_our_result, marked_slices
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import LabelOptions, Options, label_options
from sliceprop.study import Study, open_study
from sliceprop.volume import resolve_slice_axis

logger = logging.getLogger(__name__)

SPARSE, FINAL, SCRIBBLES = "sparse", "final", "scribbles"

_BACKGROUND = MAX_LABEL
"""Background scribbles in memory, out of the way of label indices; stored files have `BACKGROUND_SCRIBBLE`."""


@dataclass(frozen=True)
class Case:
    """One study as a request names it.

    Attributes:
        image: file of the scan.
        record: what the server remembers of it; None for a scan that came with the request.
        image_id: in the datastore; empty for the scan of a session or of a request.
    """

    image: Path
    record: StudyRecord | None
    image_id: str = ""


@dataclass(frozen=True)
class Opened:
    """A study ready for use.

    Attributes:
        study: scan and annotation.
        annotation: the hand-made labels, None without any.
        labels: `(i, j, k)` label indices as the client has them, None without any.
    """

    study: Study
    annotation: Annotation | None
    labels: LabelArray | None


class Workspace:
    """What all tasks and routes of one server share.

    Args:
        store: scans and label files; the workspace keeps its own files beside it, in `.labelprop`.
        names: the operator's list of labels; None to learn it from the clients.
    """

    def __init__(self, store: Studies, names: list[str] | None = None) -> None:
        self.store = store
        self.folder = Path(store._datastore_path) / ".labelprop"
        self.names = LabelNames(self.folder / "names.json", names)
        self.colors = LabelColors(self.folder / "colors.json")
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self._locks: dict[str, RLock] = {}

    def lock(self, case: Case) -> RLock:
        """Serialises the work on one study; different studies do not wait for each other."""
        return self._locks.setdefault(str(case.image), RLock())

    def case(self, image_id: Any) -> Case:
        """The study with this id.

        Raises:
            InputError: if the id is not a plain name.
            NotFoundError: if there is no such image.
            ArchiveError: if it must be fetched from an archive that does not answer.
        """
        if not isinstance(image_id, str) or not image_id:
            raise InputError(f"image must be the id of an image, not {image_id!r}")
        plain_name(image_id, "image")
        if not self.store.has_image(image_id):
            raise NotFoundError(f"unknown image {image_id!r}")
        return Case(Path(self.store.get_image_uri(image_id)), self.record(image_id), image_id)

    def record(self, image_id: str) -> StudyRecord:
        """What is remembered of a study that exists; unlike `case` it does not fetch the image from an archive."""
        return StudyRecord(self.folder / "studies" / image_id)

    def requested_case(self, options: Options) -> Case | None:
        """The study of a request: `image`, else the one used or annotated last, else the first; None if there is none.

        Raises:
            NotFoundError: if `image` does not exist.
        """
        if options.get("image"):
            return self.case(options["image"])
        images = sorted(self.store.list_images())
        last = read_json(self._last_used)
        return self.case(last if last in images else images[0]) if images else None

    def annotated_images(self) -> list[str]:
        """Ids of the images for which there is a label file or a file of scribbles."""
        return [image for image in sorted(self.store.list_images()) if self.label_versions(image)]

    def label_versions(self, image_id: str) -> list[str]:
        """What tells whether anything was drawn since: tag and time of each label file."""
        versions = (self.version(image_id, tag) for tag in (SPARSE, FINAL, SCRIBBLES))
        return [version for version in versions if version]

    def keep_estimate(self, case: Case, suggestion: Mapping[str, Any], target: float) -> None:
        """Remember how good a study of the datastore is estimated to be, for the choice between studies."""
        if case.record is not None and case.image_id:
            estimate = {key: suggestion[key] for key in ("expected_dice", "stop")}
            labels = self.label_versions(case.image_id)
            case.record.save_estimate({**estimate, "target": target, "labels": labels})

    def studies_by_need(self, target: float) -> tuple[list[str], list[str]]:
        """Ids of the images to work on, the most urgent first, and of those that are done.

        The worst estimated Dice comes first, then what is annotated but was never estimated, then what is not
        annotated. Done is what was estimated to be, with this target and the labels as they are.
        """
        waiting, done = list[tuple[int, float, str]](), list[tuple[int, float, str]]()
        for image in sorted(self.store.list_images()):
            labels, estimate = self.label_versions(image), self.record(image).estimate()
            dice = estimate.get("expected_dice") if labels else None
            need = (0 if dice is not None else 1 if labels else 2, dice or 0.0, image)
            current = (estimate.get("target"), estimate.get("labels")) == (target, labels)
            (done if current and estimate.get("stop") else waiting).append(need)
        return [image for *_, image in sorted(waiting)], [image for *_, image in sorted(done)]

    def remember(self, case: Case) -> None:
        """Make this study the one that requests without `image` mean."""
        if case.image_id and read_json(self._last_used) != case.image_id:
            write_json(self._last_used, case.image_id)

    @property
    def _last_used(self) -> Path:
        return self.folder / "last_used.json"

    def scan(self, case: Case) -> io.Image:
        """The image of a study; read anew only when the file has changed.

        Raises:
            FileError: or another `InputError`, if it cannot be read.
        """
        return _read_scan(case.image, case.image.stat().st_mtime_ns if case.image.exists() else 0)

    def submit(self, image_id: str, tag: str, file: Path, options: LabelOptions) -> dict[str, Any]:
        """Check a client's label file and store it under its tag; nothing is replaced if anything is wrong with it.

        Returns:
            `label_names`, `annotation_version`, and for labels `slice_axis` and the `annotated_slices` that count as
            the user's.

        Raises:
            ConflictError: if the client started from another annotation than the one in force.
            NoAnnotationError: for an empty label, unless the annotated slices are listed (none, to clear them).
            InputError: or a subclass, for anything else that cannot be used.
        """
        plain_name(tag, "tag")
        case = self.case(image_id)
        with self.lock(case):
            if options.annotation_version not in (None, self.annotation_version(case)):
                raise ConflictError("this study was annotated elsewhere meanwhile; load that first, then submit again")
            with self.names.lock:
                background = options.background_scribble if tag == SCRIBBLES else None
                labels, new = self._renumbered(read_labels(file, self.scan(case)), options, background)
                annotation = None if tag == SCRIBBLES else self._annotate(case, labels, options)
                _check_not_empty(labels, tag, options)
                _open(self.scan(case), annotation, labels if tag == SCRIBBLES else None)
                self.names.register(new)
            if tag == SCRIBBLES and not labels.any():
                self._drop(case, tag)
            else:
                self._keep(case, tag, labels, annotation)
            self.remember(case)
            return {**self._receipt(case, labels, annotation), **self.export(case, tag)}

    def _keep(self, case: Case, tag: str, labels: LabelArray, annotation: Annotation | None) -> None:
        """Store a label file that was checked; as the annotation in force if its tag makes it that."""
        assert case.record is not None
        ours = annotation is not None and is_our_result(labels, annotation.slice_axis, case.record.sent())
        in_force = tag == SPARSE or (tag == FINAL and (ours or self.store.label_file(case.image_id, SPARSE) is None))
        self.store_labels(case, tag, labels, annotation)
        if annotation is not None and in_force:
            case.record.save_annotation(replace(annotation, source=self.version(case.image_id, tag)))

    def _receipt(self, case: Case, labels: LabelArray, annotation: Annotation | None) -> dict[str, Any]:
        slices = {} if annotation is None else {"annotated_slices": list(annotation.annotated_slices)}
        version = {"annotation_version": self.annotation_version(case)}
        return {**self._label_info(labels, annotation), **slices, **version, "label_names": self.names.indices}

    def export(self, case: Case, tag: str) -> dict[str, Any]:
        """What became of a label that the archive was to get: `dicom_seg`, and a `sentence`; empty for other labels."""
        info = self.store.get_label_info(case.image_id, tag)
        return {key: info[key] for key in ("dicom_seg", "sentence") if key in info}

    def annotation_version(self, case: Case) -> str:
        """What tells whether another annotation is in force since; empty without any."""
        annotation = self.annotation(case)
        return annotation.source if annotation else ""

    def scribbles_version(self, case: Case) -> str:
        """What tells whether there are other scribbles since; empty without any."""
        return self.version(case.image_id, SCRIBBLES) if case.image_id else ""

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
        scan, marks = self.scan(case), self._scribbles(case)
        if upload is None:
            annotation = self.annotation(case)
            labels = None if annotation is None else annotation.labels
        else:
            values = read_labels(upload, scan)
            with self.names.lock:
                labels, new = self._renumbered(values, options)
                annotation = self._annotate(case, labels, options)
                self.names.register(new)
            marks = self._slicer_scribbles(values, options, selected, marks)
        return Opened(_open(scan, annotation, marks, options.slice_axis), annotation, labels)

    def annotation(self, case: Case) -> Annotation | None:
        """The annotation in force: of tag `sparse`, else `final`; None if neither exists.

        A `final` label that was our own result, edited, counts before an older `sparse` one.

        Raises:
            InputError: if a label file that was put there by hand does not fit.
        """
        if case.record is None:
            return None
        kept = case.record.annotation()
        tags = [tag for tag in (SPARSE, FINAL) if self.store.label_file(case.image_id, tag)]
        if kept is not None and kept.source in [self.version(case.image_id, tag) for tag in tags]:
            return kept
        return self._found(case, tags[0]) if tags else None

    def model(self, case: Case, study: Study, init: Any = None) -> Model | None:
        """The model for a study: its own if it has one that fits, else None.

        Args:
            case: which study.
            study: opened, to see whether its own model still fits.
            init: id of another checkpoint; `none` for no model; None or `auto` for the study's own.

        Raises:
            NotFoundError: if there is no checkpoint `init`.
            CheckpointError: if the checkpoint `init` cannot be used.
        """
        if init not in (None, "auto", "none"):
            return self.checkpoints.load(str(init))
        if init == "none" or not case.image_id or case.image_id not in self.checkpoints:
            return None
        try:
            model = self.checkpoints.load(case.image_id)
        except (CheckpointError, FileError):
            logger.exception("the checkpoint of %s is ignored", case.image_id)
            return None
        return model if model.study_hash in (None, study.study_hash) else None

    def _renumbered(
        self, values: LabelArray, options: LabelOptions, background: int | None = None
    ) -> tuple[LabelArray, list[str]]:
        """A client's label values as label indices, and the names that are new."""
        present = present_values(values) - {background}
        indices, new = self.names.mapping(present, options.label_info)
        if background is not None:
            indices[background] = _BACKGROUND
        return replace_values(values, indices), new

    def _annotate(self, case: Case, labels: LabelArray, options: LabelOptions) -> Annotation:
        sent = case.record.sent() if case.record else None
        scan = self.scan(case)
        if options.slice_axis == "auto" and sent is not None and is_our_result(labels, sent.slice_axis, sent):
            axis = sent.slice_axis
        else:
            marked = labels > 0 if labels.any() else None
            axis = resolve_slice_axis(options.slice_axis, scan.array.shape, scan.affine, marked)
        return hand_made(
            labels,
            slice_axis=axis,
            sent=sent,
            known=case.record.annotation() if case.record else None,
            listed=options.annotated_slices,
            reviewed=options.reviewed_slices,
            partial=options.partial,
        )

    def _found(self, case: Case, tag: str) -> Annotation:
        """The annotation in a label file that did not come through `submit`; its values are label indices."""
        file = self.store.label_file(case.image_id, tag)
        assert file is not None
        info = dict(self.store.get_label_info(case.image_id, tag))
        options = replace(label_options(info), label_info=None)
        with self.names.lock:
            labels, new = self._renumbered(read_labels(file, self.scan(case), cropped=True), options)
            annotation = self._annotate(case, labels, options)
            self.names.register(new)
        return replace(annotation, source=self.version(case.image_id, tag))

    def scribbles(self, case: Case) -> LabelArray | None:
        """The marks of a study as they are stored, `(i, j, k)`, `BACKGROUND_SCRIBBLE` for background; None without any.

        Raises:
            InputError: if a file that was put there by hand does not fit.
        """
        file = self.store.label_file(case.image_id, SCRIBBLES)
        if file is None:
            return None
        return read_labels(file, self.scan(case), cropped=True)

    def _scribbles(self, case: Case) -> LabelArray | None:
        marks = self.scribbles(case)
        return None if marks is None else replace_values(marks, {BACKGROUND_SCRIBBLE: _BACKGROUND}, keep=True)

    def _slicer_scribbles(
        self, values: LabelArray, options: LabelOptions, selected: str | None, marks: LabelArray | None
    ) -> LabelArray | None:
        """The marks of 3D Slicer's two scribble segments on top of the stored ones."""
        names = names_by_value(present_values(values), options.label_info) if options.label_info else {}
        index = self.names.indices.get(selected or "")
        meaning = {FOREGROUND_SCRIBBLES: index, BACKGROUND_SCRIBBLES: _BACKGROUND}
        drawn = {value: mark for value, name in names.items() if (mark := meaning.get(name))}
        if not drawn:
            return marks
        new = replace_values(values, drawn)
        return new if marks is None else np.where(new > 0, new, marks)

    def _label_info(self, labels: LabelArray, annotation: Annotation | None) -> dict[str, Any]:
        """What is stored beside a label file; the names are listed in the order of the values in the file."""
        present, names = present_values(labels), self.names.indices
        colors = self.colors.of(names)
        listed = [{"name": n, "idx": i, "color": colors[n]} for n, i in names.items() if i in present]
        info: dict[str, Any] = {"label_info": listed}
        if annotation is not None:
            info |= {"slice_axis": annotation.slice_axis, "partial": annotation.partial}
        if annotation is not None and not annotation.partial:
            info |= {"annotated_slices": list(annotation.annotated_slices)}
        return info

    def store_labels(self, case: Case, tag: str, labels: LabelArray, annotation: Annotation | None) -> None:
        """Store a label file and what is known about it; the one that was there goes to the history.

        Args:
            case: a study of the datastore.
            tag: of the label file.
            labels: `(i, j, k)` label indices.
            annotation: the hand-made ones among them; None for scribbles.

        Raises:
            FileError: if the folder is read-only or full.
        """
        assert case.record is not None
        replaced = self.store.label_file(case.image_id, tag)
        if replaced is not None:
            case.record.keep(replaced, tag)
        stored = replace_values(labels, {_BACKGROUND: BACKGROUND_SCRIBBLE}, keep=True)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "label.nii.gz"
            io.write_image(file, stored, self.scan(case))
            self.store.save_label(case.image_id, str(file), tag, self._label_info(labels, annotation))

    def _drop(self, case: Case, tag: str) -> None:
        """Take a label file away; it goes to the history."""
        file = self.store.label_file(case.image_id, tag)
        if case.record is not None and file is not None:
            case.record.keep(file, tag)
            self.store.drop_label(case.image_id, tag)

    def version(self, image_id: str, tag: str) -> str:
        """What tells whether there is another label file since; empty without any."""
        file = self.store.label_file(image_id, tag)
        return f"{tag}:{file.stat().st_mtime_ns}" if file else ""


def _open(
    scan: io.Image, annotation: Annotation | None, scribbles: LabelArray | None, slice_axis: str | int = "auto"
) -> Study:
    marks = None if scribbles is None else replace(scan, array=scribbles)
    if annotation is None:
        return open_study(scan, scribbles=marks, slice_axis=slice_axis, background_scribble=_BACKGROUND)
    axis = annotation.slice_axis if slice_axis == "auto" else slice_axis
    blank = set(annotation.annotated_slices) - marked_slices(annotation.labels != 0, annotation.slice_axis)
    return open_study(
        scan,
        replace(scan, array=annotation.labels),
        scribbles=marks,
        slice_axis=axis,
        annotated_slices=annotation.annotated_slices if blank and axis == annotation.slice_axis else None,
        partial=annotation.partial,
        background_scribble=_BACKGROUND,
    )


def _check_not_empty(labels: LabelArray, tag: str, options: LabelOptions) -> None:
    """Refuse an annotation with nothing in it that does not say which slices it is about.

    Raises:
        NoAnnotationError: since it would replace what was painted before.
    """
    listed = options.annotated_slices is not None or options.reviewed_slices
    if tag in (SPARSE, FINAL) and not listed and not labels.any():
        raise NoAnnotationError("nothing is painted; paint a slice, or list the slices that are complete")


@lru_cache(maxsize=2)
def _read_scan(file: Path, mtime_ns: int) -> io.Image:
    return io.read_image(file)
