"""The networks by name: segmentation-models-pytorch's, or the nearest ones of MONAI where that cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sliceprop.config import Predictor, PredictorConfig
from sliceprop.engine.weight_files import read_tensors
from sliceprop.errors import InputError

CHANNELS = 3
"""Every slice goes in three times: pretrained encoders want colours, the others do not mind."""

SIDE_PX = 32
"""Sides of the slices are multiples of this: the encoders halve them five times."""


def make_network(method: Predictor, config: PredictorConfig, n_classes: int) -> tuple[nn.Module, str]:
    """A network that takes `(B, CHANNELS, H, W)` to logits `(B, n_classes, H, W)`.

    Args:
        method: which one.
        config: encoder and its weights.
        n_classes: background included.

    Returns:
        the network, and what it is, for the report.

    Raises:
        InputError: an encoder or weights that it cannot take.
    """
    try:
        library = load_library()
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        network, name = make_substitute(method, config, n_classes)
        return network, (
            f"{name}, a substitute for {method}: segmentation-models-pytorch could not be loaded ({reason})"
        )
    return _make_network(library, method, config, n_classes)


def load_library() -> Any:
    """Import segmentation-models-pytorch.

    Where torchvision's compiled half does not fit torch, its Python half stumbles over the two operators that it
    describes without asking whether they exist. Declared without code they let it load; a call of them still fails,
    and the networks make none.

    Raises:
        ImportError: if it is not installed.
        RuntimeError: if torchvision does not load even so.
    """
    try:
        import segmentation_models_pytorch
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import segmentation_models_pytorch
    return segmentation_models_pytorch


def _make_network(library: Any, method: Predictor, config: PredictorConfig, n_classes: int) -> tuple[nn.Module, str]:
    encoder, weights = config.encoder, config.encoder_weights
    if encoder not in library.encoders.get_encoder_names() and not encoder.startswith("tu-"):
        raise InputError(f"unknown encoder {encoder!r}; choose one of segmentation-models-pytorch, such as resnet18")
    try:
        network = library.create_model(
            method,
            encoder_name=encoder,
            encoder_weights="imagenet" if weights == "imagenet" else None,
            in_channels=CHANNELS,
            classes=n_classes,
        )
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{method} cannot use encoder {encoder!r} with weights {weights!r}: {error}") from error
    if weights not in ("none", "imagenet"):
        load_encoder_weights(network.encoder, Path(weights))
    name = f"segmentation-models-pytorch {type(network).__name__}, encoder {encoder}, encoder weights {weights}"
    return network, name


def load_encoder_weights(encoder: nn.Module, file: Path) -> None:
    """Fill an encoder with the state dict in a file; weights of a classifier on top of it are left out by the encoder.

    Args:
        encoder: of the network.
        file: `.safetensors`, else what `torch.save` wrote; tensors only, nothing in it is executed.

    Raises:
        InputError: a file that holds something else or the weights of another encoder.
    """
    try:
        encoder.load_state_dict(read_tensors(file))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be used as weights of this encoder ({reason})") from error


def make_substitute(method: Predictor, config: PredictorConfig, n_classes: int) -> tuple[nn.Module, str]:
    """The network of MONAI that is nearest: a U-Net on the same encoder, a U-Net with attention gates in place of
    MAnet's, and dilated convolutions in place of DeepLabV3+'s.

    Args:
        method: what it stands in for.
        config: encoder, for the U-Net; without weights.
        n_classes: background included.

    Returns:
        the network and its name.

    Raises:
        InputError: an encoder that it does not know, or weights.
    """
    from monai.networks.nets.attentionunet import AttentionUnet
    from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet
    from monai.networks.nets.highresnet import HighResNet

    if config.encoder_weights != "none":
        raise InputError("encoder weights need segmentation-models-pytorch; install sliceprop[predictors]")
    if method == "unet":
        try:
            network = FlexibleUNet(CHANNELS, n_classes, config.encoder)
        except ValueError as error:
            known = ", ".join(sorted(FLEXUNET_BACKBONE.register_dict))
            raise InputError(
                f"encoder {config.encoder!r} needs segmentation-models-pytorch; without it choose from {known}"
            ) from error
        return network, f"monai FlexibleUNet, encoder {config.encoder}"
    if config.encoder != PredictorConfig.encoder:
        raise InputError(f"{method} has an encoder to choose only with segmentation-models-pytorch; leave it out")
    if method == "manet":
        return AttentionUnet(2, CHANNELS, n_classes, (32, 64, 128, 256), (2, 2, 2)), "monai AttentionUnet"
    return HighResNet(2, CHANNELS, n_classes), "monai HighResNet"
