"""Names and colours of the values of a labels layer, and ITK-SNAP's files of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from sliceprop.config import MAX_LABEL
from sliceprop.errors import FileError
from sliceprop.io import check_folder, write_atomically

NAMES = "label_names"
"""Key of a layer's metadata: `{value: name}`."""

Color = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""

OTHER = (0.6, 0.6, 0.6, 1.0)
"""Colour of values without a name, beside values with one."""

_LINE = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+(\d)\s+(\d)\s+"(.*)"\s*$')
_HEADER = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


@dataclass(frozen=True)
class LabelStyle:
    """How a label is called and shown."""

    name: str
    color: Color


def names_of(layer: Any) -> dict[int, str]:
    """Names of the values that have one."""
    return {int(value): str(name) for value, name in layer.metadata.get(NAMES, {}).items()}


def full_names(layer: Any, values: set[int]) -> dict[int, str]:
    """A name for each value; `label 3` where the user gave none."""
    known = names_of(layer)
    return {value: known.get(value) or f"label {value}" for value in sorted(values)}


def styles_of(layer: Any, values: set[int]) -> dict[int, LabelStyle]:
    """Name and colour as the layer shows them."""
    shown = {value: layer.get_color(value) for value in sorted(values | names_of(layer).keys())}
    names = full_names(layer, set(shown))
    return {value: LabelStyle(names[value], _rgb(color)) for value, color in shown.items()}


def set_styles(layer: Any, styles: Mapping[int, LabelStyle]) -> None:
    """Give a layer names and colours; other values are grey."""
    for key, value in label_options(styles, layer.metadata).items():
        setattr(layer, key, value)


def label_options(styles: Mapping[int, LabelStyle], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a labels layer with names and colours, and what its metadata holds already."""
    named = {value: style.name for value, style in styles.items()}
    colors: defaultdict[int | None, Any] = defaultdict(lambda: np.array(OTHER))
    colors |= {None: np.array(OTHER), 0: np.zeros(4)}
    colors |= {value: np.array([*style.color, 1.0]) for value, style in styles.items()}
    return {
        "metadata": {**metadata, NAMES: named},
        "features": {"index": [0, *named], "label": ["background", *named.values()]},
        "colormap": DirectLabelColormap(color_dict=colors),
    }


def copy_styles(source: Any, target: Any) -> None:
    """Show the labels of one layer as another one does."""
    for key, value in shared_styles(source, target.metadata).items():
        setattr(target, key, value)


def shared_styles(source: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a labels layer that shows its labels as another one does, and its own metadata."""
    return {
        "metadata": {**metadata, NAMES: names_of(source)},
        "features": source.features,
        "colormap": source.colormap,
    }


def read_itksnap(file: Path) -> dict[int, LabelStyle]:
    """Names and colours of a label description file; the clear label is left out.

    Raises:
        FileError: missing, or not such a file.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{file}: cannot be read as a label description of ITK-SNAP ({error})") from error
    found = [match for line in lines if (match := _LINE.match(line))]
    if not found or any(int(match[1]) > MAX_LABEL for match in found):
        raise FileError(f"{file}: is not a label description of ITK-SNAP")
    styles = {}
    for value, *rgb, _, _, _, name in (match.groups() for match in found):
        red, green, blue = (min(int(part), 255) / 255 for part in rgb[:3])
        styles[int(value)] = LabelStyle(name, (red, green, blue))
    styles.pop(0, None)
    return styles


def write_itksnap(file: Path, styles: Mapping[int, LabelStyle]) -> None:
    """Write a label description file.

    Raises:
        FileError: if the folder is missing, read-only or full.
    """
    rows = [_row(value, style) for value, style in styles.items()]
    check_folder(file)
    write_atomically(file, lambda temporary: temporary.write_text(_HEADER + "".join(rows), encoding="utf-8"))


def _row(value: int, style: LabelStyle) -> str:
    red, green, blue = (round(255 * part) for part in style.color)
    return f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{style.name}"\n'


def _rgb(color: Any) -> Color:
    red, green, blue = (0.0, 0.0, 0.0) if color is None else (float(part) for part in color[:3])
    return red, green, blue
