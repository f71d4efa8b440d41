"""Plot of a simulation: mean Dice against annotated slices, and a small panel per volume."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contestants import ORACLE, OURS
from curves import LEVELS, Curves
from plots import STYLE

PANELS_PER_ROW = 5
COLOURS = {
    OURS: "#D55E00",
    f"{OURS}-started": "#D55E00",
    "centres": "#0072B2",
    "keep_n": "#56B4E9",
    "random": "#999999",
    "kmeans": "#009E73",
    "histogram": "#CC79A7",
    "ssim": "#E69F00",
    "perceptual": "#7A5195",
    "centres-volume": "#0072B2",
    "keep_n-volume": "#56B4E9",
    ORACLE: "#000000",
}
"""After Okabe and Ito; what is no rival of the product is dashed."""

DASHED = (ORACLE, f"{OURS}-started", "centres-volume", "keep_n-volume")


def write(curves: Curves, path: Path) -> None:
    """Draw all curves into one picture."""
    with mpl.rc_context(STYLE):
        figure(curves).savefig(path, bbox_inches="tight")


def figure(curves: Curves) -> Figure:
    """Above the mean over the volumes with room for all slices, below each volume."""
    lines = -(-len(curves.volumes) // PANELS_PER_ROW)
    whole = Figure(figsize=(13, 4.6 + 2.2 * lines), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=[4.6, 2.2 * lines])
    _draw_mean(above.subplots(), curves)
    panels = below.subplots(lines, PANELS_PER_ROW, squeeze=False).ravel()
    for axes, volume in zip(panels, curves.volumes, strict=False):
        for name in curves.contestants:
            _draw(axes, curves.curve(volume, name), name, small=True)
        axes.set_title(volume, loc="left", fontsize=9)
    for axes in panels[len(curves.volumes) :]:
        axes.remove()
    below.supxlabel("annotated slices (every panel has its own scale of Dice)", fontsize=9)
    return whole


def mean_curve(curves: Curves, name: str) -> list[float]:
    """Over the volumes with room for all slices, so that the curve does not change its company."""
    volumes = curves.with_slices(max(step.n for step in curves.steps))
    found = [curve for volume in volumes if (curve := curves.curve(volume, name))]
    return [fmean(heights) for heights in zip(*found, strict=True)] if found else []


def _draw_mean(axes: Axes, curves: Curves) -> None:
    for name in curves.contestants:
        _draw(axes, mean_curve(curves, name), name)
    for level in LEVELS:
        axes.axhline(level, color="#BBBBBB", linewidth=0.8, linestyle=":")
    volumes = len(curves.with_slices(max(step.n for step in curves.steps)))
    axes.set_title(f"Mean over {volumes} volume{'s' * (volumes != 1)}", loc="left")
    axes.set_ylabel("Dice, whole volume")
    axes.set_xlabel("annotated slices")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw(axes: Axes, curve: list[float], name: str, *, small: bool = False) -> None:
    ours = name == OURS
    axes.plot(
        range(1, len(curve) + 1),
        curve,
        label=name,
        color=COLOURS[name],
        linewidth=(2.2 if ours else 1.1) * (0.8 if small else 1.0),
        linestyle="--" if name in DASHED else "-",
        marker="o" if ours and not small else None,
        markersize=5,
        zorder=3 if ours else 2,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
