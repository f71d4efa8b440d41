"""Overfitting a network to a few slices and asking it about all of them; runs in the child process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.losses.dice import DiceCELoss
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined
from torch import Tensor, nn
from torch.nn import functional

from sliceprop.engine.predictors.job import OPEN, Answer, Job
from sliceprop.engine.predictors.networks import CHANNELS, SIDE_PX, make_network
from sliceprop.engine.replay import Stage
from sliceprop.engine.training import Progress

EPOCH_STEPS = 20
"""The loss that early stopping looks at is the mean of so many steps; a few slices alone would make it noise."""

BATCH_PIXELS = 500_000
"""Of all slices of a step together, which bounds memory: 2 to 8 slices, since batch normalisation needs 2."""

IMPOSSIBLE = -1e4
"""Logit of a class that a pixel cannot have."""


def overfit(job: Job, *, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Answer:
    """Learn the targets, then label every slice.

    Args:
        job: see `Job`.
        progress: called after every step, and while slices are labelled.
        cancelled: asked after every step; True ends learning and keeps the best so far.

    Raises:
        InputError: an encoder or weights that the network cannot take.
    """
    device = torch.device(job.device)
    network, name = make_network(job.method, job.config, job.unknown.shape[1])
    learner = Learner(network.to(device), job, progress, cancelled)
    learner.run()
    classes, doubt = label(network, learner.images, alive=learner.report)
    height, width = job.images.shape[1:]
    steps = learner.stage.steps
    return Answer(classes[:, :height, :width].numpy(), doubt[:, :height, :width].numpy(), name, steps)


def padded(slices: Tensor) -> Tensor:
    """Slices `(N, 1, H, W)` with their last row and column repeated until both sides are multiples of `SIDE_PX`."""
    down, right = (-side % SIDE_PX for side in slices.shape[-2:])
    return functional.pad(slices, (0, right, 0, down), mode="replicate")


def merge_unknown(logits: Tensor, target: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Where a pixel's class is open, make background stand for all classes that it may have.

    `p'(0) = p(0) + sum of p(c) over the unknown classes c`, and `p'(c) = 0`: the probabilities that a loss can judge.

    Args:
        logits: `(B, C, H, W)`.
        target: `(B, H, W)` classes, or `OPEN`.
        unknown: `(B, C)`, the classes beside background that `OPEN` may hide.

    Returns:
        logits of `p'`, and the target with 0 in place of `OPEN`.

    References:
        Shi et al.: Marginal loss and exclusion loss for partially supervised multi-organ segmentation, Medical Image
        Analysis 70:101979, 2021, doi:10.1016/j.media.2021.101979.
    """
    hidden = unknown[:, :, None, None]
    possible = hidden.clone()
    possible[:, 0] = True
    background = logits.masked_fill(~possible, -math.inf).logsumexp(dim=1, keepdim=True)
    merged = torch.cat([background, logits.masked_fill(hidden, IMPOSSIBLE)[:, 1:]], dim=1)
    return torch.where(target[:, None] == OPEN, merged, logits), target.clamp(min=0)


def make_augmentation(height: int, width: int, seed: int) -> Compose:
    """Small affine maps of slice and target, and changes of the slice's intensities; nothing is mirrored, since left
    and right may be different labels.

    Args:
        height: of a slice.
        width: of a slice.
        seed: of all that is random.
    """
    both, image = ("image", "target"), ("image",)
    steps = [
        RandAffined(
            both,
            prob=1.0,
            rotate_range=0.15,
            shear_range=0.1,
            translate_range=(0.05 * height, 0.05 * width),
            scale_range=0.1,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandScaleIntensityd(image, factors=0.2, prob=0.8),
        RandShiftIntensityd(image, offsets=0.1, prob=0.8),
        RandAdjustContrastd(image, gamma=(0.7, 1.5), prob=0.5, retain_stats=True),
        RandGaussianNoised(image, std=0.05, prob=0.5),
    ]
    return Compose(steps).set_random_state(seed)


class Learner:
    """One run of learning: the slices, the clock, and the best weights so far.

    Args:
        network: trained in place, on the device that it is on.
        job: see `Job`.
        progress: called after every step.
        cancelled: asked after every step.
    """

    def __init__(
        self,
        network: nn.Module,
        job: Job,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.network, self.config = network, job.config
        self.device = next(network.parameters()).device
        images = torch.from_numpy(job.images)[:, None]
        self.images = padded((images - images.mean()) / images.std().clamp(min=1e-6))
        self._rows = torch.from_numpy(job.slices)
        self._targets = padded(torch.from_numpy(job.targets)[:, None].float())
        self._unknown = torch.from_numpy(job.unknown)
        height, width = self.images.shape[-2:]
        self._augment = make_augmentation(height, width, job.config.seed % 2**32)
        self._loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        self._optimiser = torch.optim.Adam(network.parameters(), lr=job.config.learning_rate)
        self._losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self.stage = Stage(job.steps)
        self._progress, self._cancelled = progress, cancelled
        self._began, self._epoch, self._lowest = time.monotonic(), 0, math.inf

    def run(self) -> None:
        """Learn until done, out of time, cancelled or without improvement; the network then has the best weights."""
        engine = Engine(self._step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.TERMINATE, self._after_epoch)
        stopper = EarlyStopping(self.config.patience, lambda e: -e.state.metrics["loss"], engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, stopper)
        engine.run(self._draws(), max_epochs=self.config.max_epochs, epoch_length=EPOCH_STEPS)
        if self._best:
            self.network.load_state_dict(self._best)

    def report(self) -> None:
        """Tell how far learning is, as metric `1 / (1 + lowest loss)`."""
        elapsed = time.monotonic() - self._began
        planned = elapsed / max(self._epoch, 1) * (self.config.max_epochs - self._epoch)
        left = max(0.0, min(planned, self.config.budget_s - elapsed))
        self._progress(Progress(self._epoch, self.config.max_epochs, 1 / (1 + self._lowest), left, elapsed))

    def _step(self, _: Engine, drawn: Tensor) -> float:
        self.network.train()
        loss = self._loss_of(drawn)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return float(loss.detach())

    def _after_step(self, engine: Engine) -> None:
        self._losses.append(cast(float, engine.state.output))
        self.report()
        self.stage.steps += 1
        if self.stage.over(time.monotonic() - self._began >= self.config.budget_s or self._cancelled()):
            engine.terminate()

    def _after_epoch(self, engine: Engine) -> None:
        """Keep the weights if the mean loss is the lowest so far; the last epoch may have been cut short."""
        if not self._losses:
            return
        engine.state.metrics["loss"] = loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self._epoch += 1
        if loss < self._lowest:
            self._lowest = loss
            self._best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _loss_of(self, drawn: Tensor) -> Tensor:
        """Of some of the slices that have targets, after augmentation."""
        pairs = [self._augment({"image": self.images[self._rows[i]], "target": self._targets[i]}) for i in drawn]
        images, targets = (torch.stack([pair[key] for pair in pairs]).to(self.device) for key in ("image", "target"))
        logits = self.network(images.expand(-1, CHANNELS, -1, -1))
        merged, target = merge_unknown(logits, targets[:, 0], self._unknown[drawn].to(self.device))
        return cast(Tensor, self._loss(merged, target[:, None]))

    def _draws(self) -> Iterator[Tensor]:
        """Batches without end; every slice comes once before one comes twice."""
        generator = torch.Generator().manual_seed(self.config.seed)
        count = len(self._rows)
        size = min(max(BATCH_PIXELS // self.images[0].numel(), 2), 8, max(count, 2))
        waiting = torch.empty(0, dtype=torch.long)
        while True:
            while len(waiting) < size:
                waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
            yield waiting[:size]
            waiting = waiting[size:]


@torch.inference_mode()
def label(network: nn.Module, images: Tensor, *, alive: Callable[[], Any] = lambda: None) -> tuple[Tensor, Tensor]:
    """The most probable class of every pixel, and how doubtful it is.

    Args:
        network: trained.
        images: `(S, 1, H, W)`, normalised and padded as for training.
        alive: called after every few slices.

    Returns:
        int32 classes and float32 doubt in [0, 1], `(S, H, W)`: 1 minus the lead of the largest probability.
    """
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for some in images.split(max(1, BATCH_PIXELS // images[0].numel())):
        probs = network(some.to(device).expand(-1, CHANNELS, -1, -1)).softmax(dim=1)
        first, second = probs.topk(2, dim=1).values.unbind(dim=1)
        parts.append((probs.argmax(dim=1).int().cpu(), (1 - first + second).cpu()))
        alive()
    classes, doubt = zip(*parts, strict=True)
    return torch.cat(classes), torch.cat(doubt)
