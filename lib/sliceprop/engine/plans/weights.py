"""Published weights of LPIPS from files that the user has; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sliceprop.engine.weight_files import read_tensors
from sliceprop.errors import FileError, InputError

ALEXNET_SHAPES = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}
"""Kernels of the convolutions, by number in torchvision's `features`."""


def read_alexnet(file: Path) -> dict[str, Tensor]:
    """The convolutional layers of torchvision's AlexNet, `features.0.weight` and so on; the rest is left out.

    Args:
        file: state dict, `.safetensors`, else what `torch.save` wrote; tensors only, nothing in it is executed.

    Raises:
        FileError: no such file.
        InputError: another content.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, shape in ALEXNET_SHAPES.items():
        shapes |= {f"features.{layer}.weight": shape, f"features.{layer}.bias": shape[:1]}
    return _read(file, shapes, "torchvision's state dict of AlexNet")


def read_linear(file: Path) -> list[Tensor]:
    """Weight of each channel of AlexNet's five layers, `(C,)` each, from LPIPS' `lin0.model.1.weight` and so on.

    Args:
        file: state dict, as for `read_alexnet`.

    Raises:
        FileError: no such file.
        InputError: another content, or negative weights.
    """
    channels = [shape[0] for shape in ALEXNET_SHAPES.values()]
    shapes = {f"lin{level}.model.1.weight": (1, n, 1, 1) for level, n in enumerate(channels)}
    tensors = _read(file, shapes, "LPIPS' linear layers for AlexNet (alex.pth)")
    weights = [tensors[name].flatten() for name in shapes]
    if any((weight < 0).any() for weight in weights):
        raise InputError(f"{file}: holds negative weights; give the published file")
    return weights


def _read(file: Path, shapes: Mapping[str, tuple[int, ...]], wanted: str) -> dict[str, Tensor]:
    """Tensors of a file by name, float32."""
    if not file.is_file():
        raise FileError(f"{file}: no such file; give {wanted}")
    try:
        tensors = read_tensors(file)
        found = {name: tensors[name].float() for name in shapes}
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as {wanted} ({reason})") from error
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise InputError(f"{file}: {name} has shape {tuple(found[name].shape)}, not {shape}; give {wanted}")
        if not found[name].isfinite().all():
            raise InputError(f"{file}: {name} is not finite; give {wanted}")
    return found
