"""A scan that an oracle annotates: what the product makes of any slices, how good that is, and what it says next.

The registration is learnt once per volume, from the image alone, and every set of annotated slices is propagated with
it, so that contestants differ in their slices only. What was measured is kept on disk: contestants share it, and a run
that was stopped goes on.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import Case
from placements import annotated_slices
from refinements import unseen
from scores import scored_slices
from sliceprop import study as use_cases
from sliceprop.checkpoint import load_checkpoint, save_checkpoint
from sliceprop.config import SuggestConfig, TrainConfig
from sliceprop.engine.metrics import dice, evaluate
from sliceprop.engine.registration import Model
from sliceprop.engine.selection import TIP_SHARE
from sliceprop.errors import FileError

Slices = tuple[int, ...]
"""Annotated slices, ascending."""

Labels = NDArray[np.int32]
"""`(S, H, W)`."""

SPREAD = 5
"""Slices that learning takes for annotated: their distance tells it how far apart slices will have to be matched."""

MEASURES = ("dice", "dice_rest", "average_hausdorff_mm", "lost_labels", "worst_dice")
SAME = 1e-6
"""Dice that differ by more come from different programs: propagation is deterministic."""

DIGITS = 5


@dataclass(frozen=True)
class Answer:
    """What the product says about some annotated slices.

    Attributes:
        labels: the propagated volume.
        next_slice: that it suggests.
        expected_dice: mean over the labels that are known so far, None for none.
        stop: whether it takes all other slices for good enough.
    """

    labels: Labels
    next_slice: int | None
    expected_dice: float | None
    stop: bool


class Session:
    """One volume, annotated by an oracle, in any order."""

    def __init__(
        self,
        case: Case,
        keep: Path,
        *,
        learning: TrainConfig | None = None,
        target: float = SuggestConfig.target,
        oracle: str = "auto",
    ) -> None:
        """Learn, or read what was learnt.

        Args:
            case: the volume.
            keep: folder for the model and what is measured.
            learning: its settings.
            target: Dice above which a slice needs no annotation.
            oracle: method by whose result the greedy oracle chooses; all that is reported is of `auto`.

        Raises:
            FileError: a folder from another version of the program or of the data.
        """
        self.case, self.reference, self.oracle = case, np.ascontiguousarray(case.slices(case.reference)), oracle
        self.model = learnt(case, keep, learning or TrainConfig())
        self._target, self._config = target, unseen(case.name)
        self._kept = Kept(keep / f"{case.name}.jsonl")
        self._latest: tuple[Slices, Answer] | None = None
        self._check_kept(keep)

    def answer(self, annotated: Slices) -> Answer:
        """Propagate and ask for the next slice; the latest answer is remembered."""
        if self._latest is None or self._latest[0] != annotated:
            self._latest = annotated, self._ask(annotated)
        return self._latest[1]

    def dice(self, annotated: Slices, method: str = "auto") -> float:
        """True mean Dice over the labels, whole volume."""
        name = "dice" if method == "auto" else f"dice_{method}"
        if name not in self._kept.get(annotated):
            self._kept.add(annotated, {name: mean_dice(self._labels(annotated, method), self.reference)})
        return float(self._kept.get(annotated)[name])

    def measures(self, annotated: Slices) -> dict[str, Any]:
        """All of `MEASURES`."""
        if not set(MEASURES) <= self._kept.get(annotated).keys():
            self._kept.add(annotated, score(self.case, self._labels(annotated), annotated))
        return {name: self._kept.get(annotated)[name] for name in MEASURES}

    def _ask(self, annotated: Slices) -> Answer:
        study = self.case.study(annotated)
        if not study.annotation.values:
            suggestion = use_cases.suggest(study, self.model)[0]
            return Answer(np.zeros_like(self.reference), suggestion.slice, None, suggestion.stop)
        result = use_cases.propagate(study, self.model, self._config, target=self._target, device="cpu")
        labels, said = self.case.slices(result.labels), result.report["suggestion"]
        expected = [label["dice"] for label in result.report["quality"].values()]
        return Answer(labels, said["slice"], float(np.mean(expected)), said["stop"])

    def _labels(self, annotated: Slices, method: str = "auto") -> Labels:
        if method == "auto" and self._latest is not None and self._latest[0] == annotated:
            return self._latest[1].labels
        study = self.case.study(annotated)
        if not study.annotation.values:
            return np.zeros_like(self.reference)
        config = replace(self._config, method=method)  # type: ignore[arg-type]
        return use_cases.fill_study(study, self.model, config).filled.labels

    def _check_kept(self, keep: Path) -> None:
        """Measure again what was kept of about four slices, which every change of the program would change."""
        kept = [annotated for annotated in self._kept.keys() if "dice" in self._kept.get(annotated)]  # noqa: SIM118
        if kept:
            annotated = min(kept, key=lambda slices: abs(len(slices) - 4))
            now = mean_dice(self._labels(annotated), self.reference)
            if abs(now - self._kept.get(annotated)["dice"]) > SAME:
                raise FileError(f"{keep}: was measured by another version or on other data; empty it or give another")


class Kept:
    """What was measured, by annotated slices: a line of JSON each time, so that a run that is stopped loses nothing."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, dict[Slices, dict[str, Any]]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                annotated, measures = json.loads(line)
            except ValueError:  # cut off when the run was stopped
                continue
            self._found.setdefault(tuple(annotated), {}).update(measures)

    def keys(self) -> list[Slices]:
        """All slices of which something is known, oldest first."""
        return list(self._found)

    def get(self, annotated: Slices) -> dict[str, Any]:
        """What is known, nothing if nothing is."""
        return self._found.get(annotated, {})

    def add(self, annotated: Slices, measures: dict[str, Any]) -> None:
        """Remember more; on a line of its own, whatever the last one looks like."""
        self._found.setdefault(annotated, {}).update(measures)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([annotated, measures])}")


def learnt(case: Case, keep: Path, config: TrainConfig) -> Model:
    """The registration of a volume, from `keep` if it is there.

    It sees the image only, within the box around all labels of the reference, which holds whatever is annotated.
    """
    path = keep / f"{case.name}.safetensors"
    if not path.exists():
        keep.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, use_cases.train(_boxed(case), replace(config, mask_weight=0), device="cpu"))
    return load_checkpoint(path)


def _boxed(case: Case) -> use_cases.Study:
    """The scan with the footprint of all labels on a few slices of the labelled range."""
    reference, (first, last) = case.slices(case.reference), case.labelled_range
    some = annotated_slices(case.slices(case.image.array), (first, last), "centres", str(min(SPREAD, last - first + 1)))
    footprint = np.zeros_like(case.reference)
    case.slices(footprint)[some] = reference.any(axis=0)
    return case.study(some, footprint)


def score(case: Case, predicted: Labels, annotated: Slices) -> dict[str, Any]:
    """The `MEASURES` of a volume, None for what has no meaning.

    `dice` is over the whole volume, annotated slices included; `dice_rest` over the slices of the labelled range that
    were not annotated; distances are over the whole volume, a mean over the labels that are not lost.
    """
    reference = case.slices(case.reference)
    distance = evaluate(predicted, reference, case.spacing)["whole"]["mean"]["average_hausdorff_mm"]
    rest = scored_slices(case, annotated)
    return {
        "dice": mean_dice(predicted, reference),
        "dice_rest": mean_dice(predicted[rest], reference[rest]) if reference[rest].any() else None,
        "average_hausdorff_mm": None if distance is None else round(distance, DIGITS),
        "lost_labels": sum(not (predicted == v).any() for v in range(1, case.n_labels + 1)),
        "worst_dice": worst_dice(predicted, reference, annotated),
    }


def mean_dice(predicted: Labels, reference: Labels) -> float:
    """Over the labels of the reference."""
    values = np.unique(reference[reference > 0])
    return round(float(np.mean([dice(predicted, reference, int(v)) for v in values])), DIGITS)


def worst_dice(predicted: Labels, reference: Labels, annotated: Slices) -> float | None:
    """The lowest Dice of a label on a slice that was not annotated; None where no slice is left to judge.

    As the product judges whether to stop: a slice on which a label covers no more than `TIP_SHARE` of what it covers on
    its largest slice, in both volumes, is a tip and does not count.
    """
    rest, worst = np.setdiff1d(np.arange(len(reference)), annotated), list[float]()
    for value in np.unique(reference[reference > 0]):
        found, true = predicted == value, reference == value
        area, true_area, both = (mask.sum(axis=(1, 2)) for mask in (found, true, found & true))
        judged = rest[np.maximum(area, true_area)[rest] > TIP_SHARE * true_area.max()]
        worst += (2 * both[judged] / (area + true_area)[judged]).tolist()
    return round(min(worst), DIGITS) if worst else None


def suggestion_s(case: Case, model: Model, annotated: Slices) -> float:
    """Seconds that the product needs to suggest a slice in an open study, propagation included."""
    study = case.study(annotated)
    start = time.perf_counter()
    use_cases.suggest(study, model)
    return time.perf_counter() - start
