"""Learning the deformation of each slice into the next, on one study, driven by ignite engines.

A network learns on half-resolution slices; its velocity fields are then optimised directly, at half and at full
resolution. Where annotated slices lie far apart, slices several steps apart are compared at last too, over composed
displacements, so that small errors do not add up on the way; where they lie close together, their masks join.
The stages share the time budget; each keeps the best it saw and ends early on time, on cancel, or without improvement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from sliceprop.config import TrainConfig
from sliceprop.engine.anchors import Anchors, anchor_loss
from sliceprop.engine.flow import compose_steps, integrate_velocity, resize_flow, warp
from sliceprop.engine.losses import diffusion_loss, lncc_loss, mse_loss
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.replay import next_stage
from sliceprop.engine.threads import one_thread

if TYPE_CHECKING:
    from ignite.engine import Engine

INTEGRATION_STEPS = 4
"""Squarings while learning: neighbouring slices differ by a few pixels, so 1/16 of the velocity is a small step."""

CHUNK_PIXELS = 400_000
"""Pixels per forward and backward pass at full resolution: bounds memory to a few hundred MB."""

BATCH_PAIRS = 16
"""Slice pairs per step of the network."""

LNCC_RADIUS_PX = 5
"""Window of 11 pixels: over ten volumes of MRI and CT a little better than 7."""

MSE_SCALE = 20.0
"""Brings squared differences of intensities in [0, 1] to the size of the correlation loss, so that weights fit both."""

MASK_SCALE = 0.015
"""Weight of the mean Dice loss beside the image loss: thrice as much helps muscles alike and others less."""

HOPS = (2, 4, 8)
"""Slices so many steps apart are compared ..."""

HOPS_PER_GAP = 3
"""... where at least so many such hops lead from one annotated slice to the next: over shorter ways, whose labels are
carried over few slices anyway, they cost more than they bring."""

SMALL_STUDY_VOXELS = 150_000
"""Up to here one thread learns faster than two."""

MAX_ANCHOR_GROUPS = 8
"""Groups of labels drawn where labels are known on many different slices, so that a step stays short."""


@dataclass(frozen=True)
class Fields:
    """Velocity fields of all pairs of neighbouring slices, `(S - 1, 2, h, w)`, pixels of the half-resolution grid.

    Integrating entry `s` maps the grid of slice `s + 1` into slice `s`; its negative maps the other way.

    Attributes:
        velocity: learnt from images and annotated masks.
        image_velocity: learnt from images alone, so that held-out annotated slices can judge it fairly.
    """

    velocity: Tensor
    image_velocity: Tensor


@dataclass(frozen=True)
class Progress:
    """One event of learning.

    Attributes:
        epoch: epochs of all stages done so far.
        total_epochs: epochs planned.
        best_metric: best mean squared local correlation (or 1 - scaled squared difference) so far, higher is better.
        seconds_left: estimate, never more than the budget leaves.
        total_time: seconds since learning began.
    """

    epoch: int
    total_epochs: int
    best_metric: float
    seconds_left: float
    total_time: float


class Learner:
    """One run of learning: the slices, the clock, and the best fields so far."""

    def __init__(
        self,
        slices: Tensor,
        network: RegistrationNet,
        config: TrainConfig,
        *,
        anchors: Sequence[Anchors] = (),
        gap: int = 0,
        start: Tensor | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare a run.

        Args:
            slices: `(S, 1, H, W)` in [0, 1], on the device to learn on.
            network: trained in place.
            config: see `TrainConfig`.
            anchors: annotated masks, for the last stage; without any there is none.
            gap: slices from one annotated slice to the next, where it is largest.
            start: velocities of an earlier run on the same grid, which refinement continues.
            progress: called after every epoch.
            cancelled: asked after every step.
        """
        self.config, self.network = config, network.to(slices.device)
        self.full = slices
        self.half = halved(slices)
        self.anchors = list(anchors)
        self.hops = [hop for hop in HOPS if hop * HOPS_PER_GAP <= gap]
        self.metric = 0.0
        self._velocity, self._image_velocity = start, start
        self._progress, self._cancelled = progress, cancelled
        self._generator = torch.Generator().manual_seed(config.seed)
        self._began, self._epoch, self._steps = time.monotonic(), 0, 0
        self._total_epochs = config.max_epochs + config.refine_steps

    def run(self) -> Fields:
        """Learn until done, out of time or cancelled, and return the best."""

        self._began = time.monotonic()
        with one_thread(self.full.numel() < SMALL_STUDY_VOXELS):
            self._run()
        return self.best()

    def _run(self) -> None:
        refine = self.config.refine_steps
        masks = round(0.3 * refine) if self.anchors else 0
        half, n_hops = round(0.4 * (refine - masks)), len(self.hops)
        far = round(0.3 * (refine - masks) / n_hops) * n_hops if n_hops else 0
        self._learn_network(self.config.max_epochs, budget_share=0.2)
        if self._velocity is None:
            self._velocity = self.predict()
        end = 0.8 if masks else 1.0
        self._refine(self.half, half, budget_share=0.4)
        self._refine(self.full, refine - half - far - masks, budget_share=0.7 * end if far else end)
        self._refine(self.full, far, budget_share=end, hops=self.hops)
        self._image_velocity = self._velocity
        self._refine(self.full, masks, budget_share=1.0, anchors=self.anchors)

    def best(self) -> Fields:
        """The best fields so far, also while learning goes on."""
        velocity = self.predict() if self._velocity is None else self._velocity
        images = velocity if self._image_velocity is None else self._image_velocity
        return Fields(velocity.cpu(), images.cpu())

    def predict(self) -> Tensor:
        """Velocities of all slice pairs from the network as it is, `(S - 1, 2, h, w)`."""
        return predict_velocity(self.network, self.half)

    def _learn_network(self, epochs: int, *, budget_share: float) -> None:
        optimiser = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)
        best: dict[str, Tensor] = {}

        def step(_: Engine, pairs: Any) -> tuple[float, float]:
            lower, upper = self.half[pairs], self.half[pairs + 1]
            velocity = self.network(lower, upper)
            image = self._image_loss(lower, upper, velocity)
            loss = image + self.config.smoothness * diffusion_loss(velocity)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return float(loss.detach()), float(image.detach())

        def keep() -> None:
            best.update({name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()})

        n_pairs = len(self.half) - 1
        batches = torch.randperm(n_pairs, generator=self._generator).split(BATCH_PAIRS)
        self._run_stage(step, batches, epochs, budget_share, keep, patience=self.config.patience)
        if best:
            self.network.load_state_dict(best)

    def _refine(
        self,
        slices: Tensor,
        steps: int,
        *,
        budget_share: float,
        hops: Sequence[int] = (1,),
        anchors: Sequence[Anchors] = (),
    ) -> None:
        """Optimise the velocities themselves against `slices`; every step is one over all pairs, an epoch all hops."""
        assert self._velocity is not None
        velocity = self._velocity.to(slices.device, copy=True).requires_grad_(True)
        optimiser = torch.optim.Adam([velocity], lr=0.1 if slices is self.half else 0.05, betas=(0.9, 0.99))
        drawn = [anchors[i] for i in torch.randperm(len(anchors), generator=self._generator)[:MAX_ANCHOR_GROUPS]]
        tried = velocity.detach()

        def step(_: Engine, hop: Any) -> tuple[float, float]:
            nonlocal tried
            tried = velocity.detach().clone()
            optimiser.zero_grad()
            total, image = self._backward_pairs(velocity, slices, 1)
            if hop > 1:
                total += self._backward_pairs(velocity, slices, hop)[0]
            if drawn:
                total += self._backward_anchors(velocity, drawn)
            optimiser.step()
            return total, image

        def keep() -> None:
            self._velocity = tried

        n_hops = max(1, len(hops))
        self._run_stage(step, hops, steps // n_hops, budget_share, keep, counts=n_hops)

    def _backward_pairs(self, velocity: Tensor, slices: Tensor, hop: int) -> tuple[float, float]:
        """Loss of all slices `hop` steps apart, of neighbours with smoothness; and that of the images alone."""
        total = similarity = 0.0
        n_pairs, chunk = len(slices) - hop, max(1, CHUNK_PIXELS // slices[0].numel())
        for first in range(0, n_pairs, chunk):
            last = min(first + chunk, n_pairs)
            fields, share = velocity[first : last + hop - 1], (last - first) / n_pairs
            image = self._image_loss(slices[first:last], slices[first + hop : last + hop], fields, hop) * share
            loss = image + self.config.smoothness * diffusion_loss(fields) * share if hop == 1 else image
            loss.backward()
            total, similarity = total + float(loss.detach()), similarity + float(image.detach())
        return total, similarity

    def _backward_anchors(self, velocity: Tensor, anchors: Sequence[Anchors]) -> float:
        up, down = integrate_velocity(torch.cat([velocity, -velocity]), INTEGRATION_STEPS).chunk(2)
        with one_thread():
            loss = self.config.mask_weight * MASK_SCALE * anchor_loss(up, down, anchors)
            loss.backward()
        return float(loss.detach())

    def _image_loss(self, lower: Tensor, upper: Tensor, velocity: Tensor, hop: int = 1) -> Tensor:
        """Dissimilarity of slices `hop` steps apart, warped onto each other, mean of both directions."""
        up, down = integrate_velocity(torch.cat([velocity, -velocity]), INTEGRATION_STEPS).chunk(2)
        disp = torch.cat([compose_steps(up.flip(0), hop).flip(0), compose_steps(down, hop)])
        warped = warp(torch.cat([lower, upper]), resize_flow(disp, *lower.shape[-2:]))
        fixed = torch.cat([upper, lower])
        if self.config.similarity == "mse":
            return MSE_SCALE * mse_loss(warped, fixed)
        return lncc_loss(warped, fixed, radius=LNCC_RADIUS_PX)

    def _run_stage(
        self,
        step: Callable[[Engine, Any], tuple[float, float]],
        batches: Sequence[Any],
        epochs: int,
        budget_share: float,
        keep: Callable[[], None],
        *,
        patience: int | None = None,
        counts: int = 1,
    ) -> None:
        """Run one ignite engine; `keep` is called whenever the epoch's mean loss is the lowest so far.

        In progress one of its epochs counts as so many.
        """
        from ignite.engine import Engine, Events
        from ignite.handlers import EarlyStopping

        deadline, stage = self._began + budget_share * self.config.budget_s, next_stage()
        out_of_time = time.monotonic() >= deadline and self._steps > 0  # on a busy machine imports may use it all up
        if epochs == 0 or not batches or stage.over(out_of_time or self._cancelled()):
            self._epoch += epochs * counts
            return
        engine, first, lowest = Engine(step), self._epoch, float("inf")
        outputs: list[tuple[float, float]] = []

        @engine.on(Events.ITERATION_COMPLETED)
        def _(engine: Engine) -> None:
            outputs.append(cast(tuple[float, float], engine.state.output))
            stage.steps += 1
            self._steps += 1
            if stage.over(time.monotonic() >= deadline or self._cancelled()):
                engine.terminate()

        @engine.on(Events.EPOCH_COMPLETED | Events.TERMINATE)
        def _(engine: Engine) -> None:
            nonlocal lowest
            if not outputs:
                return
            loss, image = (sum(column) / len(outputs) for column in zip(*outputs, strict=True))
            outputs.clear()
            engine.state.metrics["loss"] = loss
            if loss < lowest:
                lowest = loss
                keep()
            self.metric = max(self.metric, 1 - image)
            self._epoch += counts
            self._progress(self._event())

        if patience is not None:
            stopper = EarlyStopping(patience, score_function=lambda e: -e.state.metrics["loss"], trainer=engine)
            engine.add_event_handler(Events.EPOCH_COMPLETED, stopper)
        engine.run(batches, max_epochs=epochs)
        self._epoch = first + epochs * counts

    def _event(self) -> Progress:
        elapsed = time.monotonic() - self._began
        planned = elapsed / max(self._epoch, 1) * (self._total_epochs - self._epoch)
        left = max(0.0, min(planned, self.config.budget_s - elapsed))
        return Progress(self._epoch, self._total_epochs, self.metric, left, elapsed)


def half_size(height: int, width: int) -> tuple[int, int]:
    """Grid of the velocity fields for slices of `height` by `width`: half, but at least 8 pixels a side."""
    return max(8, (height + 1) // 2), max(8, (width + 1) // 2)


def halved(slices: Tensor) -> Tensor:
    """Slices `(S, 1, H, W)` on the grid of the velocity fields."""
    return functional.interpolate(slices, size=half_size(*slices.shape[-2:]), mode="area")


@torch.no_grad()
def predict_velocity(network: RegistrationNet, half: Tensor) -> Tensor:
    """Velocities of all pairs of neighbouring slices from the network.

    Args:
        network: trained.
        half: `(S, 1, h, w)` in [0, 1], half resolution.

    Returns:
        `(S - 1, 2, h, w)`, pixels.
    """
    chunks = torch.arange(len(half) - 1).split(BATCH_PAIRS)
    return torch.cat([network(half[pairs], half[pairs + 1]) for pairs in chunks])
