"""Checkpoints on disk: one safetensors file that describes itself, and the description again as JSON beside it.

Never pickle. The description (config, format version, study hash, checksum, versions) travels in the header of the
tensor file, so that the file alone is complete and the pair cannot fall apart; the JSON is for people and scripts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sliceprop.config import TrainConfig
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.registration import Model
from sliceprop.engine.training import Fields
from sliceprop.errors import CheckpointError, FileError
from sliceprop.io import write_atomically
from sliceprop.roi import Roi

FORMAT_VERSION = 1

_HEADER_KEY = "sliceprop"


def save_checkpoint(path: str | Path, model: Model) -> None:
    """Write `path` (safetensors) and the JSON beside it, each atomically.

    Args:
        path: of the tensor file; the JSON takes its name with the suffix `.json`.
        model: what to store; velocity fields are stored in half precision.

    Raises:
        FileError: if the folder is missing, read-only or full.
    """
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in model.weights.items()}
    if model.fields is not None:
        tensors["velocity"] = model.fields.velocity.half().contiguous()
        tensors["image_velocity"] = model.fields.image_velocity.half().contiguous()
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "study_hash": model.study_hash,
        "roi": model.roi,
        "metric": model.metric,
        "config": asdict(model.config),
        "versions": {name: version(name) for name in ("sliceprop", "torch", "monai", "safetensors")},
    }
    description["sha256"] = _checksum(tensors, description)
    data = save(tensors, metadata={_HEADER_KEY: json.dumps(description)})
    write_atomically(path, lambda temporary: _write(temporary, data))
    text = json.dumps(description, indent=2).encode()
    write_atomically(Path(path).with_suffix(".json"), lambda temporary: _write(temporary, text))


def load_checkpoint(path: str | Path) -> Model:
    """Read a checkpoint and check every part of it; the JSON beside it may be missing, but not tell of another one.

    Raises:
        FileError: if the file is missing or cannot be read.
        CheckpointError: damaged, tampered with, or of another format version.
    """
    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: no such checkpoint")
    try:
        with safe_open(file, framework="pt") as content:
            description = _description(content.metadata(), str(file))
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, not a dict
        if _checksum(tensors, description) != description["sha256"]:
            raise CheckpointError(f"{file}: does not match its checksum; it was changed")
        _check_beside(file.with_suffix(".json"), description)
        roi = description["roi"]
        return Model(
            weights=_weights(tensors, str(file)),
            config=TrainConfig(**description["config"]),
            study_hash=description["study_hash"],
            roi=None if roi is None else Roi(*(int(side) for side in roi)),
            fields=_fields(tensors, str(file)),
            metric=float(description["metric"]),
        )
    except CheckpointError:
        raise
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: is not a checkpoint of this program, or damaged ({error})") from error


def _checksum(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Over the tensors and the rest of the description."""
    rest = {key: value for key, value in description.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _description(metadata: dict[str, str] | None, name: str) -> dict[str, Any]:
    if not metadata or _HEADER_KEY not in metadata:
        raise CheckpointError(f"{name}: is a safetensors file, but not a checkpoint of this program")
    description: dict[str, Any] = json.loads(metadata[_HEADER_KEY])
    found = description["format_version"]
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{name}: has format version {found}, this program reads {FORMAT_VERSION}; train again")
    plain = [description["study_hash"], *description["config"].values()]
    if not all(value is None or isinstance(value, str | int | float) for value in plain):
        raise CheckpointError(f"{name}: has a description that this program did not write")
    return description


def _check_beside(file: Path, description: Mapping[str, Any]) -> None:
    """Refuse a pair that does not belong together.

    The rest of the JSON may be older than the tensors for a moment, since the two files cannot appear at once.
    """
    if not file.is_file():
        return
    beside = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(beside, dict) or any(beside.get(k) != description[k] for k in ("format_version", "study_hash")):
        raise CheckpointError(
            f"{file}: tells of another checkpoint than the tensors beside it; one of them was changed"
        )


def _weights(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    weights = {key.removeprefix("network."): t for key, t in tensors.items() if key.startswith("network.")}
    wanted = RegistrationNet().state_dict()
    if {key: t.shape for key, t in weights.items()} != {key: t.shape for key, t in wanted.items()}:
        raise CheckpointError(f"{name}: holds another network than this program's")
    return weights


def _fields(tensors: dict[str, Tensor], name: str) -> Fields | None:
    if "velocity" not in tensors:
        return None
    velocity, images = tensors["velocity"].float(), tensors["image_velocity"].float()
    if velocity.ndim != 4 or velocity.shape[1] != 2 or images.shape != velocity.shape:
        raise CheckpointError(f"{name}: velocity fields have shape {tuple(velocity.shape)}, not (S - 1, 2, h, w)")
    if not (torch.isfinite(velocity).all() and torch.isfinite(images).all()):
        raise CheckpointError(f"{name}: velocity fields are not finite")
    return Fields(velocity, images)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
