"""Commands for many studies on the command line; imports nothing heavy before a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceprop.bars import counting_bar, epochs_bar, learning_bar
from sliceprop.common_arguments import add_init, add_json, add_kind, add_target
from sliceprop.config import LEARNED_METHODS, METHODS, PropagateConfig, SuggestConfig, TrainConfig

if TYPE_CHECKING:
    from sliceprop.cohort.finding import Entry
    from sliceprop.cohort.run import Cohort
    from sliceprop.study import Progress

REVIEW_FIRST = 10
"""Studies that are printed; the report has them all."""

Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does what the arguments say and tells about it: `files`, and perhaps `finished` and `failed` (exit code 1)."""


def add_cohort_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the subcommands; `add` makes a parser from a name and a text."""
    cohort = add("cohort", "learn and propagate every study of a folder or CSV file that has sparse labels")
    cohort.add_argument(
        "studies",
        metavar="FOLDER_OR_CSV",
        type=Path,
        help="scans with labels/sparse, folders with image.* and labels.*, or CSV: image,labels[,scribbles,slice_axis,"
        "model]",
    )
    cohort.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="gets a folder per study")
    _add_work(cohort)
    _add_workers(cohort)
    add_json(cohort)

    export = add("export-dataset", "write the finished studies of a cohort as a training set: nnU-Net and MONAI")
    export.add_argument("results", metavar="RESULTS", type=Path, help="folder that `sliceprop cohort` wrote")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="gets DatasetNNN_NAME")
    export.add_argument("--name", default="Propagated", help="of the data set (default: Propagated)")
    export.add_argument("--number", type=int, default=501, metavar="N", help="nnU-Net's (default: 501)")
    export.add_argument("--channel", default="scan", metavar="NAME", help="CT, or any other (default: scan)")
    export.add_argument(
        "--ignore-above", type=float, metavar="U", help="voxels of a larger uncertainty, 0 to 1, get the ignore label"
    )
    export.add_argument("--weights", action="store_true", help="write the confidence of each voxel, 0 to 1")
    export.add_argument(
        "--reviewed", type=Path, metavar="DIR", help="label maps ID.* that somebody corrected or accepted"
    )
    export.add_argument("--mapping", type=Path, metavar="F.csv", help="write which case is which study")
    add_json(export)

    large = add("propagate-large", "fill an OME-Zarr volume that does not fit into memory from its annotated slices")
    large.add_argument("image", metavar="IMAGE.zarr", type=Path, help="OME-Zarr, slices along its first axis")
    large.add_argument("labels", metavar="LABELS.zarr", type=Path, help="painted slices on the same grid")
    large.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.zarr", help="labels to write")
    large.add_argument("--uncertainty", type=Path, metavar="F.zarr", help="write the uncertainty in percent")
    large.add_argument("--budget-s", type=float, default=600.0, metavar="N", help="for learning (default: 600)")
    large.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add_json(large)

    pretrain = add("pretrain", "learn registration over many scans, a start for learning each; also under torchrun")
    pretrain.add_argument("studies", metavar="STUDIES", nargs="+", type=Path, help="folders or CSV, as for cohort")
    pretrain.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL", help="*.safetensors")
    pretrain.add_argument(
        "--validation", nargs="+", default=[], type=Path, metavar="STUDIES", help="held out (default: a tenth)"
    )
    pretrain.add_argument("--epochs", type=int, default=60, metavar="N", help="at most (default: 60)")
    pretrain.add_argument("--steps", type=int, default=50, metavar="N", help="per epoch (default: 50)")
    pretrain.add_argument("--batch", type=int, default=8, metavar="N", help="samples per step (default: 8)")
    pretrain.add_argument("--patience", type=int, default=10, metavar="N", help="epochs (default: 10)")
    pretrain.add_argument("--budget-s", type=float, metavar="N", help="seconds (default: no bound)")
    pretrain.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    pretrain.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda (default: auto)")
    pretrain.add_argument("--cache", type=Path, metavar="DIR", help="for prepared scans (default: beside MODEL)")
    pretrain.add_argument("--tensorboard", type=Path, metavar="DIR", help="track in this folder")
    pretrain.add_argument("--mlflow", metavar="URI", help="track in this MLflow store: an address or a folder")
    pretrain.add_argument("--licence", default="not stated", help="of the data, for the model card")
    add_kind(pretrain)
    pretrain.add_argument("--redo", action="store_true", help="start anew instead of going on")
    add_json(pretrain)


def _add_work(parser: argparse.ArgumentParser) -> None:
    learned = " and ".join(LEARNED_METHODS)
    parser.add_argument("--method", choices=METHODS, default="auto", help=f"default: auto; {learned} learn first")
    parser.add_argument(
        "--model", type=Path, metavar="CKPT", help="checkpoint to start from, in place of --init; the CSV's come first"
    )
    add_init(parser)
    parser.add_argument("--keep-models", action="store_true", help="write what was learnt: model.safetensors")
    parser.add_argument(
        "--budget-s", type=float, metavar="N", help="seconds at most for learning one study (default: 600)"
    )
    parser.add_argument("--seed", type=int, default=TrainConfig.seed, metavar="N", help="default: 0")
    add_target(parser)
    parser.add_argument("--no-pictures", action="store_true", help="write no overlay.png")
    parser.add_argument("--redo", action="store_true", help="also what an earlier run has finished")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda: a GPU for each worker")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, or SLURM jobs (default: what fits)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of each worker (default: its share)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each worker (default: its share of the cores)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask scheduler that runs: tcp://10.0.0.1:8786")
    where.add_argument("--slurm", action="store_true", help="workers as SLURM jobs, as Dask's jobqueue.yaml says")


def _cohort(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.cohort.finding import find_studies, label_names
    from sliceprop.cohort.run import COHORT, PAGE, run_cohort
    from sliceprop.cohort.work import CohortConfig
    from sliceprop.cohort.workers import WorkersConfig
    from sliceprop.warm_start import WarmStart

    config, team = (
        CohortConfig(),
        WorkersConfig(chosen.workers, chosen.memory, chosen.threads, chosen.scheduler, chosen.slurm),
    )
    budget_s = config.train.budget_s if chosen.budget_s is None else chosen.budget_s
    config = replace(
        config,
        train=replace(config.train, budget_s=budget_s, seed=chosen.seed),
        propagate=PropagateConfig(chosen.method),
        target=SuggestConfig(target=chosen.target).target,
        device=chosen.device,
        model=chosen.model and chosen.model.absolute(),
        shipped=chosen.method in LEARNED_METHODS and WarmStart(chosen.init).checkpoint() is not None,
        keep_models=chosen.keep_models,
        pictures=not chosen.no_pictures,
        names=label_names(chosen.studies),
    )
    entries, failures = find_studies(chosen.studies)
    found = _started(entries, chosen), failures
    with counting_bar("studies") as progress:
        result = run_cohort(found, chosen.output, config, team, redo=chosen.redo, progress=progress)
    return _told(result, [chosen.output / PAGE, chosen.output / COHORT])


def _started(entries: list[Entry], chosen: argparse.Namespace) -> list[Entry]:
    """The studies with the models that they start from, chosen here, since `auto` may mean others on other machines."""
    from sliceprop.warm_start import SHIPPED, Kind, WarmStart

    if chosen.model is not None or chosen.method not in LEARNED_METHODS:
        return entries
    start = WarmStart(chosen.init, Kind(chosen.modality, chosen.anatomy))
    found = ((each, each.model or start.checkpoint(each.image)) for each in entries)
    return [replace(each, model=None if file == SHIPPED else file) for each, file in found]


def _export_dataset(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.dataset_export import ExportConfig, export_dataset

    given = chosen.name, chosen.number, chosen.channel, chosen.ignore_above, chosen.weights, chosen.reviewed
    result = export_dataset(chosen.results, chosen.output, ExportConfig(*given), mapping=chosen.mapping)
    return {
        "files": [str(file) for file in (result.folder, chosen.mapping) if file],
        "cases": len(result.cases),
        "labels": dict(result.labels),
        "failed": [asdict(failure) for failure in result.failures],
    }


def _propagate_large(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.large import LargeConfig, propagate_large

    config = LargeConfig(TrainConfig(budget_s=chosen.budget_s), device=chosen.device)
    with _large_bars() as (learning, progress):
        told = propagate_large(
            chosen.image,
            chosen.labels,
            chosen.output,
            config,
            uncertainty=chosen.uncertainty,
            learning=learning,
            progress=progress,
        )
    return {"files": [str(file) for file in (chosen.output, chosen.uncertainty) if file], **told}


@contextmanager
def _large_bars() -> Iterator[tuple[Callable[[Progress], None], Callable[[int, int], None]]]:
    """A bar of learning, which ends where one over the slices begins."""
    with ExitStack() as bars:
        learning = bars.enter_context(learning_bar("similarity"))
        slices = list[Callable[[int, int, int], None]]()

        def filled(done: int, total: int) -> None:
            if not slices:
                bars.close()
                slices.append(bars.enter_context(counting_bar("slices")))
            slices[0](done, total, 0)

        yield learning, filled


def _pretrain(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.cohort.pretrain import PretrainFiles, pretrain
    from sliceprop.engine.pretraining import PretrainConfig
    from sliceprop.warm_start import Kind

    files = PretrainFiles(
        chosen.studies,
        chosen.output,
        chosen.validation,
        chosen.cache,
        chosen.tensorboard,
        chosen.mlflow,
        chosen.licence,
        Kind(chosen.modality, chosen.anatomy),
        chosen.redo,
    )
    config = PretrainConfig(
        epochs=chosen.epochs,
        steps=chosen.steps,
        batch=chosen.batch,
        patience=chosen.patience,
        budget_s=chosen.budget_s,
        seed=chosen.seed,
    )
    with epochs_bar() as progress:
        result = pretrain(files, config, device=chosen.device, progress=progress)
    if not result.first:
        return {"files": []}
    last = result.events[-1] if result.events else None
    failed = "left_out" if result.launched else "failed"  # an exit code of 1 would be a crash to torchrun
    return {
        "files": [str(file) for file in (files.output, files.card) if file.is_file()],
        "studies": {"learnt_from": result.studies[0], "held_out": result.studies[1]},
        "epochs": None if last is None else last.epoch,
        "similarity": None if last is None else last.best,
        failed: [asdict(failure) for failure in result.failures],
    }


def _told(result: Cohort, files: list[Path]) -> dict[str, Any]:
    return {
        "files": [str(file) for file in files if file.is_file()],
        "finished": len(result.summaries),
        "resumed": result.resumed,
        "failed": [asdict(failure) for failure in result.failures],
        "studies": list(result.summaries),
    }


def cohort_text(told: Mapping[str, Any]) -> str:
    """What a command of `COHORT_COMMANDS` tells, for people."""
    lines = [f"{file}: written" for file in told["files"]]
    if "finished" in told:
        lines.append(f"{told['finished']} studies finished, {len(told['failed'])} failed")
        lines += [_study_text(study) for study in told["studies"][:REVIEW_FIRST]]
    if "similarity" in told:
        studies, done = told["studies"], told["epochs"]
        text = (
            "nothing was left to do" if done is None else f"epoch {done}, held-out similarity {told['similarity']:.4f}"
        )
        lines.append(f"{studies['learnt_from']} studies to learn from, {studies['held_out']} held out: {text}")
    if "cases" in told:
        lines.append(f"{told['cases']} cases")
        lines += [f"{name}: in {count} of them" for name, count in told["labels"].items()]
    for kind in ("failed", "left_out"):
        lines += [f"{kind.replace('_', ' ')}: {each['name']}: {each['reason']}" for each in told.get(kind, [])]
    return "\n".join(lines)


def _study_text(study: Mapping[str, Any]) -> str:
    """One line of what to review first."""
    dice = "not known" if study["expected_dice"] is None else f"{study['expected_dice']:.3f}"
    where = (
        "" if study["next_slice"] is None else f"next slice {study['next_slice']} along axis {study['slice_axis']}. "
    )
    return f"{study['id']}: estimated Dice {dice}; {where}{study['reason']}"


COHORT_COMMANDS: dict[str, Command] = {
    "cohort": _cohort,
    "export-dataset": _export_dataset,
    "pretrain": _pretrain,
    "propagate-large": _propagate_large,
}
