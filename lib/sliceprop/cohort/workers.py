"""Where studies are worked off: Dask workers on this machine, of a scheduler that runs already, or of a SLURM cluster.

A worker does one study at a time. Workers offer the resources `MEMORY` (bytes) and, with a GPU each, `GPU`; studies ask
for what they need of them, so that Dask places each where it fits.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceprop.errors import InputError, TooLargeError
from sliceprop.io import image_shape
from sliceprop.memory import BYTES_PER_VOXEL, BYTES_PER_WORKED_VOXEL

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

logger = logging.getLogger(__name__)

GPU, MEMORY = "GPU", "MEMORY"

WORKER_GIB = 4.0
"""Memory of a worker that is not told: enough for 70 slices of 512 by 512."""

PROCESS_BYTES = 1.5 * 2**30
"""Memory of a worker beside the voxels of its study: libraries, and what is kept of what was freed; measured."""

KEPT_BYTES = 1 << 25
"""Freed blocks up to this size are kept, twice as much of them; what glibc comes to by itself at most."""

CONNECT_S = 10.0
"""For a scheduler to answer, at first and when the connection was lost."""

START_S = 120.0
"""For the first worker to come, where one is expected at once."""

LOOK_S = 0.2
"""Between two looks for the first worker."""

NO_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
"""For worker processes: Ctrl-C reaches them too, but it is this process that ends them."""

SETTINGS: dict[str, Any] = {
    "distributed.nanny.pre-spawn-environ.DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
    # No results wait in a worker's memory, so that there is nothing to spill, and pausing would last for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Who kills a worker twice is tried once more when nothing else runs; see `run`.
    "distributed.scheduler.allowed-failures": 1,
}


@dataclass(frozen=True)
class WorkersConfig:
    """Who works.

    Attributes:
        n: workers, or SLURM jobs; None for as many as this machine can feed.
        memory_gib: of each worker; None for its share of this machine, on SLURM for `WORKER_GIB`.
        threads: of each worker, for one study; None for its share of this machine's cores, on SLURM for 4.
        scheduler: address of a running scheduler, such as `tcp://10.0.0.1:8786`; the three above are then its own.
        slurm: start the workers as SLURM jobs; queue, account and time come from Dask's own `jobqueue.slurm`.
    """

    n: int | None = None
    memory_gib: float | None = None
    threads: int | None = None
    scheduler: str | None = None
    slurm: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("n", "memory_gib", "threads") if getattr(self, name) is not None]
        if any(getattr(self, name) <= 0 for name in given):
            raise InputError("workers, their memory and their threads must be more than 0")
        if self.scheduler and (given or self.slurm):
            raise InputError("a running scheduler has its own workers; leave out the number, memory, threads and SLURM")


@contextmanager
def workers(config: WorkersConfig, *, gpu: bool, shared: Path) -> Iterator[Client]:
    """Start or find workers, and end what was started.

    Args:
        config: which.
        gpu: each worker of this machine or SLURM job gets a GPU of its own.
        shared: folder that the machines of a cluster share, for the keys of their encrypted connections.

    Raises:
        InputError: Dask is not installed, no scheduler answers or it goes away again, or no worker comes.
    """
    with ExitStack() as stack:
        check_installed()
        import dask

        stack.enter_context(dask.config.set(SETTINGS))
        stack.enter_context(_quiet())
        client = stack.enter_context(_connected(stack, config, gpu, shared))
        stack.enter_context(client.as_current())
        _await_worker(client, config.slurm)
        yield client


def _await_worker(client: Client, slurm: bool) -> None:
    assert client.scheduler is not None
    address = client.scheduler.address
    try:
        if _comes(client, START_S):
            return
        if not slurm:
            raise InputError(f"{address}: no worker came within {START_S:g} s")
        logger.warning("no SLURM job has begun yet, squeue tells why; waiting for the first")
        _comes(client, math.inf)
    except OSError as error:
        raise InputError(f"{address}: the scheduler went away before a worker came; start it again") from error


def _comes(client: Client, within_s: float) -> bool:
    """Whether a worker comes; Dask's own wait for one may last for ever, whatever its bound.

    Raises:
        OSError: the scheduler went away.
    """
    deadline = time.monotonic() + within_s
    while not offers(client):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _connected(stack: ExitStack, config: WorkersConfig, gpu: bool, shared: Path) -> Client:
    from distributed import Client

    try:
        where = config.scheduler or stack.enter_context(_cluster(config, gpu, shared))
        # The default of this process would be another one's where there are two, as in a server beside other work.
        return Client(where, timeout=CONNECT_S, set_as_default=False)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error)
    gc.collect()  # a client that could not connect is closed here; later it might be while Dask holds the lock it needs
    raise InputError(f"{config.scheduler or 'Dask'}: no scheduler answers there ({reason})")


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it takes next, as it does outside of Dask.

    Dask has glibc give all of it back at once (`MALLOC_TRIM_THRESHOLD_`), whoever starts the worker. Learning takes and
    frees arrays all the time, and spent most of its time on getting the same pages back.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    if sys.platform == "linux":
        with suppress(AttributeError):  # of another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(m_trim_threshold, 2 * KEPT_BYTES)
            mallopt(m_mmap_threshold, KEPT_BYTES)


def check_installed() -> None:
    """Load Dask.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import dask  # noqa: F401
        import distributed  # noqa: F401
    except ImportError as error:
        raise InputError("this needs Dask: pip install 'sliceprop[cohort]'") from error


def offers(client: Client) -> list[dict[str, float]]:
    """The resources of each worker that is there now.

    Raises:
        ConnectionError: the scheduler went away, of which Dask's own answer says nothing.
    """
    told = client.scheduler_info(n_workers=-1)
    if client.status not in ("running", "connecting"):
        raise ConnectionError
    return [worker["resources"] for worker in told.get("workers", {}).values()]


def most_of(offered: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each resource, the most that one worker offers."""
    most = dict[str, float]()
    for name, amount in (item for offer in offered for item in offer.items()):
        most[name] = max(amount, most.get(name, 0))
    return most


def replace_ended(client: Client) -> None:
    """Submit jobs again that have ended, at their time limit say; Dask forgets them some seconds after that."""
    if client.cluster is not None:
        client.cluster.scale(len(client.cluster.worker_spec))


def needed(image: Path, device: str, most: Mapping[str, float]) -> dict[str, float]:
    """The resources that a study needs of a worker.

    Args:
        image: file of the scan, or folder of a series; only a header is read.
        device: `auto`, `cpu` or `cuda`.
        most: of each resource, the most that a worker offers.

    Raises:
        TooLargeError: no worker has as much memory.
        InputError: no worker offers a GPU where one is asked for.
    """
    asked = dict[str, float]()
    if device != "cpu" and GPU in most:
        asked[GPU] = 1
    elif device == "cuda":
        raise InputError(f"no worker offers a GPU; start workers with --resources {GPU}=1")
    shape = image_shape(image)
    if shape is not None and MEMORY in most:
        asked[MEMORY] = PROCESS_BYTES + math.prod(shape) * (BYTES_PER_VOXEL + BYTES_PER_WORKED_VOXEL)
        if image.is_dir():  # which may hold other series too
            asked[MEMORY] = min(asked[MEMORY], most[MEMORY])
        if asked[MEMORY] > most[MEMORY]:
            found = f"may need {asked[MEMORY] / 2**30:.1f} GiB, the largest worker has {most[MEMORY] / 2**30:.1f}"
            raise TooLargeError(found)
    return asked


def has_died(error: BaseException) -> bool:
    """Whether a task has no result because its workers died, each time that it was tried."""
    from distributed import KilledWorker

    return isinstance(error, KilledWorker)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's own messages, which come in dozens, held back: what matters is told per study."""
    levels = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _cluster(config: WorkersConfig, gpu: bool, shared: Path) -> Any:
    if not config.slurm:
        return _local_cluster(config, gpu)
    cluster = slurm_cluster(config, gpu, shared)
    cluster.scale(jobs=config.n or 1)
    return cluster


def _local_cluster(config: WorkersConfig, gpu: bool) -> SpecCluster:
    """A scheduler in this process and worker processes, which talk over TLS with keys that nobody else has."""
    from dask.system import CPU_COUNT
    from distributed import Nanny, Scheduler, Security, SpecCluster
    from distributed.system import MEMORY_LIMIT

    gpus = _gpus() if gpu else []
    n = config.n or len(gpus) or max(1, min(CPU_COUNT, int(MEMORY_LIMIT / 2**30 / WORKER_GIB)))
    memory = int((config.memory_gib or MEMORY_LIMIT / 2**30 / n) * 2**30)
    threads = config.threads or max(1, CPU_COUNT // n)
    security = Security.temporary()
    local = {"security": security, "host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"}
    common = {**local, "nthreads": 1, "memory_limit": memory, "preload": [NO_INTERRUPTS]}

    def options(number: int) -> dict[str, Any]:
        env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return {**common, "env": env, "resources": {MEMORY: memory, **({GPU: 1} if gpus else {})}}

    return SpecCluster(
        workers={number: {"cls": Nanny, "options": options(number)} for number in range(n)},
        scheduler={"cls": Scheduler, "options": local},
        security=security,
    )


def slurm_cluster(config: WorkersConfig, gpu: bool, shared: Path) -> Any:
    """A scheduler in this process, to be scaled to a worker per SLURM job.

    Raises:
        InputError: dask-jobqueue is not installed, or this machine cannot submit jobs.
    """
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise InputError("SLURM needs dask-jobqueue: pip install 'sliceprop[slurm]'") from error
    finally:  # the import has Ctrl-C end the program as if all were done, without the report of the cohort
        signal.signal(signal.SIGINT, on_ctrl_c)
    if shutil.which(SLURMCluster.job_cls.submit_command) is None:
        raise InputError(f"there is no {SLURMCluster.job_cls.submit_command} here; run this where jobs are submitted")
    import dask
    from distributed import Security

    threads, gib = config.threads or 4, config.memory_gib or WORKER_GIB
    offered = f"{MEMORY}={int(gib * 2**30)}" + (f",{GPU}=1" if gpu else "")
    extra = list(dask.config.get("jobqueue.slurm.job-extra-directives", []))
    prologue = list(dask.config.get("jobqueue.slurm.job-script-prologue", []))
    return SLURMCluster(
        cores=threads,
        processes=1,
        memory=f"{gib}GiB",
        security=Security.temporary(),
        protocol="tls://",
        shared_temp_directory=str(shared),
        worker_extra_args=["--nthreads", "1", "--resources", offered],
        job_extra_directives=extra + (["--gres=gpu:1"] if gpu else []),
        job_script_prologue=[*prologue, f"export OMP_NUM_THREADS={threads}", "export OMP_WAIT_POLICY=PASSIVE"],
    )


def _gpus() -> list[str]:
    """What each worker sees as its GPU: the entries of `CUDA_VISIBLE_DEVICES` where it is set, else all by number."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
