"""Pretraining over many studies, from files to a checkpoint: which are held out, the state on disk, the model card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sliceprop import __version__
from sliceprop.checkpoint import save_checkpoint
from sliceprop.cohort.finding import Entry, Failure, find_studies
from sliceprop.cohort.scans import CachedScans, cache_file, checksums, prepare
from sliceprop.config import TrainConfig
from sliceprop.engine.pretraining import Event, PretrainConfig, Pretraining, distributed, everyones, ranks
from sliceprop.engine.registration import Model
from sliceprop.errors import FileError, InputError
from sliceprop.io import check_folder, make_folder, write_atomically, write_json
from sliceprop.study import resolve_device
from sliceprop.versions import now
from sliceprop.warm_start import CARD, Kind, common_kind, kind_of

STATE_KEY = "sliceprop-pretraining"

MLFLOW_FILE = "mlflow.db"
"""In a folder for MLflow: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows it."""

ANSWER_S = 10.0
"""For an MLflow server to answer."""

HELD_OUT = 0.1
"""Share of the studies that learning is judged by, where none are named."""


@dataclass(frozen=True)
class PretrainFiles:
    """What is read and written.

    Attributes:
        studies: folders or CSV files, see `finding.find_studies`; labels are used where there are any.
        output: checkpoint, `.safetensors`; the model card and the state go beside it.
        validation: folders or CSV files held out; without any a share of the studies. Studies of one person belong on
            one side.
        cache: folder for prepared scans; beside `output` without it.
        tracking: folder for TensorBoard; None for none.
        mlflow: address or folder of an MLflow store; None for none.
        licence: of the data, for the model card.
        kind: what the scans show, for the card, by which studies choose their start; without it what all their files
            agree on.
        redo: start anew although there is a state.
    """

    studies: Sequence[Path]
    output: Path
    validation: Sequence[Path] = ()
    cache: Path | None = None
    tracking: Path | None = None
    mlflow: str | None = None
    licence: str = "not stated"
    kind: Kind = field(default_factory=Kind)
    redo: bool = False

    @property
    def state(self) -> Path:
        """What is needed to go on."""
        return self.output.with_suffix(".state.safetensors")

    @property
    def card(self) -> Path:
        """The model card."""
        return self.output.with_suffix(CARD)


@dataclass
class Pretrained:
    """What came of it.

    Attributes:
        studies: learnt from, and held out.
        kind: of the scans that it learnt from.
        failures: studies that could not be read.
        events: of the epochs that this run did.
        first: whether this process is the one that tells.
        launched: whether `torchrun` has started it.
    """

    studies: tuple[int, int] = (0, 0)
    kind: Kind = field(default_factory=Kind)
    failures: list[Failure] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    first: bool = True
    launched: bool = False


def pretrain(
    files: PretrainFiles,
    config: PretrainConfig | None = None,
    *,
    device: str = "auto",
    progress: Callable[[Event], None] = lambda _: None,
) -> Pretrained:
    """Learn registration over many studies; under `torchrun` every process calls this.

    Raises:
        InputError: nothing to learn from, a state that belongs to another run, or nobody answers where to track.
        FileError: an output that cannot be written.
    """
    config, result = config or PretrainConfig(), Pretrained(launched=torch.distributed.is_torchelastic_launched())
    if files.output.suffix != ".safetensors":
        raise FileError(f"{files.output}: the name of a checkpoint ends with .safetensors")
    if files.mlflow is not None:
        _check_answers(files.mlflow)
    kind = resolve_device(device).type
    distributed(lambda where: _work(files, config, where, progress, result), kind)
    return result


def _work(
    files: PretrainFiles,
    config: PretrainConfig,
    device: torch.device,
    progress: Callable[[Event], None],
    result: Pretrained,
) -> None:
    """What each process does."""
    rank, _ = ranks()
    result.first = rank == 0
    learn, judge = _split(files, result)
    result.studies = len(learn), len(judge)
    run = Pretraining(CachedScans(learn), CachedScans(judge or learn), config, device)
    signature = _signature(config, learn, judge)
    if files.state.is_file() and not files.redo:
        run.load_state(*_load_state(files.state, signature))
    if run.over:  # a run without epochs is not to be tracked
        return

    def after_epoch(event: Event) -> None:
        result.events.append(event)
        if rank == 0:
            _save(files, run, config, signature, result, event)
            progress(event)

    with _tracked(files, config, run) if rank == 0 else nullcontext():
        run.run(after_epoch)


def _split(files: PretrainFiles, result: Pretrained) -> tuple[list[Path], list[Path]]:
    """The prepared scans to learn from and those to judge by, the same in every process, in the same order anywhere."""
    cache = files.cache or files.output.with_suffix(".cache")
    named, given = _entries(files.validation, result), _entries(files.studies, result)
    make_folder(files.output.absolute().parent)
    check_folder(files.output)
    make_folder(cache)
    result.kind = files.kind.completed(common_kind([kind_of(entry.image) for entry in given]))
    judge, learn = _prepared(named, given, cache, result)
    if not learn:
        with suppress(OSError):  # unless it holds what another run has prepared
            cache.rmdir()
        raise InputError(f"there is no scan to learn from{_first_reason(result.failures)}")
    if not files.validation and len(learn) > 1:
        shuffled = sorted(learn)  # by what they hold: at random, and the same each time, wherever they lie
        judge = {voxels: learn.pop(voxels) for voxels in shuffled[: max(1, round(HELD_OUT * len(learn)))]}
    return [learn[voxels] for voxels in sorted(learn)], [judge[voxels] for voxels in sorted(judge)]


def _prepared(
    named: Sequence[Entry], given: Sequence[Entry], cache: Path, result: Pretrained
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Prepared scans of both by the checksums of their voxels, each scan once.

    What is held out is not learnt from, whatever its file; else a copy with painted slices comes before one without.
    """
    entries, kept = [*named, *given], dict[str, int]()
    prepared = [cache_file(entry, cache) for entry in entries]
    for n, outcome in enumerate(_outcomes(entries, cache)):
        if isinstance(outcome, Failure):
            result.failures.append(outcome)
            continue
        place = kept.setdefault(outcome, n)
        held_out = place < len(named) <= n
        if place == n or (held_out and _same_file(entries[n], entries[place])):
            continue
        if not held_out and _is_painted(prepared[n]) and not _is_painted(prepared[place]):
            kept[outcome] = n
            result.failures.append(_repeated(entries[place], entries[n], "the one with painted slices counts"))
        else:
            result.failures.append(_repeated(entries[n], entries[place], "its first place counts"))
    judge, learn = dict[str, Path](), dict[str, Path]()
    for voxels, n in kept.items():
        (judge if n < len(named) else learn)[voxels] = prepared[n]
    return judge, learn


def _outcomes(entries: Sequence[Entry], cache: Path) -> list[str | Failure]:
    """What `prepare` tells of each; the processes share out the work."""
    rank, world = ranks()
    mine = {n: prepare(entries[n], cache) for n in range(rank, len(entries), world)}
    told = [json.loads(text) for text in everyones(json.dumps(mine, default=asdict))]
    each = [told[n % world][str(n)] for n in range(len(entries))]
    return [outcome if isinstance(outcome, str) else Failure(**outcome) for outcome in each]


def _same_file(one: Entry, other: Entry) -> bool:
    return one.image.resolve() == other.image.resolve()


def _is_painted(prepared: Path) -> bool:
    return bool(CachedScans([prepared])[0].anchors)


def _repeated(entry: Entry, kept: Entry, why: str) -> Failure:
    same = "is listed more than once" if _same_file(entry, kept) else f"holds the same voxels as {kept.image}"
    return Failure(str(entry.image), f"{same}; {why}", entry.id)


def _entries(places: Sequence[Path], result: Pretrained) -> list[Entry]:
    entries = list[Entry]()
    for place in places:
        found, failures = find_studies(place)
        entries += found
        result.failures += failures
    return entries


def _first_reason(failures: Sequence[Failure]) -> str:
    return f" ({failures[0].name}: {failures[0].reason})" if failures else ""


def _signature(config: PretrainConfig, learn: Sequence[Path], judge: Sequence[Path]) -> str:
    """What a state must agree with to be taken up; how long to learn may change, and where the scans lie."""
    fixed = {key: value for key, value in asdict(config).items() if key not in ("epochs", "budget_s", "patience")}
    text = json.dumps([fixed, [checksums(file) for file in learn], [checksums(file) for file in judge]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(
    files: PretrainFiles, run: Pretraining, config: PretrainConfig, signature: str, result: Pretrained, event: Event
) -> None:
    """The state, the best model so far and its card."""
    tensors, values = run.state()
    data = save(tensors, metadata={STATE_KEY: json.dumps({"signature": signature, **values})})
    write_atomically(files.state, lambda temporary: temporary.write_bytes(data))
    train = TrainConfig(smoothness=config.smoothness, learning_rate=config.learning_rate, seed=config.seed)
    save_checkpoint(files.output, Model(run.best, train, metric=run.best_similarity))
    write_json(files.card, _card(files, config, result, event))


def _card(files: PretrainFiles, config: PretrainConfig, result: Pretrained, event: Event) -> dict[str, Any]:
    return {
        "model": "2D registration network of sliceprop, pretrained without its studies' fields",
        "intended_use": "a start for learning single studies; research only, not a medical device",
        "made_by": f"sliceprop {__version__}",
        "date": now(),
        "data": {
            "sources": [place.name for place in files.studies],
            "learnt_from": result.studies[0],
            "held_out": result.studies[1],
            "licence": files.licence,
            **asdict(result.kind),
        },
        "config": asdict(config),
        "epochs": event.epoch,
        "metrics": {"held_out_squared_local_correlation": round(event.best, 4)},
    }


def _load_state(file: Path, signature: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as content:
            values = json.loads((content.metadata() or {})[STATE_KEY])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"{file}: is no state of a pretraining, or damaged; start anew with --redo") from error
    if values["signature"] != signature:
        raise InputError(
            f"{file}: belongs to other studies or settings; start anew with --redo, or choose another name"
        )
    return tensors, values


def _check_answers(store: str) -> None:
    """Ask whether anybody is at the address of an MLflow server; MLflow itself would try again for minutes.

    Raises:
        InputError: nobody answers.
    """
    if not store.startswith(("http://", "https://")):
        return
    try:
        urlopen(store, timeout=ANSWER_S).close()
    except (HTTPError, HTTPException, ValueError):  # MLflow knows better how to ask, or tells what is wrong
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, SSLError):
            raise InputError(f"{store}: nobody answers there ({reason}); start MLflow, or track elsewhere") from error


@contextmanager
def _tracked(files: PretrainFiles, config: PretrainConfig, run: Pretraining) -> Iterator[None]:
    """Have ignite's loggers follow the epochs.

    Raises:
        InputError: if their packages are missing, or the MLflow store cannot be used; what was learnt is kept.
    """
    from ignite.engine import Engine, Events

    with ExitStack() as stack:
        loggers = list[Any]()
        try:
            if files.tracking is not None:
                from ignite.handlers.tensorboard_logger import TensorboardLogger

                make_folder(files.tracking)
                loggers.append(stack.enter_context(TensorboardLogger(str(files.tracking))))
            if files.mlflow is not None:
                loggers.append(stack.enter_context(_mlflow_logger(files.mlflow, files.output.stem, config)))
        except (ImportError, RuntimeError) as error:
            raise InputError("tracking needs packages: pip install 'sliceprop[tracking]'") from error

        @run.trainer.on(Events.STARTED)  # after the run's own handler, which measures what is logged
        def _(trainer: Engine) -> None:
            for logger in loggers:
                logger.attach_output_handler(trainer, Events.EPOCH_COMPLETED, tag="pretraining", metric_names="all")

        yield


@contextmanager
def _mlflow_logger(store: str, name: str, config: PretrainConfig) -> Iterator[Any]:
    """A logger of a new run in an MLflow store, an address or a folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of its use
    from ignite.handlers.mlflow_logger import MLflowLogger
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if "://" not in store:  # MLflow's stores without a database are no longer kept up
        make_folder(Path(store))
        store = f"sqlite:///{Path(store).absolute() / MLFLOW_FILE}"
    try:
        logger: Any = MLflowLogger(store)
        with logger:
            logger.set_tag("mlflow.runName", name)
            logger.log_params(asdict(config))
            yield logger
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{store}: cannot be used to track ({reason}); the same command goes on") from error
    except SQLAlchemyError as error:  # from making or updating the tables; MLflow translates all later ones
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{store}: cannot be used to track ({reason}); name another, or remove it if it was interrupted when new"
        ) from error
