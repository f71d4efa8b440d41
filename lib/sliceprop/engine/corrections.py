"""What corrective scribbles change around them: as much as the result was wrong where they lie, on what looks alike.

A scribble that only confirms the result changes nothing. Elsewhere it pushes the scores around it towards its label, by
a little more than they fall short at the nearest scribbled pixel, less with distance and where the image differs from
what was scribbled. So a wrong region gives way where it was just as doubtful, and what is sure stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from sliceprop.engine.interpolation import Box, bounding_box
from sliceprop.engine.propagation import Carrier
from sliceprop.engine.refinement import log_odds
from sliceprop.labels import SCRIBBLED_BACKGROUND

STRENGTH = 1.5
"""Push at a scribble, as a multiple of what the scribbled label lacks there."""

SIGMA_PX = 4.0
"""Of the distance from the nearest scribbled pixel; nothing changes further than three of these."""

SIGMA_INTENSITY = 0.15
"""Of the difference in smoothed intensity from the nearest scribbled pixel; images lie in [0, 1]."""

NEIGHBOUR_SHARE = 0.5
"""Of the push that is left on the slice before and the slice after."""

REACH_PX = int(3 * SIGMA_PX)


class _Stroke(NamedTuple):
    """The marks of one label, or of background, on one slice, and what they reach.

    Attributes:
        value: label value or `SCRIBBLED_BACKGROUND`.
        box: rows and columns within reach.
        nearest: rows and columns of the nearest mark in the box, `(2, h, w)`.
        weight: of the distance, `(h, w)`, 0 out of reach.
        intensity: smoothed, at the nearest mark, `(h, w)`.
    """

    value: int
    box: Box
    nearest: NDArray[np.intp]
    weight: NDArray[np.float64]
    intensity: NDArray[np.float32]


class Corrections:
    """The scribbles of a study, ready to correct one slice after the other; threads may share it."""

    def __init__(self, carrier: Carrier) -> None:
        """Args: carrier: annotation and images of the region of interest."""
        self._values, self._windows, self._images = carrier.annotation.values, carrier.windows, carrier.images
        marks = carrier.annotation.scribbles
        marked = () if marks is None else np.flatnonzero(marks.any(axis=(1, 2))).tolist()
        self._strokes = {} if marks is None else {s: _strokes(marks[s], self._smoothed(s)) for s in marked}

    def _smoothed(self, s: int) -> NDArray[np.float32]:
        smooth: NDArray[np.float32] = ndimage.gaussian_filter(self._images[s, 0].numpy(), 1.0)
        return smooth

    def correct(self, s: int, claims: list[Tensor]) -> list[Tensor]:
        """Scores of all labels on slice `s`, each in its label's window, in [-1, 1], with what scribbles change."""
        near = [(t, NEIGHBOUR_SHARE if t != s else 1.0) for t in (s - 1, s, s + 1) if t in self._strokes]
        if not near:
            return claims
        best, smooth, pushes = self._best(claims), self._smoothed(s), dict[int, Tensor]()
        drawn = {stroke.value for t, _ in near for stroke in self._strokes[t]}
        lacking = {value: best - self._log_odds(value, claims) for value in drawn}
        for t, share in near:
            for stroke in self._strokes[t]:
                push = pushes.setdefault(stroke.value, torch.zeros(smooth.shape))
                alike = np.exp(-0.5 * ((smooth[stroke.box] - stroke.intensity) / SIGMA_INTENSITY) ** 2)
                lack = lacking[stroke.value][tuple(torch.from_numpy(stroke.nearest))]
                pushed = STRENGTH * share * lack * torch.from_numpy((stroke.weight * alike).astype(np.float32))
                push[stroke.box] = torch.maximum(push[stroke.box], pushed)
        return [
            _pushed(claim, sum(push[window] if value == own else -push[window] for value, push in pushes.items()))
            for claim, own, window in zip(claims, self._values, self._windows, strict=True)
        ]

    def _best(self, claims: list[Tensor]) -> Tensor:
        """Log-odds of what wins at each pixel, `(H, W)`; 0 where that is background."""
        best = torch.zeros(self._images.shape[-2:])
        for claim, window in zip(claims, self._windows, strict=True):
            best[window] = torch.maximum(best[window], claim)
        return log_odds(best)

    def _log_odds(self, value: int, claims: list[Tensor]) -> Tensor:
        """Of a label, or of background, at each pixel, `(H, W)`."""
        if value == SCRIBBLED_BACKGROUND:
            return torch.zeros(self._images.shape[-2:])
        k, score = self._values.index(value), torch.full(self._images.shape[-2:], -1.0)
        score[self._windows[k]] = claims[k]
        return log_odds(score)


def _strokes(marks: NDArray[np.int32], smooth: NDArray[np.float32]) -> list[_Stroke]:
    """The strokes of a slice `(H, W)`."""
    strokes = []
    for value in np.unique(marks[marks != 0]).tolist():
        mask = marks == value
        box = bounding_box(mask, REACH_PX)
        distance, nearest = ndimage.distance_transform_edt(~mask[box], return_indices=True)
        weight = np.where(distance <= REACH_PX, np.exp(-0.5 * (distance / SIGMA_PX) ** 2), 0)
        nearest += np.array([side.start for side in box])[:, None, None]
        strokes.append(_Stroke(value, box, nearest, weight, smooth[tuple(nearest)]))
    return strokes


def _pushed(score: Tensor, push: Tensor | int) -> Tensor:
    """A score after a push of its log-odds."""
    return torch.where(torch.as_tensor(push) == 0, score, torch.tanh((log_odds(score) + push) / 2))
