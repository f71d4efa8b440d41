"""Which slices are annotated: the plans of the engine, and `ends`.

Two ways of asking for them. A *number* of slices is placed within the labelled range, as a user would who looks where
the structures are. A *percentage* is of all slices of the volume, empty ones included, as in Payer et al.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.plans import BLIND_PLANS, PLANS, plan_slices
from sliceprop.volume import FloatArray, normalise_intensity

PLACEMENTS = ("ends", *PLANS)


def annotated_slices(
    slices: NDArray[Any],
    labelled_range: tuple[int, int],
    placement: str,
    amount: str,
    seed: int = 0,
    network: RegistrationNet | None = None,
) -> list[int]:
    """Slices to annotate, ascending.

    Args:
        slices: the scan `(S, H, W)`.
        labelled_range: first and last slice that holds a label.
        placement: one of `PLACEMENTS`.
        amount: `5` slices of the labelled range, or `20%` of all slices.
        seed: of what is drawn at random.
        network: trained on the scan, for `perceptual`; fixed filters without it.
    """
    if amount.endswith("%"):
        share, n_slices = float(amount[:-1]) / 100, len(slices)
        if placement == "keep_n":
            return list(range(0, n_slices, max(1, round(1 / share))))
        (first, last), count = (0, n_slices - 1), max(1, round(share * n_slices))
    else:
        (first, last), count = labelled_range, int(amount)
    if placement == "ends":
        return sorted({int(s) for s in np.round(np.linspace(first, last, count))})
    scan = slices if placement in BLIND_PLANS else _normalised(slices)
    return plan_slices(scan, count, placement, seed=seed, first=first, last=last, network=network)


def _normalised(slices: NDArray[Any]) -> FloatArray:
    """Intensities in [0, 1]; 0 for a constant scan."""
    return normalise_intensity(slices) if np.ptp(slices) else np.zeros(slices.shape, np.float32)
