"""The trained artefact, and the way from it to displacements between any two slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional

from sliceprop.config import TrainConfig
from sliceprop.engine.flow import compose, integrate_velocity, resize_flow
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.training import Fields, Learner, half_size, halved, predict_velocity
from sliceprop.roi import Roi
from sliceprop.volume import FloatArray

FADE_PX = 16.0
"""Way from the edge of refined fields on which they give way to what lies around them."""


@dataclass(frozen=True)
class Model:
    """A registration network with, for the study it learnt on, the refined velocity fields.

    Attributes:
        weights: of `RegistrationNet`, on the CPU.
        config: what it was trained with.
        study_hash: of the study that `fields` belong to; None for a network pretrained on others.
        roi: part of each slice that `fields` cover; None without fields.
        fields: refined velocities; None for a pretrained network.
        metric: best similarity reached.
    """

    weights: Mapping[str, Tensor]
    config: TrainConfig
    study_hash: str | None = None
    roi: Roi | None = None
    fields: Fields | None = None
    metric: float = 0.0

    def network(self) -> RegistrationNet:
        """A fresh network with these weights."""
        network = RegistrationNet()
        network.load_state_dict(dict(self.weights))
        return network

    def fields_of(self, study_hash: str) -> tuple[Roi, Fields] | None:
        """The refined fields and what they cover, if they are of this study."""
        if self.fields is None or self.roi is None or self.study_hash != study_hash:
            return None
        return self.roi, self.fields


def crop(slices: FloatArray, roi: Roi) -> Tensor:
    """`(S, H, W)` to the tensor `(S, 1, h, w)` of the region of interest."""
    return torch.from_numpy(slices[roi.window].copy())[:, None]


def network_fields(model: Model, images: Tensor) -> Fields:
    """Fields of other slices than the model was refined on: the network's answer, quickly refined at half resolution.

    Args:
        model: gives the network.
        images: `(S, 1, H, W)` in [0, 1].
    """
    return register(images, start=predict_velocity(model.network(), halved(images)), budget_s=4.0)


def widened_fields(model: Model, images: Tensor, old: Roi, new: Roi, fields: Fields) -> Fields:
    """Refined fields on a larger part of the same study: what they cover stays, the network tells about the rest.

    So a mark outside of what was learnt neither spoils what was, nor costs the seconds of learning it again.

    Args:
        model: gives the network.
        images: `(S, 1, H, W)` in [0, 1] of `new`.
        old: what `fields` cover.
        new: holds `old`.
        fields: refined on `old`.
    """
    if old == new:
        return fields
    around = predict_velocity(model.network(), halved(images))
    (height, width), (old_height, old_width) = around.shape[-2:], fields.velocity.shape[-2:]
    rows, row_weight, row_scale = _taken_from(old.rows, old_height, new.rows, height)
    columns, column_weight, column_scale = _taken_from(old.columns, old_width, new.columns, width)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).expand(len(around), -1, -1, -1)
    weight = torch.minimum(row_weight[:, None], column_weight)
    scale = torch.tensor([row_scale, column_scale]).view(1, 2, 1, 1)

    def widened(velocity: Tensor) -> Tensor:
        inside = functional.grid_sample(velocity, grid, padding_mode="border", align_corners=True) * scale
        return weight * inside + (1 - weight) * around

    image_velocity = widened(fields.image_velocity)
    if torch.equal(fields.velocity, fields.image_velocity):
        return Fields(image_velocity, image_velocity)
    return Fields(widened(fields.velocity), image_velocity)


def _taken_from(old: range, old_size: int, new: range, size: int) -> tuple[Tensor, Tensor, float]:
    """Where the points of a new velocity grid lie on the old one, along one axis.

    Args:
        old: pixels that the old grid covers.
        old_size: its points, the first and the last on the first and the last pixel.
        new: pixels that the new grid covers.
        size: its points.

    Returns:
        positions in [-1, 1] on the old grid; the share of the old fields there, 1 inside and fading outside; new grid
        steps per old one.
    """
    pixel = torch.linspace(new[0], new[-1], size)
    outside = torch.maximum(old[0] - pixel, pixel - old[-1]).clamp_min(0)
    length, new_length = max(len(old) - 1, 1), max(len(new) - 1, 1)
    position = 2 * (pixel - old[0]) / length - 1
    return position, (1 - outside / FADE_PX).clamp_min(0), (length / (old_size - 1)) / (new_length / (size - 1))


def register(images: Tensor, *, start: Tensor | None = None, budget_s: float = 8.0) -> Fields:
    """Direct registration of all pairs of neighbouring slices, without any training.

    Args:
        images: `(S, 1, H, W)` in [0, 1].
        start: velocities to begin with, zero without.
        budget_s: wall-clock seconds.
    """
    config = TrainConfig(budget_s=budget_s, max_epochs=0, refine_steps=50, mask_weight=0)
    start = torch.zeros(len(images) - 1, 2, *half_size(*images.shape[-2:])) if start is None else start
    return Learner(images, RegistrationNet(), config, start=start).run()


class SliceTransforms:
    """Displacements between any two slices of a study at full resolution, composed on demand and remembered.

    Several threads may ask at once.
    """

    def __init__(self, velocity: Tensor, height: int, width: int) -> None:
        """Integrate all fields once.

        Args:
            velocity: `(S - 1, 2, h, w)`, see `Fields`.
            height: of the slices to transform, pixels.
            width: the same.
        """
        self._up = resize_flow(integrate_velocity(velocity), height, width)
        self._down = resize_flow(integrate_velocity(-velocity), height, width)
        self._paths: dict[tuple[int, bool], list[Tensor]] = {}
        self._lock = Lock()

    def between(self, source: int, target: int) -> Tensor:
        """Displacement that carries slice `source` to slice `target`, `(1, 2, H, W)`, pixels, on the target's grid."""
        if source == target:
            return torch.zeros_like(self._up[:1])
        rising = target > source
        with self._lock:
            path = self._paths.setdefault((source, rising), [])
            while len(path) < abs(target - source):
                s = source + len(path) if rising else source - len(path) - 1
                step = self._up[s : s + 1] if rising else self._down[s : s + 1]
                path.append(compose(step, path[-1]) if path else step)
            return path[abs(target - source) - 1]
