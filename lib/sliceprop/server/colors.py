"""Colours of the structures, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sliceprop.errors import InputError
from sliceprop.files import read_table, write_table
from sliceprop.segments import default_color

_COLOR = re.compile(r"#[0-9a-f]{6}")


def check_color(color: object) -> str:
    """A colour as `#rrggbb`, in small letters.

    Raises:
        InputError: for anything else.
    """
    text = str(color).lower()
    if not _COLOR.fullmatch(text):
        raise InputError(f"a colour is written #rrggbb, not {color!r}")
    return text


class LabelColors:
    """The colours that clients chose; the other names get one by their index.

    Args:
        file: its folder is made when the first colour arrives.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, indices: Mapping[str, int]) -> dict[str, str]:
        """`{name: "#rrggbb"}` for `{name: index}`."""
        chosen = read_table(self._file) or {}
        return {name: chosen.get(name) or default_color(index) for name, index in indices.items()}

    def take(self, chosen: Mapping[str, str]) -> None:
        """Set colours that come along with new labels; those chosen before stay."""
        before = read_table(self._file) or {}
        if chosen.keys() - before.keys():
            write_table(self._file, {**chosen, **before})

    def change(self, chosen: Mapping[str, str], renamed: Mapping[str, str]) -> None:
        """Set colours, after moving those of renamed labels.

        Args:
            chosen: `{name: "#rrggbb"}`.
            renamed: `{old name: new name}`.

        Raises:
            FileError: if the file cannot be written.
        """
        kept = {renamed.get(name, name): color for name, color in (read_table(self._file) or {}).items()}
        write_table(self._file, {**kept, **chosen})
