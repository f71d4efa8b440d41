"""Train a small MONAI U-Net on a data set of `sliceprop export-dataset`; the example of docs/cohort.md.

Uncertain voxels count less: a voxel's weight is its confidence where the data set has weights, and nothing where it
has the ignore label. The last case is held out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset, list_data_collate, load_decathlon_datalist
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandSpatialCropSamplesd,
    SpatialPadd,
)
from torch import Tensor
from torch.nn import functional


def read(items: Sequence[Mapping[str, str]]) -> list[dict[str, Tensor]]:
    """Images with mean 0 and deviation 1, labels and weights, `(1, i, j, k)`."""
    keys = list(items[0])
    load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), NormalizeIntensityd("image")])
    return [load(item) for item in items]


def patches(cases: Sequence[Mapping[str, Tensor]], patch: Sequence[int], batch: int) -> DataLoader:
    """Random patches, four of each case."""
    keys = list(cases[0])
    cut = Compose([SpatialPadd(keys, patch), RandSpatialCropSamplesd(keys, patch, 4, random_size=False)])
    return DataLoader(Dataset(cases, cut), batch_size=batch, shuffle=True, collate_fn=list_data_collate)


def loss(scores: Tensor, labels: Tensor, weights: Tensor, ignored: int | None) -> Tensor:
    """Weighted cross-entropy and Dice loss; `scores` `(B, C, ...)`, `labels` and `weights` `(B, 1, ...)`."""
    if ignored is not None:
        weights = weights * (labels != ignored)
        labels = torch.where(labels == ignored, 0, labels)
    entropy = functional.cross_entropy(scores, labels[:, 0].long(), reduction="none")
    weighted = (entropy * weights[:, 0]).sum() / weights.sum().clamp_min(1)
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    certain = weights > 0
    return weighted + dice(torch.where(certain, scores, scores.detach()), torch.where(certain, labels, 0))


def dice_of_labels(found: Tensor, truth: Tensor, labels: Sequence[int], ignored: int | None) -> float:
    """Mean Dice over the labels, without ignored voxels."""
    counted = torch.ones_like(truth, dtype=torch.bool) if ignored is None else truth != ignored
    masks = [((found == label) & counted, (truth == label) & counted) for label in labels]
    return float(sum(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1) for a, b in masks) / len(masks))


def main() -> None:
    """Train, and print the Dice of the held-out case against its propagated labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="folder with datalist.json")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 8))
    parser.add_argument("--output", type=Path, default=Path("unet.pt"))
    chosen = parser.parse_args()

    listed = load_decathlon_datalist(chosen.dataset / "datalist.json", is_segmentation=True, data_list_key="training")
    names: dict[str, Any] = json.loads((chosen.dataset / "dataset.json").read_text())["labels"]
    ignored = names.pop("ignore", None)
    *cases, held_out = read(listed)
    torch.manual_seed(0)
    strides = [(2, 2, 1), (2, 2, 2)]
    network = UNet(3, 1, len(names), channels=(16, 32, 64), strides=strides, num_res_units=1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(chosen.epochs):
        losses = []
        for batch in patches(cases, chosen.patch, 2):
            weights = batch.get("weight", torch.ones_like(batch["image"]))
            step = loss(network(batch["image"]), batch["label"], weights, ignored)
            optimiser.zero_grad()
            step.backward()
            optimiser.step()
            losses.append(float(step.detach()))
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")  # noqa: T201
    with torch.no_grad():
        found = sliding_window_inference(held_out["image"][None], chosen.patch, 4, network.eval()).argmax(1)
    dice = dice_of_labels(found[0], held_out["label"][0], range(1, len(names)), ignored)
    print(f"held-out case: Dice {dice:.3f}")  # noqa: T201
    torch.save(network.state_dict(), chosen.output)


if __name__ == "__main__":
    main()
