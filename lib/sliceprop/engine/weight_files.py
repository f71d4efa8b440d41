"""Weights of networks from files that the user has."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A state dict: `.safetensors`, else what `torch.save` wrote; tensors only, nothing in it is executed.

    Raises:
        Exception: whatever the libraries raise for a file that they cannot read; the caller knows what was wanted.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors
