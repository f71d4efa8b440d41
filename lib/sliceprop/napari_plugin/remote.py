"""The same on a server of `apps/labelprop`. Its arrays are `(i, j, k)`, its label indices belong to names."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.client import Client, RefusedError, ServerError, WrongServerError
from sliceprop.config import LEARNED_METHODS, PREDICTORS
from sliceprop.errors import InputError, NoAnnotationError
from sliceprop.labels import present_values
from sliceprop.napari_plugin.backend import Cancelled, Job, Progress, Report, Result
from sliceprop.napari_plugin.geometry import reversed_axes
from sliceprop.napari_plugin.settings import Settings
from sliceprop.volume import resolve_slice_axis

POLL_S = 0.4
LAST_AXIS = 2
"""Axis 0 of a layer is axis 2 of the file, and so on."""


NOT_STRUCTURES = ("background", "foreground_scribbles", "background_scribbles")
"""Names that a server takes for something else than a label, so that voxels of such a label would be lost."""


CONFLICT = 409


class Basis(NamedTuple):
    """What a drawing is based on.

    Attributes:
        version: that it began with, or was last stored as; empty for none.
        numbers: of the labels by all names that the server had for them since.
        scan: that it was drawn on; None if the server was not asked yet.
    """

    version: str = ""
    numbers: Mapping[str, int] = MappingProxyType({})
    scan: str | None = None


Known = dict[tuple[str, str, str], Basis]
"""By address of the server, study and drawing."""


class RemoteBackend:
    """A server, in place of this computer.

    Args:
        client: speaks to it.
        known: what drawings are based on, also those of backends before this one.
    """

    def __init__(self, client: Client, known: Known) -> None:
        self.client, self._known = client, known

    def know(self, study: str, drawing: str, version: str, names: Mapping[str, int], scan: str) -> None:
        """A drawing is this version of a study's annotation, or scribbles, and what was changed on it since.

        Args:
            study: its id.
            drawing: id of the drawing.
            version: that the server may replace by it; empty for none.
            names: numbers of the server's labels by name; the server knows labels by former names, too.
            scan: name of the scan that it is drawn on.
        """
        numbers = {**self._based_on(study, drawing).numbers, **names}
        self._known[self.client.address, study, drawing] = Basis(version, numbers, scan)

    def train(self, job: Job, progress: Report, cancelled: Cancelled) -> None:
        """See `Backend`; cancelling ends the training on the server, which keeps the best model so far."""
        study = self.submit(job)
        options: dict[str, Any] = {"budget_s": job.settings.train.budget_s, "slice_axis": _file_axis(job)}
        self.client.train(study, options | self._init(study, job.settings))
        self._watch(study, progress, cancelled)
        if job.settings.save_to is not None:
            self.client.download_checkpoint(study, job.settings.save_to)

    def _init(self, study: str, settings: Settings) -> dict[str, str]:
        """What learning starts from, as the server wants to know it."""
        if settings.start is not None:
            self.client.upload_checkpoint(f"{study}-start", settings.start)
            return {"init": f"{study}-start"}
        if settings.start_on_server:
            return {"init": settings.start_on_server}
        return {} if settings.go_on else {"init": "none"}

    def propagate(self, job: Job, progress: Report, cancelled: Cancelled) -> Result:
        """See `Backend`."""
        study, chosen = self.submit(job), job.settings.propagate
        options: dict[str, Any] = {"method": chosen.method, "fusion": chosen.fusion, "extrapolate": chosen.extrapolate}
        options |= {"slice_axis": _file_axis(job), "target": job.settings.target}
        if chosen.method in PREDICTORS:
            options["budget_s"] = chosen.predictor.budget_s
        report = self.client.propagate(study, options)
        values = _values_of_indices(job, report["label_names"])
        labels, lower, upper = (
            _values_in(self.client.result(study, kind), values) for kind in ("labels", "from_lower", "from_upper")
        )
        doubt = np.ascontiguousarray(self.client.result(study, "uncertainty").T, np.float32)
        return Result(labels, lower, upper, doubt, _told(report, job))

    def suggest(self, job: Job) -> Mapping[str, Any]:
        """See `Backend`."""
        study = self.submit(job) if _values(job) or job.annotated_slices else self._study(job)
        answer = self.client.suggest(study, {"target": job.settings.target, "slice_axis": _file_axis(job)})
        return _suggestion(answer)

    def save_model(self, file: Path, job: Job) -> None:
        """See `Backend`."""
        self.client.download_checkpoint(self._study(job), file)

    def _study(self, job: Job) -> str:
        if not job.study:
            raise InputError("this image is not on the server; open a study from its list, or press Send image")
        if job.server != self.client.address:
            raise InputError(f"this image is on {job.server}; connect to that server, or open a study of this one")
        return job.study

    def submit(self, job: Job) -> str:
        """Bring the annotation on the server to what is painted here; every step that needs it does so.

        Returns:
            the study's id.

        Raises:
            NoAnnotationError: nothing is painted; what is on the server stays.
            InputError: the image is not on the server.
            ServerError: no answer, or a refusal, as when somebody else annotated the study meanwhile.
        """
        study = self._study(job)
        drawn = bool(job.labels.any() or job.annotated_slices)
        marked = job.scribbles is not None and bool(job.scribbles.any())
        if not drawn and (self._version(study, job.drawing) or not marked):
            raise NoAnnotationError("nothing is annotated yet; paint at least one slice")
        names = _names(job)
        self._check_study(study, job, names)
        if drawn:
            options: dict[str, Any] = {"slice_axis": _file_axis(job), "partial": job.settings.partial}
            if not job.settings.partial:
                options["annotated_slices"] = _annotated_slices(job)
            answer = self._store(self.client.submit, study, job.drawing, job.labels, names, options)
            self.know(study, job.drawing, answer["annotation_version"], answer["label_names"], answer["scan"])
        if job.scribbles is not None and (marked or self._version(study, job.marking)):
            answer = self._store(self.client.submit_scribbles, study, job.marking, job.scribbles, names, {})
            self.know(study, job.marking, answer["scribbles_version"], answer["label_names"], answer["scan"])
        return study

    def _version(self, study: str, drawing: str) -> str:
        """What a drawing may replace; nothing, if it did not come from the server."""
        return self._based_on(study, drawing).version

    def _based_on(self, study: str, drawing: str) -> Basis:
        return self._known.get((self.client.address, study, drawing), Basis())

    def _store(
        self,
        send: Callable[..., dict[str, Any]],
        study: str,
        drawing: str,
        labels: NDArray[Any],
        names: Mapping[int, str],
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Send a drawing with the version that it may replace."""
        based = self._based_on(study, drawing)
        told = {"annotation_version": based.version} | ({} if based.scan is None else {"scan": based.scan})
        try:
            return send(study, labels.T, names, {**options, **told})
        except RefusedError as error:
            if error.status != CONFLICT:
                raise
            raise RefusedError(CONFLICT, f"{error}. Open brings it; your layers stay beside it") from error

    def _check_study(self, study: str, job: Job, names: Mapping[int, str]) -> None:
        """Refuse labels for a scan that lies elsewhere, or for other labels: the server may have others by that name.

        Raises:
            InputError: telling what to do.
        """
        state = self.client.study(study)
        there = io.Image(np.broadcast_to(0, state["shape"]), io.LPS_TO_RAS @ np.array(state["affine_lps"]))
        try:
            io.check_same_grid(there, io.Image(job.labels.T, reversed_axes(job.affine)), study)
        except InputError as error:
            raise InputError(f"the scan {study} of the server is another one than in view; open it again") from error
        now = state["label_names"]
        for before in (self._based_on(study, drawing).numbers for drawing in (job.drawing, job.marking)):
            for name in names.values():
                if name in before and now.get(name, before[name]) != before[name]:
                    raise InputError(f"{name} is another label on the server now; open the study again")

    def _watch(self, study: str, progress: Report, cancelled: Cancelled) -> None:
        """Follow a training to its end.

        Raises:
            ServerError: if it failed.
        """
        while (state := self.client.progress(study))["status"] in ("SUBMITTED", "RUNNING"):
            if state.get("image") not in (None, study):
                raise ServerError(f"the server learns on {state['image']} now; try again when it is done")
            if cancelled():
                self.client.stop(study)
                return
            progress(_progress(state))
            time.sleep(POLL_S)
        if state["status"] == "ERROR":
            raise ServerError(f"learning failed on the server: {state.get('error') or 'see its log'}")


def _progress(state: Mapping[str, Any]) -> Progress:
    """Share of the epochs or of the time, whichever is more."""
    epoch, epochs, seconds, left = (
        float(state[key] or 0) for key in ("epoch", "total_epochs", "seconds", "seconds_left")
    )
    of_time = seconds / (seconds + left) if left else 0.0
    return Progress(min(max(epoch / max(epochs, 1), of_time), 1.0), left)


def _values(job: Job) -> set[int]:
    """Label values of annotation and scribbles."""
    drawn = present_values(job.labels)
    return drawn if job.scribbles is None else drawn | (present_values(job.scribbles) - {255})


def _names(job: Job) -> dict[int, str]:
    """Names of the label values that are sent.

    Raises:
        InputError: for those by which a server cannot tell labels apart.
    """
    doubled = [name for name, count in Counter(job.names.values()).items() if count > 1]
    if doubled:
        raise InputError(f"several labels are called {doubled[0]}; give each a name of its own")
    names = {value: job.names[value] for value in sorted(_values(job))}
    for name in names.values():
        if name in NOT_STRUCTURES:
            raise InputError(f"a label on a server cannot be called {name}; give it another name")
    return names


def _axis(job: Job) -> int:
    """Axis of the layer that counts slices, resolved here, so that both sides mean the same."""
    marked = job.labels > 0
    return resolve_slice_axis(job.settings.slice_axis, job.labels.shape, job.affine, marked if marked.any() else None)


def _file_axis(job: Job) -> str:
    return str(LAST_AXIS - _axis(job))


def _annotated_slices(job: Job) -> list[int]:
    """The list that leaves the server nothing to guess."""
    if job.annotated_slices is not None:
        return list(job.annotated_slices)
    painted = np.moveaxis(job.labels, _axis(job), 0).any(axis=(1, 2))
    return [int(s) for s in np.flatnonzero(painted)]


def _values_of_indices(job: Job, indices: Mapping[str, int]) -> NDArray[np.int32]:
    """For each label index of the server the value here, -1 for labels that are not ours."""
    here = {name: value for value, name in job.names.items()}
    values = np.full(max(indices.values(), default=0) + 1, -1, np.int32)
    values[0] = 0
    for name, index in indices.items():
        values[index] = here.get(name, -1)
    return values


def _values_in(labels: NDArray[Any], values: NDArray[np.int32]) -> NDArray[np.uint16]:
    found = values[labels.astype(np.int64)].T
    if (found < 0).any():
        raise WrongServerError("the server answered with a label that is not known here; open the study again")
    return np.ascontiguousarray(found, np.uint16)


def _told(report: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The report with label values in place of names, and slices of the layer's axis."""
    here = {name: value for value, name in job.names.items()}
    quality = {str(here[name]): one for name, one in report["quality"].items() if name in here}
    trained = report["trained"] and report["method"] in LEARNED_METHODS
    axis = LAST_AXIS - report["slice_axis"]
    return {
        **report,
        "quality": quality,
        "trained": trained,
        "slice_axis": axis,
        "suggestion": _suggestion(report["suggestion"]),
    }


def _suggestion(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {**answer, "slice_axis": LAST_AXIS - answer["slice_axis"]}
