"""Work on a study in any order, against a plain record of it: what was drawn stays drawn, and nothing else counts.

SLICEPROP_FUZZ says how many inputs all tests of this kind try (5,000 by default); of these steps it is a tenth.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

pytest.importorskip("monailabel")

from monailabel.config import settings as server_settings

from sliceprop.io import Image, read_image, write_image
from sliceprop.server.cases import Case
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import ConflictError
from sliceprop.server.infer import PropagateTask
from sliceprop.server.label_edits import edit_labels, parse_edits
from sliceprop.server.outcome import current_labels, finalise, undo
from sliceprop.server.provenance import is_our_result
from sliceprop.server.requests import label_options
from sliceprop.server.workspace import Workspace

STEPS = 25
EXAMPLES = max(4, int(os.environ.get("SLICEPROP_FUZZ", "5000")) // 10 // STEPS)

SHAPE, AFFINE = (10, 9, 12), np.diag([1.0, 1, 3, 1])
Plane = NDArray[np.int32]
Drawn = dict[int, Plane]

at = st.integers(0, SHAPE[2] - 1)
boxes = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(2, 4), st.integers(2, 4), st.integers(1, 2))
"""Place, size and label; lines may be refused as painted across the slices."""


@st.composite
def planes(draw: st.DrawFn, empty: bool = True) -> Plane:
    """A slice as somebody draws it: boxes of two labels."""
    plane = np.zeros(SHAPE[:2], np.int32)
    for i, j, height, width, label in draw(st.lists(boxes, min_size=0 if empty else 1, max_size=3)):
        plane[i : i + height, j : j + width] = label
    return plane


def volume(drawn: Drawn) -> NDArray[np.int32]:
    labels = np.zeros(SHAPE, np.int32)
    for k, plane in drawn.items():
        labels[..., k] = plane
    return labels


class Work(RuleBasedStateMachine):
    """One study on a server, and what its users know of it."""

    def __init__(self) -> None:
        super().__init__()
        self._place = tempfile.TemporaryDirectory()
        self.folder = Path(self._place.name)
        (self.folder / "studies").mkdir()
        self.scan = Image(np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32), AFFINE)
        write_image(self.folder / "studies" / "case.nii.gz", self.scan.array, self.scan)
        self.names, self.named = ["disc", "core"], 0
        self.drawn, self.partial = dict[int, Plane](), False
        self.versions: dict[int, tuple[Drawn, bool]] = {}
        self.result: NDArray[np.int32] | None = None

    def teardown(self) -> None:
        self._place.cleanup()

    @initialize()
    def open(self) -> None:
        self.workspace = Workspace(LocalStudies(str(self.folder / "studies"), watch=False))
        edit_labels(self.workspace, parse_edits({"labels": [{"name": name} for name in self.names]}))

    @property
    def case(self) -> Case:
        return self.workspace.case("case")

    def file(self, labels: NDArray[Any]) -> Path:
        write_image(self.folder / "labels.nii.gz", labels, self.scan)
        return self.folder / "labels.nii.gz"

    def submit(self, labels: NDArray[Any], shift: int, tag: str = "sparse", **params: Any) -> None:
        """As a client does that has numbers of its own."""
        own = np.where((labels > 0) & (labels < 3), labels + shift, labels)
        info = [{"name": name, "idx": index + shift} for index, name in enumerate(self.names, start=1)]
        options = {"label_info": info, "slice_axis": "2", **params}
        self.workspace.submit("case", tag, self.file(own), label_options(options))

    def count(self, drawn: Drawn, partial: bool = False) -> None:
        """From now on this is what was drawn; who corrects a result that is older overwrites it, as documented."""
        self.drawn, self.partial, self.result = drawn, partial, None
        self.versions[int(self.workspace.drawings.annotation_version(self.case).split(":")[1])] = drawn, partial

    def is_result(self, labels: NDArray[Any]) -> bool:
        sent = self.workspace.drawings.answered(self.case, labels)
        return sent is not None and (is_our_result(labels, 2, sent) or not sent.labels.any())

    @rule(k=at, plane=planes(), shift=st.integers(0, 200), alone=st.booleans())
    def draw(self, k: int, plane: Plane, shift: int, alone: bool) -> None:
        """In a client that lists the slices that are complete, empty ones too."""
        drawn = {k: plane} if alone or self.partial else {**self.drawn, k: plane}
        based = self.workspace.drawings.annotation_version(self.case)
        self.submit(volume(drawn), shift, annotated_slices=sorted(drawn), annotation_version=based)
        self.count(drawn)

    @precondition(lambda self: len(self.drawn) > 1 and not self.partial)
    @rule(shift=st.integers(0, 200), data=st.data())
    def take_a_slice_back(self, shift: int, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.drawn)))
        drawn = {k: plane for k, plane in self.drawn.items() if k != gone}
        self.submit(volume(drawn), shift, annotated_slices=sorted(drawn))
        self.count(drawn)

    @rule(
        planes=st.dictionaries(at, planes(empty=False), min_size=1, max_size=3),
        how=st.sampled_from(["whole slices", "single labels", "by hand"]),
    )
    def draw_without_a_list(self, planes: Drawn, how: str) -> None:
        """In a client that sends a file alone, or by a file that somebody puts into the folder."""
        labels = volume(planes)
        if self.is_result(labels):
            return
        if how == "by hand":
            file = self.workspace.store.label_file("case", "sparse")
            target = file or self.folder / "studies" / "labels" / "sparse" / "case.nii.gz"
            target.parent.mkdir(exist_ok=True)
            self.file(labels).replace(target)
            self.workspace.store.refresh()
            self.workspace.drawings.annotation(self.case)
        else:
            self.submit(labels, 0, partial=how == "single labels")
        self.count(planes, how == "single labels")

    @precondition(lambda self: any(plane.any() for plane in self.drawn.values()))
    @rule(method=st.sampled_from(["nearest", "shape"]))
    def propagate(self, method: str) -> None:
        reply = PropagateTask(self.workspace, 0.9).reply({"image_id": "case", "method": method})
        self.result = read_image(Path(reply.file)).array.astype(np.int32)
        Path(reply.file).unlink()
        self.check_drawn(self.result)
        assert self.partial or set(np.flatnonzero(reply.drawn.all(axis=(0, 1)))) >= set(self.drawn)

    def check_drawn(self, labels: NDArray[Any]) -> None:
        for k, plane in self.drawn.items():
            counts = plane > 0 if self.partial else np.ones_like(plane, bool)
            np.testing.assert_array_equal(labels[..., k][counts], plane[counts])

    @precondition(lambda self: self.result is not None and not self.partial)
    @rule(k=at, plane=planes(empty=False), shift=st.integers(0, 200))
    def correct_the_result(self, k: int, plane: Plane, shift: int) -> None:
        """In a client that sends the whole volume back."""
        assert self.result is not None
        labels = self.result.copy()
        labels[..., k] = plane
        sent = self.workspace.drawings.answered(self.case, labels)
        if sent is None or not np.array_equal(sent.labels, self.result) or not is_our_result(labels, 2, sent):
            return
        changed = k in self.drawn or not np.array_equal(plane, self.result[..., k])
        self.submit(labels, shift)
        self.count({**self.drawn, k: plane} if changed else self.drawn)

    @precondition(lambda self: any(plane.any() for plane in self.drawn.values()))
    @rule()
    def accept(self) -> None:
        finalise(self.workspace, self.case)

    @rule()
    def take_the_result_back(self) -> None:
        try:
            undo(self.workspace, self.case)
        except ConflictError:
            return
        self.result = None

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        self.workspace.drawings.restore(self.case, number)
        (self.drawn, self.partial), self.result = self.versions[number], None

    @precondition(lambda self: self.drawn)
    @rule(k=at, plane=planes())
    def draw_on_another_version(self, k: int, plane: Plane) -> None:
        with pytest.raises(ConflictError):
            self.submit(volume({k: plane}), 0, annotated_slices=[k], annotation_version="sparse:9999")

    @rule(k=at, i=st.integers(0, SHAPE[0] - 1), mark=st.sampled_from([1, 2, 255]))
    def scribble(self, k: int, i: int, mark: int) -> None:
        marks = np.zeros(SHAPE, np.int32)
        marks[i, :, k] = mark
        self.submit(marks, 0, "scribbles")

    @rule(index=st.integers(0, 1))
    def rename(self, index: int) -> None:
        self.named += 1
        new = f"label of {self.named}"
        edit_labels(self.workspace, parse_edits({"labels": [{"name": new, "renamed_from": self.names[index]}]}))
        self.names[index] = new

    @rule(forget=st.booleans())
    def start_the_server_anew(self, forget: bool) -> None:
        if forget:
            (self.workspace.folder / "studies" / "case" / "annotation.npz").unlink(missing_ok=True)
        self.workspace = Workspace(LocalStudies(str(self.folder / "studies"), watch=False))

    @invariant()
    def what_was_drawn_counts(self) -> None:
        if not hasattr(self, "workspace"):
            return
        assert self.workspace.names.names == self.names
        annotation = self.workspace.drawings.annotation(self.case)
        assert list(annotation.annotated_slices if annotation else ()) == sorted(self.drawn)
        if annotation is not None:
            assert annotation.partial == self.partial
            np.testing.assert_array_equal(annotation.labels, volume(self.drawn))
            self.check_drawn(current_labels(self.workspace, self.case))


def test_what_was_drawn_counts_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Work, settings=chosen)
