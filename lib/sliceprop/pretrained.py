"""The networks that come with the package: learnt once over many studies, used on every one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sliceprop.engine.refinement import FEATURES, RefinementNet
from sliceprop.errors import CheckpointError, FileError
from sliceprop.io import write_atomically

DEFAULT = "default"

_SHIPPED = "refinement.safetensors"
_HEADER_KEY = "sliceprop-refinement"


@lru_cache(maxsize=4)
def load_refinement(source: str = DEFAULT) -> RefinementNet:
    """The refinement network of the package, or that of a file.

    Raises:
        FileError: no such file.
        CheckpointError: not a refinement network of this program.
    """
    if source == DEFAULT:
        with as_file(files("sliceprop") / _SHIPPED) as path:
            return _read(path)
    return _read(Path(source))


def save_refinement(path: Path, network: RefinementNet, about: Mapping[str, Any]) -> None:
    """Write a refinement network.

    Args:
        path: of the file, `.safetensors`.
        network: trained.
        about: where it comes from, plain values.
    """
    header = {**about, "width": network.width, "trust": network.trust, "features": FEATURES}
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    data = save(tensors, metadata={_HEADER_KEY: json.dumps(header)})
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))


def _read(path: Path) -> RefinementNet:
    if not path.is_file():
        raise FileError(f"{path}: no such refinement network; use default, none or a file")
    try:
        with safe_open(path, framework="pt") as content:
            header = json.loads((content.metadata() or {})[_HEADER_KEY])
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, not a dict
        network = RefinementNet(int(header["width"]), float(header["trust"]))
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is not a refinement network of this program, or damaged ({error})") from error
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError(f"{path}: the refinement network is not finite")
    return network.eval()
