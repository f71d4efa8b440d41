"""The same voxels as the server counts them and as 3D Slicer does: axes may be swapped or reversed, nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TOLERANCE = 0.1
"""Of a voxel."""

VIEWS = ("Yellow", "Green", "Red")
"""Views of the default layouts that look along left-right, front-back and feet-head."""


class GridError(Exception):
    """The loaded volume does not lie on the study's grid."""


@dataclass(frozen=True)
class Alignment:
    """How the axes of a node's array become those of the study's.

    Attributes:
        axes: for each axis of the study, the axis of the node.
        reversed: for each axis of the study, whether it is counted the other way round.
    """

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    def to_study(self, array: np.ndarray) -> np.ndarray:
        """A node's `(i, j, k)` in the order of the study's axes."""
        return np.transpose(array, self.axes)[self._steps]

    def to_node(self, array: np.ndarray) -> np.ndarray:
        """The way back."""
        return np.transpose(array[self._steps], np.argsort(self.axes))

    @property
    def _steps(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if back else 1) for back in self.reversed)


def align(node_to_ras: np.ndarray, node_shape: tuple[int, ...], study: dict) -> Alignment:
    """How a loaded volume lies on a study's grid.

    Args:
        node_to_ras: `(4, 4)`, the node's voxel to RAS mm.
        node_shape: of the node, `(i, j, k)`.
        study: with `affine_lps` and `shape`.

    Raises:
        GridError: if the voxels do not coincide.
    """
    affine, shape = LPS_TO_RAS @ np.array(study["affine_lps"], dtype=float), tuple(study["shape"])
    to_study = np.linalg.inv(affine) @ node_to_ras
    turns, offset = np.round(to_study[:3, :3]), to_study[:3, 3]
    whole = (np.abs(turns).sum(axis=0) == 1).all() and (np.abs(turns).sum(axis=1) == 1).all()
    if not whole:
        raise GridError("the loaded volume is turned or resampled against the study; load the study's own scan")
    axes = np.abs(turns).argmax(axis=1)
    back = turns[range(3), axes] < 0
    expected = np.where(back, np.array(shape) - 1, 0)
    corner = np.abs(to_study[:3, :3] - turns) @ (np.array(node_shape) - 1) + np.abs(offset - expected)
    if tuple(np.array(node_shape)[axes]) != shape or corner.max() > TOLERANCE:
        raise GridError("the loaded volume is cropped or shifted against the study; load the study's own scan")
    i, j, k = (int(axis) for axis in axes)
    return Alignment((i, j, k), (bool(back[0]), bool(back[1]), bool(back[2])))


def view_of(study: dict) -> str:
    """The view that, turned into the volume's planes, shows the slices of a study."""
    normal = np.array(study["affine_lps"], dtype=float)[:3, study["slice_axis"]]
    return VIEWS[int(np.abs(normal).argmax())]


def drawn_slices(labels: np.ndarray, slice_axis: int) -> list[int]:
    """Slices that hold a label, ascending."""
    others = tuple(axis for axis in range(3) if axis != slice_axis)
    return [int(index) for index in np.flatnonzero((labels > 0).any(axis=others))]


def on_slices(shape: tuple[int, ...], slice_axis: int, slices: set[int]) -> np.ndarray:
    """Where these slices are, `(i, j, k)`."""
    chosen = np.zeros(shape, bool)
    np.moveaxis(chosen, slice_axis, 0)[sorted(slices)] = True
    return chosen


def slice_contents(labels: np.ndarray, names: dict[int, str], slice_axis: int) -> list[str]:
    """What tells of each slice whether it is another one now; by names, since numbers change. Empty ones are `""`."""
    return [_content(one, names) for one in np.moveaxis(labels, slice_axis, 0)]


def _content(one: np.ndarray, names: dict[int, str]) -> str:
    values: dict[str, list[int]] = {}
    for value in np.unique(one[one > 0]).tolist():
        values.setdefault(names[value], []).append(value)
    masks = [name.encode() + b"\0" + np.packbits(np.isin(one, values[name])).tobytes() for name in sorted(values)]
    return hashlib.sha256(b"".join(masks)).hexdigest() if masks else ""
