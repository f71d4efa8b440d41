"""What happens when: layers in, work started, results shown, strokes noticed. Knows the viewer, nothing of Qt.

The annotation layer is the truth: a slice is annotated when something is painted on it there, or when the user accepted
it. A stroke on the propagated layer makes that slice annotated too: it is copied, as corrected, into the annotation
layer. Whatever arrives later is laid under what is painted by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from sliceprop.config import BACKGROUND_SCRIBBLE, LEARNED_METHODS
from sliceprop.errors import InputError, NoAnnotationError, SlicePropError
from sliceprop.napari_plugin.backend import Backend, Job, Progress, Result
from sliceprop.napari_plugin.geometry import layer_affine
from sliceprop.napari_plugin.label_names import copy_styles, full_names, names_of
from sliceprop.napari_plugin.layers import ResultLayers, as_labels, check_image_layer, check_labels_layer, study_of
from sliceprop.napari_plugin.local import preview
from sliceprop.napari_plugin.results import patched
from sliceprop.napari_plugin.settings import Settings
from sliceprop.volume import resolve_slice_axis

UNDO_STEPS = 5

FEW_SLICES = 3
"""Up to so many painted slices, which axis counts them is looked at anew after each stroke."""

COUNTING, ACCEPTED, DRAWING = "counting", "accepted", "drawing"
"""Keys of a labels layer's metadata: slice axis and partial as in `Settings`; `{axis: slices}` that count as annotated
also if nothing is on them; what tells this layer, and copies of it, from others."""


class Runner(Protocol):
    """Runs work beside the viewer, one piece per lane, and calls back in the viewer's thread."""

    def start(
        self,
        lane: str,
        work: Callable[[Callable[[Progress], None], Callable[[], bool]], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Progress], None],
    ) -> None:
        """Begin; the lane must be free."""

    def busy(self, lane: str) -> bool:
        """Whether something runs in the lane."""

    def cancel(self, lane: str) -> None:
        """Ask what runs to end early with the best so far."""

    def later(self, act: Callable[[], None]) -> None:
        """Do something in the viewer's thread once it has had a turn."""


@dataclass(frozen=True)
class SliceState:
    """What the strip shows of one slice.

    Attributes:
        annotated: by the user.
        quality: mean estimated Dice of the labels on it, None where nothing is known.
        suggested: annotate it next.
    """

    annotated: bool = False
    quality: float | None = None
    suggested: bool = False


@dataclass(frozen=True)
class _Before:
    """What undo brings back.

    Attributes:
        shown: the propagation in view, None for none.
        drawn: the annotated slices that a tool was about to change, as they were.
        accepted: those among them that were accepted.
    """

    shown: Result | None
    drawn: dict[int, NDArray[Any]]
    accepted: set[int]


class Session:
    """One study in a viewer.

    Args:
        viewer: of napari.
        runner: see `Runner`.
        backend: where to compute.

    Attributes:
        learned: whether propagation will use what was learned on this scan.
        changed: what the strip shows is out of date.
        said: a sentence for the user.
        refused: the sentence why something could not be done.
        progressed: of learning.
        state: what goes on, empty when idle.
    """

    changed = Signal()
    said = Signal(str)
    refused = Signal(str)
    progressed = Signal(object)
    state = Signal(str)

    def __init__(self, viewer: Any, runner: Runner, backend: Backend) -> None:
        self.viewer, self.backend = viewer, backend
        self.settings, self.instant, self.learned = Settings(), False, False
        self.image: Any = None
        self.annotation: Any = None
        self.scribbles: Any = None
        self.results = ResultLayers(viewer, runner.later, self.changed.emit)
        self.shown: Result | None = None
        self.suggestion: dict[str, Any] | None = None
        self._runner = runner
        self._seen: NDArray[Any] | None = None
        self._drawn: dict[int, set[int]] = {}
        self._axis: int | None = None
        self._undo: deque[_Before] = deque(maxlen=UNDO_STEPS)
        self._preview_again = False
        self._touched: set[int] = set()

    # ------------------------------------------------------------------ layers

    def choose(self, image: Any, annotation: Any, scribbles: Any) -> None:
        """Work on these layers; another image starts afresh."""
        if image is not self.image or annotation is not self.annotation:
            self.results.forget()
            self.shown, self.suggestion, self._axis, self._seen = None, None, None, None
            self._drawn, self._touched, self.learned = {}, set(), False
            self._undo.clear()
        self.image, self.annotation, self.scribbles = image, annotation, scribbles
        self._look_afresh()
        self.changed.emit()

    def check_image(self) -> None:
        """Refuse an image that cannot be used.

        Raises:
            InputError: telling what to do.
        """
        check_image_layer(self.image)

    def use(self, settings: Settings) -> None:
        """Take other options, and note on the labels layer how it counts; an axis takes effect with the next result."""
        other_axis = settings.slice_axis != self.settings.slice_axis
        self.settings = settings
        if self.annotation is not None:
            self.annotation.metadata[COUNTING] = settings.slice_axis, settings.partial
        if other_axis and self.shown is None:
            self._look_afresh()
            self.changed.emit()

    def check(self) -> None:
        """Refuse layers that cannot be used.

        Raises:
            InputError: telling what to do.
        """
        check_image_layer(self.image)
        check_labels_layer(self.annotation, self.image)
        if self.scribbles is not None:
            check_labels_layer(self.scribbles, self.image, "scribbles")

    def _ready(self) -> bool:
        try:
            self.check()
        except InputError:
            return False
        return True

    @property
    def axis(self) -> int:
        """Axis of the layers that counts slices: of the last result, as chosen, or as painted."""
        if self.shown is not None:
            return int(self.shown.report["slice_axis"])
        if self._axis is None:
            marked = np.asarray(self.annotation.data) > 0 if self._ready() else None
            if marked is not None and not marked.any():
                marked = None
            self._axis = resolve_slice_axis(
                self.settings.slice_axis, self.image.data.shape, layer_affine(self.image), marked
            )
        return self._axis

    @property
    def accepted(self) -> set[int]:
        """Slices that count as annotated also if nothing is on them; the labels layer keeps them."""
        if self.image is None or self.annotation is None:
            return set()
        return set(self.annotation.metadata.get(ACCEPTED, {}).get(self.axis, ()))

    @accepted.setter
    def accepted(self, slices: set[int]) -> None:
        known = self.annotation.metadata.get(ACCEPTED, {})
        self.annotation.metadata[ACCEPTED] = {**known, self.axis: tuple(sorted(slices))}

    @property
    def annotated(self) -> set[int]:
        """Slices that are painted, or were accepted."""
        return self._drawn.keys() | self.accepted

    @property
    def values(self) -> set[int]:
        """Label values that are painted."""
        return set[int]().union(*self._drawn.values())

    def job(self) -> Job:
        """The study as it is now.

        Raises:
            InputError: for layers that cannot be used.
        """
        self.check()
        marks = None if self.scribbles is None else np.array(self.scribbles.data)
        marked = set() if marks is None else _positive(marks) - {BACKGROUND_SCRIBBLE}
        named = self.values | marked | names_of(self.annotation).keys()
        settings, listed, (server, study) = self.settings, None, study_of(self.image)
        if self.accepted and settings.slice_axis in ("auto", self.axis):
            settings, listed = replace(settings, slice_axis=self.axis), tuple(sorted(self.annotated))
        return Job(
            self.image.data,
            layer_affine(self.image),
            np.array(self.annotation.data),
            marks,
            listed,
            full_names(self.annotation, named),
            settings,
            study,
            server,
            _drawing(self.annotation),
            "" if self.scribbles is None else _drawing(self.scribbles),
            str(self.image.source.path or ""),
        )

    # ------------------------------------------------------------------ work

    def learn(self) -> None:
        """Learn on the study where the method needs it, then propagate."""
        self._start("Learning", self._learn)

    def propagate(self) -> None:
        """Propagate with what was learned before; without it the method interpolates or registers directly."""
        self._start("Propagating", self._propagate)

    def show_preview(self) -> None:
        """Interpolate shapes between the annotated slices at once."""
        self._touched = set()
        self._attempt(self._preview)

    def suggest(self) -> None:
        """Go to the slice to annotate next; asks first if nothing is known of it."""
        self.sync()
        self._attempt(self._suggest)

    def cancel(self) -> None:
        """End what runs; learning keeps the best so far and propagates with it."""
        self.state.emit("Ending, the best so far is kept")
        self._runner.cancel("work")

    @property
    def busy(self) -> bool:
        """Whether something runs that can be cancelled."""
        return self._runner.busy("work")

    def run(self, what: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do something else beside the viewer, such as asking a server."""

        def end(value: Any) -> None:
            self.state.emit("")
            done(value)

        self._start(what, lambda: self._run(lambda *_: work(), end))

    def _start(self, what: str, act: Callable[[], None]) -> None:
        self.sync()
        if self.busy:
            self.refused.emit("Something runs already; wait for its end, or cancel it.")
            return
        self.state.emit(what)
        if not self._attempt(act):
            self.state.emit("")

    def _attempt(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except InputError as error:
            self.refused.emit(str(error))
            return False
        return True

    def _learn(self) -> None:
        job = self.job()
        if not job.labels.any() and (job.scribbles is None or not job.scribbles.any()) and not job.annotated_slices:
            raise NoAnnotationError("nothing is annotated yet; paint at least one slice")
        if job.settings.propagate.method not in LEARNED_METHODS:
            self._propagate()
            return
        self._run(partial(self.backend.train, job), self._learned)

    def _learned(self, _: Any) -> None:
        self.learned = True
        if not self._attempt(self._propagate):
            self.state.emit("")

    def _propagate(self) -> None:
        job = self.job()
        self.state.emit("Propagating")
        self._run(partial(self.backend.propagate, job), partial(self._arrived, job))

    def _run(self, work: Callable[..., Any], done: Callable[[Any], None]) -> None:
        self._runner.start("work", work, done, self._failed, self.progressed.emit)

    def _failed(self, error: Exception) -> None:
        self.state.emit("")
        self._refuse(error)

    def _preview_failed(self, before: Result | None, error: Exception) -> None:
        """A few slices alone may tell too little; then all of them are previewed."""
        if before is None:
            self._refuse(error)
        else:
            self._attempt(self._preview)

    def _refuse(self, error: Exception) -> None:
        if not isinstance(error, SlicePropError):
            raise error
        self.refused.emit(str(error))

    def _arrived(self, job: Job, result: Result) -> None:
        """Show a propagation, unless the layers are gone or others by now; what was painted meanwhile is kept."""
        self.state.emit("")
        if not self._still(job):
            return
        self.learned = bool(result.report["trained"])
        self.sync()
        current = self.job()
        outdated = not np.array_equal(job.labels, current.labels) or job.annotated_slices != current.annotated_slices
        self._remember()
        self._show(result)
        self.said.emit(_summary(result))
        if outdated:
            self._propagate()

    def _still(self, job: Job) -> bool:
        """Whether a job's layers are those in view."""
        same_image = self.image is not None and job.image is self.image.data
        return same_image and self._ready() and job.drawing == _drawing(self.annotation)

    def _preview(self) -> None:
        """Preview what strokes since the last time can have changed, or else all."""
        if self._runner.busy("preview"):
            self._preview_again = True
            return
        job, window, before = self.job(), self._window(), self.shown
        self._preview_again, self._touched = False, set()

        def compute(*_: Any) -> Result:
            if window is None or before is None:
                return preview(job)
            return patched(before, preview(job.part(before.report["slice_axis"], *window)), *window)

        partly = before if window else None
        done, failed = partial(self._previewed, job, partly), partial(self._preview_failed, partly)
        self._runner.start("preview", compute, done, failed, lambda _: None)

    def _window(self) -> tuple[int, int] | None:
        """First and last slice that strokes can have changed: the next annotated ones; None for the whole volume."""
        if self.shown is None or self.settings.partial or self.scribbles is not None or not self._touched:
            return None
        first = max((s for s in self.annotated if s < min(self._touched)), default=0)
        last = min((s for s in self.annotated if s > max(self._touched)), default=self.image.data.shape[self.axis] - 1)
        return (first, last) if any(first <= s <= last for s in self._drawn) else None

    def _previewed(self, job: Job, before: Result | None, result: Result) -> None:
        """Show a preview, then have the rest brought up to date: by what was learned, or by a preview of all.

        Args:
            job: what was previewed.
            before: the result of which only some slices were brought up to date; None if all of them were.
            result: the preview.
        """
        if not self._still(job):
            return
        if before is None or before is self.shown:
            self._show(result)
        if self._preview_again or (before is not None and not self.learned):
            self._attempt(self._preview)
        elif self.learned and not self.busy:
            self._attempt(self._propagate)

    def _suggest(self) -> None:
        if self.suggestion is None:
            job = self.job()
            if self.busy:
                raise InputError("the suggestion comes with the result; wait for it")
            self.state.emit("Looking for the next slice")
            self._run(lambda *_: self.backend.suggest(job), self._suggested)
            return
        self._follow()

    def _suggested(self, suggestion: Any) -> None:
        self.state.emit("")
        self.suggestion = dict(suggestion)
        self.changed.emit()
        self._follow()

    def _follow(self) -> None:
        assert self.suggestion is not None
        self.said.emit(self.suggestion["reason"])
        if self.suggestion["slice"] is not None:
            self.go_to(self.suggestion["slice"])

    # ------------------------------------------------------------------ results

    def _show(self, result: Result) -> None:
        """Put a result into the layers, with all that is painted laid over it."""
        before = self.axis
        self.shown = result
        if self.axis != before:
            self._drawn = {}
            self._look_at(range(self.image.data.shape[self.axis]))
        self._lay_over(self.annotated)
        self.results.show(self.image, self.annotation, self.shown)
        self.suggestion = result.report["suggestion"]
        if self.suggestion is not None and self.suggestion["slice"] in self.annotated:
            self.suggestion = None
        self.changed.emit()

    def _lay_over(self, slices: set[int]) -> None:
        """Painted voxels into the result's labels: whole slices, or with partial annotation what is painted."""
        assert self.shown is not None
        painted, labels = np.asarray(self.annotation.data), self.shown.labels
        if self.settings.partial:
            np.copyto(labels, painted, where=painted > 0, casting="unsafe")
            return
        for s in slices:
            self._slice(labels, s)[...] = self._slice(painted, s)

    def _slice(self, array: NDArray[Any], s: int) -> NDArray[Any]:
        plane: NDArray[Any] = np.moveaxis(array, self.axis, 0)[s]
        return plane

    def sync(self) -> bool:
        """Notice what was painted since the last time, in either layer; True if anything was.

        A slice that differs from what was shown on the propagated layer goes to the annotation layer as it is now.
        """
        if not self._ready():
            return False
        if self._seen is None or self._seen.shape != self.annotation.data.shape:
            self._look_afresh()
        assert self._seen is not None
        corrected = self._take_corrections()
        data = np.asarray(self.annotation.data)
        changed = self._differing(data, self._seen)
        if not changed | corrected:
            return False
        for s in changed:
            self._slice(self._seen, s)[...] = self._slice(data, s)
        self._look_at(changed)
        self._touched |= changed | corrected
        if self.shown is None:
            if len(self._drawn) <= FEW_SLICES:
                self._look_afresh()
        else:
            self._lay_over(changed & self.annotated)
            self._refresh(changed)
        if self.suggestion is not None and self.suggestion["slice"] in self.annotated:
            self.suggestion = None
        self.changed.emit()
        if self.instant:
            self._attempt(self._preview)
        return True

    def _look_afresh(self) -> None:
        """Find out what is painted where, and along which axis slices count."""
        self._drawn = {}
        if self._ready():
            self._axis = None
            self._seen = np.array(self.annotation.data)
            self._look_at(range(self.image.data.shape[self.axis]))

    def _look_at(self, slices: Iterable[int]) -> None:
        """Note the label values on some slices."""
        for s in slices:
            plane = self._slice(np.asarray(self.annotation.data), s)
            self._drawn.pop(s, None)
            if plane.any():
                self._drawn[s] = _positive(plane)

    def _take_corrections(self) -> set[int]:
        layer = self.results["labels"]
        if layer is None or self.shown is None:
            return set()
        corrected = self._differing(layer.data, self.shown.labels)
        for s in corrected:
            now, before = self._slice(layer.data, s), self._slice(self.shown.labels, s)
            self._copy(s, now, before if self.settings.partial else None)
            before[...] = now
        return corrected

    def _copy(self, s: int, labels: NDArray[Any], before: NDArray[Any] | None) -> None:
        """Make a slice annotated: all of it, or with partial annotation the labels whose shape changed."""
        if labels.max() > np.iinfo(self.annotation.data.dtype).max:
            raise InputError(f"{self.annotation.name}: cannot hold label {labels.max()}; make a new layer with New")
        target = self._slice(self.annotation.data, s)
        if before is None:
            target[...] = labels
        else:
            for value in _positive(labels) | _positive(before):
                if ((labels == value) != (before == value)).any():
                    target[target == value] = 0
                    target[labels == value] = value
        if not target.any() and before is None:
            self.accepted |= {s}
        self.annotation.refresh()

    def restyle(self) -> None:
        """Show the propagated labels with the annotation's names and colours."""
        for kind in ("labels", "from_lower", "from_upper"):
            if (layer := self.results[kind]) is not None:
                copy_styles(self.annotation, layer)
        self.changed.emit()

    def _differing(self, one: NDArray[Any], other: NDArray[Any]) -> set[int]:
        count = self.image.data.shape[self.axis]
        return {s for s in range(count) if not np.array_equal(self._slice(one, s), self._slice(other, s))}

    def _refresh(self, slices: Iterable[int]) -> None:
        layer = self.results["labels"]
        if layer is not None and self.shown is not None:
            for s in slices:
                self._slice(layer.data, s)[...] = self._slice(self.shown.labels, s)
            layer.refresh()

    # ------------------------------------------------------------------ slices

    def accept_slice(self) -> None:
        """The propagated slice in view is right as it is: it becomes annotated, also if nothing is on it."""
        self.sync()
        self._attempt(self._accept)

    def _accept(self) -> None:
        self.check()
        if self.shown is None:
            raise InputError("there is nothing to accept yet; propagate first")
        s = self.current_slice()
        self._remember([s])
        self._copy(s, self._slice(self.shown.labels, s), None)
        self.sync()
        self.said.emit(f"Slice {s} is annotated now.")
        self.changed.emit()

    def remove_slices(self, slices: set[int]) -> None:
        """Take annotated slices out again."""
        self.check()
        self.sync()
        removed = slices & self.annotated
        if not removed:
            raise InputError("none of these slices is annotated")
        self._remember(removed)
        for s in removed:
            self._slice(self.annotation.data, s)[...] = 0
        self.accepted -= removed
        self.annotation.refresh()
        self.sync()
        self.changed.emit()

    def replace_labels(self, labels: NDArray[Any]) -> None:
        """Show other labels than those that were propagated; annotated slices stay as they are."""
        self.sync()
        if self.shown is None:
            raise InputError("there is nothing propagated yet")
        self._remember()
        self.shown = replace(self.shown, labels=as_labels(labels))
        self._lay_over(self.annotated)
        self._refresh(range(labels.shape[self.axis]))
        self.changed.emit()

    def _remember(self, slices: Iterable[int] = ()) -> None:
        """Keep what is about to change: the propagation in view, and annotated slices."""
        shown = None if self.shown is None else replace(self.shown, labels=self.shown.labels.copy())
        drawn = {s: self._slice(self.annotation.data, s).copy() for s in slices}
        self._undo.append(_Before(shown, drawn, self.accepted & drawn.keys()))

    @property
    def can_undo(self) -> bool:
        """Whether there is something to take back."""
        return bool(self._undo)

    def undo(self) -> None:
        """Take back the last propagation, acceptance or tool; strokes are taken back by napari's Ctrl-Z.

        What was painted since stays painted.
        """
        self.sync()
        if not self._undo or not self._ready():
            self.refused.emit("There is nothing to undo.")
            return
        before = self._undo.pop()
        for s, drawn in before.drawn.items():
            self._slice(self.annotation.data, s)[...] = drawn
        self.accepted = (self.accepted - before.drawn.keys()) | before.accepted
        self._seen = np.array(self.annotation.data)
        self._look_at(before.drawn)
        self.annotation.refresh()
        if before.shown is None:
            self.shown = self.suggestion = None
            self.results.remove()
            self._look_afresh()
            self.changed.emit()
        else:
            self._show(before.shown)
        self.said.emit("Taken back.")

    def slices(self) -> list[SliceState]:
        """One entry per slice, for the strip; empty without layers."""
        if not self._ready():
            return []
        annotated = self.annotated
        quality = {} if self.shown is None else _mean_by_slice(self.shown.report["quality"])
        wanted = None if self.suggestion is None or self.suggestion["stop"] else self.suggestion["slice"]
        return [
            SliceState(s in annotated, quality.get(s), s == wanted) for s in range(self.image.data.shape[self.axis])
        ]

    def current_slice(self) -> int:
        """Slice in view."""
        point = np.asarray(self.viewer.dims.point)[-3:]
        index = round(float(self.image.world_to_data(point)[self.axis]))
        return int(np.clip(index, 0, self.image.data.shape[self.axis] - 1))

    def go_to(self, s: int) -> None:
        """Show a slice, turned so that it lies in the plane of view."""
        dims, axis = self.viewer.dims, self.viewer.dims.ndim - 3 + self.axis
        if dims.ndisplay == 3:
            dims.ndisplay = 2
        if axis in dims.displayed:
            rest = [other for other in dims.order if other != axis]
            dims.order = (*rest[:-2], axis, *rest[-2:])
        voxel = np.array(self.image.world_to_data(np.asarray(dims.point)[-3:]))
        voxel[self.axis] = s
        dims.set_point(axis, float(np.asarray(self.image.data_to_world(voxel))[self.axis]))

    def save_model(self, file: Path) -> None:
        """Write what was learned as a checkpoint."""
        job = self.job()
        self.state.emit("Saving the checkpoint")
        self._run(lambda *_: self.backend.save_model(file, job), lambda _: self._saved(file))

    def _saved(self, file: Path) -> None:
        self.state.emit("")
        self.said.emit(f"Saved {file.name}.")


def _drawing(layer: Any) -> str:
    return str(layer.metadata.setdefault(DRAWING, uuid4().hex))


def _positive(labels: NDArray[Any]) -> set[int]:
    """The label values above 0; what is below is refused by the library."""
    return {int(value) for value in np.flatnonzero(np.bincount(labels[labels > 0]))}


def _mean_by_slice(quality: dict[str, Any]) -> dict[int, float]:
    """Mean estimated Dice over the labels that are on each slice."""
    found: dict[int, list[float]] = {}
    for one in quality.values():
        for s, dice in one["slices"].items():
            found.setdefault(int(s), []).append(dice)
    return {s: sum(values) / len(values) for s, values in found.items()}


def _summary(result: Result) -> str:
    known = [one["dice"] for one in result.report["quality"].values() if one["dice"] is not None]
    how = "learned on this scan" if result.report["trained"] else "without learning"
    estimate = f", expected Dice {sum(known) / len(known):.2f}" if known else ""
    return f"Propagated {how}{estimate}. {result.report['suggestion']['reason']}"
