"""What was drawn on the studies of one server: its versions, the one that counts, and the label files that show it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.errors import FileError, InputError, MemoryTakenError, StorageError
from sliceprop.files import copy_file
from sliceprop.hashing import digest, known_digest
from sliceprop.labels import LabelArray, present_values
from sliceprop.server.audit import sender
from sliceprop.server.cases import Case, Cases
from sliceprop.server.colors import LabelColors
from sliceprop.server.datastore import SetAside
from sliceprop.server.errors import NotFoundError
from sliceprop.server.label_files import read_labels, replace_values
from sliceprop.server.names import LabelNames
from sliceprop.server.provenance import (
    Annotation,
    Sent,
    drawn_by_hand,
    hand_made,
    is_our_result,
    likeliest,
    only_slices,
)
from sliceprop.server.records import StudyRecord
from sliceprop.server.requests import LabelOptions, label_options
from sliceprop.server.shown import Shown, look, note_found, publish
from sliceprop.versions import (
    FINAL,
    SCRIBBLES,
    SPARSE,
    Entry,
    Event,
    Version,
    check_grid,
    grid_of,
)
from sliceprop.volume import resolve_slice_axis

logger = logging.getLogger(__name__)

BACKGROUND = MAX_LABEL
"""Background scribbles in memory, out of the way of label indices; stored files have `BACKGROUND_SCRIBBLE`."""


class Drawings:
    """Annotations and scribbles of all studies.

    Label files that others put into the folder become versions when they are seen, or before they go.

    Args:
        cases: the studies.
        names: of the labels.
        colors: of the labels.
    """

    def __init__(self, cases: Cases, names: LabelNames, colors: LabelColors) -> None:
        self._cases, self._store, self._names, self._colors = cases, cases.store, names, colors
        cases.store.before_removal = self._keep_before_removal
        cases.store.set_aside = self._other_name
        cases.store.after_removal = self._keep_put_meanwhile

    def annotation(self, case: Case) -> Annotation | None:
        """The annotation in force: of tag `sparse`, else `final`; None if neither exists.

        A `final` label that was our own result, edited, counts before an older `sparse` one.

        Raises:
            InputError: if a label file that was put there by hand does not fit, or it was drawn on another scan's grid.
        """
        version = self._in_force(case)
        if case.record is None or version is None:
            return None
        self._cases.scan(case)  # of another one nothing is remembered
        kept = case.record.annotation()
        if kept is not None and kept.source == version.name:
            return kept
        return self._cache(case, self._annotation_of(case, version), version)

    def scribbles(self, case: Case) -> LabelArray | None:
        """The marks of a study as they are stored, `(i, j, k)`, `BACKGROUND_SCRIBBLE` for background; None without any.

        Raises:
            InputError: if a file that was put there by hand does not fit.
        """
        version = self.current(case, SCRIBBLES)
        if version is None or version.labels_file is None:
            return None
        return read_labels(version.labels_file, self._cases.scan(case), cropped=True)

    def marks(self, case: Case) -> LabelArray | None:
        """The marks of a study as `open_study` takes them, `(i, j, k)`, `BACKGROUND` for background; None without any.

        Raises:
            InputError: if a file that was put there by hand does not fit.
        """
        marks = self.scribbles(case)
        return None if marks is None else replace_values(marks, {BACKGROUND_SCRIBBLE: BACKGROUND}, keep=True)

    def annotation_version(self, case: Case) -> str:
        """What tells whether another annotation is in force since; empty without any."""
        version = self._in_force(case)
        return version.name if version else ""

    def scribbles_version(self, case: Case) -> str:
        """What tells whether there are other scribbles since; empty without any."""
        version = self.current(case, SCRIBBLES)
        return version.name if version and version.labels_file else ""

    def label_versions(self, image_id: str) -> list[str]:
        """What tells whether anything was drawn since: the name of each label's version."""
        versions = self._cases.record(image_id).versions
        names = (look(self._store, image_id, versions, tag).name for tag in (SPARSE, FINAL, SCRIBBLES))
        return [name for name in names if name]

    def current(self, case: Case, tag: str) -> Version | None:
        """The version that counts under a tag; a label file that was put there by hand becomes one first.

        Raises:
            InputError: if such a file does not fit.
        """
        if case.record is None or not case.image_id:
            return None
        with self._cases.lock(case):
            shown = look(self._store, case.image_id, case.record.versions, tag)
            if shown.settled:
                return shown.newest
            with self._changing(case.record):
                return self._settle(case, tag)

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

    def answered(self, case: Case, labels: LabelArray) -> Sent | None:
        """The answer that a client's labels, `(i, j, k)` indices, come back from, else the last; None before that."""
        if case.record is None:
            return None
        given = likeliest(labels, case.record.outlines())
        return next(filter(None, (case.record.sent(outline.name) for outline in given)), None)

    def renumbered(
        self, values: LabelArray, options: LabelOptions, background: int | None = None
    ) -> tuple[LabelArray, list[str]]:
        """A client's label values as label indices, and the names that are new."""
        present = present_values(values) - {background}
        indices, new = self._names.mapping(present, options.label_info)
        if background is not None:
            self._check_marks(indices)
            indices[background] = BACKGROUND
        return replace_values(values, indices), new

    def _check_marks(self, indices: Mapping[int, int]) -> None:
        """Refuse marks that would be stored as background; only tables of earlier releases have such a label."""
        if BACKGROUND_SCRIBBLE in indices.values():
            name = self._names.by_index.get(BACKGROUND_SCRIBBLE)
            raise InputError(
                f"the label {name!r} has the number {BACKGROUND_SCRIBBLE}, which is that of background in scribbles; "
                "paint it on an annotated slice instead"
            )

    def annotate(self, case: Case, labels: LabelArray, options: LabelOptions) -> Annotation:
        """What is hand-made among labels that a client has.

        Args:
            case: which study.
            labels: `(i, j, k)` label indices, with what was propagated.
            options: what the client says about them.

        Raises:
            InputError: if the slices that it lists do not fit.
        """
        sent, scan = self.answered(case, labels), self._cases.scan(case)
        known = case.record.annotation() if case.record else None
        if options.slice_axis == "auto" and sent is not None and is_our_result(labels, sent.slice_axis, sent):
            axis = sent.slice_axis
        else:
            goes_on = known is not None and known.annotated_slices and options.annotation_version == known.source
            before = known.slice_axis if known is not None and goes_on else None
            marked = labels > 0 if labels.any() else None
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

    def label_info(self, labels: LabelArray) -> list[dict[str, Any]]:
        """Names and colours of the labels in a file, in the order of their values."""
        present, names = present_values(labels), self._names.indices
        colors = self._colors.of(names)
        return [{"name": n, "idx": i, "color": colors[n]} for n, i in names.items() if i in present]

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
                publish(self._store, case.image_id, version)
        if entry.in_force and annotation is not None:
            self._cache(case, annotation, version)
        return version

    def restore(self, case: Case, number: int, by: Mapping[str, str] | None = None) -> Version:
        """Make an old version count again, as a new one.

        Raises:
            InputError: if there is no such version, it is damaged, or it does not fit the scan any more.
            FileError: if the folder is read-only or full.
        """
        if case.record is None or not case.image_id:
            raise NotFoundError("there are versions of the studies of the datastore only")
        with self._cases.lock(case):
            for tag in (SPARSE, FINAL, SCRIBBLES):
                self.current(case, tag)  # what was put there by hand is not lost by this
            old, scan = case.record.versions.get(number), self._cases.scan(case)
            check_grid(old.entry.grid, scan, f"version {number} was drawn")
            if old.labels_file is not None:
                read_labels(old.labels_file, scan, cropped=True)
            with self._changing(case.record):
                self._keep_foreign(case.image_id, old.entry.tag)
                version = case.record.versions.restore(number, by)
                publish(self._store, case.image_id, version)
            return version

    def keep_found(self, case: Case, tag: str) -> None:
        """Keep a label file that a result is about to replace as a version, if somebody else put it there.

        Raises:
            StorageError: if the folder is read-only or full.
        """
        assert case.record is not None
        with self._changing(case.record):
            file = self._listed_file(case.image_id, tag)
            if file and self._store.get_label_info(case.image_id, tag).get("sha256") != known_digest(file):
                self._keep_foreign(case.image_id, tag)

    def _append(self, case: Case, entry: Entry, labels: LabelArray, drawn: NDArray[np.bool_]) -> Version:
        assert case.record is not None
        if entry.event == "removed":
            return case.record.versions.append(entry)
        stored = replace_values(labels, {BACKGROUND: BACKGROUND_SCRIBBLE}, keep=True)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "labels.nii.gz"
            io.write_image(file, stored, self._cases.scan(case))
            if entry.event == "conflict" and (same := self._sent_before(case.record, entry, digest(file))):
                return same
            return case.record.versions.append(entry, file, drawn)

    def _sent_before(self, record: StudyRecord, entry: Entry, found: str) -> Version | None:
        """The last version in conflict if it holds the same, as of a client that sends again and again."""
        last = next((one for one in record.versions.newest_first(entry.tag) if one.entry.event == "conflict"), None)
        return last if last and (last.digest, last.entry) == (found, entry) else None

    def _entry(self, case: Case, labels: LabelArray, annotation: Annotation | None, tag: str, event: Event) -> Entry:
        entry = Entry(tag, event, label_info=tuple(self.label_info(labels)), grid=grid_of(self._cases.scan(case)))
        if annotation is None:
            return entry
        slices, axis = annotation.annotated_slices, annotation.slice_axis
        return replace(entry, slice_axis=axis, annotated_slices=slices, partial=annotation.partial)

    def _counts(self, case: Case, tag: str, labels: LabelArray, annotation: Annotation) -> bool:
        """Whether a new label becomes the annotation: `sparse` does, `final` unless a `sparse` one was drawn apart."""
        if tag != FINAL or case.record is None:
            return tag == SPARSE
        if not look(self._store, case.image_id, case.record.versions, SPARSE).name:
            return True
        return is_our_result(labels, annotation.slice_axis, self.answered(case, labels))

    def _cache(self, case: Case, annotation: Annotation, version: Version) -> Annotation:
        """The annotation with the name of its version; kept where it is read more quickly than from the version."""
        named = replace(annotation, source=version.name)
        try:
            assert case.record is not None
            case.record.save_annotation(named)
        except FileError:
            logger.exception("the annotation of %s is read from its version each time", case.image_id)
        return named

    def _annotation_of(self, case: Case, version: Version) -> Annotation:
        """The annotation that a version holds; its values are label indices."""
        entry = version.entry
        assert version.labels_file is not None
        scan = self._cases.scan(case)
        check_grid(entry.grid, scan, f"version {version.number} was drawn")
        with self._names.lock:
            values = read_labels(version.labels_file, scan, cropped=True)
            values = replace_values(values, {int(value): i for value, i in entry.indices.items()}, keep=True)
            labels, new = self.renumbered(values, LabelOptions())
            self._names.register(new)
        drawn = version.drawn()
        if drawn is None or entry.annotated_slices is None or entry.slice_axis is None or drawn.shape != labels.shape:
            info = {"partial": entry.partial, "annotated_slices": entry.annotated_slices}
            return self.annotate(case, labels, label_options({k: v for k, v in info.items() if v is not None}))
        kept, slices = np.where(drawn, labels, 0).astype(np.int32), entry.annotated_slices
        if not entry.partial:  # a result has drawn voxels elsewhere too, those of scribbles
            kept = only_slices(kept, entry.slice_axis, set(slices))
        return Annotation(kept, entry.slice_axis, slices, entry.partial)

    def _settle(self, case: Case, tag: str) -> Version | None:
        """Make the label file a version, else let it show the newest; on a full disk it stays as it is."""
        assert case.record is not None
        self._store.notice_files()
        shown = look(self._store, case.image_id, case.record.versions, tag)
        if shown.foreign is not None:
            seen = shown.foreign.stat().st_mtime_ns
            try:
                version = self._found(case, tag, shown.foreign)
                note_found(self._store, case.image_id, version, seen)
                return version
            except InputError as error:
                if shown.newest is None or isinstance(error, MemoryTakenError):
                    raise
                if isinstance(error, StorageError) or not self._set_aside(case, tag, shown.foreign, str(error)):
                    return shown.newest
        if shown.damaged is not None and not self._set_aside(case, tag, shown.damaged, "it is damaged"):
            return shown.newest
        if shown.newest is not None and not shown.settled:
            if shown.behind and self._store.label_file(case.image_id, tag):
                told = "the label %s of %s held an older version; version %d counts, until another one is restored"
                logger.warning(told, tag, case.image_id, shown.newest.number)
            publish(self._store, case.image_id, shown.newest)
        return shown.newest

    def _found(self, case: Case, tag: str, file: Path) -> Version:
        """Keep a label file that did not come through `submit` as a version; its values are label indices."""
        assert case.record is not None
        values, annotation = read_labels(file, self._cases.scan(case), cropped=True), None
        if tag == SCRIBBLES:
            marks = Entry(tag, "found", grid=grid_of(self._cases.scan(case)))
            return case.record.versions.append(marks, file, values > 0)
        info, kept = dict(self._store.get_label_info(case.image_id, tag)), case.record.annotation()
        if info.get("sha256") not in (None, known_digest(file)):
            info = {}  # of the file that was there before
        options = replace(label_options(info), label_info=None, annotation_version=None)
        with self._names.lock:
            indices, new = self._names.mapping(present_values(values), None)
            labels = replace_values(values, indices)
            if kept is not None and kept.source == f"{tag}:{file.stat().st_mtime_ns}":
                annotation = kept  # submitted to a release that kept no versions
            else:
                annotation = self.annotate(case, labels, options)
            self._names.register(new)
        others = {str(value): index for value, index in indices.items() if value != index}
        entry = self._entry(case, labels, annotation, tag, "found")
        entry = replace(entry, indices=others, in_force=annotation is kept)
        if not entry.in_force:
            entry = replace(entry, in_force=self._counts(case, tag, labels, annotation))
        version = case.record.versions.append(entry, file, drawn_by_hand(annotation))
        if entry.in_force:
            self._cache(case, annotation, version)
        return version

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

    def _keep_before_removal(self, image_id: str, tag: str) -> None:
        """Keep a label that MONAI Label is about to remove, and that it was removed; called by the datastore."""
        record = self._cases.record(image_id)
        with self._changing(record):
            if self._keep_foreign(image_id, tag).name:
                record.versions.append(Entry(tag, "removed", by=sender()))

    def _other_name(self, image_id: str, tag: str, file: Path, how: SetAside) -> Path | None:
        """A label file that goes, where it stays if the server ends now; called by the datastore.

        If the labels are a file system of their own, it stays beside the others for an hour.
        """
        if file.is_symlink() or not file.is_file():  # what a link leads to stays anyway
            return None
        ending = f"{token_hex(4)}{''.join(file.suffixes[-2:])}"
        aside = self._cases.record(image_id).folder / "set_aside" / f"{tag}.{ending}"
        io.make_folder(aside.parent)
        for other in (aside, file.with_name(f"{io.UNFINISHED}{ending}")):
            try:
                how(file, other)
                if how is os.rename:
                    with suppress(OSError):  # of a file of another user
                        os.utime(other)  # it goes when nobody has written to it for an hour
                return other
            except FileNotFoundError:
                return None
            except OSError as error:
                failed = error
        if how is not os.link:
            raise failed
        copy_file(file, aside)  # the file system knows no links
        return aside

    def _keep_put_meanwhile(self, image_id: str, tag: str, aside: Path) -> None:
        """Keep a label file that went, if somebody put it there since it was looked at; called by the datastore.

        Another version is newer by then, so that this one counts when it is restored.
        """
        if not aside.exists():  # another process took it for what a killed writer left
            return
        record, shown = self._cases.record(image_id), self._store.get_label_info(image_id, tag).get("sha256")
        if digest(aside) != shown and not self._is_kept(record, tag, aside):
            version = record.versions.append(Entry(tag, "conflict"), aside)
            told = "somebody put a label %s of %s there meanwhile; it is kept as version %d, which does not count"
            logger.warning(told, tag, image_id, version.number)
        aside.unlink(missing_ok=True)

    def _is_kept(self, record: StudyRecord, tag: str, file: Path) -> bool:
        """Whether a sound version, or another file that was set aside, holds the same; all of them are looked at."""
        found, others = digest(file), (one for one in record.set_aside(tag) if one != file)
        versions = record.versions.newest_first(tag)
        return any(version.digest == found for version in versions) or any(digest(one) == found for one in others)

    def _keep_foreign(self, image_id: str, tag: str) -> Shown:
        """Keep a label file that is no version yet before it goes, or another one takes its place."""
        self._listed_file(image_id, tag)
        versions = self._cases.record(image_id).versions
        shown = look(self._store, image_id, versions, tag)
        if shown.foreign is not None:
            versions.append(Entry(tag, "found"), shown.foreign)
        return shown

    def _listed_file(self, image_id: str, tag: str) -> Path | None:
        """The label file of a tag, also one that was put there just now and that the store does not know yet."""
        there = Path(self._store._datastore_path, "labels", tag).glob(f"{escape(image_id)}.*")
        if self._store.label_file(image_id, tag) is None and any(there):
            self._store.notice_files()
        return self._store.label_file(image_id, tag)

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
