"""The refinement network that a measured volume gets: one that was fitted without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sliceprop.config import PropagateConfig

FOLDS = Path(__file__).parent / "folds"
"""Networks by the volume that they have not seen; `fit_refinement.py` writes them."""

SHIPPED = PropagateConfig()


def unseen(volume: str, config: PropagateConfig = SHIPPED) -> PropagateConfig:
    """`auto` with a network that has not seen the volume, if it helped to fit the shipped one; others as they are."""
    fold = FOLDS / f"{volume}.safetensors"
    if config.method != "auto" or config.refinement != "default" or not fold.exists():
        return config
    return replace(config, refinement=str(fold))
