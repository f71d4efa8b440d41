"""What the times of the plans are made of; the times themselves are no test."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np

import plans
from plans import Measurement, measure, report
from sliceprop.engine.plans import PLANS


def test_every_plan_is_timed_and_perceptual_with_all_means(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).random((10, 16, 16), np.float32)
    found = list(measure("noise", slices, 2, tmp_path))
    assert {m.plan for m in found} == set(PLANS)
    assert [m.means for m in found if m.plan == "perceptual"] == ["fixed filters", "the study's network", "AlexNet"]
    assert all((m.n, m.shape, len(m.seconds)) == (2, (10, 16, 16), 2) for m in found)


def test_volumes_are_slices_first_and_in_range(measuring: Path) -> None:
    found = dict(plans.volumes(Namespace(data=measuring, volumes=())))
    assert [slices.shape for slices in found.values()] == [plans.BRATS_SHAPE, (11, 48, 60)]
    assert all(slices.min() == 0 and slices.max() == 1 for slices in found.values())


def test_the_report_has_a_row_per_volume_below_what_is_published() -> None:
    measurements = [
        Measurement("random", "", "thigh", (155, 240, 240), 31, [1e-5]),
        Measurement("ssim", "", "thigh", (155, 240, 240), 31, [3.0, 1.0, 2.5]),
        Measurement("perceptual", "AlexNet", "disc", (17, 221, 221), 3, [0.5]),
    ]
    machine = {"cpu": "Z80", "cores": 1, "gpu": None, "python": "3.11", "torch": "2"}
    text = report({"machine": machine, "threads": 1, "measurements": [asdict(m) for m in measurements]})
    assert "1 cores of Z80" in text and "; 1 threads" in text
    assert [line for line in text.splitlines() if line.startswith("|") and "---" not in line] == [
        "| volume | shape | slices chosen | random | ssim | perceptual, AlexNet |",
        "| BraTS, Payer et al. | 155x240x240 | - | 0.76 | 143 | 64 |",
        "| thigh | 155x240x240 | 31 | < 0.01 | 2.50 | - |",
        "| disc | 17x221x221 | 3 | - | - | 0.50 |",
    ]
