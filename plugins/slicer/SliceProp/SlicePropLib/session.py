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
from SlicePropLib.grids import (
    LPS_TO_RAS,
    Alignment,
    GridError,
    align,
    drawn_slices,
    on_slices,
    slice_contents,
    view_of,
)

ATTEMPTS = 5
"""To get state and voxels of one annotation, while others change it."""


@dataclass
class Session:
    """One study at work. What the user's segmentation is based on is kept with it, also in a saved scene.

    Attributes:
        client: the server.
        volume: node of the scan.
        image: id of the study.
        segmentation: node of the user's; what is annotated comes into it.
        told: what came into it when the session began, and what the user has to know of it; empty for nothing.
        cleared: annotated slices that are empty here, of which the user was told.
        unheeded: marked slices that cannot be complete by themselves, of which the user was told.
    """

    client: Client
    volume: Any
    image: str
    segmentation: Any
    told: str = ""
    cleared: set[int] = field(default_factory=set)
    unheeded: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, client: Client, volume: Any, segmentation: Any) -> Session:
        """The study of the loaded volume, by its name or its DICOM series; else it is given to the server."""
        if scene.is_ours(segmentation):
            raise LookupError(
                f"{segmentation.GetName()} is the server's; choose your own segmentation, or clone this one"
            )
        scene.check_place(volume, segmentation)
        own, there = _plain(volume.GetName()), client.studies()
        image = next((one for one in (volume.GetName(), scene.series_uid(volume), own) if one in there), None)
        known = scene.known(segmentation)
        if known.get("server") == client.url and known["image"] != (image or own):
            raise LookupError(
                f"your segmentation is that of the study {known['image']}; make another one for {image or own}, "
                "or give the scan its former name"
            )
        if image is None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{own}.nrrd"
                if not slicer.util.saveNode(volume, str(file)):
                    raise ServerError(f"{own} cannot be saved, so the server cannot have it")
                client.upload(own, file)
        session = cls(client, volume, image or own, segmentation)
        session.told = session.take_over()
        return session

    def state(self) -> dict[str, Any]:
        """The server's view of the study; before anything is annotated, with the direction that was marked along."""
        state, known = self.client.study(self.image), self._known()
        if not state["annotated_slices"] and known["axis"] is not None:
            state["slice_axis"] = known["axis"]
        return state

    def alignment(self) -> Alignment:
        """How the loaded volume lies on the study's grid.

        Raises:
            GridError: if the voxels do not coincide.
            LookupError: if volume or segmentation is under a transform.
        """
        scene.check_place(self.volume, self.segmentation)
        return align(scene.ijk_to_ras(self.volume), scene.shape(self.volume), self.state())

    def take_over(self) -> str:
        """Bring what is annotated into the user's segmentation, but over nothing that was drawn here since.

        A slice comes if it is empty here, or is as it was when it was last brought or submitted. Of those that were
        drawn on both sides the user's stay; the others are shown beside it. A slice that was complete and empty, and is
        not counted there any more, is not marked any more.

        Returns:
            sentences for the user; empty if all was here.

        Raises:
            GridError: if the voxels do not coincide, or slices are counted along another axis than before.
            LookupError: if a label that is drawn here is another one there now.
        """
        state, theirs = self._annotation()
        axis, annotated, known = state["slice_axis"], set(state["annotated_slices"]), self._known()
        before = {int(index): content for index, content in known["slices"].items()}
        if annotated and (before or known["marked"]) and known["axis"] != axis:
            raise GridError(
                "this study was annotated along another direction meanwhile; make a new segmentation to go on from "
                "that, yours stays as it is"
            )
        mine, names = self._drawn(state)
        their_names = {value: name for name, value in state["label_names"].items()}
        here, there = slice_contents(mine, names, axis), slice_contents(theirs, their_names, axis)
        differing = {index for index in annotated if here[index] != there[index]}
        new = {index for index in differing if not here[index]}
        corrected = {index for index in differing - new if here[index] == before.get(index)}
        both = differing - new - corrected
        if new or corrected:
            self._put(theirs, new | corrected, state, their_names)
        if both:
            self._show_elsewhere(theirs, both, state)
        empty = {index for index in annotated - both if not there[index]}
        gone = {index for index in before.keys() - annotated if here[index] == before[index]}
        marked = empty | (set(known["marked"]) - annotated - gone)
        self._remember(state, {index: there[index] for index in annotated}, marked)
        bare = {index for index in gone if not here[index]}
        stays = mine * ~on_slices(mine.shape, axis, corrected)
        missing = {names[value] for value in np.unique(stays[stays > 0]).tolist()} - state["label_names"].keys()
        told = {
            f"from the server: {_slices(new)}": new,
            f"changed there, and here with it: {_slices(corrected)}": corrected,
            f"empty and complete there: {_slices(empty)}": empty - set(known["marked"]),
            f"drawn here and elsewhere: {_slices(both)}; yours count with the next submit, the others are shown as "
            f"{scene.ELSEWHERE}": both,
            f"not counted on the server any more: {_slices(gone - bare)}; they count again with the next submit, "
            "unless you clear them": gone - bare,
            f"not empty and complete on the server any more: {_slices(bare)}; mark again what is": bare,
            "of every slice just its labels count, as somebody drew single labels; to change that, mark every drawn "
            "slice as complete": state["partial"],
            f"labels that the server does not have: {', '.join(sorted(missing))}": missing if annotated else (),
        }
        return "; ".join(sentence for sentence, holds in told.items() if holds)

    def submit(self) -> list[int]:
        """Send what is drawn or marked; the slices that count as annotated come back.

        What the server answered earlier and is unchanged here, as in a copy of its result, it does not take for drawn.

        Raises:
            LookupError: if nothing is drawn, a label that is drawn is another one on the server now, what was cleared
                or marked would not count as meant, or the study was annotated elsewhere, which has come into the
                segmentation.
        """
        state, known = self.state(), self._known()
        if state["annotation_version"] != known["version"]:
            if told := self.take_over():
                raise LookupError(f"nothing is sent yet: {told}. Look at it, then do this again")
            state, known = self.state(), self._known()
        labels, names = self._drawn(state)
        axis, marked = state["slice_axis"], set(known["marked"])
        drawn = set(drawn_slices(labels, axis))
        if not drawn | marked:
            raise LookupError(
                "nothing is drawn or marked; draw a slice, or press Connect to have back what is annotated"
            )
        partial = state["partial"] and not drawn <= marked
        if partial and not marked <= self.unheeded:
            self.unheeded = marked
            raise LookupError(
                f"of every slice just its labels count here, so {_slices(marked)} cannot be complete without the "
                f"others: mark {_slices(drawn - marked)} too, or do this again to send without these marks"
            )
        annotated = {int(index): content for index, content in known["slices"].items()}
        cleared = {index for index, content in annotated.items() if content} - drawn - marked
        added = drawn - marked - annotated.keys()
        if cleared and added and not partial:
            raise LookupError(
                f"annotated, but empty here now: {_slices(cleared)}; holding more than is annotated: {_slices(added)}. "
                "The server cannot tell both at once. Connect brings back what is annotated; submit what you drew, "
                "then clear what shall not count any more; of a copy of the result clear also what you did not draw"
            )
        if not cleared <= self.cleared:
            self.cleared = cleared
            raise LookupError(
                f"annotated, but empty here now: {_slices(cleared)}. Connect brings them back; marked ones are "
                "complete as they are; do this again if they shall not count any more"
            )
        # All that is drawn counts already: a list keeps what is cleared from counting as empty.
        listed = {"annotated_slices": sorted(drawn | marked)} if cleared and not partial else {}
        counted = bool(state["annotated_slices"] or marked)  # else the server sees along which axis slices are drawn
        answer = self.client.submit(
            self.image,
            labels,
            names,
            slice_axis=str(axis) if counted else "auto",
            reviewed_slices=[] if partial else sorted(marked),
            partial=partial,
            annotation_version=known["version"],
            **({"scan": known["scan"]} if known["scan"] else {}),
            **listed,
        )
        self.cleared, self.unheeded = set(), set()
        contents = slice_contents(labels, names, answer["slice_axis"])
        here = drawn_slices(labels, answer["slice_axis"])
        sent = {index: contents[index] for index in answer["annotated_slices"] if index in marked.union(here)}
        self._remember(answer, sent, set() if partial else marked)
        return list(answer["annotated_slices"])

    def _annotation(self) -> tuple[dict[str, Any], np.ndarray]:
        """State of the study and voxels of the same annotation."""
        for _ in range(ATTEMPTS):
            state, (labels, version) = self.state(), self.client.annotation(self.image)
            if version == state["annotation_version"]:
                return state, labels
        raise ServerError("this study is being annotated elsewhere at this moment; try again")

    def _drawn(self, state: dict[str, Any]) -> tuple[np.ndarray, dict[int, str]]:
        """The user's segments on the study's grid, and their names by value.

        Raises:
            LookupError: if the server has another label of a drawn segment's name than when that was last looked at.
        """
        array, names = scene.read_segments(self.segmentation, self.volume)
        before, now = self._known()["names"], state["label_names"]
        present = {number: name for name, number in now.items()}
        for name in (names[value] for value in np.unique(array[array > 0]).tolist()):
            if (number := before.get(name)) is not None and now.get(name, number) != number:
                raise LookupError(
                    f"{name} is another label on the server now; the one of your segment is "
                    f"{f'called {present[number]}' if number in present else 'gone'} there. Rename the segment, then "
                    "Connect; nothing is sent"
                )
        return self.alignment().to_study(array), names

    def _put(self, labels: np.ndarray, slices: set[int], state: dict[str, Any], names: dict[int, str]) -> None:
        alignment, where = self.alignment(), on_slices(labels.shape, state["slice_axis"], slices)
        labels, where = alignment.to_node(labels), alignment.to_node(where)
        scene.put_labels(self.segmentation, self.volume, labels, where, names, state["colors"])

    def _show_elsewhere(self, labels: np.ndarray, slices: set[int], state: dict[str, Any]) -> None:
        kept = np.where(on_slices(labels.shape, state["slice_axis"], slices), labels, 0)
        names, colors = state["label_names"], state["colors"]
        scene.show_labels(self.volume, self.alignment().to_node(kept), names, colors, scene.ELSEWHERE)

    def _known(self) -> dict[str, Any]:
        """What the segmentation is based on.

        `version`, `axis`, contents of its `slices`, the `marked` ones, the numbers of labels by all `names` that they
        had on the server since, and the `scan`.
        """
        known = scene.known(self.segmentation)
        nothing = {"version": None, "axis": None, "slices": {}, "marked": [], "names": {}, "scan": None}
        if known.get("image") != self.image:
            return nothing
        elsewhere = {"version": None, "slices": {}, "names": {}, "scan": None}
        return {**nothing, **known, **({} if known["server"] == self.client.url else elsewhere)}

    def _remember(self, told: dict[str, Any], slices: dict[int, str], marked: set[int]) -> None:
        based = {"version": told["annotation_version"], "axis": told["slice_axis"], "slices": slices}
        names = {**self._known()["names"], **told["label_names"]}  # the server knows labels by former names
        study = {"server": self.client.url, "image": self.image, "marked": sorted(marked), "names": names}
        study["scan"] = told["scan"]
        scene.remember(self.segmentation, {**based, **study})

    def propagate(self) -> dict[str, Any]:
        """Fill the volume on the server; takes a while, and may be called from a thread of its own."""
        return self.client.propagate(self.image)

    def show(self) -> None:
        """Put the last result and its uncertainty into the scene."""
        voxels, alignment = self.client.voxels(self.image), self.alignment()
        labels, state = alignment.to_node(voxels), self.state()  # asked for last, it names all labels
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
        if not 0 <= index < state["shape"][state["slice_axis"]]:
            raise LookupError("the view lies beside the scan; go to one of its slices")
        known = {**scene.known(self.segmentation), "axis": state["slice_axis"]}
        scene.remember(self.segmentation, {**known, "marked": sorted({*known["marked"], index})})
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


def _slices(indices: set[int]) -> str:
    return f"{'slice' if len(indices) == 1 else 'slices'} {', '.join(map(str, sorted(indices)))}"


def _plain(name: str) -> str:
    """A name that the server accepts as an id."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "scan"
