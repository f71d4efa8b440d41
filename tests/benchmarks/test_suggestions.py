"""Contestants on a phantom, what is told from curves made by hand, and the files that are written."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import suggestions
from annotating import Kept, Session, score, worst_dice
from cases import Case
from contestants import CONTESTANTS, FIXED, ORACLE, OURS, Contestant, Step, simulate
from curves import Curves, cheapest, gap_closed, goals, is_enough, slices_needed
from phantoms import moving_disc
from sliceprop.config import TrainConfig
from sliceprop.errors import FileError
from sliceprop.io import Image
from suggestions_plots import COLOURS
from suggestions_report import markdown

QUICK = TrainConfig(budget_s=20, max_epochs=1, refine_steps=4)
EMPTY = [0, 1, 10]
"""Slices of the phantom without a label, so that the labelled range is not the volume."""


@pytest.fixture(scope="module")
def case() -> Case:
    image, labels = moving_disc()
    labels[labels == 7] = 2
    labels[EMPTY] = 0
    return Case("phantom", Image(image, np.diag([4.0, 1.0, 1.0, 1.0])), labels, 0)


@pytest.fixture(scope="module")
def session(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(case, tmp_path_factory.mktemp("kept"), learning=QUICK)


def test_the_oracle_is_never_worse_than_any_slice_that_it_could_have_taken(session: Session) -> None:
    before = ()
    for step in simulate(session, ORACLE, 2):
        others = [tuple(sorted((*before, s))) for s in range(2, 10) if s not in before]
        assert step.dice == max(session.dice(slices) for slices in others) > 0.5
        suggested = CONTESTANTS[OURS].choose(session, step.n, before, 0)
        assert step.dice >= session.dice(suggested)
        before = step.slices


def test_next_slice_takes_what_the_product_suggests(session: Session) -> None:
    steps = list(simulate(session, OURS, 3))
    assert [step.n for step in steps] == [1, 2, 3]
    for one, following in pairwise(steps):
        assert following.taken == session.answer(one.slices).next_slice
        assert set(following.slices) == {*one.slices, following.taken}
    assert all(0 < (step.expected_dice or 0) <= 1 and step.stop is not None for step in steps)
    assert steps[-1].dice > steps[0].dice


def test_plans_stay_in_the_labelled_range_unless_they_are_of_the_volume(session: Session) -> None:
    def chosen(name: str, n: int, seed: int = 0) -> tuple[int, ...]:
        return CONTESTANTS[name].choose(session, n, (), seed)

    for plan in FIXED:
        assert all(len(set(chosen(plan, n)) & set(range(2, 10))) == n for n in range(1, 9))
    assert [chosen("keep_n-volume", n) for n in (1, 2)] == [(0,), (0, 5)]
    assert len({chosen("random", 3, seed) for seed in range(4)}) > 1


def test_a_curve_ends_with_the_labelled_range(session: Session) -> None:
    steps = list(simulate(session, "keep_n", 12))
    assert [step.n for step in steps] == list(range(1, 9))
    assert steps[-1].slices == tuple(range(2, 10)) and steps[-1].dice_rest is None
    assert [step.taken for step in steps[:5]] == [2, 6, 4, 8, None]  # 2 3 4 5 6 gives up slice 8
    assert steps[-1].expected_dice is steps[-1].stop is None


def test_an_empty_slice_says_where_no_label_is(session: Session) -> None:
    assert session.measures((0,)) == {
        "dice": 0.0,
        "dice_rest": 0.0,
        "average_hausdorff_mm": None,
        "lost_labels": 2,
        "worst_dice": 0.0,
    }
    answer = session.answer((0,))
    assert answer.next_slice not in (None, 0) and answer.expected_dice is None and not answer.stop


@pytest.mark.parametrize("chosen", [(3, 3), (3,), (3, 4, 5)])
def test_a_contestant_that_repeats_itself_is_an_error(session: Session, chosen: tuple[int, ...]) -> None:
    stubborn = Contestant(lambda _, n, __, ___: (3,) if n == 1 else chosen)
    with pytest.raises(ValueError, match=r"stubborn chose .* on phantom"):
        list(simulate(session, "stubborn", 2, contestant=stubborn))


def test_measures_of_a_result_that_is_known(case: Case) -> None:
    perfect = score(case, case.reference, (5,))
    assert perfect == {
        "dice": 1.0,
        "dice_rest": 1.0,
        "average_hausdorff_mm": 0.0,
        "lost_labels": 0,
        "worst_dice": 1.0,
    }
    one_lost = np.where(case.reference == 2, 0, case.reference)
    measured = score(case, one_lost, tuple(range(2, 10)))
    assert (measured["dice"], measured["dice_rest"], measured["lost_labels"]) == (0.5, None, 1)


def test_the_worst_slice_is_neither_annotated_nor_a_tip() -> None:
    reference = np.zeros((5, 10, 10), np.int32)
    reference[1, :4], reference[2], reference[3, 0, :3] = 1, 1, 1
    found = reference.copy()
    found[1, :3], found[3] = 1, 0
    found[1, 3] = 0
    assert worst_dice(found, reference, (2,)) == pytest.approx(60 / 70, abs=1e-5)  # slice 3 holds 3 % of the largest
    found[4, 0] = 1
    assert worst_dice(found, reference, (2,)) == 0  # predicted where the label is not
    assert worst_dice(found, reference, (0, 1, 2, 3, 4)) is None


def test_what_was_kept_is_used_again_unless_the_program_has_changed(case: Case, tmp_path: Path) -> None:
    first = Session(case, tmp_path, learning=QUICK).dice((3, 6, 8))
    path = tmp_path / "phantom.jsonl"
    with path.open("a") as file:
        file.write('\n[[2, 4], {"dice": 0.5}]\n[[5], {"di')  # the second was cut off
    again = Session(case, tmp_path, learning=TrainConfig(budget_s=0.001))
    assert again.dice((3, 6, 8)) == first and again.dice((2, 4)) == 0.5
    path.write_text(json.dumps([[3, 6, 8], {"dice": first - 0.01}]))
    with pytest.raises(FileError, match="measured by another version"):
        Session(case, tmp_path)


def test_measures_of_the_same_slices_are_kept_together(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl")
    kept.add((1, 2), {"dice": 0.5})
    kept.add((1, 2), {"worst_dice": None})
    again = Kept(tmp_path / "kept.jsonl")
    assert again.keys() == [(1, 2)] and again.get((1, 2)) == {"dice": 0.5, "worst_dice": None}
    assert again.get((1,)) == {}


def _steps(volume: str, contestant: str, curve: list[float], seed: int = 0, **other: list[object]) -> list[Step]:
    """A curve as steps; other fields as lists of equal length."""
    return [
        Step(
            volume,
            "29x400x400",
            4,
            contestant,
            seed,
            n,
            " ".join(map(str, range(n))),
            n - 1,
            dice,
            dice,
            1.0,
            0,
            **{"worst_dice": 0.5, **{name: values[n - 1] for name, values in other.items()}},  # type: ignore[arg-type]
        )
        for n, dice in enumerate(curve, start=1)
    ]


@pytest.fixture
def curves() -> Curves:
    """`a` has room for six slices, `b` for three."""
    ours = _steps(
        "a",
        OURS,
        [0.5, 0.8, 0.86, 0.92, 0.96, 0.97],
        worst_dice=[0.99, 0.3, 0.5, 0.96, 0.96, None],
        stop=[False, False, False, False, True, True],
        expected_dice=[0.6, 0.8, 0.9, 0.9, 0.95, 0.97],
        suggest_s=[9.0, 1.0, 1.5, 1.25, 2.0, 1.5],
    )
    steps = [
        *ours,
        *_steps("b", OURS, [0.7, 0.8, 0.96], worst_dice=[0.1, 0.2, 0.3], stop=[False] * 3),
        *_steps("a", "centres", [0.5, 0.7, 0.80, 0.84, 0.90, 0.94]),
        *_steps("b", "centres", [0.5, 0.86, 0.91]),
        *_steps("a", "random", [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], seed=0),
        *_steps("a", "random", [0.3, 0.3, 0.4, 0.4, 0.4, 0.4], seed=1),
        *_steps("b", "random", [0.1, 0.1, 0.1]),
        *_steps("a", "centres-volume", [0.99] * 6),
        *_steps("a", ORACLE, [0.6, 0.85, 0.90, 0.94, 0.96, 0.98]),
        *_steps("b", ORACLE, [0.7, 0.9, 0.97]),
    ]
    return Curves(steps, 0.95)


def test_slices_needed_are_counted_to_the_first_time() -> None:
    assert [slices_needed([0.5, 0.86, 0.8, 0.9], level) for level in (0.85, 0.9, 0.95)] == [2, 4, None]


def test_seeds_count_with_their_mean(curves: Curves) -> None:
    assert curves.curve("a", "random") == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.3, 0.3])
    assert curves.mean(["a", "b"], "random", 3) == pytest.approx(0.2)
    assert curves.mean_area("random") == pytest.approx((1.6 / 6 + 0.1) / 2)
    assert curves.with_slices(3) == ["a", "b"] and curves.with_slices(4) == ["a"]


def test_the_share_of_the_gap_is_over_all_counts_and_never_of_a_plan_in_the_whole_volume(curves: Curves) -> None:
    share, plan = gap_closed(curves) or (0, "")
    ours, centres, oracle = 3.71, 3.48, 3.78
    assert plan == "centres" and share == pytest.approx((ours - centres) / (oracle - centres))
    assert gap_closed(curves, (7,)) is None
    assert gap_closed(Curves([s for s in curves.steps if s.contestant != ORACLE], 0.95)) is None


def test_the_true_moment_is_when_all_slices_left_are_good_and_never_after_one(curves: Curves) -> None:
    assert curves.moments("a") == (5, 4) and curves.moments("b") == (None, None)
    done = {step.n: is_enough(step, 0.95) for step in curves.steps_of("a", OURS)}
    assert done == {1: False, 2: False, 3: False, 4: True, 5: True, 6: True}


def test_goals_on_curves_made_by_hand(curves: Curves) -> None:
    assert cheapest(curves, 0.85) == "centres"
    told = {name: (reached, met) for name, _, reached, met in goals(curves)}
    assert told == {
        "fewer slices to Dice 0.85 than the best fixed plan": ("14%: 3.0, centres 3.5; 2 volumes where both do", "no"),
        "Dice 0.85 on no volume later": ("1 of 2 later than centres: b", "no"),
        "fewer slices to Dice 0.90 than the best fixed plan": ("12%: 3.5, centres 4.0; 2 volumes where both do", "no"),
        "Dice 0.90 on no volume later": ("0 of 2 later than centres", "yes"),
        "fewer slices to Dice 0.95 than the best fixed plan": ("not reached by both on any volume", "-"),
        "Dice 0.95 on no volume later": ("0 of 2 later than centres", "yes"),
        "area under the curve above every fixed plan": ("least +0.0592, over centres", "yes"),
        "gap between the best fixed plan and the oracle closed at 3 to 6 slices": ("77%; the best is centres", "yes"),
        "stop within 1 slice of the true moment": ("1 of 1 where one came; on 1 neither came", "yes"),
        "seconds per suggestion, 29x400x400": ("median 1.50 s of 5", "yes"),
    }


def test_goals_without_rivals_are_not_measured(curves: Curves) -> None:
    alone = Curves([step for step in curves.steps if step.contestant == ORACLE], 0.95)
    assert {(reached, met) for _, _, reached, met in goals(alone)} == {("not measured", "-")}


def test_the_report_tells_of_every_contestant_and_volume(curves: Curves) -> None:
    text = markdown(curves, ["a Z80"], "picture.png", ["c: FileError: no image"])
    assert "- a Z80" in text and "![Dice against annotated slices](picture.png)" in text
    assert "| slices | volumes | next_slice | centres | random | centres-volume | oracle |" in text
    assert "| 3 | 2 | 0.910 | 0.855 | 0.200 | 0.990 | 0.935 |" in text
    assert "| next_slice | 3.0 (2 of 2) | 3.5 (2 of 2) | 4.0 (2 of 2) |" in text
    assert "| a | 5 | 4 | 6 | - | 0.970 | 0.970 | 0.028 |" in text
    assert "| a | 0 1 2 3 4 5 | 0 1 2 3 4 5 |" in text
    assert "| a | 29x400x400 | 4 | 1.50 | 2.00 |" in text
    assert "- c: FileError: no image" in text


def test_one_command_writes_table_report_and_plot_and_goes_on(measuring: Path, tmp_path: Path) -> None:
    (measuring / "broken").mkdir()
    (measuring / "broken" / "meta.json").write_text((measuring / "phantom" / "meta.json").read_text())
    for name in ("image", "label"):
        (measuring / "broken" / f"{name}.nii.gz").write_bytes(b"no image")
    out, keep = tmp_path / "results" / "suggestions.csv", tmp_path / "keep"
    arguments = ["--data", str(measuring), "--contestants", OURS, "centres", ORACLE, "--slices", "2"]
    arguments += ["--budget-s", "1", "--oracle", "registration", "--keep", str(keep), "--out", str(out)]
    tables = []
    for _ in range(2):
        with pytest.raises(SystemExit, match="1 volumes without a result"):
            suggestions.main(arguments)
        with out.open(newline="") as file:
            tables.append([{**row, "suggest_s": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert [(row["contestant"], row["n"]) for row in tables[0]] == [
        (name, n) for name in (OURS, "centres", ORACLE) for n in ("1", "2")
    ]
    text = out.with_suffix(".md").read_text()
    assert "| phantom | 11x48x60 | 2 |" in text and "- broken: " in text and f"{torch.get_num_threads()} thread" in text
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_a_target_that_cannot_be_is_one_line(measuring: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"suggestions\.py: the target"):
        suggestions.main(["--data", str(measuring), "--target", "2", "--out", str(tmp_path / "out.csv")])


def test_every_contestant_can_be_drawn() -> None:
    assert set(COLOURS) == set(CONTESTANTS)


def test_a_started_annotation_begins_in_the_middle_of_the_labelled_range(session: Session) -> None:
    """Then it goes where the product says."""
    first, last = session.case.labelled_range
    started = CONTESTANTS[f"{OURS}-started"].choose
    ((middle,), following) = started(session, 1, (), 0), started(session, 2, (5,), 0)
    assert abs(middle - (first + last) / 2) <= 0.5
    assert following == CONTESTANTS[OURS].choose(session, 2, (5,), 0)
