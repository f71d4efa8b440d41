"""Trainings of several users on real Dask workers: turns, progress, stops, workers and schedulers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")
pytest.importorskip("distributed")

import dask
from distributed import Client, Future, LocalCluster, WorkerPlugin

from columns import AFFINE, NAMES
from serving import eventually, free_port
from sliceprop.cohort import workers
from sliceprop.cohort.workers import WorkersConfig
from sliceprop.errors import InputError
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import BusyError
from sliceprop.server.requests import label_options
from sliceprop.server.trainer import PropagateTrainer
from sliceprop.server.training_queue import DIED, GONE, WAITING, Ticket, TrainingQueue, next_in_turn
from sliceprop.server.training_work import Job
from sliceprop.server.workspace import Workspace

SLOW, QUICK, DRAWN = (100, 90, 24), (20, 18, 12), [3, 9]
"""Learning the whole of the first takes so long that a test can come in between."""

SHAPES = {"slow0": SLOW, "slow1": SLOW, "a": QUICK, "b": QUICK, "c": QUICK, "d": QUICK}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Annotated studies of both sizes."""
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    studies = tmp_path / "studies"
    studies.mkdir()
    for name, shape in SHAPES.items():
        i, j, k = np.meshgrid(*map(np.arange, shape), indexing="ij")
        disc = ((i - 0.4 * shape[0] - k) ** 2 + (j - 0.5 * shape[1]) ** 2 < (0.3 * shape[0]) ** 2).astype(np.uint8)
        noise = np.random.default_rng(len(name)).normal(0, 5, shape)
        nib.save(nib.Nifti1Image((disc * 100 + noise).astype(np.float32), AFFINE), studies / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(np.where(np.isin(k, DRAWN), disc, 0), AFFINE), tmp_path / f"{name}.nii.gz")
    workspace = Workspace(LocalStudies(str(studies)))
    for name in SHAPES:
        workspace.submit(name, "sparse", tmp_path / f"{name}.nii.gz", label_options({"label_info": NAMES}))
    return workspace


@pytest.fixture
def queue_at(workspace: Workspace) -> Iterator[Callable[[str], TrainingQueue]]:
    """Makes the queue of a server whose trainings go to a scheduler."""
    opened = []

    def open_queue(address: str) -> TrainingQueue:
        trainer = PropagateTrainer(workspace, 2.0)
        opened.append(TrainingQueue(trainer, workspace.folder / "studies", WorkersConfig(scheduler=address)))
        return opened[-1]

    yield open_queue
    for queue in opened:
        queue.close()


@pytest.fixture(scope="module")
def threads() -> Iterator[Callable[[int], str]]:
    """Address of a scheduler with so many workers, threads of this process."""
    clusters = dict[int, LocalCluster]()

    def address(n: int) -> str:
        if n not in clusters:
            options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0", "silence_logs": False}
            clusters[n] = LocalCluster(n_workers=n, **options)
        return str(clusters[n].scheduler_address)

    yield address
    for cluster in clusters.values():
        cluster.close()


def status(queue: TrainingQueue, image: str) -> str:
    return str(queue.state(image)["status"])


def learning(queue: TrainingQueue, image: str) -> bool:
    """Whether an epoch was shown, so that a checkpoint must be there."""
    return status(queue, image) == "RUNNING" and queue.state(image)["epoch"] > 0


def over(queue: TrainingQueue, image: str) -> bool:
    return status(queue, image) not in ("SUBMITTED", "RUNNING")


def ticket(number: int, user: str) -> Ticket:
    return Ticket(number, user, {"image": f"{user}{number}"})


def in_turn(waiting: list[Ticket], at_once: int) -> list[str]:
    """Users in the order in which they are served, `at_once` of them working at a time."""
    running, served, order = list[Ticket](), dict[str, int](), list[str]()
    while chosen := next_in_turn(waiting, running, served):
        waiting.remove(chosen)
        running = [*running, chosen][-at_once + 1 :] if at_once > 1 else []
        served[chosen.user] = len(order) + 1
        order.append(chosen.image)
    return order


def test_a_user_with_ten_requests_does_not_hold_up_one_with_one() -> None:
    ten, one = [ticket(n, "a") for n in range(10)], ticket(10, "b")
    assert in_turn([*ten, one], 1)[:3] == ["a0", "b10", "a1"]
    assert next_in_turn([*ten, one], [ticket(99, "a")], {"a": 1}) is one
    assert next_in_turn([*ten, one], [ticket(99, "a")], {"a": 1, "b": 2}) is one
    assert next_in_turn([*ten, one], [], {"a": 1, "b": 2}) is ten[0]
    assert next_in_turn([], [], {}) is None


def test_two_users_learn_at_once_and_a_stop_keeps_what_was_learnt(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(2))
    assert queue.state("slow0")["status"] == queue.state()["status"] == "NONE"
    queue.add({"image": "slow0", "budget_s": 600}, "anna")
    queue.add({"image": "slow1", "budget_s": 300}, "ben")
    with pytest.raises(BusyError, match="slow0 is not over"):
        queue.add({"image": "slow0"}, "ben")
    eventually(lambda: learning(queue, "slow0") and learning(queue, "slow1"), "both to learn")
    assert queue.running == 2
    assert (queue.state(user="anna")["image"], queue.state(user="ben")["image"]) == ("slow0", "slow1")
    assert queue.state(user="nobody")["status"] == "NONE"
    assert queue.state("slow0")["seconds_left"] > 0
    stopped = queue.stop("anna")
    assert stopped and stopped["request"]["image"] == "slow0"
    assert queue.stop("nobody") is None
    eventually(lambda: over(queue, "slow0"), "it to end")
    assert (status(queue, "slow0"), status(queue, "slow1")) == ("STOPPED", "RUNNING")
    queue.stop("anna", "slow1")
    eventually(lambda: over(queue, "slow1"), "it to end")
    for image in ("slow0", "slow1"):
        assert workspace.checkpoints.load(image).study_hash
    assert [task["status"] for task in queue.tasks()] == ["STOPPED", "STOPPED"]
    assert not list(workspace.folder.glob("studies/*/training-*"))


def test_users_take_turns_and_what_waits_can_be_stopped(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(1))
    for image in "abc":
        queue.add({"image": image}, "anna")
    queue.add({"image": "d"}, "ben")
    assert queue.stop("ben", "c")["status"] == "STOPPED"
    eventually(lambda: all(over(queue, image) for image in "abcd"), "all to end")
    assert [status(queue, image) for image in "abcd"] == ["DONE", "DONE", "STOPPED", "DONE"]
    ended = {image: workspace.checkpoints.file(image).stat().st_mtime_ns for image in "abd"}
    assert sorted(ended, key=ended.__getitem__) == ["a", "d", "b"]
    assert "c" not in workspace.checkpoints


def test_a_study_that_is_worked_on_holds_up_no_other(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(1))
    with workspace.lock(workspace.case("a")):
        for image in "ab":
            queue.add({"image": image}, "anna")
        eventually(lambda: over(queue, "b"), "the other one to end")
        assert (status(queue, "a"), status(queue, "b")) == ("SUBMITTED", "DONE")
    eventually(lambda: over(queue, "a"), "the first one's turn")
    assert status(queue, "a") == "DONE"


def test_workers_hear_of_the_server_while_a_scan_is_slow_to_read(
    workspace: Workspace, threads: Callable[[int], str]
) -> None:
    reading, read = Event(), Event()

    class Slow(PropagateTrainer):
        def job(self, request: Mapping[str, Any], folder: Path, state: Path) -> Job:
            if request["image"] == "a":
                reading.set()
                read.wait()
            return super().job(request, folder, state)

    queue = TrainingQueue(Slow(workspace, 2.0), workspace.folder / "studies", WorkersConfig(scheduler=threads(2)))
    try:
        queue.add({"image": "slow0", "budget_s": 600}, "anna")
        eventually(lambda: learning(queue, "slow0"), "learning")
        queue.add({"image": "a"}, "anna")
        assert reading.wait(60)
        [folder] = (workspace.folder / "studies/slow0").glob("training-*")
        before = folder.stat().st_mtime_ns
        eventually(lambda: folder.stat().st_mtime_ns > before + 1e9, "two signs of life")
    finally:
        read.set()
        queue.close()


def test_a_stop_while_the_end_is_told_ends_no_other(
    queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, result = queue_at(threads(2)), Future.result
    queue.add({"image": "slow0", "budget_s": 600}, "ben")
    eventually(lambda: learning(queue, "slow0"), "learning")

    def stopped_first(future: Future, timeout: float | None = None) -> Any:
        queue.stop("anna")
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", stopped_first)
    queue.add({"image": "a"}, "anna")
    eventually(lambda: over(queue, "a"), "the stop")
    monkeypatch.undo()
    queue.add({"image": "b"}, "anna")
    eventually(lambda: over(queue, "b"), "one that came later")
    assert [status(queue, image) for image in ("a", "b", "slow0")] == ["STOPPED", "DONE", "RUNNING"]
    queue.stop("ben")


def test_a_request_is_answered_with_its_own_training(
    queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(1))
    queue.add({"image": "slow0", "budget_s": 600}, "anna")
    eventually(lambda: learning(queue, "slow0"), "learning")
    told = queue.task(queue.add({"image": "a"}, "anna"))
    assert (told["request"]["image"], told["status"]) == ("a", "SUBMITTED")
    queue.close()
    with pytest.raises(BusyError, match="server is ending"):
        queue.add({"image": "b"}, "anna")


def test_what_waited_when_a_server_ended_is_taken_up_by_the_next(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(1))
    queue.add({"image": "slow0", "budget_s": 600}, "anna")
    eventually(lambda: learning(queue, "slow0"), "learning")
    queue.add({"image": "b", "budget_s": 1.5}, "anna")
    queue.add({"image": "a"}, "ben")
    queue.add({"image": "c"}, "ben")
    queue.stop("ben", "c")
    queue.close()
    (workspace.folder / "studies/d").mkdir(exist_ok=True)
    (workspace.folder / "studies/d" / WAITING).write_text('{"request": ')  # as a full disk leaves it
    again = queue_at(threads(1))
    waiting = [(task["request"]["image"], task["request"]["user"]) for task in again.tasks()]
    assert waiting == [("b", "anna"), ("a", "ben")]
    assert again.tasks()[0]["request"]["budget_s"] == 1.5
    eventually(lambda: over(again, "a") and over(again, "b"), "both to end")
    assert [status(again, image) for image in ("a", "b", "c", "slow0")] == ["DONE", "DONE", "STOPPED", "STOPPED"]
    again.close()
    assert not queue_at(threads(1)).tasks()


def test_what_cannot_be_learnt_is_told_and_stops_no_other(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str], tmp_path: Path
) -> None:
    (tmp_path / "studies/a.nii.gz").write_bytes(b"no scan")
    queue = queue_at(threads(1))
    queue.add({"image": "a"}, "anna")
    queue.add({"image": "b"}, "anna")
    eventually(lambda: over(queue, "a") and over(queue, "b"), "both to end")
    assert status(queue, "b") == "DONE"
    told = queue.state("a")
    assert told["status"] == "ERROR" and "cannot be read" in told["error"]
    assert queue.tasks("anna")[0]["details"] == [told["error"]]


def test_a_training_of_a_server_that_is_gone_is_over(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], threads: Callable[[int], str]
) -> None:
    queue = queue_at(threads(1))
    queue.add({"image": "slow0", "budget_s": 600}, "anna")
    eventually(lambda: learning(queue, "slow0"), "learning")
    again = queue_at(threads(1))  # as if the server had been killed and started anew
    assert again.state("slow0")["status"] == "STOPPED"
    eventually(lambda: over(queue, "slow0"), "the worker to notice")
    assert workspace.checkpoints.load("slow0").study_hash


def test_nobody_answers(queue_at: Callable[[str], TrainingQueue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 1.0)
    queue = queue_at(f"tcp://127.0.0.1:{free_port()}")
    queue.add({"image": "a"}, "anna")
    eventually(lambda: over(queue, "a"), "the end")
    told = queue.state("a")
    assert told["status"] == "ERROR" and "no scheduler answers there" in told["error"]


def test_the_operator_decides(workspace: Workspace, tmp_path: Path) -> None:
    trainer = PropagateTrainer(workspace, 2.0)
    assert TrainingQueue.configured({}, trainer, tmp_path) is None
    with pytest.raises(InputError, match="has its own workers"):
        TrainingQueue.configured({"scheduler": "tcp://127.0.0.1:9", "workers": "2"}, trainer, tmp_path)
    with pytest.raises(InputError, match="more than 0"):
        TrainingQueue.configured({"scheduler": "local", "workers": "0"}, trainer, tmp_path)


def test_a_study_that_fits_no_worker_is_told(workspace: Workspace, queue_at: Callable[[str], TrainingQueue]) -> None:
    options = {"processes": False, "dashboard_address": ":0", "silence_logs": False, "resources": {"MEMORY": 2**29}}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        queue = queue_at(cluster.scheduler_address)
        queue.add({"image": "a"}, "anna")
        eventually(lambda: over(queue, "a"), "the end")
        assert "the largest worker has 0.5" in queue.state("a")["error"]
        assert not list(workspace.folder.glob("studies/*/training-*"))
        queue.close()


def cluster_at(port: int) -> LocalCluster:
    """A scheduler at this port with one worker, a thread of this process."""
    options = {"processes": False, "dashboard_address": ":0", "silence_logs": False}
    return LocalCluster(n_workers=1, threads_per_worker=1, protocol="tcp", scheduler_port=port, **options)


def test_a_scheduler_goes_away_and_comes_back(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 100.0)
    port = free_port()
    queue = queue_at(f"tcp://127.0.0.1:{port}")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), cluster_at(port) as cluster:
        queue.add({"image": "slow0", "budget_s": 600}, "anna")
        queue.add({"image": "a"}, "ben")
        eventually(lambda: learning(queue, "slow0"), "learning")
        cluster.sync(cluster.scheduler.close)
        eventually(lambda: over(queue, "slow0"), "the end")
    assert queue.state("slow0")["error"] == GONE
    assert workspace.checkpoints.load("slow0").study_hash
    assert status(queue, "a") == "SUBMITTED"
    with cluster_at(port):
        eventually(lambda: over(queue, "a"), "what waited to be taken up again")
        assert status(queue, "a") == "DONE"


def killer(folder: Path) -> WorkerPlugin:
    """Kills a worker that is about to train, as often as there are files in a folder."""

    class Killer(WorkerPlugin):
        def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
            if finish == "executing" and (left := list(folder.iterdir())):
                left[0].unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    return Killer()


def test_what_a_killed_worker_did_is_done_again_unless_that_kills_too(
    workspace: Workspace, queue_at: Callable[[str], TrainingQueue], tmp_path: Path
) -> None:
    kills = tmp_path / "kills"
    kills.mkdir()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=False) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(killer(kills))
        queue = queue_at(cluster.scheduler_address)
        cluster.scheduler.allowed_failures = 1
        (kills / "once").touch()
        queue.add({"image": "a"}, "anna")
        eventually(lambda: over(queue, "a"), "another worker to do it")
        assert status(queue, "a") == "DONE" and not list(kills.iterdir())
        cluster.scheduler.allowed_failures = 0
        (kills / "once more").touch()
        queue.add({"image": "b"}, "anna")
        eventually(lambda: over(queue, "b"), "the end")
        assert queue.state("b")["error"] == DIED
        queue.close()
