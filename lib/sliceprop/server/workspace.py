"""The studies of one server: finds image, annotation and model of a request, and keeps what clients submit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.engine.registration import Model
from sliceprop.errors import CheckpointError, FileError, InputError, NoAnnotationError, StorageError
from sliceprop.files import copy_file, read_json, write_json
from sliceprop.hashing import array_digest, digest, file_state, known_digest
from sliceprop.labels import LabelArray, present_values
from sliceprop.server.audit import sender
from sliceprop.server.checkpoints import Checkpoints, Chosen
from sliceprop.server.colors import LabelColors
from sliceprop.server.datastore import Studies
from sliceprop.server.errors import ConflictError, NotFoundError
from sliceprop.server.file_names import named_by_file, segments_in
from sliceprop.server.guard import inside, plain_name
from sliceprop.server.label_files import read_labels, replace_values
from sliceprop.server.manifests import Manifests
from sliceprop.server.names import BACKGROUND_SCRIBBLES, FOREGROUND_SCRIBBLES, LabelNames, names_by_value
from sliceprop.server.provenance import (
    Annotation,
    Sent,
    beneath,
    drawn_by_hand,
    hand_made,
    is_our_result,
    likeliest,
    marked_slices,
    only_slices,
)
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import LabelOptions, Options, label_options
from sliceprop.server.shown import Shown, look, note_found, publish
from sliceprop.study import Study, open_study
from sliceprop.versions import (
    FINAL,
    FOLDER,
    NAMES,
    SCRIBBLES,
    SPARSE,
    Entry,
    Event,
    Version,
    check_grid,
    grid_of,
)
from sliceprop.volume import resolve_slice_axis
from sliceprop.warm_start import AUTO, NONE, WarmStart

logger = logging.getLogger(__name__)

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


class Workspace:
    """What all tasks and routes of one server share.

    Args:
        store: scans and label files; the workspace keeps its own files beside it, in `.labelprop`.
        names: the operator's list of labels; None to learn it from the clients.
        start: where studies without a model of their own start learning from.
    """

    def __init__(self, store: Studies, names: list[str] | None = None, start: WarmStart | None = None) -> None:
        self.store = store
        self._start = start or WarmStart()
        self.folder = Path(store._datastore_path) / FOLDER
        self.names = LabelNames(self.folder / NAMES, names, self._recorded_labels)
        self.colors = LabelColors(self.folder / "colors.json")
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self._locks: WeakValueDictionary[str, Any] = WeakValueDictionary()  # of studies that are worked on
        self._choosing = Lock()
        store.before_removal = self._keep_before_removal
        store.before_replacement = self._keep_put_meanwhile

    def lock(self, case: Case) -> RLock:
        """Serialises the work on one study; different studies do not wait for each other."""
        with self._choosing:
            chosen: RLock = self._locks.setdefault(str(case.image), RLock())
            return chosen

    def case(self, image_id: Any) -> Case:
        """The study with this id.

        Raises:
            InputError: if the id is not a plain name.
            NotFoundError: if there is no such image.
            ArchiveError: if it must be fetched from an archive that does not answer.
            StorageError: if the folder of the studies is out of reach.
        """
        if not isinstance(image_id, str) or not image_id:
            raise InputError(f"image must be the id of an image, not {image_id!r}")
        plain_name(image_id, "image")
        self.store.check_reach()
        if not self.store.has_image(image_id):
            raise NotFoundError(f"unknown image {image_id!r}")
        return Case(Path(self.store.get_image_uri(image_id)), self.record(image_id), image_id)

    def record(self, image_id: str) -> StudyRecord:
        """What is remembered of a study that exists; unlike `case` it does not fetch the image from an archive.

        Raises:
            InputError: if its folder is a link to a place outside.
        """
        studies = self.folder / "studies"
        return StudyRecord(inside(studies, studies / image_id))

    def records(self) -> Iterator[StudyRecord]:
        """What is remembered of every study."""
        return (StudyRecord(folder) for folder in (self.folder / "studies").glob("*/"))

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
        """What tells whether anything was drawn since: the name of each label's version."""
        versions = self.record(image_id).versions
        names = (look(self.store, image_id, versions, tag).name for tag in (SPARSE, FINAL, SCRIBBLES))
        return [name for name in names if name]

    def _recorded_labels(self) -> list[tuple[Mapping[str, Any], ...]]:
        """Names and indices of the labels in each version of every study, the newest first."""
        versions = [version for record in self.records() for version in record.versions.recorded()]
        return [one.entry.label_info for one in sorted(versions, key=lambda one: one.time, reverse=True)]

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
            labels, estimate = self.label_versions(image), self.record(image).estimate()
            dice = estimate.get("expected_dice") if labels else None
            need = (0 if dice is not None else 1 if labels else 2, dice or 0.0, image)
            current = (estimate.get("target"), estimate.get("labels")) == (target, labels)
            (done if current and estimate.get("stop") else waiting).append(need)
        return [image for *_, image in sorted(waiting)], [image for *_, image in sorted(done)]

    def remember(self, case: Case) -> None:
        """Make this study the one that requests without `image` mean."""
        if case.image_id and read_json(self._last_used) != case.image_id:
            try:
                write_json(self._last_used, case.image_id)
            except FileError:
                logger.exception("the study used last is not remembered")

    @property
    def _last_used(self) -> Path:
        return self.folder / "last_used.json"

    def scan(self, case: Case) -> io.Image:
        """The image of a study; read anew only when the file has changed. Results of another image are forgotten.

        Raises:
            FileError: or another `InputError`, if it cannot be read; a `StorageError` if the folder is out of reach.
        """
        state = file_state(case.image) if case.image.exists() else ()
        if not state:
            self.store.check_reach()
        scan = _read_scan(case.image, state)
        if case.record is not None and case.record.folder.is_dir():
            case.record.notice_scan({"voxels": _scan_digest(case.image, state), "grid": grid_of(scan)})
        return scan

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
            `label_names`, `version`, `annotation_version`, `scribbles_version`, and for labels `slice_axis` and the
            `annotated_slices` that count as the user's.

        Raises:
            ConflictError: if the client started from another annotation than the one in force; what it sent is kept as
                a version that does not count.
            NoAnnotationError: for an empty label, unless the annotated slices are listed (none, to clear them).
            InputError: or a subclass, for anything else that cannot be used.
        """
        plain_name(tag, "tag")
        case, segments = self.case(image_id), segments_in(file)
        options = named_by_file(options, segments)
        with self.lock(case):
            with self.names.lock:
                background = options.background_scribble if tag == SCRIBBLES else None
                labels, new = self._renumbered(read_labels(file, self.scan(case)), options, background)
                annotation = None if tag == SCRIBBLES else self._annotate(case, labels, options)
                _check_not_empty(labels, tag, options)
                _open(self.scan(case), _drawing(annotation, labels if tag == SCRIBBLES else None))
                self.names.register(new)
                self.colors.take({one.name: one.color for one in segments if one.name in new})
            self._check_base(case, tag, labels, annotation, options, by or {})
            event: Event = "removed" if tag == SCRIBBLES and not labels.any() else "submitted"
            kept = self.keep(case, tag, labels, annotation, event, based_on=options.annotation_version or "", by=by)
            self.remember(case)
            return {**self._receipt(case, labels, annotation, kept), **self.export(case, tag)}

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
        known = self.scribbles_version(case) if tag == SCRIBBLES else self.annotation_version(case)
        if options.annotation_version in (None, known):
            return
        kept = self.keep(case, tag, labels, annotation, "conflict", based_on=str(options.annotation_version), by=by)
        number = known.split(":")[1] if known else 0
        raise ConflictError(
            f"this study was annotated elsewhere meanwhile (version {number}); "
            f"load that first, then submit again. What you sent is kept as version {kept.number}"
        )

    def keep(
        self,
        case: Case,
        tag: str,
        labels: LabelArray,
        annotation: Annotation | None,
        event: Event,
        *,
        drawn: NDArray[np.bool_] | None = None,
        based_on: str = "",
        by: Mapping[str, str] | None = None,
    ) -> Version:
        """Keep labels as a new version, and let MONAI Label's clients see it unless it is in conflict.

        Args:
            case: a study of the datastore.
            tag: of the labels.
            labels: `(i, j, k)` label indices.
            annotation: the hand-made ones among them; None for scribbles.
            event: how they came about.
            drawn: voxels that were drawn, `(i, j, k)`; by default those of `annotation`, or all scribbles.
            based_on: the version that was changed.
            by: `user` and `client`, as far as they are known.

        Raises:
            FileError: if the folder is read-only or full.
        """
        assert case.record is not None
        entry = self._entry(case, labels, annotation, tag, event)
        if event == "submitted" and annotation is not None:
            entry = replace(entry, in_force=self._counts(case, tag, labels, annotation))
        entry = replace(entry, based_on=based_on, by=dict(by or {}))
        if drawn is None:
            drawn = labels > 0 if annotation is None else drawn_by_hand(annotation)
        with self._changing(case.record):
            if event != "conflict":
                self._keep_foreign(case.image_id, tag)
            version = self._append(case, entry, labels, drawn)
            if event != "conflict":
                publish(self.store, case.image_id, version)
        if entry.in_force and annotation is not None:
            self._cache(case, annotation, version)
        return version

    def _append(self, case: Case, entry: Entry, labels: LabelArray, drawn: NDArray[np.bool_]) -> Version:
        assert case.record is not None
        if entry.event == "removed":
            return case.record.versions.append(entry)
        stored = replace_values(labels, {_BACKGROUND: BACKGROUND_SCRIBBLE}, keep=True)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "labels.nii.gz"
            io.write_image(file, stored, self.scan(case))
            return case.record.versions.append(entry, file, drawn)

    def _counts(self, case: Case, tag: str, labels: LabelArray, annotation: Annotation) -> bool:
        """Whether a new label becomes the annotation: `sparse` does, `final` unless a `sparse` one was drawn apart."""
        if tag != FINAL or case.record is None:
            return tag == SPARSE
        if not look(self.store, case.image_id, case.record.versions, SPARSE).name:
            return True
        return is_our_result(labels, annotation.slice_axis, self.answered(case, labels))

    def _entry(self, case: Case, labels: LabelArray, annotation: Annotation | None, tag: str, event: Event) -> Entry:
        entry = Entry(tag, event, label_info=tuple(self._label_info(labels)), grid=grid_of(self.scan(case)))
        if annotation is None:
            return entry
        slices, axis = annotation.annotated_slices, annotation.slice_axis
        return replace(entry, slice_axis=axis, annotated_slices=slices, partial=annotation.partial)

    def _cache(self, case: Case, annotation: Annotation, version: Version) -> Annotation:
        """The annotation with the name of its version; kept where it is read more quickly than from the version."""
        named = replace(annotation, source=version.name)
        try:
            assert case.record is not None
            case.record.save_annotation(named)
        except FileError:
            logger.exception("the annotation of %s is read from its version each time", case.image_id)
        return named

    def _receipt(self, case: Case, labels: LabelArray, annotation: Annotation | None, kept: Version) -> dict[str, Any]:
        """What a client gets to know of what it sent: its own version, though another one may count by now."""
        told: dict[str, Any] = {"label_info": self._label_info(labels), "label_names": self.names.indices}
        told["annotation_version"] = kept.name if kept.entry.in_force else self.annotation_version(case)
        marks = kept.entry.tag == SCRIBBLES and kept.labels_file
        told["scribbles_version"] = kept.name if marks else self.scribbles_version(case)
        if annotation is None:
            return told
        slices = {"annotated_slices": list(annotation.annotated_slices)}
        return told | slices | {"slice_axis": annotation.slice_axis, "partial": annotation.partial}

    def export(self, case: Case, tag: str) -> dict[str, Any]:
        """What became of a label that the archive was to get: `dicom_seg`, and a `sentence`; empty for other labels."""
        info = self.store.get_label_info(case.image_id, tag)
        return {key: info[key] for key in ("dicom_seg", "sentence") if key in info}

    def annotation_version(self, case: Case) -> str:
        """What tells whether another annotation is in force since; empty without any."""
        version = self._in_force(case)
        return version.name if version else ""

    def scribbles_version(self, case: Case) -> str:
        """What tells whether there are other scribbles since; empty without any."""
        version = self.current(case, SCRIBBLES)
        return version.name if version and version.labels_file else ""

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
            _check_axis(annotation, options.slice_axis)
        else:
            values, options = read_labels(upload, scan), named_by_file(options, segments_in(upload))
            hidden = _scribbled(values, options)
            known = self.annotation(case) if hidden.any() else None
            with self.names.lock:
                labels, new = self._renumbered(values, options)
                if hidden.any():
                    labels = beneath(labels, hidden, self.answered(case, labels), known)
                annotation = self._annotate(case, labels, options)
                self.names.register(new)
            marks = self._slicer_scribbles(values, options, selected, marks)
        if marks is not None:
            with self.names.lock:
                self.names.register(self.names.configured_up_to(present_values(marks) - {_BACKGROUND}))
        drawing = _drawing(annotation, marks, options.slice_axis)
        return Opened(_open(scan, drawing), annotation, labels, drawing)

    def annotation(self, case: Case) -> Annotation | None:
        """The annotation in force: of tag `sparse`, else `final`; None if neither exists.

        A `final` label that was our own result, edited, counts before an older `sparse` one.

        Raises:
            InputError: if a label file that was put there by hand does not fit, or it was drawn on another scan's grid.
        """
        version = self._in_force(case)
        if case.record is None or version is None:
            return None
        self.scan(case)  # of another one nothing is remembered
        kept = case.record.annotation()
        if kept is not None and kept.source == version.name:
            return kept
        return self._cache(case, self._annotation_of(case, version), version)

    def _in_force(self, case: Case) -> Version | None:
        """The newest version that became the annotation and was not removed since, else the newest label."""
        if case.record is None or not case.image_id:
            return None
        labels = [version for tag in (SPARSE, FINAL) if (version := self.current(case, tag)) and version.labels_file]
        removed = set[str]()
        for version in case.record.versions.newest_first(SPARSE, FINAL):
            if version.entry.event == "removed":
                removed.add(version.entry.tag)
            elif version.entry.in_force and version.entry.tag not in removed:
                return version
        return labels[0] if labels else None

    def current(self, case: Case, tag: str) -> Version | None:
        """The version that counts under a tag; a label file that was put there by hand becomes one first.

        Raises:
            InputError: if such a file does not fit.
        """
        if case.record is None or not case.image_id:
            return None
        with self.lock(case):
            shown = look(self.store, case.image_id, case.record.versions, tag)
            if shown.settled:
                return shown.newest
            with self._changing(case.record):
                return self._settle(case, tag)

    @contextmanager
    def _changing(self, record: StudyRecord) -> Iterator[None]:
        """Held from adding a version, or looking at the label files, until they show it: by one process at a time.

        In a folder that cannot be written none of this happens.
        """
        with ExitStack() as held:
            with suppress(FileError, OSError):
                io.make_folder(record.folder)
                held.enter_context(FileLock(record.folder / ".shown.lock"))
            yield

    def _settle(self, case: Case, tag: str) -> Version | None:
        """Make the label file a version, else let it show the newest; on a full disk it stays as it is."""
        assert case.record is not None
        self.store.notice_files()
        shown = look(self.store, case.image_id, case.record.versions, tag)
        if shown.foreign is not None:
            seen = shown.foreign.stat().st_mtime_ns
            try:
                version = self._found(case, tag, shown.foreign)
                note_found(self.store, case.image_id, version, seen)
                return version
            except InputError as error:
                if shown.newest is None:
                    raise
                if isinstance(error, StorageError) or not self._set_aside(case, tag, shown.foreign, str(error)):
                    return shown.newest
        if shown.damaged is not None and not self._set_aside(case, tag, shown.damaged, "it is damaged"):
            return shown.newest
        if shown.newest is not None and not shown.settled:
            if shown.behind and self.store.label_file(case.image_id, tag):
                told = "the label %s of %s held an older version; version %d counts, until another one is restored"
                logger.warning(told, tag, case.image_id, shown.newest.number)
            publish(self.store, case.image_id, shown.newest)
        return shown.newest

    def _set_aside(self, case: Case, tag: str, file: Path, reason: str) -> bool:
        """Whether a label file that cannot be used is kept elsewhere, so that a version can take its place."""
        assert case.record is not None
        logger.error("the label %s of %s cannot be used (%s); it is set aside", tag, case.image_id, reason)
        try:
            name = f"{tag}.{digest(file)[:8]}{''.join(file.suffixes[-2:])}"
            copy_file(file, case.record.folder / "set_aside" / name)
        except (InputError, OSError):
            logger.exception("the label %s of %s stays where it is", tag, case.image_id)
            return False
        return True

    def _annotation_of(self, case: Case, version: Version) -> Annotation:
        """The annotation that a version holds; its values are label indices."""
        entry = version.entry
        assert version.labels_file is not None
        scan = self.scan(case)
        check_grid(entry.grid, scan, f"version {version.number} was drawn")
        with self.names.lock:
            values = read_labels(version.labels_file, scan, cropped=True)
            values = replace_values(values, {int(value): i for value, i in entry.indices.items()}, keep=True)
            labels, new = self._renumbered(values, LabelOptions())
            self.names.register(new)
        drawn = version.drawn()
        if drawn is None or entry.annotated_slices is None or entry.slice_axis is None or drawn.shape != labels.shape:
            info = {"partial": entry.partial, "annotated_slices": entry.annotated_slices}
            return self._annotate(case, labels, label_options({k: v for k, v in info.items() if v is not None}))
        kept, slices = np.where(drawn, labels, 0).astype(np.int32), entry.annotated_slices
        if not entry.partial:  # a result has drawn voxels elsewhere too, those of scribbles
            kept = only_slices(kept, entry.slice_axis, set(slices))
        return Annotation(kept, entry.slice_axis, slices, entry.partial)

    def restore(self, case: Case, number: int, by: Mapping[str, str] | None = None) -> Version:
        """Make an old version count again, as a new one.

        Raises:
            InputError: if there is no such version, it is damaged, or it does not fit the scan any more.
            FileError: if the folder is read-only or full.
        """
        if case.record is None or not case.image_id:
            raise NotFoundError("there are versions of the studies of the datastore only")
        with self.lock(case):
            for tag in (SPARSE, FINAL, SCRIBBLES):
                self.current(case, tag)  # what was put there by hand is not lost by this
            old, scan = case.record.versions.get(number), self.scan(case)
            check_grid(old.entry.grid, scan, f"version {number} was drawn")
            if old.labels_file is not None:
                read_labels(old.labels_file, scan, cropped=True)
            with self._changing(case.record):
                self._keep_foreign(case.image_id, old.entry.tag)
                version = case.record.versions.restore(number, by)
                publish(self.store, case.image_id, version)
            return version

    def model(self, case: Case, study: Study, init: Any = None) -> Model | None:
        """The model of `choose_model`."""
        return self.choose_model(case, study, init).model

    def check_model(self, init: Any) -> None:
        """Refuse an `init` of `choose_model` that does not exist.

        Raises:
            NotFoundError: if there is no such checkpoint.
        """
        if init not in (None, AUTO, NONE):
            self.checkpoints.existing(str(init))

    def choose_model(self, case: Case, study: Study, init: Any = None, *, keep: bool = False) -> Chosen:
        """The model for a study: its own if it has one that fits, else none.

        Args:
            case: which study.
            study: opened, to see whether its own model still fits.
            init: id of another checkpoint; `none` for no model; None or `auto` for the study's own.
            keep: keep its file, for a result's manifest.

        Raises:
            NotFoundError: if there is no checkpoint `init`.
            CheckpointError: if the checkpoint `init` cannot be used.
        """
        if init not in (None, AUTO, NONE):
            return self._read_model(case, str(init), keep)
        if init == NONE or not case.image_id or case.image_id not in self.checkpoints:
            return Chosen()
        try:
            chosen = self._read_model(case, case.image_id, keep)
        except (CheckpointError, FileError):
            logger.exception("the checkpoint of %s is ignored", case.image_id)
            return Chosen(note="The checkpoint of this study is damaged or of another release; learning starts afresh.")
        assert chosen.model is not None
        if chosen.model.study_hash in (None, study.study_hash):
            return chosen
        return Chosen(note="The checkpoint of this study was learned on another scan; learning starts afresh.")

    def choose_start(self, case: Case, study: Study, init: Any = None) -> Chosen:
        """The model that learning starts from: that of `choose_model`, else a pretrained one unless `init` is `none`.

        Raises:
            NotFoundError: if there is no checkpoint `init`.
            CheckpointError: if the checkpoint `init` cannot be used.
        """
        chosen = self.choose_model(case, study, init)
        if chosen.model is not None or init not in (None, AUTO):
            return chosen
        try:
            file = self._start.checkpoint(case.image)
            return chosen if file is None else replace(chosen, model=self.checkpoints.read(file))
        except InputError:
            logger.exception("there is no pretrained model to start from")
            unusable = "The server's pretrained model cannot be used; learning starts from nothing."
            return replace(chosen, note=f"{chosen.note} {unusable}".strip())

    def _read_model(self, case: Case, checkpoint_id: str, keep: bool) -> Chosen:
        file = self.checkpoints.existing(checkpoint_id)
        if keep and case.record is not None and case.image_id:
            try:
                kept = Manifests(case.record.folder).keep_model(file)
                return Chosen(self.checkpoints.read(kept), kept)
            except OSError:
                logger.exception("the model of a result of %s cannot be kept", case.image_id)
        return Chosen(self.checkpoints.load(checkpoint_id))

    def _renumbered(
        self, values: LabelArray, options: LabelOptions, background: int | None = None
    ) -> tuple[LabelArray, list[str]]:
        """A client's label values as label indices, and the names that are new."""
        present = present_values(values) - {background}
        indices, new = self.names.mapping(present, options.label_info)
        if background is not None:
            self._check_marks(indices)
            indices[background] = _BACKGROUND
        return replace_values(values, indices), new

    def _check_marks(self, indices: Mapping[int, int]) -> None:
        """Refuse marks that would be stored as background; only tables of earlier releases have such a label."""
        if BACKGROUND_SCRIBBLE in indices.values():
            name = self.names.by_index.get(BACKGROUND_SCRIBBLE)
            raise InputError(
                f"the label {name!r} has the number {BACKGROUND_SCRIBBLE}, which is that of background in scribbles; "
                "paint it on an annotated slice instead"
            )

    def answered(self, case: Case, labels: LabelArray) -> Sent | None:
        """The answer that a client's labels, `(i, j, k)` indices, come back from, else the last; None before that."""
        if case.record is None:
            return None
        given = likeliest(labels, case.record.outlines())
        return next(filter(None, (case.record.sent(outline.name) for outline in given)), None)

    def _annotate(self, case: Case, labels: LabelArray, options: LabelOptions) -> Annotation:
        sent, scan = self.answered(case, labels), self.scan(case)
        known = case.record.annotation() if case.record else None
        if options.slice_axis == "auto" and sent is not None and is_our_result(labels, sent.slice_axis, sent):
            axis = sent.slice_axis
        else:
            goes_on = known and known.annotated_slices and options.annotation_version == known.source
            marked, before = labels > 0 if labels.any() else None, known.slice_axis if known and goes_on else None
            axis = resolve_slice_axis(options.slice_axis, scan.array.shape, scan.affine, marked, before)
        return hand_made(
            labels,
            slice_axis=axis,
            sent=sent,
            known=known,
            listed=options.annotated_slices,
            reviewed=options.reviewed_slices,
            partial=options.partial,
        )

    def _found(self, case: Case, tag: str, file: Path) -> Version:
        """Keep a label file that did not come through `submit` as a version; its values are label indices."""
        assert case.record is not None
        values, annotation = read_labels(file, self.scan(case), cropped=True), None
        if tag == SCRIBBLES:
            return case.record.versions.append(Entry(tag, "found", grid=grid_of(self.scan(case))), file, values > 0)
        info, kept = dict(self.store.get_label_info(case.image_id, tag)), case.record.annotation()
        if info.get("sha256") not in (None, known_digest(file)):
            info = {}  # of the file that was there before
        options = replace(label_options(info), label_info=None, annotation_version=None)
        with self.names.lock:
            indices, new = self.names.mapping(present_values(values), None)
            labels = replace_values(values, indices)
            if kept is not None and kept.source == f"{tag}:{file.stat().st_mtime_ns}":
                annotation = kept  # submitted to a release that kept no versions
            else:
                annotation = self._annotate(case, labels, options)
            self.names.register(new)
        others = {str(value): index for value, index in indices.items() if value != index}
        entry = self._entry(case, labels, annotation, tag, "found")
        entry = replace(entry, indices=others, in_force=annotation is kept)
        if not entry.in_force:
            entry = replace(entry, in_force=self._counts(case, tag, labels, annotation))
        version = case.record.versions.append(entry, file, drawn_by_hand(annotation))
        if entry.in_force:
            self._cache(case, annotation, version)
        return version

    def keep_found(self, case: Case, tag: str) -> None:
        """Keep a label file that a result is about to replace as a version, if somebody else put it there.

        Raises:
            StorageError: if the folder is read-only or full.
        """
        assert case.record is not None
        with self._changing(case.record):
            file = self._listed_file(case.image_id, tag)
            if file and self.store.get_label_info(case.image_id, tag).get("sha256") != known_digest(file):
                self._keep_foreign(case.image_id, tag)

    def _keep_before_removal(self, image_id: str, tag: str) -> None:
        """Keep a label that MONAI Label is about to remove, and that it was removed; called by the datastore."""
        record = self.record(image_id)
        with self._changing(record):
            if self._keep_foreign(image_id, tag).name:
                record.versions.append(Entry(tag, "removed", by=sender()))

    def _keep_put_meanwhile(self, image_id: str, tag: str) -> None:
        """Keep a label file that somebody put there since it was looked at; called by the datastore.

        Another version is newer by then, so that this one counts when it is restored.
        """
        file, record = self.store.label_file(image_id, tag), self.record(image_id)
        found = "" if file is None else known_digest(file)
        if file is None or found == self.store.get_label_info(image_id, tag).get("sha256"):
            return
        known = {version.digest for version in record.versions.newest_first(tag)}
        if found not in known | {digest(one) for one in record.set_aside(tag)}:
            version = record.versions.append(Entry(tag, "conflict"), file)
            told = "somebody put a label %s of %s there meanwhile; it is kept as version %d, which does not count"
            logger.warning(told, tag, image_id, version.number)

    def _keep_foreign(self, image_id: str, tag: str) -> Shown:
        """Keep a label file that is no version yet before it goes, or another one takes its place."""
        self._listed_file(image_id, tag)
        versions = self.record(image_id).versions
        shown = look(self.store, image_id, versions, tag)
        if shown.foreign is not None:
            versions.append(Entry(tag, "found"), shown.foreign)
        return shown

    def _listed_file(self, image_id: str, tag: str) -> Path | None:
        """The label file of a tag, also one that was put there just now and that the store does not know yet."""
        there = Path(self.store._datastore_path, "labels", tag).glob(f"{escape(image_id)}.*")
        if self.store.label_file(image_id, tag) is None and any(there):
            self.store.notice_files()
        return self.store.label_file(image_id, tag)

    def scribbles(self, case: Case) -> LabelArray | None:
        """The marks of a study as they are stored, `(i, j, k)`, `BACKGROUND_SCRIBBLE` for background; None without any.

        Raises:
            InputError: if a file that was put there by hand does not fit.
        """
        version = self.current(case, SCRIBBLES)
        if version is None or version.labels_file is None:
            return None
        return read_labels(version.labels_file, self.scan(case), cropped=True)

    def _scribbles(self, case: Case) -> LabelArray | None:
        marks = self.scribbles(case)
        return None if marks is None else replace_values(marks, {BACKGROUND_SCRIBBLE: _BACKGROUND}, keep=True)

    def _slicer_scribbles(
        self, values: LabelArray, options: LabelOptions, selected: str | None, marks: LabelArray | None
    ) -> LabelArray | None:
        """The marks of 3D Slicer's two scribble segments on top of the stored ones."""
        names = _named_values(values, options)
        index = self.names.indices.get(selected or "")
        meaning = {FOREGROUND_SCRIBBLES: index, BACKGROUND_SCRIBBLES: _BACKGROUND}
        drawn = {value: mark for value, name in names.items() if (mark := meaning.get(name))}
        if not drawn:
            return marks
        new = replace_values(values, drawn)
        return new if marks is None else np.where(new > 0, new, marks)

    def _label_info(self, labels: LabelArray) -> list[dict[str, Any]]:
        """Names and colours of the labels in a file, in the order of their values."""
        present, names = present_values(labels), self.names.indices
        colors = self.colors.of(names)
        return [{"name": n, "idx": i, "color": colors[n]} for n, i in names.items() if i in present]


def _drawing(annotation: Annotation | None, scribbles: LabelArray | None, slice_axis: str | int = "auto") -> Drawing:
    common = {"background_scribble": _BACKGROUND}
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


@lru_cache(maxsize=256)
def _scan_digest(file: Path, state: tuple[int, ...]) -> str:
    return array_digest(_read_scan(file, state).array)


@lru_cache(maxsize=2)
def _read_scan(file: Path, state: tuple[int, ...]) -> io.Image:
    return io.read_image(file)
