"""Annotated masks as anchors of learning: carried from one annotated slice to the next they must match it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sliceprop.engine.flow import compose, warp
from sliceprop.engine.losses import soft_dice_loss
from sliceprop.labels import LabelArray, SparseLabels

ANCHOR_GAP = 7
"""Slices from one mask to the next, at most: up to here masks helped (muscles, by up to .007 Dice), over longer ways
they bent the fields (an aorta, by up to .2)."""


@dataclass(frozen=True)
class Anchors:
    """Masks of labels that are known on the same slices, on the velocity grid.

    Attributes:
        slices: ascending indices of the slices on which these labels are known.
        masks: `(len(slices), K, h, w)` in [0, 1].
        scribbles: slice index to `(2, K, h, w)`: where each label must be, and where it must not be.
    """

    slices: tuple[int, ...]
    masks: Tensor
    scribbles: dict[int, Tensor] = field(default_factory=dict)


def anchor_loss(up: Tensor, down: Tensor, anchors: Sequence[Anchors]) -> Tensor:
    """How far masks carried from one annotated slice to the next miss what is annotated there, mean of both directions.

    Only pairs of slices up to `ANCHOR_GAP` apart count. The displacements on the way are composed first, so that each
    mask is resampled once. On the way, a label that misses a scribble of its own, or covers one that excludes it, adds
    its squared error there.

    Args:
        up: `(S - 1, 2, h, w)` displacements, entry `s` maps the grid of slice `s + 1` into slice `s`.
        down: the same the other way, entry `s` maps the grid of slice `s` into slice `s + 1`.
        anchors: groups of labels, masks on the same grid.
    """
    terms: list[Tensor] = []
    for group in anchors:
        for i, (low, high) in enumerate(pairwise(group.slices)):
            if high - low > ANCHOR_GAP:
                continue
            below, above = group.masks[i : i + 1], group.masks[i + 1 : i + 2]
            rising = [(up[s : s + 1], s + 1) for s in range(low, high)]
            falling = [(down[s : s + 1], s) for s in range(high - 1, low - 1, -1)]
            terms += _carry_losses(below, above, rising, group.scribbles)
            terms += _carry_losses(above, below, falling, group.scribbles)
    return torch.stack(terms).mean() if terms else up.sum() * 0


def _carry_losses(
    source: Tensor, target: Tensor, path: Sequence[tuple[Tensor, int]], scribbles: Mapping[int, Tensor]
) -> list[Tensor]:
    """Losses of carrying `source` along `path`, pairs of a displacement and the slice that it reaches."""
    terms, disp = [], torch.zeros_like(path[0][0])
    for step, reached in path:
        disp = compose(step, disp)
        if reached in scribbles:
            inside, outside = scribbles[reached]
            warped = warp(source, disp)[0]
            missed = (inside * (1 - warped)).square().sum() + (outside * warped).square().sum()
            terms.append(missed / (inside.sum() + outside.sum()).clamp_min(1))
    return [*terms, soft_dice_loss(warp(source, disp), target)]


def make_anchors(annotation: SparseLabels, height: int, width: int, *, device: torch.device) -> list[Anchors]:
    """Anchors of an annotation, one group per set of slices on which labels are known; none where all lie far apart.

    Args:
        annotation: `(S, H, W)` in the region of interest.
        height: of the velocity grid.
        width: the same.
        device: where learning happens.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for k in range(len(annotation.values)):
        groups.setdefault(annotation.known_slices(k), []).append(k)
    return [
        Anchors(
            slices,
            torch.cat([_masks(annotation.labels[s], annotation, labels, height, width) for s in slices]).to(device),
            {s: masks.to(device) for s, masks in _scribble_masks(annotation, slices, labels, height, width).items()},
        )
        for slices, labels in groups.items()
        if any(high - low <= ANCHOR_GAP for low, high in pairwise(slices))
    ]


def _masks(plane: LabelArray, annotation: SparseLabels, labels: list[int], height: int, width: int) -> Tensor:
    """Share of each grid cell that a label covers, `(1, K, h, w)`."""
    masks = torch.from_numpy(np.stack([plane == annotation.values[k] for k in labels]).astype(np.float32))
    return functional.interpolate(masks[None], size=(height, width), mode="area")


def _scribble_masks(
    annotation: SparseLabels, slices: tuple[int, ...], labels: list[int], height: int, width: int
) -> dict[int, Tensor]:
    """Grid cells touched by scribbles on slices in between: of the label itself, and of anything else."""
    if annotation.scribbles is None:
        return {}
    between = set(range(slices[0] + 1, slices[-1])) - set(slices)
    marks = {s: annotation.scribbles[s] for s in between if annotation.scribbles[s].any()}
    return {
        s: torch.stack(
            [
                functional.adaptive_max_pool2d(_touched(plane, annotation, labels, same=same), (height, width))
                for same in (True, False)
            ]
        )
        for s, plane in marks.items()
    }


def _touched(plane: LabelArray, annotation: SparseLabels, labels: list[int], *, same: bool) -> Tensor:
    masks = [
        (plane == annotation.values[k]) if same else (plane != 0) & (plane != annotation.values[k]) for k in labels
    ]
    return torch.from_numpy(np.stack(masks).astype(np.float32))
