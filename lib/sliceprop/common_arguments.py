"""Arguments of the command line that several groups of commands share."""

from __future__ import annotations

import argparse

from sliceprop.config import SuggestConfig


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")


def add_init(parser: argparse.ArgumentParser) -> None:
    """`--init`, and what it is chosen by."""
    parser.add_argument(
        "--init",
        default="auto",
        metavar="auto|none|FILE|DIR",
        help="checkpoint to start learning from, or a folder of pretrained ones, of which the newest that fits counts "
        "(default: auto, what SLICEPROP_PRETRAINED names, else a network that comes along)",
    )
    add_kind(parser)


def add_kind(parser: argparse.ArgumentParser) -> None:
    """`--modality` and `--anatomy`."""
    parser.add_argument("--modality", default="", metavar="MR|CT|...", help="of the scans, if their files do not tell")
    parser.add_argument("--anatomy", default="", metavar="PART", help="of the body, if the scans' files do not tell")


def add_target(parser: argparse.ArgumentParser) -> None:
    """`--target`."""
    parser.add_argument(
        "--target",
        type=float,
        default=SuggestConfig.target,
        metavar="DICE",
        help=f"estimated Dice above which a slice needs no annotation (default: {SuggestConfig.target:g})",
    )
