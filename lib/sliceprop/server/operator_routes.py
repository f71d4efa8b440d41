"""Routes for operators, and those of MONAI Label for them that fail, block or ask the internet for scripts."""

from __future__ import annotations

from collections import deque
from logging import FileHandler, getLogger
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, BackgroundTasks, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from monailabel.endpoints import datastore, logs
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.async_tasks.utils import processes

from sliceprop.server.audit import note
from sliceprop.server.errors import ForbiddenError, NotFoundError
from sliceprop.server.health import Counters, problem
from sliceprop.server.limits import Queue, Slot
from sliceprop.server.web import Admin, Annotator, Reader, running_app

router = APIRouter()

MAX_LOG_LINES = 10_000


_HEALTH = CapacityLimiter(1)
"""A thread of its own, so that the answer does not wait for requests that wait for one study."""


@router.get("/", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
def list_requests(request: Request, user: Reader) -> Response:
    """All requests, a line each; MONAI Label's pages would run scripts of other hosts with the visitor's cookie."""
    described = request.app.openapi()["paths"]
    lines = [
        f"{method.upper():<8}{path}  {about.get('summary', '')}\n"
        for path, methods in sorted(described.items())
        for method, about in methods.items()
    ]
    return PlainTextResponse("".join(lines) + "\nParameters and answers: openapi.json\n")


@router.get("/healthz")
async def healthz() -> Response:
    """200 and `ok` if studies can be read and stored, else 503 and why not; needs no token and names no study."""
    app = running_app()
    wrong = await to_thread.run_sync(problem, app.workspace.store, app.policy, limiter=_HEALTH)
    return PlainTextResponse(wrong or "ok", status_code=503 if wrong else 200)


@router.get("/metrics")
def metrics(request: Request, user: Reader) -> Response:
    """Figures for Prometheus."""
    counters: Counters = request.app.state.counters
    queue: Queue = request.app.state.queue
    trainings = running_app().queue
    now = {
        "jobs_running": queue.running,
        "jobs_waiting": queue.waiting,
        "trainings_running": len(processes("train")) if trainings is None else trainings.running,
        "studies": len(running_app().datastore().list_images()),
    }
    return PlainTextResponse(counters.text(now), media_type="text/plain; version=0.0.4")


@router.get("/logs/")
def read_logs(user: Admin, lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 300) -> Response:
    """The last lines of the server's log; MONAI Label's page would load scripts from the internet."""
    files = [Path(handler.baseFilename) for handler in getLogger().handlers if isinstance(handler, FileHandler)]
    if not files or not files[0].is_file():
        raise NotFoundError("there is no log file")
    with files[0].open(encoding="utf-8", errors="replace") as log:
        return PlainTextResponse("".join(deque(log, lines)))


@router.get("/logs/gpu")
async def read_gpu(user: Admin) -> Response:
    """What `nvidia-smi` prints."""
    try:
        answer: Response = await logs.gpu_info(user)
    except FileNotFoundError as error:
        raise NotFoundError("this server has no GPU of NVIDIA, or no nvidia-smi") from error
    return answer


@router.post("/reload", include_in_schema=False)
def reload(user: Admin) -> Response:
    """Refuse: a second app in this process would not know what the first one is writing."""
    raise ForbiddenError("start the server anew instead")


@router.api_route("/model/{path:path}", methods=["GET", "PUT", "DELETE"], include_in_schema=False)
def refuse_model(path: str, user: Admin) -> Any:
    """Refuse, before anything is received: models belong to studies here."""
    return running_app().model_file(path)


@router.get("/datastore/dataset")
def download_dataset(
    background_tasks: BackgroundTasks,
    user: Annotator,
    slot: Slot,
    limit_cases: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """All scans that have a final label, with these, as a ZIP archive."""
    finished = running_app().datastore().get_labeled_images(DefaultLabelTag.FINAL.value)
    if not finished:
        raise NotFoundError("no study has a final label yet")
    note(*finished[:limit_cases])
    answer: FileResponse = datastore.download_dataset(limit_cases)
    background_tasks.add_task(Path(answer.path).unlink, missing_ok=True)
    return answer
