"""Which pretrained model the learning of a study starts from.

A pretrained model is a checkpoint with a card beside it, `NAME.safetensors` and `NAME.card.json`, as `cohort.pretrain`
writes them. Of several in a folder that one is taken whose card agrees in most with what is known of the scan, modality
and anatomy, and of equal ones the newest. What is known and differs rules a model out; what is not known does not.
Where none is named or fits, learning starts from the network that comes with the package.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sliceprop.dicom_series import series_tags
from sliceprop.errors import FileError, InputError
from sliceprop.files import read_json
from sliceprop.io import SUFFIXES

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"

ENVIRONMENT = "SLICEPROP_PRETRAINED"
"""Variable that names the file or folder which `auto` means."""

CHECKPOINT, CARD = ".safetensors", ".card.json"

SHIPPED = Path(__file__).with_name(f"registration{CHECKPOINT}")
"""Pretrained on synthetic thighs alone, by `benchmarks/warm_start.py --starts phantom`; its card tells of it."""

_TAGS = ("Modality", "BodyPartExamined")
"""In DICOM, and in the JSON that dcm2niix writes beside a NIfTI file."""


@dataclass(frozen=True)
class Kind:
    """What a scan shows and how it was taken, in DICOM's words; empty where it is not known.

    Attributes:
        modality: `MR`, `CT`...
        anatomy: part of the body, such as `LSPINE`; capitals, spaces and signs do not count.
    """

    modality: str = ""
    anatomy: str = ""

    def agreement(self, other: Kind) -> int | None:
        """In how many of both they agree; None where they differ in one."""
        both = (self.modality, other.modality), (self.anatomy, other.anatomy)
        known = [(_plain(mine), _plain(theirs)) for mine, theirs in both if mine and theirs]
        return len(known) if all(mine == theirs for mine, theirs in known) else None

    def completed(self, other: Kind) -> Kind:
        """This one, with what the other one knows beyond it."""
        return Kind(self.modality or other.modality, self.anatomy or other.anatomy)


@dataclass(frozen=True)
class WarmStart:
    """How the start of learning is chosen.

    Attributes:
        wanted: checkpoint, folder of pretrained models, `none`, or `auto` for what `ENVIRONMENT` names, else `SHIPPED`.
        said: what the user says of the scans; it counts before what their files tell.
    """

    wanted: str = AUTO
    said: Kind = field(default_factory=Kind)

    def checkpoint(self, image: Path | None = None) -> Path | None:
        """The checkpoint that learning on a scan starts from; None for nothing.

        Args:
            image: the scan's file or DICOM folder, to read from it what the user did not say.

        Raises:
            FileError: there is no such checkpoint or folder.
            InputError: the folder holds no pretrained model at all.
        """
        place = (os.environ.get(ENVIRONMENT) or str(SHIPPED)) if self.wanted == AUTO else self.wanted
        if place == NONE:
            return None
        where = Path(place).absolute()
        if where.is_dir():
            return choose(where, self.said if image is None else self.said.completed(kind_of(image))) or SHIPPED
        if where.is_file():
            return where
        raise FileError(f"{where}: no such checkpoint, nor a folder of pretrained models")


def choose(folder: Path, kind: Kind) -> Path | None:
    """The pretrained model of a folder that fits a scan best; None if none fits.

    Raises:
        InputError: the folder holds no pretrained model.
    """
    cards = list(_cards(folder))
    if not cards:
        raise InputError(f"{folder}: holds no pretrained model; put NAME{CHECKPOINT} and NAME{CARD} there")
    fitting = [
        (agreement, str(card.get("date", "")), file)
        for file, card in cards
        if (agreement := kind.agreement(_kind_on(card))) is not None
    ]
    return max(fitting)[-1] if fitting else None


def kind_of(image: Path) -> Kind:
    """What the files of a scan tell: DICOM tags of a series, or the JSON of dcm2niix beside NIfTI.

    Args:
        image: folder with a DICOM series, or a file; a folder of the same name beside it counts too, which is where the
            server keeps the series of an archive.
    """
    name, folder = image.absolute().name, image.absolute().parent
    stem = next((name.removesuffix(suffix) for suffix in reversed(SUFFIXES) if name.endswith(suffix)), name)
    told = series_tags(folder / stem, _TAGS) | _read_json(folder / f"{stem}.json")
    return Kind(*(str(told.get(tag) or "") for tag in _TAGS))


def common_kind(kinds: list[Kind]) -> Kind:
    """What all of these agree on."""
    return Kind(_common([kind.modality for kind in kinds]), _common([kind.anatomy for kind in kinds]))


def _common(texts: list[str]) -> str:
    return texts[0] if len({_plain(text) for text in texts}) == 1 else ""


def _cards(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoint and card of each pretrained model."""
    for card in sorted(folder.glob(f"*{CARD}")):
        file, told = card.with_name(card.name.removesuffix(CARD) + CHECKPOINT), _read_json(card)
        if file.is_file() and told:
            yield file, told
        else:
            logger.warning("%s is left out: no model card, or no checkpoint beside it", card)


def _kind_on(card: dict[str, Any]) -> Kind:
    data = card.get("data")
    told = data if isinstance(data, dict) else {}
    return Kind(str(told.get("modality") or ""), str(told.get("anatomy") or ""))


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    told = read_json(file)
    return told if isinstance(told, dict) else {}


def _plain(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())
