"""What it takes to make a result again: inputs by hash, settings, versions, device, and how far learning got.

A manifest is JSON beside a result, with a checksum of itself. Its paths are relative to it, so that a folder can be
moved or copied as a whole.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sliceprop import io
from sliceprop.checkpoint import load_checkpoint
from sliceprop.config import MAX_LABEL, PropagateConfig, SuggestConfig, TrainConfig
from sliceprop.engine.replay import Steps, counted_steps
from sliceprop.erasure import study_folder
from sliceprop.errors import FileError, InputError, SlicePropError
from sliceprop.hashing import array_digest, checksum, known_digest
from sliceprop.io import FOLDER
from sliceprop.study import Progress, Propagation, Study, open_study, propagate, resolve_device, train
from sliceprop.versions import now

FORMAT = 2
"""Those of format 1 hold no checksum; they are read too."""

PACKAGES = ("sliceprop", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "scikit-learn")
MANIFESTS, MANIFEST = "manifests", "manifest.json"
"""Folder of a study's manifests on a server, and the file in the folder of each."""

MAX_THREADS = 1024
"""To learn with; more are taken for damage."""

KINDS = ("labels", "from_lower", "from_upper", "uncertainty")


class NotReproducedError(SlicePropError):
    """What came out is not what the manifest tells of."""


@dataclass(frozen=True)
class Recipe:
    """How a result is made.

    Attributes:
        files: `image`, and as far as there are any `labels`, `scribbles`, `model` (a checkpoint), `init` (one to start
            learning from), `encoder_weights`.
        options: further arguments of `study.open_study`.
        config: of the propagation.
        training: what is learned first; None if nothing is.
        target: estimated Dice above which a slice needs no annotation.
        device: to learn on.
    """

    files: Mapping[str, Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    config: PropagateConfig = field(default_factory=PropagateConfig)
    training: TrainConfig | None = None
    target: float = SuggestConfig.target
    device: str = "auto"


class _Described(TypedDict):
    """A file, by its path from the manifest."""

    path: str
    sha256: str


class _Device(TypedDict):
    asked: str
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]


class _Options(TypedDict, total=False):
    """Those of `study.open_study`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    slice_axis: Literal["auto", "0", "1", "2", 0, 1, 2]
    annotated_slices: list[int] | None
    partial: bool
    background_scribble: Annotated[int, Field(ge=0, le=MAX_LABEL)]


class _Told(TypedDict):
    """What of a manifest decides what is done; the rest is for people."""

    inputs: dict[str, _Described]
    options: _Options
    config: PropagateConfig
    training: TrainConfig | None
    target: float
    steps: list[Annotated[int, Field(ge=0)]]
    device: _Device
    results: dict[str, str]
    versions: dict[str, str | None]


_TOLD = TypeAdapter(_Told)


@dataclass
class Making:
    """What is noted while a result is made."""

    steps: Steps
    threads: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Reproduction:
    """A result that was made again.

    Attributes:
        scan: gives the grid.
        study: scan and annotation.
        result: what came out.
        same: whether each of `KINDS` has the same bytes.
        manifest: that of the first time.
    """

    scan: io.Image
    study: Study
    result: Propagation
    same: Mapping[str, bool]
    manifest: Mapping[str, Any]


@contextmanager
def making() -> Iterator[Making]:
    """Note what a manifest needs to know of all that is learned and propagated inside the context."""
    began = time.monotonic()
    with counted_steps() as steps:
        noted = Making(steps, torch.get_num_threads())
        yield noted
    noted.seconds = time.monotonic() - began


def make_manifest(
    folder: Path, recipe: Recipe, noted: Making, result: Propagation, outputs: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Describe a result.

    Args:
        folder: in which the manifest is going to lie.
        recipe: how the result was made.
        noted: from `making`.
        result: what came out.
        outputs: files of the result, by kind.

    Raises:
        FileError: if an input or output cannot be read any more.
    """
    return {
        "format": FORMAT,
        "made": now(),
        "seconds": round(noted.seconds, 3),
        "inputs": {name: _described(folder, file) for name, file in recipe.files.items()},
        "options": dict(recipe.options),
        "config": asdict(recipe.config),
        "training": None if recipe.training is None else asdict(recipe.training),
        "target": recipe.target,
        "steps": noted.steps.taken,
        "device": {"asked": recipe.device, **_device(recipe.device), "threads": noted.threads},
        "versions": _versions(),
        "results": {kind: array_digest(getattr(result, kind)) for kind in KINDS},
        "outputs": {kind: _described(folder, file) for kind, file in (outputs or {}).items()},
    }


def write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Write what `make_manifest` made, with its checksum.

    Raises:
        FileError: if the folder is read-only or full.
    """
    content = json.loads(json.dumps(manifest))
    io.write_json(file, {**content, "sha256": checksum(content)})


def read_manifest(file: Path) -> dict[str, Any]:
    """A manifest.

    Raises:
        FileError: if it cannot be read.
        InputError: if it is none, damaged, or of a later release.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not a manifest, or damaged ({error})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (1, FORMAT):
        raise InputError(f"{file}: has manifest format {found}, this program reads 1 and {FORMAT}")
    if found == FORMAT and content.get("sha256") != checksum(content):
        raise InputError(f"{file}: is damaged, it does not match its checksum")
    return dict(content)


def find_manifest(named: str, studies: Path | None = None) -> Path:
    """The file that a user means; a server's must be read where it was written, since its paths count from there.

    Args:
        named: the file; with `studies` a copy of it, as the server hands it out, or a study's id for its newest one.
        studies: the server's folder.

    Raises:
        InputError: or a subclass, if there is no such study or manifest.
    """
    file = Path(named)
    if studies is None:
        return file
    if not file.is_file():
        kept = _kept(study_folder(studies, named))
        if not kept:
            raise InputError(f"no result of {named!r} has a manifest in {studies}")
        return kept[-1]
    wanted = read_manifest(file)
    for study in (studies / FOLDER / "studies").glob("*"):
        for one in _kept(study):
            with suppress(InputError):  # a damaged one
                if read_manifest(one) == wanted:
                    return one
    raise InputError(f"{file}: is no manifest of {studies}, or not any more; the newest of each study are kept")


def _kept(study: Path) -> list[Path]:
    """Manifests in the folder of a study, the newest last."""
    return sorted(study.glob(f"{MANIFESTS}/[0-9]*/{MANIFEST}"))


def reproduce(file: Path, *, progress: Callable[[Progress], None] | None = None) -> Reproduction:
    """Make a result again, with the inputs, settings and steps of the first time.

    Args:
        file: the manifest.
        progress: called while something is learned.

    Raises:
        InputError: or a subclass, if an input is missing or has changed.
    """
    manifest = read_manifest(file)
    told = _told(file, manifest)
    recipe, wanted = _recipe(told, file.absolute().parent), told["results"]
    before = torch.get_num_threads()
    torch.set_num_threads(told["device"]["threads"])
    try:
        with counted_steps(told["steps"]):
            scan, study, result = _make(recipe, progress)
    finally:
        torch.set_num_threads(before)
    same = {kind: array_digest(getattr(result, kind)) == wanted.get(kind) for kind in KINDS}
    return Reproduction(scan, study, result, same, manifest)


def check_same(file: Path, again: Reproduction) -> None:
    """Refuse a result that differs.

    Raises:
        NotReproducedError: saying what differs, in the result and in what it was made with.
    """
    kinds = [kind for kind, same in again.same.items() if not same]
    if not kinds:
        return
    then, here = again.manifest, {**_versions(), **_device(again.manifest["device"]["asked"])}
    known = {**then["versions"], **{key: then["device"].get(key) for key in ("type", "name")}}
    others = [
        f"{name} {known.get(name)} then, {value} here" for name, value in here.items() if known.get(name) != value
    ]
    why = f"; {', '.join(others)}" if others else ""
    raise NotReproducedError(f"{file}: {', '.join(kinds)} came out differently{why}")


def _make(recipe: Recipe, progress: Callable[[Progress], None] | None) -> tuple[io.Image, Study, Propagation]:
    files, device = recipe.files, recipe.device
    scan = io.read_image(files["image"])
    study = open_study(scan, files.get("labels"), scribbles=files.get("scribbles"), **recipe.options)
    model = load_checkpoint(files["model"]) if "model" in files else None
    if recipe.training is not None:
        init = load_checkpoint(files["init"]) if "init" in files else None
        model = train(study, recipe.training, init=init, device=device, progress=progress)
    result = propagate(study, model, recipe.config, target=recipe.target, device=device, progress=progress)
    return scan, study, result


def _told(file: Path, manifest: Mapping[str, Any]) -> _Told:
    """What a manifest tells, if it is of the right kinds; whoever wrote it may have done so by hand."""
    try:
        told = _TOLD.validate_python(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: is not a manifest, or damaged ({place}: {first['msg']})") from error
    config, training = told["config"], told["training"]
    predictor = manifest["config"].get("predictor", {})
    known: list[tuple[Any, Any]] = [(manifest["config"], config), (predictor, config.predictor)]
    known += [] if training is None else [(manifest["training"], training)]
    if unknown := [name for given, settings in known for name in given if not hasattr(settings, name)]:
        raise InputError(f"{file}: has settings that this program does not know: {', '.join(unknown)}")
    return told


def _recipe(told: _Told, folder: Path) -> Recipe:
    files, config = {name: _checked(folder, one) for name, one in told["inputs"].items()}, told["config"]
    if "image" not in files:
        raise InputError("the manifest names no scan")
    if "encoder_weights" in files:
        weights = str(files["encoder_weights"])
        config = replace(config, predictor=replace(config.predictor, encoder_weights=weights))
    return Recipe(files, {**told["options"]}, config, told["training"], told["target"], told["device"]["asked"])


def _described(folder: Path, file: Path) -> dict[str, str]:
    try:
        path = os.path.relpath(file.resolve(), folder.resolve())
        return {"path": Path(path).as_posix(), "sha256": known_digest(file)}
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from error


def _checked(folder: Path, described: _Described) -> Path:
    file = Path(os.path.normpath(folder / described["path"]))
    if not (file.is_file() or file.is_dir()):
        raise FileError(
            f"{file}: is gone; bring it back, the manifest names it (a copy of a server's: add --studies DIR)"
        )
    if known_digest(file) != described["sha256"]:
        raise InputError(f"{file}: has changed since the manifest was written; bring the old file back")
    return file


def _device(asked: str) -> dict[str, str]:
    device = resolve_device(asked)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"type": device.type, "name": name}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
