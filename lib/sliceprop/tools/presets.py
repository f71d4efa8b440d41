"""Choices that a front end offers before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Keep = Literal["largest", "selected", "all"]
KEEPS: tuple[Keep, ...] = get_args(Keep)
"""Which islands of a threshold stay."""

PRESETS: Mapping[str, tuple[float | None, float | None]] = {
    "lung": (-1024, -500),
    "fat": (-190, -30),
    "soft-tissue": (-30, 150),
    "contrast": (150, 500),
    "bone": (200, None),
}
"""Lower and upper threshold, Hounsfield units of CT; None for an open end."""
