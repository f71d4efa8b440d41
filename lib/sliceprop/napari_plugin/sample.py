"""Sample data: the synthetic thigh, with and without annotation."""

from __future__ import annotations

import colorsys
from functools import cache
from typing import Any

import numpy as np

from sliceprop.io import Image
from sliceprop.napari_plugin.geometry import layer_placement
from sliceprop.napari_plugin.label_names import LabelStyle, label_options
from sliceprop.phantom import LABEL_NAMES, Phantom, make_phantom

LayerData = tuple[Any, dict[str, Any], str]


def thigh() -> list[LayerData]:
    """Scan, and labels on three of its slices."""
    phantom = _phantom()
    place = Image(phantom.image, phantom.affine)
    labels = layer_placement(place)
    styles = {n: LabelStyle(name, _color(n)) for n, name in enumerate(LABEL_NAMES, start=1)}
    labels |= label_options(styles, labels["metadata"])
    return [
        (np.ascontiguousarray(phantom.image.T), {"name": "thigh", **layer_placement(place)}, "image"),
        (phantom.sparse.T.astype(np.uint16), {"name": "thigh labels", **labels}, "labels"),
    ]


def thigh_scan() -> list[LayerData]:
    """The scan alone."""
    return thigh()[:1]


@cache
def _phantom() -> Phantom:
    return make_phantom()


def _color(n: int) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb(n * 0.618 % 1, 0.55, 0.75)
