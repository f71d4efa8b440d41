"""The arguments of the command line; imports nothing heavy, so that `--help` and typing errors answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sliceprop import __version__
from sliceprop.cohort_commands import add_cohort_commands
from sliceprop.common_arguments import add_init, add_json, add_target
from sliceprop.config import (
    BACKGROUND_SCRIBBLE,
    FUSIONS,
    MAX_SEED,
    METHODS,
    PLANS,
    PREDICTORS,
    PredictorConfig,
    SuggestConfig,
    TrainConfig,
)
from sliceprop.study_commands import add_study_commands
from sliceprop.tokens import ROLES
from sliceprop.tool_commands import add_tool_commands

_BUDGET = f"default: {TrainConfig.budget_s:g}"
_OVERFITTED = ", ".join(PREDICTORS)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The chosen `command` and its arguments; ends the process with code 2 and one line when they make no sense."""
    return _parser().parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sliceprop", description="Annotate a few slices of a 3D scan, get the volume.")
    parser.add_argument("--version", action="version", version=f"sliceprop {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    train = add("train", "learn how each slice of a scan deforms into the next")
    _add_inputs(train)
    train.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="checkpoint, *.safetensors")
    _add_training(train)
    add_json(train)

    propagate = add("propagate", "fill the volume from the annotated slices, learning first without --model")
    _add_inputs(propagate)
    propagate.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="label map to write")
    _add_model(propagate)
    propagate.add_argument(
        "--method",
        choices=(*METHODS, *PREDICTORS),
        default="auto",
        help=f"default: auto, weighs the others; {_OVERFITTED}: a network learns the annotated slices, for minutes",
    )
    propagate.add_argument("--fusion", choices=FUSIONS, default="sdf", help="how both sides are merged (default: sdf)")
    propagate.add_argument(
        "--extrapolate",
        default="auto",
        metavar="auto|none|N",
        help="beyond the outermost annotated slices: while the evidence holds (auto), not at all, or N slices",
    )
    propagate.add_argument("--uncertainty", type=Path, metavar="F", help="write the uncertainty of each voxel, 0 to 1")
    propagate.add_argument("--drawn", type=Path, metavar="F", help="write which voxels were drawn (1), not propagated")
    propagate.add_argument(
        "--candidates", metavar="PREFIX", help="write PREFIX_from_lower and PREFIX_from_upper, in the format of OUT"
    )
    propagate.add_argument("--report", type=Path, metavar="F.json", help="write estimated quality and the next slice")
    propagate.add_argument("--manifest", type=Path, metavar="F.json", help="write what `reproduce` needs, with hashes")
    _add_training(propagate, f"{_BUDGET}, of {_OVERFITTED}: {PredictorConfig.budget_s:g}")
    _add_encoder(propagate)
    add_json(propagate)

    suggest = add("suggest", "name the slices to annotate next; without annotation the best first ones")
    _add_inputs(suggest, labels_needed=False)
    _add_model(suggest)
    suggest.add_argument("-n", type=int, default=SuggestConfig.n, help="how many slices (default: 1)")
    add_target(suggest)
    _add_plan(suggest)
    _add_training(suggest, budget="nothing is learned without it")
    add_json(suggest)

    evaluate = add("evaluate", "compare a result with a reference: Dice, average Hausdorff distance, HD95")
    evaluate.add_argument("prediction", metavar="PREDICTION", type=Path)
    evaluate.add_argument("reference", metavar="REFERENCE", type=Path)
    evaluate.add_argument("--labels", type=Path, help="what was annotated: measure also without the annotated slices")
    _add_slice_axis(evaluate)
    add_json(evaluate)

    add_tool_commands(add)
    add_cohort_commands(add)
    add_study_commands(add)

    serve = add("serve", "start the MONAI Label server")
    serve.add_argument("--studies", default="sample-data", metavar="DIR_OR_URL", help="default: sample-data")
    _add_server(serve)

    ohif = add("ohif", "start the server with an archive of its own (Orthanc), to annotate in a browser")
    ohif.add_argument("--dicom", type=Path, metavar="PATH", help="file or folder to load (default: a synthetic scan)")
    ohif.add_argument(
        "--folder", type=Path, default=Path(".ohif"), metavar="DIR", help="for archive and labels (default: .ohif)"
    )
    _add_server(ohif)

    token = add("token", "make a token for somebody who may use the server; only its hash is stored")
    token.add_argument("file", metavar="FILE", type=Path, help="made if absent; for serve --token-file")
    token.add_argument("--name", required=True, metavar="NAME", help="of its holder, for the audit")
    token.add_argument("--role", choices=ROLES, default="annotate", help="default: annotate")

    demo = add("demo", "show everything on synthetic data: learn, propagate, evaluate, draw a picture")
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("sliceprop-demo"), metavar="DIR", help="default: sliceprop-demo"
    )
    _add_learning(demo, _BUDGET)
    demo.set_defaults(model=None)
    add_json(demo)

    sample = add("sample-data", "write the synthetic scan, its reference and three annotated slices")
    sample.add_argument("folder", metavar="DIR", type=Path)
    sample.add_argument("--dicom", action="store_true", help="also as a DICOM series, in DIR/dicom")
    sample.add_argument("--seed", type=_seed, default=0, help="of all that is random in it (default: 0)")
    return parser


def _add_inputs(parser: argparse.ArgumentParser, *, labels_needed: bool = True) -> None:
    parser.add_argument(
        "image", metavar="IMAGE", type=Path, help="NIfTI, NRRD, MetaImage or folder with a DICOM series"
    )
    parser.add_argument(
        "labels",
        metavar="LABELS",
        nargs=None if labels_needed else "?",
        help="painted slices on the same grid, 0 is not painted" + ("" if labels_needed else "; may be left out"),
    )
    parser.add_argument("--scribbles", type=Path, metavar="F", help="partial marks in any plane, same grid and values")
    parser.add_argument(
        "--background-scribble",
        type=int,
        default=BACKGROUND_SCRIBBLE,
        metavar="V",
        help=f"scribble value that means background (default: {BACKGROUND_SCRIBBLE})",
    )
    _add_slice_axis(parser)
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--partial", action="store_true", help="a slice is annotated only for the labels painted on it")
    known.add_argument(
        "--annotated-slices",
        type=_slices,
        metavar="3,10,20",
        help="exactly these slices are annotated completely, from 0; one without labels is known background",
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="let in who has a token, made by `sliceprop token`"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate for https")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, without a password")
    parser.add_argument(
        "--insecure", action="store_true", help="listen on other addresses without tokens or TLS; anybody gets in"
    )
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="for the app")
    parser.add_argument(
        "--scheduler",
        action="append",
        type=lambda address: ("scheduler", address),
        dest="conf",
        default=[],
        metavar="ADDRESS",
        help="train on Dask, several studies at once: `local` for workers of this machine, or tcp://10.0.0.1:8786",
    )


def _add_slice_axis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slice-axis",
        choices=("auto", "0", "1", "2"),
        default="auto",
        help="axis that counts slices (default: auto, from the annotation, else the thickest)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="MODEL", help="checkpoint from `sliceprop train`")


def _add_training(parser: argparse.ArgumentParser, budget: str = _BUDGET) -> None:
    add_init(parser)
    _add_learning(parser, budget)


def _add_learning(parser: argparse.ArgumentParser, budget: str) -> None:
    parser.add_argument(
        "--budget-s",
        type=float,
        metavar="N",
        help=f"seconds for learning ({budget}); Ctrl-C ends it earlier, keeping the best so far",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--seed", type=_seed, default=TrainConfig.seed, metavar="N", help="default: 0")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan",
        choices=("next_slice", *PLANS),
        default=SuggestConfig.plan,
        help="next_slice (default): where the most is to gain; the others lay out N slices by the scan alone, "
        "and name those that are not annotated",
    )
    parser.add_argument(
        "--perceptual-weights", type=Path, metavar="FILE", help="AlexNet's weights, for the plan perceptual"
    )
    parser.add_argument("--linear-weights", type=Path, metavar="FILE", help="LPIPS' weights of AlexNet's channels")


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder",
        default=PredictorConfig.encoder,
        metavar="NAME",
        help=f"of {_OVERFITTED}, as segmentation-models-pytorch calls it (default: {PredictorConfig.encoder})",
    )
    parser.add_argument(
        "--encoder-weights",
        default=PredictorConfig.encoder_weights,
        metavar="none|FILE|imagenet",
        help="pretrained weights of the encoder: a file, or imagenet, which is downloaded (default: none)",
    )


def _slices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"give whole numbers separated by commas, not {text!r}") from None


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"give a whole number from 0 to {MAX_SEED}, not {text!r}")
    return int(text)
