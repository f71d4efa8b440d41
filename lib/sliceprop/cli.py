"""The command line: calls `sliceprop.study`, writes files and prints results.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 some studies of a cohort
failed, 2 something that the caller can mend (one line says what), 130 interrupted. Heavy imports wait until a command
needs them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from sliceprop.arguments import parse
from sliceprop.bars import learning_bar
from sliceprop.cohort_commands import COHORT_COMMANDS, cohort_text
from sliceprop.config import (
    LEARNED_METHODS,
    PREDICTORS,
    PredictorConfig,
    PropagateConfig,
    SuggestConfig,
    TrainConfig,
    parse_extrapolate,
)
from sliceprop.errors import FileError, SlicePropError
from sliceprop.study_commands import STUDY_COMMANDS
from sliceprop.tool_commands import TOOL_COMMANDS, tool_text

if TYPE_CHECKING:
    from sliceprop.engine.registration import Model
    from sliceprop.io import Image
    from sliceprop.manifest import Recipe
    from sliceprop.serve import Security
    from sliceprop.study import Propagation, Study

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `sliceprop --help`.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        the exit code.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: spinning threads starve each other
    logging.basicConfig(level=logging.WARNING, format="sliceprop: %(levelname)s: %(message)s")
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # what ends learning is told below; its line is often empty
    chosen = parse(arguments)
    try:
        return _COMMANDS[chosen.command](chosen) or 0
    except SlicePropError as error:
        print(f"sliceprop {chosen.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"sliceprop {chosen.command}: the memory is full; crop or downsample the scan", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sliceprop {chosen.command}: interrupted", file=sys.stderr)
        return 130


def _train(chosen: argparse.Namespace) -> None:
    from sliceprop.checkpoint import save_checkpoint
    from sliceprop.io import check_folder

    if chosen.output.suffix != ".safetensors":
        raise FileError(f"{chosen.output}: the name of a checkpoint ends with .safetensors")
    check_folder(chosen.output)
    _choose_start(chosen)
    _check_not_inputs([chosen.output, chosen.output.with_suffix(".json")], chosen)
    _, study = _open(chosen)
    model = _learn(study, chosen, save=lambda best: save_checkpoint(chosen.output, best))
    save_checkpoint(chosen.output, model)
    _print(chosen, {"model": str(chosen.output), "metric": model.metric}, f"{chosen.output}: written")


def _propagate(chosen: argparse.Namespace) -> None:
    from sliceprop.io import check_folder, check_writable, write_image, write_json
    from sliceprop.manifest import make_manifest, making, write_manifest

    extrapolate = parse_extrapolate(chosen.extrapolate)
    config = PropagateConfig(chosen.method, chosen.fusion, extrapolate, _predictor_config(chosen))
    images = _image_files(chosen)
    for file in images.values():
        check_writable(file)
    texts = [file for file in (chosen.report, chosen.manifest) if file]
    for file in texts:
        check_folder(file)
    if config.method in LEARNED_METHODS:
        _choose_start(chosen)
    else:
        chosen.init = None
    _check_not_inputs([*images.values(), *texts], chosen)
    with making() as noted:
        scan, study = _open(chosen)
        result = _learn_and_propagate(study, chosen, config)
    with _one_line_on_errors():
        for name, file in images.items():
            write_image(file, study.drawn.astype("uint8") if name == "drawn" else getattr(result, name), scan)
    report = _report(study, result)
    if chosen.report:
        write_json(chosen.report, report)
    if chosen.manifest:
        recipe = _recipe(chosen, study, config)
        write_manifest(chosen.manifest, make_manifest(chosen.manifest.parent, recipe, noted, result, images))
    _print(chosen, report, f"{chosen.output}: written\n{_report_text(report)}")


def _suggest(chosen: argparse.Namespace) -> None:
    from sliceprop import study as use_cases

    weights = chosen.perceptual_weights, chosen.linear_weights
    config = SuggestConfig(chosen.n, chosen.target, chosen.plan, chosen.seed, *weights)
    learn = chosen.budget_s is not None or chosen.init not in ("auto", "none")
    if learn:
        _choose_start(chosen)
    _, study = _open(chosen)
    model = _model(study, chosen, learn=learn)
    found = [asdict(one) for one in use_cases.suggest(study, model, config)]
    _print(chosen, found, "\n".join(_suggestion_text(one) for one in found))


def _evaluate(chosen: argparse.Namespace) -> None:
    from sliceprop import api

    with _one_line_on_errors():
        result = api.evaluate(chosen.prediction, chosen.reference, labels=chosen.labels, slice_axis=chosen.slice_axis)
    _print(chosen, result, _evaluation_text(result))


def _serve(chosen: argparse.Namespace) -> int:
    from sliceprop.serve import address_of, serve

    security = _security(chosen)
    address = address_of(security.scheme, chosen.host, chosen.port)

    def ready() -> None:
        print(
            f"\nsliceprop serves {chosen.studies} on {address}  (research use, not a medical device)\n"
            f"  3D Slicer: module MONAI Label, server address {address}\n"
            f"  OHIF:      {address}/ohif/ when the studies are a DICOMweb address\n"
            f"  programs:  {address}/docs lists all requests\n"
            "Annotate a few slices, submit them, train, run the model labelprop. Ctrl-C ends the server.\n",
            flush=True,
        )

    where = {"host": chosen.host, "port": chosen.port, "security": security}
    return serve(chosen.studies, **where, conf=chosen.conf, ready=ready)


def _ohif(chosen: argparse.Namespace) -> int:
    from sliceprop.orthanc import serve_ohif
    from sliceprop.serve import address_of

    security = _security(chosen)

    def ready() -> None:
        print(
            f"\nOpen {address_of(security.scheme, chosen.host, chosen.port)}/ohif/ in a browser  "
            "(research use, not a medical device)\n"
            "  more DICOM files: end it and start it again with --dicom DIR\n"
            f"  scans and labels: {chosen.folder}\n"
            "Ctrl-C ends the server and the archive.\n",
            flush=True,
        )

    where = {"dicom": chosen.dicom, "host": chosen.host, "port": chosen.port, "security": security}
    return serve_ohif(chosen.folder, **where, conf=chosen.conf, ready=ready)


def _security(chosen: argparse.Namespace) -> Security:
    from sliceprop.serve import Security, is_local

    if chosen.insecure and not is_local(chosen.host):
        logger.warning("%s can be reached from other machines, and nobody is asked for anything", chosen.host)
    return Security(chosen.token_file, chosen.tls_cert, chosen.tls_key, chosen.insecure)


def _token(chosen: argparse.Namespace) -> None:
    from sliceprop.tokens import add_token

    print(add_token(chosen.file, chosen.name, chosen.role))
    print(
        f"the token of {chosen.name} ({chosen.role}) is shown this once; its hash is in {chosen.file}", file=sys.stderr
    )


def _demo(chosen: argparse.Namespace) -> None:
    from sliceprop import api
    from sliceprop.io import Image, write_image
    from sliceprop.overlay import write_overlay
    from sliceprop.phantom import make_phantom, write_sample_data
    from sliceprop.warm_start import WarmStart

    chosen.init = WarmStart().checkpoint()
    phantom, output, picture = make_phantom(), chosen.output / "propagated.nii.gz", chosen.output / "overlay.png"
    write_sample_data(chosen.output, phantom)
    scan = Image(phantom.image, phantom.affine)
    study = api.open_study(scan, phantom.sparse)
    result = _learn_and_propagate(study, chosen, PropagateConfig())
    write_image(output, result.labels, scan)
    write_overlay(
        picture,
        scan,
        result.labels,
        slice_axis=study.volume.slice_axis,
        annotated_slices=phantom.annotated_slices,
        reference=phantom.reference,
    )
    report = _report(study, result)
    measured = api.evaluate(result.labels, phantom.reference, labels=phantom.sparse, affine=phantom.affine)
    text = f"{output} and {picture}: written\n{_report_text(report)}\n{_evaluation_text(measured)}"
    _print(chosen, {**report, "evaluation": measured}, text)


def _sample_data(chosen: argparse.Namespace) -> None:
    from sliceprop.dicom import write_dicom_series
    from sliceprop.io import Image
    from sliceprop.phantom import make_phantom, write_sample_data

    phantom = make_phantom(seed=chosen.seed)
    write_sample_data(chosen.folder, phantom)
    if chosen.dicom:
        write_dicom_series(chosen.folder / "dicom", Image(phantom.image, phantom.affine))
    print(f"{chosen.folder}: written")


def _open(chosen: argparse.Namespace) -> tuple[Image, Study]:
    from sliceprop.io import read_image
    from sliceprop.study import open_study

    with _one_line_on_errors():
        scan = read_image(chosen.image)
        study = open_study(
            scan,
            chosen.labels or None,
            scribbles=chosen.scribbles,
            slice_axis=chosen.slice_axis,
            annotated_slices=chosen.annotated_slices,
            partial=chosen.partial,
            background_scribble=chosen.background_scribble,
        )
    return scan, study


def _learn_and_propagate(study: Study, chosen: argparse.Namespace, config: PropagateConfig) -> Propagation:
    from sliceprop import study as use_cases
    from sliceprop.api import worth_learning

    model = _model(study, chosen, learn=worth_learning(study, config))
    if config.method not in PREDICTORS:
        return use_cases.propagate(study, model, config)
    with learning_bar("fit") as progress, _ctrl_c_stops() as cancelled:
        return use_cases.propagate(study, model, config, device=chosen.device, progress=progress, cancelled=cancelled)


def _predictor_config(chosen: argparse.Namespace) -> PredictorConfig:
    budget_s = PredictorConfig.budget_s if chosen.budget_s is None else chosen.budget_s
    return PredictorConfig(chosen.encoder, chosen.encoder_weights, budget_s, seed=chosen.seed)


def _model(study: Study, chosen: argparse.Namespace, *, learn: bool) -> Model | None:
    """The given checkpoint, else what is learned now if that is wanted."""
    from sliceprop.checkpoint import load_checkpoint

    if chosen.model:
        return load_checkpoint(chosen.model)
    return _learn(study, chosen) if learn else None


def _choose_start(chosen: argparse.Namespace) -> None:
    """Turn what `--init` says into the checkpoint that learning starts from, or None."""
    from sliceprop.warm_start import Kind, WarmStart

    start = WarmStart(chosen.init, Kind(chosen.modality, chosen.anatomy))
    chosen.init = None if getattr(chosen, "model", None) else start.checkpoint(chosen.image)


def _learn(study: Study, chosen: argparse.Namespace, save: Callable[[Model], None] | None = None) -> Model:
    from sliceprop import study as use_cases
    from sliceprop.checkpoint import load_checkpoint
    from sliceprop.warm_start import SHIPPED

    config, init = _train_config(chosen), load_checkpoint(chosen.init) if chosen.init else None
    if chosen.init not in (None, SHIPPED):
        print(f"learning starts from {chosen.init}", file=sys.stderr)
    with learning_bar("similarity") as progress, _ctrl_c_stops() as cancelled:
        return use_cases.train(
            study, config, init=init, device=chosen.device, progress=progress, cancelled=cancelled, save=save
        )


def _train_config(chosen: argparse.Namespace) -> TrainConfig:
    return TrainConfig(TrainConfig.budget_s if chosen.budget_s is None else chosen.budget_s, seed=chosen.seed)


def _recipe(chosen: argparse.Namespace, study: Study, config: PropagateConfig) -> Recipe:
    """How `propagate` makes its result."""
    from sliceprop.api import worth_learning
    from sliceprop.manifest import Recipe

    learned = not chosen.model and worth_learning(study, config)
    given = {"image": chosen.image, "labels": chosen.labels, "scribbles": chosen.scribbles, "model": chosen.model}
    if learned:
        given["init"] = chosen.init
    if config.method in PREDICTORS and Path(chosen.encoder_weights).is_file():
        given["encoder_weights"] = chosen.encoder_weights
    options = ("slice_axis", "annotated_slices", "partial", "background_scribble")
    return Recipe(
        {name: Path(file) for name, file in given.items() if file},
        {name: getattr(chosen, name) for name in options},
        config,
        _train_config(chosen) if learned else None,
        device=chosen.device,
    )


@contextmanager
def _one_line_on_errors() -> Iterator[None]:
    """Hold back what the libraries print about files: it comes after success, an error says it in one line."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        sys.stderr.write(printed.read().decode(errors="replace"))


@contextmanager
def _ctrl_c_stops() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks learning to stop and go on with the best so far, a second one ends the program."""
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        print("\nstopping, the best so far is kept; Ctrl-C again to quit", file=sys.stderr)
        stop.set()

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def _image_files(chosen: argparse.Namespace) -> dict[str, Path]:
    """Where each array of a propagation goes; the candidates' format is the output's."""
    from sliceprop.io import OUTPUT_SUFFIXES

    files = {"labels": chosen.output}
    if chosen.uncertainty:
        files["uncertainty"] = chosen.uncertainty
    if chosen.drawn:
        files["drawn"] = chosen.drawn
    if chosen.candidates:
        ending = next((suffix for suffix in OUTPUT_SUFFIXES if chosen.output.name.endswith(suffix)), "")
        files |= {side: Path(f"{chosen.candidates}_{side}{ending}") for side in ("from_lower", "from_upper")}
    return files


def _check_not_inputs(outputs: Iterable[Path], chosen: argparse.Namespace) -> None:
    """Refuse to write over what is read, or twice to one file.

    Raises:
        FileError: naming the file.
    """
    from sliceprop.io import check_not_inputs

    checkpoints = [Path(file) for file in (chosen.init, getattr(chosen, "model", None)) if file]
    given = [chosen.image, chosen.labels, chosen.scribbles, getattr(chosen, "encoder_weights", None), *checkpoints]
    given += [file.with_suffix(".json") for file in checkpoints]
    check_not_inputs(outputs, given)


def _tool(chosen: argparse.Namespace) -> None:
    told = TOOL_COMMANDS[chosen.command](chosen)
    _print(chosen, told, tool_text(told))


def _cohort(chosen: argparse.Namespace) -> int:
    told = COHORT_COMMANDS[chosen.command](chosen)
    _print(chosen, told, cohort_text(told))
    return 1 if told.get("failed") else 0


def _of_study(chosen: argparse.Namespace) -> None:
    told = STUDY_COMMANDS[chosen.command](chosen)
    text = told.pop("text")
    _print(chosen, told, text)


def _print(chosen: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value) if chosen.json else text)


def _report(study: Study, result: Propagation) -> dict[str, Any]:
    """The report with the keys of the server's answer; a label's value is its name."""
    return {"label_names": {str(value): value for value in study.annotation.values}, **result.report}


def _report_text(report: dict[str, Any]) -> str:
    slices = ", ".join(map(str, report["annotated_slices"]))
    lines = [f"method {report['method']}, annotated slices {slices} along axis {report['slice_axis']}"]
    if "network" in report:
        lines.append(report["network"])
    for label, quality in report["quality"].items():
        known = quality["dice"] is not None
        estimate = f"{quality['dice']:.3f}, borders {quality['surface_mm']:.1f} mm off" if known else "not known"
        lines.append(f"label {label}: estimated Dice {estimate} ({report['methods'][label]})")
    return "\n".join([*lines, _suggestion_text(report["suggestion"])])


def _suggestion_text(suggestion: dict[str, Any]) -> str:
    if suggestion["slice"] is None:
        return str(suggestion["reason"])
    where = ", ".join(f"{mm:.1f}" for mm in suggestion["position_ras"])
    advice = "enough is annotated; the best remaining slice is" if suggestion["stop"] else "annotate next: slice"
    dice, after = suggestion["expected_dice"], suggestion["expected_dice_after"]
    gain = "" if dice is None else f", expected Dice {dice:.3f}, then {after:.3f}"
    place = f"{suggestion['slice']} along axis {suggestion['slice_axis']} (RAS {where} mm)"
    return f"{advice} {place}{gain}. {suggestion['reason']}"


def _evaluation_text(result: dict[str, Any]) -> str:
    titles = {"whole": "all slices", "without_annotated": "without the annotated slices"}
    tables = []
    for region, measured in result.items():
        lines = [f"{titles[region]:<30}{'Dice':>10}{'AHD mm':>10}{'HD95 mm':>10}"]
        for name, row in [*measured["labels"].items(), ("mean", measured["mean"])]:
            cells = ("-" if value is None else f"{value:.3f}" for value in row.values())
            lines.append(f"  {name:<28}" + "".join(f"{cell:>10}" for cell in cells))
        tables.append("\n".join(lines))
    return "\n".join(tables)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "propagate": _propagate,
    "suggest": _suggest,
    "evaluate": _evaluate,
    **dict.fromkeys(TOOL_COMMANDS, _tool),
    **dict.fromkeys(COHORT_COMMANDS, _cohort),
    **dict.fromkeys(STUDY_COMMANDS, _of_study),
    "serve": _serve,
    "ohif": _ohif,
    "token": _token,
    "demo": _demo,
    "sample-data": _sample_data,
}
