"""A MONAI bundle that lies on this machine, run on one scan: its labels are a draft to start from.

A bundle's configuration holds Python expressions, which run with the rights of this process: use only bundles that you
trust. Nothing is downloaded, and weights are read as tensors only.

References:
    MONAI Bundle specification, https://docs.monai.io/en/stable/bundle_intro.html
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.transforms.compose import Compose
from monai.transforms.io.array import SaveImage
from monai.transforms.io.dictionary import SaveImaged
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.errors import FileError, GeometryError, InputError, SlicePropError
from sliceprop.labels import LabelArray, check_labels

CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
WEIGHTS = Path("models", "model.pt")


@dataclass(frozen=True)
class Bundle:
    """Where a bundle lies and what it says about itself.

    Attributes:
        folder: root of the bundle.
        config: its inference configuration.
        names: label value to name, background left out; empty where the bundle does not say.
    """

    folder: Path
    config: Path
    names: Mapping[int, str]


def open_bundle(folder: str | Path) -> Bundle:
    """Look at a bundle without running anything of it.

    Raises:
        FileError: if the folder is no bundle with an inference configuration and weights.
    """
    root = Path(folder)
    found = [root / "configs" / name for name in CONFIGS if (root / "configs" / name).is_file()]
    if not found:
        raise FileError(f"{root}: is no MONAI bundle for inference, there is no configs/{CONFIGS[0]}")
    if not (root / WEIGHTS).is_file():
        raise FileError(f"{root}: the bundle has no weights, there is no {WEIGHTS}; unpack it completely")
    return Bundle(root, found[0], _names(root / "configs" / "metadata.json"))


def run_bundle(bundle: Bundle, scan: io.Image, *, device: str = "cpu") -> LabelArray:
    """Segment a scan.

    Args:
        bundle: from `open_bundle`.
        scan: image on any grid; the bundle's own postprocessing has to bring the result back onto it.
        device: for the network.

    Returns:
        `(i, j, k)` labels on the grid of the scan.

    Raises:
        InputError: or a subclass, with the reason if the bundle does not work on this scan.
    """
    try:
        predicted = _predict(bundle, scan, torch.device(device))
    except SlicePropError:
        raise
    except Exception as error:  # whatever the bundle's own code raises
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(f"{bundle.folder}: the bundle does not work ({reason[-1] if reason else error})") from error
    if predicted.shape != scan.array.shape:
        raise GeometryError(
            f"{bundle.folder}: its result has the shape {predicted.shape}, not {scan.array.shape} as the scan; "
            "its postprocessing has to invert the preprocessing (Invertd)"
        )
    return check_labels(predicted, scan.array.shape, str(bundle.folder))


def _names(metadata: Path) -> dict[int, str]:
    try:
        formats = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]
        channels = formats["outputs"]["pred"]["channel_def"]
        return {int(value): str(name) for value, name in channels.items() if int(value) > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _predict(bundle: Bundle, scan: io.Image, device: torch.device) -> NDArray[Any]:
    parser = ConfigParser()
    parser.read_config(str(bundle.config))
    parser["bundle_root"], parser["device"] = str(bundle.folder), str(device)
    network = parser.get_parsed_content("network_def").to(device)
    weights = torch.load(bundle.folder / WEIGHTS, map_location=device, weights_only=True)
    network.load_state_dict(weights.get("model", weights))
    network.eval()
    before, after = parser.get_parsed_content("preprocessing"), _unsaved(parser.get_parsed_content("postprocessing"))
    inferer = parser.get_parsed_content("inferer")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "image.nii.gz"
        io.write_image(file, scan.array, scan)
        data = before({"image": str(file)})
        predicted = inferer(data["image"][None].to(device), network)[0]
        return _labels(after({**data, "pred": predicted})["pred"])


def _unsaved(steps: Compose) -> Compose:
    """Without those that write files where the bundle wants them."""
    return Compose([step for step in steps.transforms if not isinstance(step, SaveImage | SaveImaged)])


def _labels(predicted: torch.Tensor) -> NDArray[Any]:
    """One value per voxel from `(1, i, j, k)`, or from scores `(C, i, j, k)`."""
    array = np.asarray(predicted.detach().cpu())
    labels: NDArray[Any] = array[0] if len(array) == 1 else array.argmax(axis=0)
    return labels
