"""Learning registration over many scans, on one process or many, driven by ignite.

Every step takes the mean gradient over one batch of samples. What is in a batch depends on the seed and the step alone;
the processes share it out and add up their gradients, so that their number changes the speed and nothing else.

A few scans teach unsteadily: one odd sample throws the weights off. So gradients are clipped, and what is judged and
kept is the average of the weights over the last part of the steps. Unlike a falling learning rate it asks for no number
of steps beforehand, so that a run can be ended, or made longer, after any epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from sliceprop.engine.anchors import ANCHOR_GAP, Anchors, anchor_loss
from sliceprop.engine.flow import integrate_velocity, warp
from sliceprop.engine.losses import diffusion_loss, lncc_loss
from sliceprop.engine.network import RegistrationNet
from sliceprop.engine.training import INTEGRATION_STEPS, LNCC_RADIUS_PX, MASK_SCALE
from sliceprop.errors import InputError

HOPS = (1, 1, 2, 3)
"""Steps between the slices of a sample, drawn at random: scans differ in how far their slices lie apart."""

GAMMA = 0.7, 1.4
"""Exponents of intensity drawn for each sample: contrasts differ."""

INVERTED = 0.3
"""Share of the samples whose intensities are inverted."""

ANCHORED = 0.5
"""Share of the samples of an annotated scan that lead from one annotated slice to the next."""

RECENCY = 8
"""Step `t` counts in the average of the weights about like `t ** 8`: their mean age is a tenth of the steps so far."""

VALIDATION_PAIRS = 8
"""Pairs of slices per held-out scan, spread evenly over it."""


@dataclass(frozen=True)
class PretrainConfig:
    """Learning over many scans.

    Attributes:
        epochs: at most.
        steps: per epoch.
        batch: samples per step, over all processes together.
        pairs: neighbouring slices per sample, at most.
        patch_px: side of the part of each slice that is looked at, on the half-resolution grid.
        smoothness: weight of the velocity's diffusion loss.
        mask_weight: weight of the Dice loss between annotated slices.
        learning_rate: of Adam.
        gradient_norm: to which larger gradients are cut.
        patience: epochs without improvement on the held-out scans after which learning stops.
        budget_s: seconds after which no other epoch begins; None for no bound.
        mixed_precision: bfloat16 in the network, on GPUs.
        seed: of weights and samples.
    """

    epochs: int = 60
    steps: int = 50
    batch: int = 8
    pairs: int = 6
    patch_px: int = 128
    smoothness: float = 0.3
    mask_weight: float = 1.0
    learning_rate: float = 1e-3
    gradient_norm: float = 0.5
    patience: int = 10
    budget_s: float | None = None
    mixed_precision: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "pairs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.patch_px < 16:
            raise InputError(f"patch_px must be at least 16, not {self.patch_px}")
        if min(self.learning_rate, self.gradient_norm) <= 0 or (self.budget_s is not None and self.budget_s <= 0):
            raise InputError("learning rate, gradient norm and budget must be positive")


@dataclass(frozen=True)
class Scan:
    """A scan to learn from.

    Attributes:
        half: `(S, 1, h, w)` in [0, 1], half resolution.
        anchors: annotated masks on the same grid.
    """

    half: Tensor
    anchors: tuple[Anchors, ...] = ()


class Scans(Protocol):
    """Scans by number; they may come from disk each time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scan: ...


@dataclass(frozen=True)
class Sample:
    """Neighbouring slices.

    Attributes:
        slices: `(n + 1, 1, h, w)` in [0, 1].
        anchors: masks of the first and the last slice, where both are annotated.
    """

    slices: Tensor
    anchors: tuple[Anchors, ...] = ()


@dataclass(frozen=True)
class Event:
    """The end of an epoch.

    Attributes:
        epoch: done so far.
        epochs: at most.
        loss: mean over the epoch.
        similarity: mean squared local correlation on the held-out scans, higher is better.
        best: the highest so far.
    """

    epoch: int
    epochs: int
    loss: float
    similarity: float
    best: float


class Pretraining:
    """A run of learning, which can be put down after any epoch and taken up again."""

    def __init__(self, scans: Scans, held_out: Scans, config: PretrainConfig, device: torch.device) -> None:
        """Prepare a run.

        Args:
            scans: to learn from.
            held_out: to judge by.
            config: see `PretrainConfig`.
            device: of this process.
        """
        self.scans, self.held_out, self.config, self.device = scans, held_out, config, device
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.network = RegistrationNet().to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.average = AveragedModel(self.network, avg_fn=recent_mean)
        self.best: dict[str, Tensor] = _weights(self.average.module)
        self.best_similarity = 0.0
        self.trainer = Engine(self._step)
        self._stopper = EarlyStopping(config.patience, lambda engine: engine.state.metrics["similarity"], self.trainer)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, by the epochs or for want of improvement."""
        return self.trainer.state.epoch >= self.config.epochs or self._stopper.counter >= self.config.patience

    def run(self, after_epoch: Callable[[Event], None] = lambda _: None) -> None:
        """Learn until done, without improvement, or out of time; `best` are the weights to keep.

        Args:
            after_epoch: called by every process, after its state is complete.
        """
        deadline = None if self.config.budget_s is None else time.monotonic() + self.config.budget_s
        losses: list[float] = []

        @self.trainer.on(Events.ITERATION_COMPLETED)
        def _(engine: Engine) -> None:
            losses.append(float(engine.state.output))  # type: ignore[arg-type]

        @self.trainer.on(Events.EPOCH_COMPLETED)
        def _(engine: Engine) -> None:
            loss, similarity = float(np.mean(losses)), self.validate()
            losses.clear()
            engine.state.metrics.update(loss=loss, similarity=similarity)
            if similarity > self.best_similarity:
                self.best, self.best_similarity = _weights(self.average.module), similarity
            self._stopper(engine)
            after_epoch(Event(engine.state.epoch, self.config.epochs, loss, similarity, self.best_similarity))
            if deadline is not None and _any(time.monotonic() > deadline):
                engine.terminate()

        if not self.over:
            self.trainer.run(range(self.config.steps), max_epochs=self.config.epochs)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that is needed to go on: tensors, and plain values."""
        tensors = {f"network.{name}": tensor for name, tensor in _weights(self.network).items()}
        tensors |= {f"average.{name}": tensor for name, tensor in _weights(self.average).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for n, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{n}.{name}": tensor.detach().cpu().clone() for name, tensor in moments.items()}
        values = {"epoch": self.trainer.state.epoch, "best_similarity": self.best_similarity}
        return tensors, values | {"stopper": self._stopper.state_dict()}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.network.load_state_dict(_under("network.", tensors))
        self.average.load_state_dict(_under("average.", tensors))
        self.best, self.best_similarity = _under("best.", tensors), float(values["best_similarity"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("adam.", tensors).items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self._stopper.load_state_dict(values["stopper"])
        epochs = {"epoch": int(values["epoch"]), "max_epochs": self.config.epochs, "epoch_length": self.config.steps}
        self.trainer.load_state_dict(epochs)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean squared local correlation of the held-out scans' slices, warped by the averaged weights, in [0, 1]."""
        total, count = 0.0, 0
        for n in range(idist.get_rank(), len(self.held_out), idist.get_world_size()):
            half = self.held_out[n].half
            pairs = np.unique(np.linspace(0, len(half) - 2, VALIDATION_PAIRS).round().astype(int))
            lower, upper = half[pairs].float().to(self.device), half[pairs + 1].float().to(self.device)
            total += (1 - float(_losses(self.average.module, lower, upper)[0])) * len(pairs)
            count += len(pairs)
        return float(idist.all_reduce(total)) / float(idist.all_reduce(float(count)))

    def _step(self, engine: Engine, index: int) -> float:
        """One step of the optimiser; the mean loss over the batch of all processes."""
        self.optimiser.zero_grad()
        loss = 0.0
        for sample in self._share(engine.state.iteration):
            each = self._loss(sample) / self.config.batch
            each.backward()
            loss += float(each.detach())
        self._add_up_gradients()
        clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        return float(idist.all_reduce(loss))

    def _share(self, iteration: int) -> Iterator[Sample]:
        """This process's samples of one batch."""
        for n in range(idist.get_rank(), self.config.batch, idist.get_world_size()):
            yield draw(self.scans, self.config, iteration * self.config.batch + n)

    def _loss(self, sample: Sample) -> Tensor:
        slices = sample.slices.to(self.device)
        anchors = [Anchors(each.slices, each.masks.to(self.device)) for each in sample.anchors]
        half = self.config.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            image, velocity, up, down = _losses(self.network, slices[:-1], slices[1:])
        loss = image + self.config.smoothness * diffusion_loss(velocity)
        return loss + self.config.mask_weight * MASK_SCALE * anchor_loss(up, down, anchors) if anchors else loss

    def _add_up_gradients(self) -> None:
        parameters = list(self.network.parameters())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if idist.get_world_size() > 1:
            flat = cast(Tensor, idist.all_reduce(torch.cat([grad.ravel() for grad in grads])))
            parts = flat.split([parameter.numel() for parameter in parameters])
            grads = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def recent_mean(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """The mean of `count` values and one more, the last ones weigh most: `mean + 9 / (count + 9) (value - mean)`.

    References:
        Shamir and Zhang 2013, Stochastic gradient descent for non-smooth optimization, ICML (polynomial decay).
    """
    return mean + (value - mean) * (RECENCY + 1) / (count + RECENCY + 1)


def _losses(network: nn.Module, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dissimilarity of slices warped onto their neighbours, the velocity, and its displacements both ways."""
    velocity = network(lower, upper).float()
    with torch.autocast(lower.device.type, enabled=False):
        up, down = integrate_velocity(torch.cat([velocity, -velocity]), INTEGRATION_STEPS).chunk(2)
        warped = warp(torch.cat([lower, upper]), torch.cat([up, down]))
        image = lncc_loss(warped, torch.cat([upper, lower]), radius=LNCC_RADIUS_PX)
    return image, velocity, up, down


def draw(scans: Scans, config: PretrainConfig, number: int) -> Sample:
    """Sample `number` of a run: from some scan, some slices, turned and with another contrast.

    Args:
        scans: to draw from.
        config: seed and sizes.
        number: counts the samples of the run; the same number gives the same sample.
    """
    rng = np.random.default_rng([config.seed, number])
    scan = scans[int(rng.integers(len(scans)))]
    ways = [(n, i) for n, group in enumerate(scan.anchors) for i in _near(group)]
    if ways and rng.random() < ANCHORED:
        n, i = ways[rng.integers(len(ways))]
        group = scan.anchors[n]
        low, high = group.slices[i : i + 2]
        indices, masks = list(range(low, high + 1)), group.masks[i : i + 2].float()
    else:
        indices, masks = _some_slices(len(scan.half), config.pairs, rng), None
    slices = _contrast(scan.half[indices].float(), rng)
    stack = slices if masks is None else torch.cat([slices, _padded(masks, len(indices))], dim=1)
    turned = _turned(_cut(stack, config.patch_px, rng), rng)
    if masks is None:
        return Sample(turned)
    ends = turned[[0, -1], 1:]
    return Sample(turned[:, :1], (Anchors((0, len(indices) - 1), ends),) if ends.any() else ())


def _near(group: Anchors) -> list[int]:
    """Positions of masks whose next one is near enough to be carried there."""
    return [i for i, (low, high) in enumerate(pairwise(group.slices)) if high - low <= ANCHOR_GAP]


def _padded(masks: Tensor, n: int) -> Tensor:
    """The masks of the first and last of `n` slices, `(n, K, h, w)`, nothing between."""
    padded = masks.new_zeros(n, *masks.shape[1:])
    padded[[0, -1]] = masks
    return padded


def _some_slices(n_slices: int, pairs: int, rng: np.random.Generator) -> list[int]:
    hop = min(HOPS[rng.integers(len(HOPS))], n_slices - 1)
    count = min(pairs, (n_slices - 1) // hop)
    first = int(rng.integers(n_slices - count * hop))
    return [first + hop * n for n in range(count + 1)]


def _contrast(slices: Tensor, rng: np.random.Generator) -> Tensor:
    changed = slices.clamp(0, 1) ** float(rng.uniform(*GAMMA))
    return 1 - changed if rng.random() < INVERTED else changed


def _cut(stack: Tensor, patch_px: int, rng: np.random.Generator) -> Tensor:
    height, width = stack.shape[-2:]
    top, left = (int(rng.integers(max(0, size - patch_px) + 1)) for size in (height, width))
    return stack[..., top : top + patch_px, left : left + patch_px]


def _turned(stack: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirrored and turned by right angles, and the slices in either order."""
    if rng.random() < 0.5:
        stack = stack.flip(0)
    if rng.random() < 0.5:
        stack = stack.flip(-1)
    return torch.rot90(stack, int(rng.integers(4)), (-2, -1)).contiguous()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _any(here: bool) -> bool:
    """Whether it is so in any process."""
    return bool(idist.all_reduce(float(here), "MAX"))


def distributed(work: Callable[[torch.device], None], device: str) -> None:
    """Do `work` in every process that `torchrun` has started, or in this one alone.

    Args:
        work: gets the device of the process.
        device: `cpu` or `cuda`; with several processes each gets a GPU of its own.
    """
    if not torch.distributed.is_torchelastic_launched():
        work(torch.device(device))
        return
    idist.initialize("nccl" if device == "cuda" else "gloo")
    try:
        work(idist.device() if device == "cuda" else torch.device(device))
    finally:
        idist.finalize()


def ranks() -> tuple[int, int]:
    """Number of this process and of all."""
    return idist.get_rank(), idist.get_world_size()


def everyones(text: str) -> Sequence[str]:
    """What each process says, in the order of their numbers; waits for all of them."""
    if idist.get_world_size() == 1:
        return [text]
    return list(idist.all_gather(text))  # type: ignore[arg-type]
