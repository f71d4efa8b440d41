"""What the user chose in the panel, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sliceprop.config import PREDICTORS, PredictorConfig, PropagateConfig, SuggestConfig, TrainConfig


@dataclass(frozen=True)
class Settings:
    """Options of one run.

    Attributes:
        slice_axis: `auto`, 0, 1 or 2 in the layer's axis order.
        partial: a slice counts as annotated only for the labels on it.
        propagate: method, fusion, extrapolation.
        train: budget in seconds.
        target: estimated Dice above which a slice needs no annotation.
        device: `auto`, `cpu`, `cuda`...; a server uses its own.
        go_on: learning goes on from what was learned on this scan before, if anything was.
        start: checkpoint to start learning from, in place of that.
        start_on_server: id of a checkpoint on the server to start from; empty for none.
        save_to: file that keeps the best model while learning; None for none.
    """

    slice_axis: str | int = "auto"
    partial: bool = False
    propagate: PropagateConfig = field(default_factory=PropagateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: float = SuggestConfig.target
    device: str = "auto"
    go_on: bool = True
    start: Path | None = None
    start_on_server: str = ""
    save_to: Path | None = None

    def __post_init__(self) -> None:
        SuggestConfig(target=self.target)


def make_settings(
    *,
    slice_axis: str = "auto",
    partial: bool = False,
    method: str = "auto",
    fusion: str = "sdf",
    extrapolate: str | int = "auto",
    budget_s: float = TrainConfig.budget_s,
    target: float = SuggestConfig.target,
    device: str = "auto",
    go_on: bool = True,
    start: str = "",
    start_on_server: str = "",
    save_to: str = "",
) -> Settings:
    """Settings from what the fields of the panel hold.

    Raises:
        InputError: for a value that is out of range.
    """
    network = PredictorConfig(budget_s=budget_s) if method in PREDICTORS else PredictorConfig()
    return Settings(
        slice_axis=slice_axis if slice_axis == "auto" else int(slice_axis),
        partial=partial,
        propagate=PropagateConfig(method, fusion, extrapolate, predictor=network),  # type: ignore[arg-type]
        train=TrainConfig(budget_s=budget_s),
        target=target,
        device=device.strip() or "auto",
        go_on=go_on,
        start_on_server=start_on_server,
        start=Path(start).expanduser() if start.strip() else None,
        save_to=Path(save_to).expanduser() if save_to.strip() else None,
    )
