"""OHIF in a headless browser, with a mouse and a keyboard, and what its viewer holds as arrays."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
ALONE = "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
"""No other host has an address."""

_READ_LAYER = """name => {
    const known = window.services.segmentationService.getSegmentations();
    const layer = known.find(one => one.label === `LabelProp: ${name}`);
    const volume = window.cornerstone.cache.getVolume(layer.segmentationId);
    const { dimensions: shape, origin, spacing, direction } = volume;
    const values = volume.voxelManager.getCompleteScalarDataArray();
    const lists = Object.entries({ shape, origin, spacing, direction, values });
    return Object.fromEntries(lists.map(([key, list]) => [key, Array.from(list)]));
}"""

_SLICE_VIEWPORT = "window.cornerstone.getRenderingEngines()[0].getViewports()[0]"


@contextmanager
def browser_context() -> Iterator[BrowserContext]:
    """A fresh browser; software rendering, as a machine for tests has no display."""
    options = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*options, *quiet, f"--host-resolver-rules={ALONE}"]
        )
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(PATIENCE_MS)
        yield context
        browser.close()


class Tab:
    """One tab with the panel.

    Args:
        context: of the browser.
        url: of the server.
        folder: for screenshots.
    """

    def __init__(self, context: BrowserContext, url: str, folder: Path) -> None:
        self.page: Page = context.new_page()
        self._url, self.folder = url, folder
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        self.page.on("dialog", lambda dialog: dialog.accept())

    def address(self, study: str, mode: str = "labelprop") -> str:
        """Of a study in one of OHIF's modes."""
        return f"{self._url}/ohif/{mode}?StudyInstanceUIDs={study}"

    def open(self, study: str, mode: str = "labelprop") -> None:
        """Open a study by its address, and wait until it is shown."""
        self.page.goto(self.address(study, mode))
        self._agree()

    def open_from_list(self, patient: str) -> None:
        """Open a study as users do: the list, the study, the mode."""
        self.page.goto(f"{self._url}/ohif/")
        self.page.get_by_text(patient, exact=True).first.click()
        self.page.get_by_role("button", name="LabelProp").or_(
            self.page.get_by_text("LabelProp", exact=True)
        ).first.click()
        self._agree()

    def reload(self) -> None:
        self.page.reload()
        self._agree()

    def _agree(self) -> None:
        """OHIF's note that it is for research; once per browser and month."""
        self.page.wait_for_selector(".cornerstone-canvas")
        note = self.page.get_by_text("Confirm and Hide")
        if note.is_visible():
            note.click()

    def wait_ready(self) -> None:
        self.part("labels").wait_for()

    def shot(self, name: str) -> None:
        self.page.screenshot(path=self.folder / f"{name}.png")

    # The panel

    def part(self, name: str) -> Any:
        return self.page.locator(f"[data-labelprop={name}]")

    def button(self, action: str) -> Any:
        return self.page.locator(f"[data-action={action}]")

    def notice(self, text: str | re.Pattern[str]) -> Any:
        return self.page.locator(".labelprop-notice", has_text=text)

    def press(self, action: str) -> None:
        """Press a button and wait until the server has answered."""
        self.button(action).click()
        self.settle()

    def settle(self) -> None:
        self.page.locator(".labelprop-busy:not(.on)").wait_for(state="attached")
        self.page.wait_for_timeout(100)
        self.page.locator(".labelprop-busy:not(.on)").wait_for(state="attached")

    def add_label(self, name: str) -> None:
        self.page.get_by_placeholder("New label").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator(f"[data-label={name}]").wait_for()

    def number(self) -> int:
        """Of the slice, as the panel says it."""
        return int(self.part("slice").locator("[data-slice]").get_attribute("data-slice"))

    def listed(self) -> list[int]:
        """Indices of the annotated slices in the panel's list."""
        chips = self.part("slices").locator("[data-slice-index]")
        return sorted(chips.evaluate_all("all => all.map(chip => Number(chip.dataset.sliceIndex))"))

    def go_to_suggestion(self) -> int:
        """Press the suggestion; the number of the slice that it names and shows."""
        self.press("suggest")
        number = self.button("suggest").inner_text().split()[-1]
        expect(self.part("slice").locator("[data-slice]")).to_have_attribute("data-slice", number)
        return int(number)

    def go(self, number: int) -> None:
        """Step to a slice."""
        while (here := self.number()) != number:
            self.page.get_by_label("Next slice" if number > here else "Slice before").click()
            expect(self.part("slice").locator("[data-slice]")).not_to_have_attribute("data-slice", str(here))

    def set_radius(self, radius: float) -> None:
        self.page.get_by_label("Radius in mm").fill(str(radius))

    # The viewer

    def picture(self) -> bytes:
        """What the smallest of the views shows, which cuts the slices."""
        return bytes(self.page.locator(".viewport-wrapper").last.screenshot())

    def focus(self) -> np.ndarray:
        """A point in LPS mm on the slice in the large view."""
        return np.array(self.page.evaluate(f"Array.from({_SLICE_VIEWPORT}.getCamera().focalPoint)"))

    def normals(self) -> list[list[float]]:
        """Of the planes in the views, in LPS."""
        views = "window.cornerstone.getRenderingEngines()[0].getViewports()"
        return list(self.page.evaluate(f"{views}.map(view => Array.from(view.getCamera().viewPlaneNormal))"))

    def dab(self, point: np.ndarray) -> None:
        """Paint at a point in LPS mm in the large view; the mouse moves a little, as a still one could double-click."""
        x, y = self._place(point)
        self._stroke([(x + dx, y) for dx in (-4, 0, 4, 0)])

    def jump(self, start: np.ndarray, end: np.ndarray) -> None:
        """Paint in the large view with a mouse of which the page sees two places only, in LPS mm."""
        self._stroke([self._place(start), self._place(end)])

    def _place(self, point: np.ndarray) -> tuple[float, float]:
        """Where a point in LPS mm lies on the page, in the large view."""
        x, y = self.page.evaluate(f"point => Array.from({_SLICE_VIEWPORT}.worldToCanvas(point))", point.tolist())
        box = self.page.locator(".cornerstone-canvas").first.bounding_box()
        assert box is not None
        return box["x"] + x, box["y"] + y

    def activate(self, view: int) -> None:
        """Click into a view: in OHIF the first click makes it the active one and does nothing else."""
        self.page.locator(".cornerstone-canvas").nth(view).click(position={"x": 30, "y": 60}, force=True)
        self.page.wait_for_function(
            "view => document.querySelectorAll('.cornerstone-canvas')[view].closest('.pointer-events-none') === null",
            arg=view,
        )

    def drag(self, view: int, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag across a view; points as shares of its width and height."""
        box = self.page.locator(".cornerstone-canvas").nth(view).bounding_box()
        assert box is not None
        shares = [(start[0] + (end[0] - start[0]) * n / 6, start[1] + (end[1] - start[1]) * n / 6) for n in range(7)]
        self._stroke([(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in shares])

    def _stroke(self, points: list[tuple[float, float]]) -> None:
        """Press the mouse button at the first point, and let it go at the last one."""
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for x, y in points[1:]:
            self.page.mouse.move(x, y)
        self.page.mouse.up()
        self.page.evaluate("new Promise(done => setTimeout(() => requestAnimationFrame(done), 80))")

    def voxels(self, name: str, shape: tuple[int, ...], affine_lps: np.ndarray) -> np.ndarray:
        """A layer of the viewer on the server's grid: every voxel by its own place in millimetres."""
        layer = self.page.evaluate(_READ_LAYER, name)
        values = np.array(layer["values"], np.uint8).reshape(layer["shape"], order="F")
        columns = np.array(layer["direction"]).reshape(3, 3).T * layer["spacing"]
        at = np.argwhere(np.ones_like(values))
        points = at @ columns.T + layer["origin"]
        there = np.round((points - affine_lps[:3, 3]) @ np.linalg.inv(affine_lps[:3, :3]).T).astype(int)
        placed = np.full(shape, 99, np.uint8)
        placed[tuple(there.T)] = values[tuple(at.T)]
        return placed

    def other_hosts(self) -> set[str]:
        """Hosts that were asked apart from the server's."""
        return self.hosts - {urlsplit(self._url).hostname, ""}


def artefacts(folder: Path) -> Path:
    """Where screenshots go: `SLICEPROP_ARTEFACTS` if that is set."""
    chosen = Path(os.environ.get("SLICEPROP_ARTEFACTS") or folder)
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen
