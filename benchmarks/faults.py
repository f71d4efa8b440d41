"""Real faults and what they leave: processes killed at any point, full and read-only folders, damaged files.

Every fault happens to a process of its own, which says what it was acknowledged before it dies. Afterwards everything
acknowledged must be there, nothing damaged may be given out, and the study must be usable.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

STUDY, SHAPE, AFFINE = "case", (20, 18, 12), np.diag([1.0, 1, 3, 1])
NAMES = [{"name": "disc", "idx": 1}]
TAGS = ("sparse", "scribbles", "final")
CHECKPOINT = Path(".labelprop", "checkpoints", f"{STUDY}.safetensors")

PRELOADED = ["faults", "sliceprop.server.trainer", "sliceprop.server.infer", "sliceprop.server.outcome"]
"""What a server loads, once for all processes that are going to die."""

FILE_OPERATIONS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod"})
"""Python's audit events before which a process may be killed."""

READY_S = 120.0

Acknowledged = dict[int, str]
"""Digest of the label file by number of the version."""


def scan(seed: int = 0) -> np.ndarray:
    """A bright column in noise."""
    image = np.random.default_rng(seed).normal(0, 5, SHAPE)
    image[5:12, 6:14] += 100
    return image.astype(np.float32)


def drawing(number: int) -> np.ndarray:
    """Painted slices that spell `number` in binary, so that a drawing tells which one it is."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:12, 6:14, slices_of(number)] = 1
    return labels


def slices_of(number: int) -> list[int]:
    """The slices that `drawing` paints; at least one."""
    bits = 1 + number % (2 ** SHAPE[2] - 1)
    return [k for k in range(SHAPE[2]) if bits >> k & 1]


def make_studies(folder: Path) -> Path:
    """A folder with one scan."""
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(scan(), AFFINE), folder / f"{STUDY}.nii.gz")
    return folder


def open_workspace(folder: Path) -> Any:
    """As a server opens a folder of studies."""
    from sliceprop.server.datastore import LocalStudies
    from sliceprop.server.workspace import Workspace

    return Workspace(LocalStudies(str(folder), watch=False))


def submit(workspace: Any, number: int, tag: str = "sparse") -> tuple[int, str]:
    """Submit `drawing(number)` as a client does; number and digest of the version that was acknowledged."""
    from sliceprop.server.requests import label_options

    with tempfile.TemporaryDirectory() as upload:
        file = Path(upload) / "label.bin"
        file.write_bytes(drawing(number).tobytes(order="F"))
        options: dict[str, Any] = {"label_info": NAMES}
        if tag != "scribbles":
            options |= {"annotated_slices": slices_of(number), "slice_axis": 2}
        workspace.submit(STUDY, tag, file, label_options(options))
    return _newest(workspace, tag)


def propagate(workspace: Any, method: str = "shape") -> dict[str, Any]:
    """Run the server's model; what it tells of the result."""
    from sliceprop.server.infer import PropagateTask

    file, told = PropagateTask(workspace, 0.95)({"image_id": STUDY, "method": method})
    Path(file).unlink()
    return dict(told)


def finish(workspace: Any) -> tuple[int, str]:
    """Accept the result; number and digest of the version that was acknowledged."""
    from sliceprop.server.outcome import finalise

    finalise(workspace, workspace.case(STUDY))
    return _newest(workspace, "final")


def restore(workspace: Any, chance: random.Random) -> tuple[int, str]:
    """Restore some version; number and digest of the version that was acknowledged."""
    case = workspace.case(STUDY)
    known = [one.number for one in case.record.versions.newest_first() if one.labels_file]
    version = workspace.drawings.restore(case, chance.choice(known))
    return version.number, version.digest


def _newest(workspace: Any, tag: str) -> tuple[int, str]:
    version = workspace.case(STUDY).record.versions.newest(tag)
    return version.number, version.digest


def write_for_ever(folder: Path, seed: int, pipe: Connection, operations: int | None) -> None:
    """Submit, propagate, accept and restore; say what was acknowledged.

    Args:
        folder: of studies.
        seed: of the order, and of what is drawn.
        pipe: gets `ready`, then number and digest of each version.
        operations: the process kills itself before this one of its operations on files; None to wait for that.
    """
    logging.disable(logging.CRITICAL)
    chance, workspace = random.Random(seed), open_workspace(folder)
    pipe.send("ready")
    if operations is not None:
        _die_before(operations)
    for number in range(seed * 1000, sys.maxsize):
        step = chance.random()
        if step < 0.6 or number == seed * 1000:
            pipe.send(submit(workspace, number))
        elif step < 0.7:
            pipe.send(submit(workspace, number, "scribbles"))
        elif step < 0.8:
            propagate(workspace)
        elif step < 0.9:
            pipe.send(finish(workspace))
        else:
            pipe.send(restore(workspace, chance))


def _die_before(operation: int) -> None:
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in FILE_OPERATIONS:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def train_for_ever(folder: Path, seed: int, pipe: Connection, operations: int | None) -> None:
    """Train again and again, as MONAI Label's process does; arguments as those of `write_for_ever`."""
    from sliceprop.server.trainer import PropagateTrainer

    logging.disable(logging.CRITICAL)
    trainer = PropagateTrainer(open_workspace(folder), 30.0)
    pipe.send("ready")
    if operations is not None:
        _die_before(operations)
    while True:
        seed += 1
        trainer({"image": STUDY, "budget_s": 3, "seed": seed % 2**31, "init": "none"}, None)


class Victims:
    """Starts processes quickly: one that has loaded everything forks them."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def kill(
        self,
        work: Callable[[Path, int, Connection, int | None], None],
        folder: Path,
        seed: int,
        *,
        longest_s: float,
        operations: int | None = None,
    ) -> Acknowledged:
        """Start a process and kill it with SIGKILL.

        Args:
            work: what it does, `write_for_ever` or `train_for_ever`.
            folder: of studies.
            seed: of what it does and of the moment.
            longest_s: it is killed at a random moment before so many seconds have passed.
            operations: it kills itself before so many operations on files instead.

        Returns:
            what had been acknowledged.
        """
        mine, its = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(folder, seed, its, operations), daemon=True)
        process.start()
        its.close()
        if not mine.poll(READY_S) or mine.recv() != "ready":
            raise RuntimeError("the process to kill did not start")
        if operations is None:
            time.sleep(random.Random(seed).uniform(0, longest_s))
            process.kill()
        process.join()
        acknowledged: Acknowledged = {}
        with suppress(EOFError, OSError):
            while mine.poll(1):
                number, digest = mine.recv()
                acknowledged[number] = digest
        return acknowledged

    def run(self, work: Callable[..., None], *arguments: Any) -> list[Any]:
        """Let a process do something to its end; what it says."""
        mine, its = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(*arguments, its), daemon=True)
        process.start()
        its.close()
        said = []
        with suppress(EOFError):
            while True:
                said.append(mine.recv())
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{work.__name__} ended with {process.exitcode}")
        return said


def lost(folder: Path, acknowledged: Acknowledged) -> list[str]:
    """What is wrong with a folder after a fault; empty if nothing acknowledged is missing and all of it is usable."""
    workspace = open_workspace(folder)
    case = workspace.case(STUDY)
    versions = case.record.versions
    found = {one.number: one.digest for one in versions.newest_first()}
    wrong = [f"version {n} is missing or changed" for n, digest in acknowledged.items() if found.get(n) != digest]
    wrong += [f"version {n}: {reason}" for n, reason in versions.damaged().items()]
    annotation = workspace.drawings.annotation(case)
    if annotation is None:
        return [*wrong, "no annotation"] if found else wrong
    in_force = versions.get(int(annotation.source.split(":")[1]))
    drawn = nib.load(in_force.labels_file).get_fdata().astype(int)
    kept = np.isin(np.arange(SHAPE[2]), annotation.annotated_slices)
    if not (annotation.labels == drawn * kept).all():
        wrong.append("the annotation is not that of its version")
    newest = next(one for one in versions.newest_first("sparse", "final") if one.entry.in_force)
    if newest.number != in_force.number:
        wrong.append(f"version {in_force.number} counts, not {newest.number}")
    for tag in TAGS:
        workspace.drawings.current(case, tag)
        version, file = versions.newest(tag), workspace.store.label_file(STUDY, tag)
        wanted = version.labels_file.read_bytes() if version is not None and version.labels_file else None
        if wanted is not None and (file is None or file.read_bytes() != wanted):
            wrong.append(f"MONAI Label does not show the newest label {tag}")
    if workspace.names.names != ["disc"]:
        wrong.append(f"the labels are {workspace.names.names}")
    return wrong


def submit_to(address: str, number: int) -> int:
    """Submit `drawing(number)` to a server; number of the version that was acknowledged.

    Raises:
        requests.RequestException: if it was not.
    """
    params = {"label_info": NAMES, "annotated_slices": slices_of(number), "slice_axis": 2}
    answer = requests.put(
        f"{address}/datastore/label?image={STUDY}&tag=sparse",
        files={"label": ("label.bin", drawing(number).tobytes(order="F"))},
        data={"params": json.dumps(params)},
        timeout=READY_S,
    )
    answer.raise_for_status()
    return int(answer.json()["annotation_version"].split(":")[1])


def lost_drawings(folder: Path, acknowledged: dict[int, int]) -> list[str]:
    """What is wrong with a folder after its server was killed.

    Args:
        folder: of studies.
        acknowledged: number of the drawing by version.
    """
    versions = open_workspace(folder).case(STUDY).record.versions
    found = {one.number: one.labels_file for one in versions.newest_first() if one.labels_file}
    wrong = [n for n, number in acknowledged.items() if n not in found or not _holds(found[n], drawing(number))]
    return [*(f"version {n} is missing or changed" for n in wrong), *lost(folder, {})]


def _holds(file: Path, labels: np.ndarray) -> bool:
    return bool((nib.load(file).get_fdata() == labels).all())


def lost_model(folder: Path, before: bytes | None) -> list[str]:
    """What is wrong with the checkpoint of a study after its training was killed.

    Args:
        folder: of studies.
        before: the file as it was before; None if there was none.
    """
    from sliceprop.errors import SlicePropError
    from sliceprop.server.requests import LabelOptions
    from sliceprop.server.trainer import TrainingState

    workspace = open_workspace(folder)
    state = TrainingState(workspace.folder / "training.json").read()
    wrong = [f"training is told to be {state['status']}"] if state["status"] == "RUNNING" else []
    there = STUDY in workspace.checkpoints
    if not there and (before is not None or state["epoch"] > 0):
        return [*wrong, "the checkpoint is gone"]
    if there:
        try:
            workspace.checkpoints.load(STUDY)
        except SlicePropError as error:
            wrong.append(str(error))
        case = workspace.case(STUDY)
        if workspace.models.choose(case, workspace.open(case, LabelOptions()).study).model is None:
            wrong.append("the checkpoint is not used")
    return wrong


def damage(file: Path, chance: random.Random) -> str:
    """Flip a bit of a file, cut it off, empty it or overwrite a part of it; says which."""
    content = bytearray(file.read_bytes())
    kind = chance.choice(("flipped", "flipped", "truncated", "empty", "overwritten"))
    if not content:
        return "empty"
    place = chance.randrange(len(content))
    if kind == "flipped":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "overwritten":
        end = min(len(content), place + 512)
        content[place:end] = bytes(end - place)
    file.write_bytes(content[:place] if kind == "truncated" else b"" if kind == "empty" else content)
    return kind


def make_history(folder: Path) -> list[int]:
    """A study with a past: versions, scribbles, a result, a final label, a checkpoint; the numbers drawn."""
    from sliceprop.config import TrainConfig
    from sliceprop.server.requests import LabelOptions
    from sliceprop.study import train

    workspace, numbers = open_workspace(make_studies(folder)), [4, 1025, 66]
    submit(workspace, 2, "scribbles")
    for number in numbers:
        submit(workspace, number)
    case = workspace.case(STUDY)
    study = workspace.open(case, LabelOptions()).study
    workspace.checkpoints.save(STUDY, train(study, TrainConfig(max_epochs=1, refine_steps=2)))
    propagate(workspace)
    finish(workspace)
    workspace.drawings.annotation(case)
    return numbers


def kept_files(folder: Path) -> list[Path]:
    """Everything that the server wrote."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size)
    return [file for file in files if file.name != f"{STUDY}.nii.gz" or file.parent != folder]


def served_wrongly(folder: Path, good: Path, numbers: list[int]) -> list[str]:
    """What a server with one damaged file says that is not true; nothing it may say is an exception either.

    Args:
        folder: with the damaged file.
        good: the folder as it was.
        numbers: drawings that were submitted, the newest last.
    """
    from sliceprop.server.requests import LabelOptions

    workspace, whole = open_workspace(folder), open_workspace(good)
    case, before = workspace.case(STUDY), whole.case(STUDY)
    wrong = []
    annotation = workspace.drawings.annotation(case)
    if annotation is None or not any((annotation.labels == drawing(number)).all() for number in numbers):
        wrong.append("the annotation is none that was submitted")
    for kind in ("labels", "from_lower", "from_upper", "uncertainty", "drawn"):
        array, true = case.record.result(kind), before.record.result(kind)
        if array is not None and not np.array_equal(array, true):
            wrong.append(f"the result's {kind} are wrong")
    scribbles = workspace.drawings.scribbles(case)
    if scribbles is not None and not np.array_equal(scribbles, whole.drawings.scribbles(before)):
        wrong.append("the scribbles are wrong")
    if workspace.names.names != whole.names.names:
        wrong.append(f"the labels are {workspace.names.names}")
    chosen = workspace.models.choose(case, workspace.open(case, LabelOptions()).study)
    if chosen.model is None and not chosen.note:
        wrong.append("the checkpoint is left out without a word")
    sound = (folder / CHECKPOINT).read_bytes() == (good / CHECKPOINT).read_bytes()
    told = propagate(workspace, "auto")
    if sound and not told["trained"]:
        wrong.append("the checkpoint is sound and not used")
    wrong += [f"the result's manifest: {reason}" for reason in _not_reproduced(case.record.folder, told["manifest"])]
    submit(workspace, numbers[-1] + 1)
    if list(workspace.drawings.annotation(case).annotated_slices) != slices_of(numbers[-1] + 1):
        wrong.append("a new drawing does not count")
    return wrong


def _not_reproduced(folder: Path, number: int | None) -> list[str]:
    """Why a result cannot be made again from its manifest; empty if it can."""
    from sliceprop.errors import SlicePropError
    from sliceprop.manifest import check_same, reproduce

    if number is None:
        return ["there is none"]
    file = folder / "manifests" / f"{number:06d}" / "manifest.json"
    try:
        check_same(file, reproduce(file))
    except SlicePropError as error:
        return [str(error)]
    return []


def work_with_little_space(folder: Path, seed: int, pipe: Connection) -> None:
    """Do everything while no file can grow beyond a few bytes more each time, as on a disk that is full."""
    from sliceprop.errors import FileError

    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    workspace, chance = open_workspace(folder), random.Random(seed)
    for number in range(seed * 1000, seed * 1000 + 10):
        largest = int(10 ** chance.uniform(0, 4.5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        step = chance.choice((submit, submit, _submit_scribbles, _propagate, _finish))
        try:
            said = step(workspace, number)
        except (FileError, OSError) as error:
            said = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        pipe.send(said)


def _submit_scribbles(workspace: Any, number: int) -> tuple[int, str]:
    return submit(workspace, number, "scribbles")


def _propagate(workspace: Any, number: int) -> str:
    propagate(workspace)
    return ""


def _finish(workspace: Any, number: int) -> tuple[int, str] | str:
    from sliceprop.server.errors import ConflictError

    try:
        return finish(workspace)
    except ConflictError:
        return ""


def work_read_only(folder: Path, seed: int, pipe: Connection) -> None:
    """Try to submit to a folder that has become read-only, and read it; says what went wrong in that."""
    from sliceprop.errors import FileError

    logging.disable(logging.CRITICAL)
    workspace = open_workspace(folder)
    before = workspace.drawings.annotation(workspace.case(STUDY))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # whom modes do not stop
        os.setegid(65534)
        os.seteuid(65534)
    try:
        submit(workspace, seed)
        pipe.send("a read-only folder was written to")
    except FileError:
        pass
    for program in (workspace, open_workspace(folder)):  # the second starts on a folder that is read-only already
        after = program.drawings.annotation(program.case(STUDY))
        if after.source != before.source or not (after.labels == before.labels).all():
            pipe.send("the annotation changed")
        program.open(program.case(STUDY), _no_options())


def _no_options() -> Any:
    from sliceprop.server.requests import LabelOptions

    return LabelOptions()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A disk of its own mounted on a new folder; False where that is not permitted."""
    folder.mkdir()
    command = f"mount -t tmpfs -o size={megabytes}m sliceprop-test '{folder}' 2>/dev/null"
    mounted = os.geteuid() == 0 and os.system(command) == 0
    try:
        yield mounted
    finally:
        if mounted:
            os.system(f"umount '{folder}'")


def fill_disk(folder: Path) -> Path:
    """Write until nothing fits any more; the file to remove."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    return file


def copied(folder: Path, target: Path) -> Path:
    """A copy of a folder of studies, in place of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(folder, target))
