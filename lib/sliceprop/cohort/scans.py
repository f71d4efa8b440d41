"""Scans for pretraining: read, normalised and halved once, then kept on disk as plain tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sliceprop.cohort.finding import Entry, Failure
from sliceprop.cohort.work import size_and_time
from sliceprop.engine.anchors import Anchors, make_anchors
from sliceprop.engine.pretraining import Scan
from sliceprop.engine.training import halved
from sliceprop.errors import SlicePropError
from sliceprop.hashing import array_digest, checksum
from sliceprop.io import write_atomically
from sliceprop.study import open_study

FORMAT = 2
"""Changes when the files mean something else."""

CHECKSUMS = "sha256"
"""Under which a file tells those of its slices and of what is drawn on them: two entries would come in any order."""


class CachedScans:
    """Scans by number, from the files that `prepare` has written.

    The files are mapped: only the slices that are drawn are read, and the system keeps of them what fits into memory,
    once for all processes.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scan:
        return _read(self.files[index])


def cache_file(entry: Entry, cache: Path) -> Path:
    """Where a scan is kept: another file once anything about it has changed."""
    stats = [(str(file), *size_and_time(file)) for file in (entry.image, entry.labels, entry.scribbles) if file]
    options = FORMAT, entry.slice_axis, entry.annotated_slices, entry.partial
    text = json.dumps([stats, options], default=str)
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def prepare(entry: Entry, cache: Path) -> str | Failure:
    """Read a scan, and its sparse labels if it has any, unless it is kept already.

    Returns:
        SHA-256 of its prepared slices, the same for a copy of the scan in another file; or why it cannot be read.
    """
    file = cache_file(entry, cache)
    with suppress(OSError, SafetensorError):  # there is no such file yet, or it is damaged
        return checksums(file)[0]
    try:
        study = open_study(
            entry.image,
            entry.labels,
            scribbles=entry.scribbles,
            slice_axis=entry.slice_axis,
            annotated_slices=entry.annotated_slices,
            partial=entry.partial,
        )
        half = halved(torch.from_numpy(study.volume.slices)[:, None])
        anchors = make_anchors(study.annotation, *half.shape[-2:], device=torch.device("cpu"))
        return _write(file, Scan(half, tuple(anchors)))
    except (SlicePropError, MemoryError) as error:
        name, reason = str(entry.image), " ".join(str(error).split()) or "the memory is full"
        return Failure(name, reason.removeprefix(f"{name}: "), entry.id)


def checksums(file: Path) -> tuple[str, str]:
    """SHA-256 of the slices of a prepared scan, and of what is drawn on them; only its header is read.

    Raises:
        OSError, SafetensorError: there is no such file, or it is damaged.
    """
    with safe_open(file, framework="pt") as content:
        voxels, drawn = json.loads(content.metadata()[CHECKSUMS])
    return voxels, drawn


def _write(file: Path, scan: Scan) -> str:
    tensors: dict[str, Tensor] = {"half": scan.half.half().contiguous()}
    for n, group in enumerate(scan.anchors):
        tensors[f"slices.{n}"] = torch.tensor(group.slices)
        tensors[f"masks.{n}"] = group.masks.half().contiguous()
    digests = {name: array_digest(tensor.numpy()) for name, tensor in tensors.items()}
    voxels = digests.pop("half")
    data = save(tensors, metadata={CHECKSUMS: json.dumps([voxels, checksum(digests)])})
    write_atomically(file, lambda temporary: temporary.write_bytes(data))
    return voxels


def _read(file: Path) -> Scan:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise SlicePropError(f"{file}: a prepared scan is gone or damaged; remove its folder and try again") from error
    groups = sum(name.startswith("slices.") for name in tensors)
    anchors = (Anchors(tuple(tensors[f"slices.{n}"].tolist()), tensors[f"masks.{n}"]) for n in range(groups))
    return Scan(tensors["half"], tuple(anchors))
