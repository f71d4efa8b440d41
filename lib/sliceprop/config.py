"""Settings of each stage as frozen dataclasses; checked where they are made, trusted afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from sliceprop.errors import InputError

Method = Literal["auto", "registration", "shape", "contour", "nearest"]
Predictor = Literal["unet", "deeplabv3plus", "manet"]
Fusion = Literal["sdf", "distance", "lncc-pixel", "lncc-slice", "lncc-mask"]
Similarity = Literal["lncc", "mse"]
Plan = Literal["centres", "keep_n", "random", "kmeans", "histogram", "ssim", "perceptual"]

METHODS: tuple[Method, ...] = get_args(Method)
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
PLANS: tuple[Plan, ...] = get_args(Plan)
LEARNED_METHODS: tuple[Method, ...] = ("auto", "registration")

MAX_LABEL = 65_535
MAX_SEED = 2**63 - 1
BACKGROUND_SCRIBBLE = 255


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def parse_extrapolate(text: str | int) -> Literal["auto", "none"] | int:
    """`auto`, `none` or a number of slices of at least 0, from a command line or a request.

    Raises:
        InputError: if it is none of these.
    """
    if text in ("auto", "none"):
        return cast(Literal["auto", "none"], text)
    try:
        slices = int(text)
    except (TypeError, ValueError, OverflowError):
        slices = -1
    _require(slices >= 0, f"extrapolate must be auto, none or a number of slices >= 0, not {text!r}")
    return slices


@dataclass(frozen=True)
class TrainConfig:
    """Learning the registration of one study.

    Attributes:
        budget_s: wall-clock seconds for learning and refinement together; the best weights so far are kept at its end.
        max_epochs: upper bound on passes over all slice pairs by the network.
        refine_steps: steps of direct optimisation of the velocity fields after the network.
        similarity: image similarity of a slice pair, local normalised cross-correlation or squared differences.
        smoothness: weight of the velocity's diffusion loss.
        mask_weight: weight of the Dice loss between neighbouring annotated slices that lie near each other, after
            composition; 0 switches it off.
        patience: epochs without improvement after which the network stops.
        learning_rate: of the network.
        seed: of weights and batch order; the same seed on the same device gives the same fields
            when `budget_s` does not cut learning short.
    """

    budget_s: float = 30.0
    max_epochs: int = 8
    refine_steps: int = 60
    similarity: Similarity = "lncc"
    smoothness: float = 0.3
    mask_weight: float = 1.0
    patience: int = 10
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.budget_s < math.inf, f"budget_s must be positive seconds, not {self.budget_s}")
        _require(self.max_epochs >= 0, f"max_epochs must be >= 0, not {self.max_epochs}")
        _require(self.refine_steps >= 0, f"refine_steps must be >= 0, not {self.refine_steps}")
        _require(self.similarity in get_args(Similarity), f"similarity must be one of {get_args(Similarity)}")
        _require(self.smoothness >= 0 and self.mask_weight >= 0, "loss weights must be >= 0")
        _require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        _require(0 <= self.seed <= MAX_SEED, f"seed must lie in 0..{MAX_SEED}, not {self.seed}")


@dataclass(frozen=True)
class PredictorConfig:
    """Overfitting a 2D network to the annotated slices of one study.

    Attributes:
        encoder: of the network, a name of segmentation-models-pytorch: `resnet18`, `resnet152`, `resnext101_32x8d`...
        encoder_weights: `none`, a file with the encoder's state dict (`.pth` or `.safetensors`), or `imagenet`, which
            segmentation-models-pytorch downloads.
        budget_s: wall-clock seconds for learning; the best weights so far are kept at its end.
        max_epochs: upper bound on epochs, of 20 steps each.
        patience: epochs without a lower training loss after which learning stops.
        learning_rate: of Adam.
        seed: of weights, augmentation and batch order.
    """

    encoder: str = "resnet18"
    encoder_weights: str = "none"
    budget_s: float = 600.0
    max_epochs: int = 200
    patience: int = 20
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.encoder), "name an encoder, such as resnet18")
        _require(bool(self.encoder_weights), "encoder weights must be none, imagenet or a file")
        _require(0 < self.budget_s < math.inf, f"budget_s must be positive seconds, not {self.budget_s}")
        _require(self.max_epochs >= 1, f"max_epochs must be >= 1, not {self.max_epochs}")
        _require(self.patience >= 1, f"patience must be >= 1, not {self.patience}")
        _require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        _require(0 <= self.seed <= MAX_SEED, f"seed must lie in 0..{MAX_SEED}, not {self.seed}")


@dataclass(frozen=True)
class PropagateConfig:
    """Carrying the labels through the volume.

    Attributes:
        method: `auto` weighs the candidates by the evidence of the study; the others force one candidate, or one of
            `PREDICTORS`, networks that are overfitted to the annotated slices within minutes.
        fusion: how the candidates from the lower and the upper annotated slice are merged.
        extrapolate: beyond the outermost annotated slices: `none`, a number of slices, or `auto`
            (on while the image supports it, stop where the structure ends).
        predictor: how the networks learn; the other methods do not look at it.
        refinement: how `auto` refines what a model carried: `default` for the network that comes with the package,
            `none`, or a file with another one.
    """

    method: Method | Predictor = "auto"
    fusion: Fusion = "sdf"
    extrapolate: Literal["auto", "none"] | int = "auto"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    refinement: str = "default"

    def __post_init__(self) -> None:
        methods = (*METHODS, *PREDICTORS)
        _require(self.method in methods, f"unknown method {self.method!r}, choose from {', '.join(methods)}")
        _require(self.fusion in FUSIONS, f"unknown fusion {self.fusion!r}, choose from {', '.join(FUSIONS)}")
        parse_extrapolate(self.extrapolate)


@dataclass(frozen=True)
class SuggestConfig:
    """Which slices to annotate next.

    Attributes:
        n: how many.
        target: estimated Dice above which a slice needs no annotation.
        plan: `next_slice` for the slices that are expected to gain most, each knowing those before it, or one of
            `PLANS`, which look at the scan alone and lay out all `n` slices at once (`engine.plans.plan_slices`).
        seed: of the plans' draws and clusters.
        perceptual_weights: file with AlexNet's weights, for the plan `perceptual`; without it the study's own network
            judges, or fixed filters where there is none.
        linear_weights: file with LPIPS' weights of AlexNet's channels, to go with them.
    """

    n: int = 1
    target: float = 0.95
    plan: Literal["next_slice"] | Plan = "next_slice"
    seed: int = 0
    perceptual_weights: Path | None = None
    linear_weights: Path | None = None

    def __post_init__(self) -> None:
        plans = ("next_slice", *PLANS)
        _require(self.n >= 1, f"the number of slices to suggest must be at least 1, not {self.n}")
        _require(0 < self.target <= 1, f"the target Dice must lie above 0 and at most at 1, not {self.target}")
        _require(self.plan in plans, f"unknown plan {self.plan!r}, choose from {', '.join(plans)}")
        _require(0 <= self.seed <= MAX_SEED, f"seed must lie in 0..{MAX_SEED}, not {self.seed}")
        weights = self.perceptual_weights or self.linear_weights
        _require(weights is None or self.plan == "perceptual", "weights of AlexNet and LPIPS need the plan perceptual")
