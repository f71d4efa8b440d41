"""Can a user trust the estimated quality? Estimated against true Dice and border distance, and where the doubt lies.

Reads what `accuracy.py --keep FOLDER` wrote. The weights of the estimate are fitted on all volumes but one and judged
on that one, in turn; those fitted on all volumes are printed, for `engine/quality.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

import common
from cases import load
from layouts import LAYOUTS, sources
from sliceprop.engine.filling import Filled
from sliceprop.engine.metrics import surface_distances_mm
from sliceprop.engine.quality import read_signs
from sliceprop.labels import sparse_labels

MOST_UNCERTAIN = 0.05
"""Share of the voxels that are marked."""

GOALS = {"MAE": "at most .05", "rank correlation": "at least .7"}

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Label slices of one volume that were not annotated, from all its cases.

    Attributes:
        volume: its name.
        signs: `(n, 3)` for slices between known ones, promised error, disagreement, 1 / radius; beyond them, promised
            error, reach, 1 / radius.
        two_sided: `(n,)`.
        dice: `(n,)`, true.
        surface_px: `(n,)`, true mean distance of the borders in the slice, NaN where the label is missing on one side.
        case: `(n,)`, number of the case and label, for the estimate over a volume.
        size: `(n,)`, expected pixels.
        hit: shares of the wrong voxels that are among the most uncertain ones, one pair per case: of the whole
            volume, and of the box around the labels.
    """

    volume: str
    signs: Table
    two_sided: NDArray[np.bool_]
    dice: Table
    surface_px: Table
    case: NDArray[np.int_]
    size: Table
    hit: list[tuple[float, float]]


def look(files: Sequence[Path], volume: str, reference: NDArray[np.int32]) -> Seen:
    """Compare what was kept of one volume with its reference `(S, H, W)`."""
    rows: list[tuple[Any, ...]] = []
    hit = []
    for number, file in enumerate(files):
        kept = dict(np.load(file))
        annotated = kept["annotated"].tolist()
        sparse = np.zeros_like(reference)
        sparse[annotated] = reference[annotated]
        annotation = sparse_labels(sparse, annotated_slices=annotated)
        filled = Filled(
            kept["labels"], kept["from_lower"], kept["from_upper"], kept["uncertainty"], kept["expected_dice"]
        )
        signs = read_signs(annotation, filled)
        hit.append(_hit(filled, reference, annotated))
        for k, s in np.argwhere(np.isfinite(signs.promised_error) & (signs.size > 0)).tolist():
            found, true = filled.labels[s] == annotation.values[k], reference[s] == annotation.values[k]
            third = signs.disagreement[k, s] if signs.two_sided[k, s] else signs.reach[k, s]
            rows.append(
                (
                    *(signs.promised_error[k, s], third, signs.inverse_radius[k, s]),
                    signs.two_sided[k, s],
                    2 * (found & true).sum() / max(found.sum() + true.sum(), 1),
                    _surface_px(found, true),
                    number * 1000 + k,
                    signs.size[k, s],
                )
            )
    table = np.array(rows, float)
    return Seen(
        volume, table[:, :3], table[:, 3] > 0, table[:, 4], table[:, 5], table[:, 6].astype(int), table[:, 7], hit
    )


def _surface_px(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    there, back = surface_distances_mm(found, true, (1.0, 1.0))
    return float(there.mean() + back.mean()) / 2 if there.size and back.size else float("nan")


def _hit(filled: Filled, reference: NDArray[np.int32], annotated: list[int]) -> tuple[float, float]:
    """Share of the wrong voxels among the most uncertain ones, of the volume and of the box around all labels."""
    free = np.setdiff1d(np.arange(len(reference)), annotated)
    anywhere = ((reference > 0) | (filled.labels > 0)).any(axis=0)
    rows, columns = (np.flatnonzero(anywhere.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    shares = []
    for part in (np.s_[:, :], box):
        wrong = (filled.labels != reference)[free][:, *part].ravel()
        doubt = filled.uncertainty[free][:, *part].ravel().astype(np.float32)
        most = np.argpartition(-doubt, max(1, round(MOST_UNCERTAIN * doubt.size)))[: round(MOST_UNCERTAIN * doubt.size)]
        shares.append(float(wrong[most].sum() / max(wrong.sum(), 1)))
    return shares[0], shares[1]


def fit(volumes: Sequence[Seen], *, two_sided: bool) -> Table:
    """Constant and weights with the least absolute error, every volume counting the same."""
    signs = np.concatenate([seen.signs[seen.two_sided == two_sided] for seen in volumes])
    error = np.concatenate([1 - seen.dice[seen.two_sided == two_sided] for seen in volumes])
    weight = np.concatenate(
        [np.full(n, 1 / max(n, 1)) for seen in volumes for n in [int((seen.two_sided == two_sided).sum())]]
    )
    columns = np.column_stack([np.ones(len(signs)), signs])

    def loss(weights: Table) -> float:
        return float((weight * np.abs(np.clip(columns @ weights, 0, 1) - error)).sum())

    start = np.linalg.lstsq(columns * np.sqrt(weight)[:, None], error * np.sqrt(weight), rcond=None)[0]
    best: Table = optimize.minimize(loss, start, method="Nelder-Mead", options={"maxiter": 2000}).x
    return best


def estimate(seen: Seen, between: Table, beyond: Table) -> Table:
    """Estimated Dice of each label slice."""
    columns = np.column_stack([np.ones(len(seen.signs)), seen.signs])
    dice: Table = 1 - np.clip(np.where(seen.two_sided, columns @ between, columns @ beyond), 0, 1)
    return dice


def report(volumes: Sequence[Seen]) -> str:
    """The tables, with every volume judged by weights fitted on the others."""
    estimated = {}
    for seen in volumes:
        patient = _patient(seen.volume)
        others = [other for other in volumes if _patient(other.volume) != patient]
        estimated[seen.volume] = estimate(seen, fit(others, two_sided=True), fit(others, two_sided=False))
    rows = []
    for seen in volumes:
        guess = estimated[seen.volume]
        for two_sided in (True, False):
            chosen = seen.two_sided == two_sided
            if chosen.sum() > 2:
                where = "between" if two_sided else "beyond"
                rows.append([seen.volume, where, int(chosen.sum()), *_agreement(guess[chosen], seen.dice[chosen])])
    guess, true = (np.concatenate(x) for x in ([estimated[v.volume] for v in volumes], [v.dice for v in volumes]))
    two_sided = np.concatenate([seen.two_sided for seen in volumes])
    summary = [
        ["label and slice, between annotated slices", *_agreement(guess[two_sided], true[two_sided])],
        ["label and slice, beyond the outermost one", *_agreement(guess[~two_sided], true[~two_sided])],
        ["label and slice, all", *_agreement(guess, true)],
        ["label, over its slices", *_agreement(*_over_slices(volumes, estimated))],
    ]
    goals = ", ".join(f"{name} {goal}" for name, goal in GOALS.items())
    return (
        "# Estimated quality\n\n"
        f"{common.describe(common.machine())}\n\n"
        "Every volume is judged with weights fitted on the volumes of other patients. "
        f"Goals for the Dice: {goals}.\n\n"
        + common.markdown_table(["estimated Dice of a", "MAE", "bias", "rank correlation"], summary)
        + "\n## Each volume\n\n"
        + common.markdown_table(["volume", "slices", "n", "MAE", "bias", "rank correlation"], rows)
        + f"\n## Wrong voxels among the {MOST_UNCERTAIN:.0%} most uncertain ones\n\nOn slices that were not annotated; "
        "mean over the cases of a volume. Goal: half.\n\n"
        + common.markdown_table(
            ["volume", "of the whole slices", "of the box around all labels"],
            [[seen.volume, *np.mean(seen.hit, axis=0).tolist()] for seen in volumes],
        )
        + "\n## Border distance\n\n"
        + _surface_report(volumes, estimated)
        + "\n## Weights fitted on all volumes\n\n"
        + "\n".join(
            f"- {name}: ({', '.join(f'{w:.3f}' for w in fit(volumes, two_sided=two_sided))})"
            for name, two_sided in (("REFINED_BETWEEN", True), ("REFINED_BEYOND", False))
        )
        + f"\n- SURFACE: {_surface_weight(volumes, {v.volume: v.dice for v in volumes}):.2f} per true error\n"
    )


def _patient(volume: str) -> str:
    """Volumes of one patient differ in a word: `lumbar_muscle_fat_tum01`, `lumbar_muscle_water_tum01`."""
    first, *_, last = volume.split("_")
    return f"{first}_{last}"


def _agreement(guess: Table, true: Table) -> tuple[float, float, float]:
    rank = float(stats.spearmanr(guess, true).statistic)
    return float(np.abs(guess - true).mean()), float((guess - true).mean()), rank


def _over_slices(volumes: Sequence[Seen], estimated: dict[str, Table]) -> tuple[Table, Table]:
    """Means per case and label, weighed by expected size."""
    pairs = []
    for seen in volumes:
        for case in np.unique(seen.case):
            mine = seen.case == case
            weights = seen.size[mine]
            guess, true = estimated[seen.volume][mine], seen.dice[mine]
            pairs.append((np.average(guess, weights=weights), np.average(true, weights=weights)))
    guess, true = np.array(pairs).T
    return guess, true


def _surface_weight(volumes: Sequence[Seen], dice: dict[str, Table]) -> float:
    """Median ratio of the border distance to (1 - Dice) times radius."""
    ratios = np.concatenate([v.surface_px * v.signs[:, 2] / np.maximum(1 - dice[v.volume], 0.01) for v in volumes])
    return float(np.nanmedian(ratios))


def _surface_report(volumes: Sequence[Seen], estimated: dict[str, Table]) -> str:
    weight = _surface_weight(volumes, estimated)
    guess = np.concatenate([weight * (1 - estimated[v.volume]) / v.signs[:, 2] for v in volumes])
    true = np.concatenate([v.surface_px for v in volumes])
    has = np.isfinite(true)
    rank = stats.spearmanr(guess[has], true[has]).statistic
    return (
        f"`{weight:.2f} (1 - estimated Dice) radius` against the true mean distance of the borders in a slice, where "
        f"both have the label: median absolute error {np.median(np.abs(guess - true)[has]):.2f} pixels (median "
        f"distance {np.median(true[has]):.2f}), rank correlation {rank:.2f}.\n"
    )


def main() -> None:
    """Look at everything that was kept, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_data_argument(parser)
    parser.add_argument("kept", type=Path, help="folder that accuracy.py --keep wrote")
    parser.add_argument("--layout", choices=LAYOUTS, default="measuring")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "quality.md")
    arguments = parser.parse_args()
    volumes = []
    for source in sources(arguments.layout, arguments.data):
        files = sorted(arguments.kept.glob(f"{source.name}_*.npz"))
        if files:
            case = load(source)
            volumes.append(look(files, source.name, np.ascontiguousarray(case.slices(case.reference))))
    arguments.out.write_text(report(volumes))
    print(arguments.out)


if __name__ == "__main__":
    main()
