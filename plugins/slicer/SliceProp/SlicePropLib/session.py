"""What the buttons do: one loaded volume, its study on the server, the user's segmentation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import slicer
from SlicePropLib import scene
from SlicePropLib.client import Client, ServerError
from SlicePropLib.grids import LPS_TO_RAS, Alignment, align, drawn_slices, view_of


@dataclass
class Session:
    """One study at work.

    Attributes:
        client: the server.
        volume: node of the scan.
        image: id of the study.
        marked: slices that the user called complete though nothing is drawn on them.
    """

    client: Client
    volume: Any
    image: str
    marked: set[int] = field(default_factory=set)
    version: str | None = None

    @classmethod
    def of(cls, client: Client, volume: Any) -> Session:
        """The study of the loaded volume, by its name or its DICOM series; else it is given to the server."""
        own, there = _plain(volume.GetName()), client.studies()
        image = next((one for one in (volume.GetName(), scene.series_uid(volume), own) if one in there), None)
        if image is None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{own}.nrrd"
                if not slicer.util.saveNode(volume, str(file)):
                    raise ServerError(f"{own} cannot be saved, so the server cannot have it")
                client.upload(own, file)
        session = cls(client, volume, image or own)
        session.alignment()
        session.version = session.state()["annotation_version"]
        return session

    def state(self) -> dict[str, Any]:
        """The server's view of the study."""
        return self.client.study(self.image)

    def alignment(self) -> Alignment:
        """How the loaded volume lies on the study's grid.

        Raises:
            GridError: if the voxels do not coincide.
        """
        return align(scene.ijk_to_ras(self.volume), scene.shape(self.volume), self.state())

    def submit(self, segmentation: Any) -> list[int]:
        """Send the slices that are drawn or marked; the slices that count as annotated come back."""
        array, names = scene.read_segments(segmentation, self.volume)
        labels, axis = self.alignment().to_study(array), self.state()["slice_axis"]
        slices = sorted({*drawn_slices(labels, axis), *self.marked})
        told = self.client.submit(self.image, labels, names, slices, self.version)
        self.version = told["annotation_version"]
        return list(told["annotated_slices"])

    def propagate(self) -> dict[str, Any]:
        """Fill the volume on the server; takes a while, and may be called from a thread of its own."""
        return self.client.propagate(self.image)

    def show(self) -> None:
        """Put the last result and its uncertainty into the scene."""
        state, alignment = self.state(), self.alignment()
        labels = alignment.to_node(self.client.voxels(self.image))
        scene.show_labels(self.volume, labels, state["label_names"], state["colors"])
        if state["result"]:
            scene.show_uncertainty(self.volume, alignment.to_node(self.client.voxels(self.image, "uncertainty")))

    def suggest(self) -> dict[str, Any]:
        """Ask for the next slice and go there."""
        suggestion = self.client.suggest(self.image)
        if suggestion["slice"] is not None:
            scene.jump(self.volume, view_of(self.state()), suggestion["position_ras"])
        return suggestion

    def go_to(self, index: int) -> None:
        """Show a slice of the study."""
        state = self.state()
        voxel = (np.array([*state["shape"], 3.0]) - 1) / 2
        voxel[state["slice_axis"]] = index
        ras = LPS_TO_RAS @ np.array(state["affine_lps"]) @ voxel
        scene.jump(self.volume, view_of(state), ras[:3].tolist())

    def mark_shown(self) -> int:
        """Call the slice in view complete, also if nothing is drawn on it; its index comes back."""
        state = self.state()
        affine = LPS_TO_RAS @ np.array(state["affine_lps"])
        voxel = np.linalg.inv(affine) @ np.array([*scene.position(view_of(state)), 1.0])
        index = int(np.round(voxel[state["slice_axis"]]))
        if not 0 <= index < state["n_slices"]:
            raise LookupError("the view lies beside the scan; go to one of its slices")
        self.marked.add(index)
        return index

    def quality(self) -> list[tuple[int, str]]:
        """The annotated slices and, per label, the Dice that is estimated there."""
        state = self.state()
        estimates = (state["result"] or {}).get("quality_slices", {})
        told = []
        for index in state["annotated_slices"]:
            known = [(name, slices.get(str(index))) for name, slices in estimates.items()]
            told.append((index, ", ".join(f"{name} {dice:.2f}" for name, dice in known if dice is not None)))
        return told


def describe(suggestion: dict[str, Any]) -> str:
    """A suggestion as one sentence."""
    if suggestion["slice"] is None:
        return str(suggestion["reason"])
    gain = suggestion.get("expected_gain")
    worth = "" if gain is None else f" (expected gain {gain:.3f} Dice)"
    done = "Enough is annotated; the best remaining one is slice" if suggestion["stop"] else "Next: slice"
    return f"{done} {suggestion['slice']}{worth}. {suggestion['reason']}"


def _plain(name: str) -> str:
    """A name that the server accepts as an id."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "scan"
