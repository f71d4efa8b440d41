"""Arguments of the command line that several groups of commands share."""

from __future__ import annotations

import argparse

from sliceprop.config import SuggestConfig


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")


def add_target(parser: argparse.ArgumentParser) -> None:
    """`--target`."""
    parser.add_argument(
        "--target",
        type=float,
        default=SuggestConfig.target,
        metavar="DICE",
        help=f"estimated Dice above which a slice needs no annotation (default: {SuggestConfig.target:g})",
    )
