"""How long OHIF stands still while the server works: the longest gap between two frames, and between turns of its loop.

A synthetic thigh is annotated on five slices and open in a real browser (headless, without a graphics card) on the
machine on which server and training run too. The page at rest is measured as well, since a busy machine delays every
program; `script` is the longest time for which the page's own scripts kept it busy at a stretch.

    PYTHONPATH=tests python benchmarks/ohif_stall.py --output benchmarks/results/ohif_stall.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from browsing import Tab, expect
from serving import eventually
from sliceprop.io import write_json
from sliceprop.phantom import make_phantom
from touring import Tour, touring

GOAL_S = 0.1
REST_S = 5.0
SLICES = 5

_COLLECT = """() => {
    const gaps = { frame: [], turn: [], script: [] };
    let running = true;
    const every = (kind, next) => {
        let last = performance.now();
        const tick = () => {
            const now = performance.now();
            gaps[kind].push(now - last);
            last = now;
            running && next(tick);
        };
        next(tick);
    };
    every('frame', tick => requestAnimationFrame(tick));
    every('turn', tick => setTimeout(tick, 2));
    const tasks = new PerformanceObserver(list => gaps.script.push(...list.getEntries().map(task => task.duration)));
    tasks.observe({ entryTypes: ['longtask'] });
    window.endGaps = () => {
        running = false;
        tasks.disconnect();
        return gaps;
    };
}"""


def during(tab: Tab, act: Callable[[], None]) -> dict[str, Any]:
    """Seconds of the longest gap and of the 99th percentile while something is done."""
    tab.page.evaluate(_COLLECT)
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    gaps = tab.page.evaluate("endGaps()")
    return {"seconds": round(seconds, 2), **{kind: _summary(found) for kind, found in gaps.items()}}


def _summary(milliseconds: list[float]) -> dict[str, float]:
    gaps = np.array(milliseconds or [0.0]) / 1000
    return {"longest_s": round(float(gaps.max()), 4), "p99_s": round(float(np.percentile(gaps, 99)), 4)}


def train(tour: Tour, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Press the button, once the server has cleared away the training before, and wait for the end."""
    tab = tour.tab
    eventually(lambda: not tour.client.call("GET", "/train/?check_if_running=true").ok, "the training before to end")
    tab.button("train").click()
    expect(tab.page.locator("[data-training]")).to_be_visible()
    meanwhile()
    expect(tab.page.locator("[data-training]")).to_have_count(0, timeout=600_000)


def paint(tab: Tab) -> None:
    """Ten strokes across the scan, a slice further after each."""
    for n in range(10):
        tab.page.get_by_label("Next slice").click()
        tab.drag(0, (0.35, 0.3 + 0.03 * n), (0.6, 0.35 + 0.03 * n))


def measure(tour: Tour) -> dict[str, Any]:
    """One round of the loop."""
    tab = tour.tab
    tab.open(tour.study)
    tab.wait_ready()
    tab.page.locator(".labelprop-label").first.click()
    return {
        "at rest": during(tab, lambda: tab.page.wait_for_timeout(1000 * REST_S)),
        "painting": during(tab, lambda: paint(tab)),
        "training": during(tab, lambda: train(tour)),
        "training, painting": during(tab, lambda: train(tour, lambda: paint(tab))),
        "submit and propagate": during(tab, lambda: tab.press("propagate")),
    }


def main() -> None:
    """Measure and print; with `--output` also keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--slices", type=int, default=29)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    phantom = make_phantom(options.size, options.slices)
    annotated = [int((n + 0.5) * options.slices / SLICES) for n in range(SLICES)]
    with tempfile.TemporaryDirectory() as folder, touring(phantom, annotated, Path(folder)) as tour:
        version = tour.tab.page.context.browser
        rows = measure(tour)
        found = {"shape": [options.slices, options.size, options.size], "goal_s": GOAL_S, "rows": rows}
        found |= {"chromium": version.version if version else ""}
    print(json.dumps(found, indent=2))
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
