"""The loop in OHIF as a script: a real browser on the sample data, a real server and archive; takes the pictures.

PYTHONPATH=tests python docs/ohif_tour.py docs        # needs Orthanc, chromium and Playwright for Python
"""

from __future__ import annotations

import sys
from pathlib import Path

from browsing import expect
from sliceprop.phantom import make_phantom
from touring import Tour, touring

DRAWN = (2, 12, 21)
SIZE = {"width": 1280, "height": 970}
"""In which the whole panel is seen."""


def take(tour: Tour) -> None:
    """The annotated slice, the result with the slice to correct, and where the result is uncertain."""
    tab = tour.tab
    tab.page.set_viewport_size(SIZE)
    tab.open(tour.study)
    tab.wait_ready()
    tab.page.locator(f"[data-slice-index='{DRAWN[1]}']").click()
    tab.page.locator(".labelprop-label").first.click()
    tab.shot("ohif_painting")
    tab.button("train").click()
    expect(tab.page.locator("[data-training]")).to_be_visible()
    expect(tab.page.locator("[data-training]")).to_have_count(0, timeout=600_000)
    tab.press("propagate")
    tab.go_to_suggestion()
    tab.shot("ohif_propagated")
    tab.press("uncertainty")
    tab.shot("ohif_uncertainty")


if __name__ == "__main__":
    with touring(make_phantom(), DRAWN, Path(sys.argv[1])) as tour:
        take(tour)
