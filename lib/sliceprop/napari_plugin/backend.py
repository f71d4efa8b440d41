"""What computes: the same interface for this computer and for a server.

Arrays of a `Job` and of its results are in the layer's axis order, label values are the layer's. Nothing here or in
what the viewer imports loads torch, so that opening the panel is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sliceprop.napari_plugin.settings import Settings


@dataclass(frozen=True)
class Progress:
    """How far learning is.

    Attributes:
        share: of the plan that is done, in [0, 1].
        seconds_left: estimate, never more than the budget leaves.
    """

    share: float
    seconds_left: float


Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Result:
    """A propagation as layers show it.

    Attributes:
        labels: fused labels, uint16; annotated slices are those of the job.
        from_lower: labels carried from the annotated slice below only, uint16.
        from_upper: labels carried from the annotated slice above only, uint16.
        uncertainty: float32 in [0, 1], 0 on annotated slices.
        report: see `study.Propagation`; labels are values, slices those of the layer.
    """

    labels: NDArray[np.uint16]
    from_lower: NDArray[np.uint16]
    from_upper: NDArray[np.uint16]
    uncertainty: NDArray[np.float32]
    report: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The study as it was when the user pressed the button; painting goes on meanwhile.

    Attributes:
        image: `(k, j, i)`, the layer's own array; what napari reads from files as needed is not in memory yet.
        affine: `(4, 4)`, voxel index in that order to RAS mm.
        labels: a copy of what is painted.
        scribbles: a copy of the marks in any plane, 255 for background; None without any.
        annotated_slices: exactly these are annotated, also empty ones; None where every painted slice is.
        names: of the label values.
        settings: options.
        study: id on the server; empty for an image that is not there.
        server: address of that server.
        drawing: tells the labels layer, and copies of it, from others.
        marking: the same of the scribbles layer.
        file: from which napari read the image, or a folder; empty if it did not.
    """

    image: Any
    affine: NDArray[np.float64]
    labels: NDArray[Any]
    scribbles: NDArray[Any] | None = None
    annotated_slices: tuple[int, ...] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    study: str = ""
    server: str = ""
    drawing: str = ""
    marking: str = ""
    file: str = ""

    def loaded(self) -> Job:
        """The same with the image in memory."""
        return replace(self, image=np.asarray(self.image))

    def part(self, axis: int, first: int, last: int) -> Job:
        """The slices from `first` to `last`, for what is computed on them alone; without scribbles."""
        window = tuple(slice(first, last + 1) if n == axis else slice(None) for n in range(3))
        inside = self.annotated_slices
        if inside is not None:
            inside = tuple(s - first for s in inside if first <= s <= last)
        return replace(
            self,
            image=self.image[window],
            labels=self.labels[window],
            scribbles=None,
            annotated_slices=inside,
            settings=replace(self.settings, slice_axis=axis),
        )


class Backend(Protocol):
    """Learns, propagates and suggests; every method may take long and is called in a worker.

    All of them raise `InputError` or a subclass for what the user can mend.
    """

    def train(self, job: Job, progress: Report, cancelled: Cancelled) -> None:
        """Learn on the study, and keep the best model; True from `cancelled` ends learning early."""

    def propagate(self, job: Job, progress: Report, cancelled: Cancelled) -> Result:
        """Fill the volume; `report["suggestion"]` names the next slice."""

    def suggest(self, job: Job) -> Mapping[str, Any]:
        """The slice to annotate next, with the keys of `Suggestion`; also without any annotation."""

    def save_model(self, file: Path, job: Job) -> None:
        """Write what was learned on the study as a checkpoint."""
