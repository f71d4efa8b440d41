"""Routes of the app: its own, and those of MONAI Label that must check first or must not block the event loop.

Most are plain functions, which FastAPI runs in its thread pool; MONAI Label's are coroutines around the same work.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, BackgroundTasks, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, scoring, session, train
from monailabel.endpoints.user.auth import User, get_current_user
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import file_checksum
from starlette.datastructures import UploadFile as Upload
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from sliceprop import io
from sliceprop.checkpoint import load_checkpoint
from sliceprop.errors import CheckpointError, InputError, TooLargeError
from sliceprop.server import export_routes, operator_routes, panel_routes, proxy, version_routes
from sliceprop.server.access import Access, current_user
from sliceprop.server.app import NAME, LabelPropApp, result_tag
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.audit import Auditor, note, sender
from sliceprop.server.batch import INFO as BATCH
from sliceprop.server.checkpoints import SUFFIX
from sliceprop.server.datastore import MASK
from sliceprop.server.errors import BusyError, NotFoundError, install_error_handlers
from sliceprop.server.guard import NameGuard, new_name
from sliceprop.server.health import Counters
from sliceprop.server.learning import OPEN
from sliceprop.server.limits import (
    HearOut,
    LimitGuard,
    Queue,
    ReadQueue,
    ReadSlot,
    Slot,
    UploadSlot,
    archive_queue,
    turn,
    upload_queue,
)
from sliceprop.server.records import KINDS
from sliceprop.server.requests import LabelOptions, first_choices, label_options, parse_params, whole_number
from sliceprop.server.results import write_result
from sliceprop.server.sessions import ABOUT
from sliceprop.server.strategy import NO_STUDY
from sliceprop.server.trainer import PropagateTrainer
from sliceprop.server.training_queue import LOOK_S
from sliceprop.server.web import (
    CHUNK,
    Admin,
    Annotator,
    Params,
    Reader,
    StoredResponse,
    asks_archive,
    check_known,
    check_upload,
    image_id,
    opened,
    running_app,
    save_upload,
    saved,
)
from sliceprop.versions import FINAL
from sliceprop.volume import check_image

router = APIRouter()

MAX_TRAININGS, SCORING = 8, "quality"

MAX_FIELDS, MAX_FILES, MAX_IN_MEMORY, LONGEST_FIELD = 4, 4, 1 << 14, 1 << 18
"""Of a form: fields, files, bytes of each of these before they go to disk, and bytes of a field."""

MAX_SERIES = 1000
"""Files of one session."""

MAX_INFO_BYTES = 1 << 16
"""Of what clients keep beside one image or label, as it is written; every change of any of them writes it anew."""

_RESERVED = frozenset({"model", "image", "image_id", "session", "label", "description"})
"""Entries of an infer request that MONAI Label would let a client's `params` replace, paths of files among them."""


_SERVERS_INFO = frozenset(
    {"path", "name", "ts", "user", "quality", "suggestion", "strategy", "label_info", "slice_axis", "annotated_slices"}
    | {"partial", "background_scribble", "reviewed_slices", "annotation_version", "dicom_seg", "dicom_seg_series"}
    | {"sha256", "mtime_ns", "version"}
    | {BATCH, "sentence", "Modality", "InstanceNumbers", "SeriesInstanceUID", "StudyInstanceUID", "params"}
)
"""Entries of an image's or label's info that routes rely on."""

_SERVERS_OWN = frozenset({"bundle_path", "gpus", "multi_gpu", "max_workers", "device", "logging", "images", "labels"})
"""Entries of a batch request that say how MONAI Label runs it, a folder to load programs from among them."""


def install(app: LabelPropApp) -> None:
    """Put routes, guards and the translation of errors into MONAI Label's running FastAPI application."""
    from monailabel.app import app as api

    parts = (operator_routes, panel_routes, version_routes, export_routes, proxy)
    api.router.routes[:0] = [*router.routes, *(route for part in parts for route in part.router.routes)]
    api.router.form_limits = {"max_fields": MAX_FIELDS, "max_files": MAX_FILES, "max_part_size": LONGEST_FIELD}
    MultiPartParser.spool_max_size = MAX_IN_MEMORY
    install_error_handlers(api, app.workspace.folder.parent)
    api.dependency_overrides[get_current_user] = current_user
    api.state.queue, api.state.counters = Queue(app.limits), Counters()
    api.state.uploads, api.state.reads = upload_queue(app.limits), ReadQueue(app.limits)
    api.state.archive = archive_queue(app.limits)
    api.user_middleware[:] = [
        Middleware(HearOut, limits=app.limits),
        Middleware(Auditor, log=lambda: app.audit, counters=api.state.counters),
        *_cross_origin(app.policy.origins),
        Middleware(Access, policy=app.policy),
        Middleware(LimitGuard, limits=app.limits),
        Middleware(NameGuard, check_known=check_known, is_far=asks_archive),
    ]
    api.middleware_stack = None  # built anew, with guards and handlers, at the next request
    gc.collect()
    gc.freeze()  # else every body of JSON pays for a walk over all that was imported, in the event loop


def _cross_origin(origins: frozenset[str]) -> list[Middleware]:
    """In place of MONAI Label's, which lets pages of every site in, with their visitors' cookies."""
    if not origins:
        return []
    allowed: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"], "allow_credentials": True}
    return [Middleware(CORSMiddleware, allow_origins=sorted(origins), **allowed)]


@router.post("/infer/{model}")
def run_inference(
    background_tasks: BackgroundTasks,
    model: str,
    user: Reader,
    image: str = "",
    session_id: str = "",
    params: Params = "{}",
    file: UploadFile | None = None,
    label: UploadFile | None = None,
    output: infer.ResultType | None = None,
    *,
    slot: Slot,
) -> Any:
    """Run a model on a study of the datastore, of a session, or of the request."""
    app, options = running_app(), parse_params(params)
    app.known("model", model, app._infers)
    if output is infer.ResultType.dicom_seg:
        raise InputError("there is no output dicom_seg; POST /labelprop/final sends the result to the archive as that")
    if replaced := [key for key in _RESERVED & options.keys() if options[key] not in (model, image)]:
        raise InputError(f"params must not hold {replaced}; image and label are parts of the request itself")
    if session_id:
        session.get_session(session_id)
    elif file is None:
        app.workspace.case(image)
    else:
        check_upload(file)
    options["image_id"] = "" if session_id or file else image
    with saved(label) as label_file, saved(file) as scan:  # MONAI Label itself leaves the scan of a refused request
        options["label"] = str(label_file) if label_file else None
        if scan is not None:
            options["image"] = image = str(scan)
        text = json.dumps(options)
        answer = infer.run_inference(background_tasks, model, image, session_id, text, None, None, output)
    if isinstance(answer, Response) and not isinstance(answer, FileResponse):
        return StoredResponse([answer.body], {}, answer.media_type)
    return answer


@router.post("/infer/wsi/{model}", include_in_schema=False)
@router.post("/infer/wsi_v2/{model}", include_in_schema=False)
def run_wsi_inference(model: str, user: Reader) -> Any:
    """Refuse: this app has no model for whole-slide images."""
    raise InputError("this app does not work on whole-slide images")


@router.get("/info/")
def read_info(user: Reader) -> Any:
    """What the app is and can do; MONAI Label would ask an archive in the event loop, where everybody waits for it."""
    return running_app().info()


@router.get("/datastore/")
def read_datastore(user: Reader, output: datastore.ResultType | None = None) -> Any:
    """Figures of the images and labels, or all of them; as `read_info`."""
    return datastore.datastore(output)


@router.head("/datastore/image")
def has_image(image: str, user: Reader, check_sum: str | None = None, *, slot: Slot) -> None:
    """Whether there is an image, and the client has the same file; `check_sum` is `SHA256:...`, `SHA512:` or `MD5:`.

    Raises:
        NotFoundError: if not.
        InputError: for another kind of checksum.
    """
    file = running_app().workspace.case(image).image
    if not check_sum:
        return
    kind, _, told = check_sum.rpartition(":")
    if kind not in ("", "SHA256", "SHA512", "MD5"):
        raise InputError(f"check_sum must be SHA256:..., SHA512:... or MD5:..., not {check_sum!r}")
    if told.lower() != file_checksum(file, kind or "SHA256").rpartition(":")[2]:
        raise NotFoundError("the file of this image is another one")


@router.get("/datastore/image")
def download_image(image: str, user: Reader, *, slot: UploadSlot) -> Any:
    """The file of an image, after fetching it from an archive."""
    return datastore.download_image(image)


@router.delete("/datastore/image")
@router.delete("/datastore/", include_in_schema=False)
def remove_image(id: str, user: Admin, *, slot: ReadSlot) -> Any:
    """Remove an image and its labels, when what is being submitted for it is kept."""
    app = running_app()
    if isinstance(app.datastore(), ArchivedStudies):  # where no other scan may take its name
        return datastore.remove_image(id)
    with app.workspace.lock(app.workspace.case(id)):
        return datastore.remove_image(id)


@router.get("/datastore/image/info")
def read_image_info(image: str, user: Reader) -> Any:
    """What is known of an image."""
    return datastore.get_image_info(image)


@router.head("/datastore/label")
def has_label(image: str, tag: str, user: Reader) -> Any:
    """Whether there is a label."""
    return datastore.download_label(image, tag, check_only=True)


@router.get("/datastore/label")
def download_label(label: str, tag: str, user: Reader) -> Any:
    """The file of a label."""
    return opened(datastore.download_label(label, tag))


@router.delete("/datastore/label")
def remove_label(id: str, tag: str, user: Admin) -> Any:
    """Remove a label."""
    return datastore.remove_label(id, tag)


@router.get("/datastore/label/info")
def read_label_info(label: str, tag: str, user: Reader) -> Any:
    """What is known of a label."""
    return datastore.get_label_info(label, tag)


@router.put("/datastore/label")
def save_label(
    image: str, label: UploadFile, user: Annotator, params: Params = "{}", tag: str = FINAL, *, slot: UploadSlot
) -> dict[str, Any]:
    """Store a label file; what was there before stays if anything is wrong with the new one."""
    if tag.casefold().endswith(MASK):
        raise InputError(f"tags that end in {MASK} are those of masks, which only the server writes")
    app, options = running_app(), label_options(parse_params(params))
    with saved(label) as file:
        assert file is not None
        answer = app.workspace.submit(image, tag or FINAL, file, options, sender())
    app.on_save_label(image, image)
    return {**answer, "image": image, "label": image}


@router.put("/datastore/image")
@router.put("/datastore/", include_in_schema=False)
def save_image(
    file: UploadFile, user: Annotator, image: str | None = None, params: Params = "{}", *, slot: UploadSlot
) -> dict[str, str]:
    """Add an image after checking that it can be worked on; another one never takes the place of one that is there."""
    info, workspace = _clients_info(params, user, {}), running_app().workspace
    check_upload(file)
    image = image or image_id(file.filename)
    note(image)
    if not workspace.store.has_image(image):
        new_name(image, "image")
    with saved(file) as upload:
        assert upload is not None
        scan = io.read_image(upload)
        check_image(scan.array)
        workspace.store.refresh()  # notices a scan that was taken away
        if not workspace.store.has_image(image):
            workspace.record(image).take_up(image, scan)
        return {"image": workspace.store.add_image(image, str(upload), info)}


@router.put("/datastore/image/info")
def update_image_info(image: str, user: Annotator, info: Params = "{}") -> None:
    """Add to what is known of an image."""
    store = running_app().datastore()
    store.update_image_info(image, _clients_info(info, user, store.get_image_info(image)))


@router.put("/datastore/label/info")
def update_label_info(label: str, tag: str, user: Annotator, info: Params = "{}") -> None:
    """Add to what is known of a label."""
    store = running_app().datastore()
    store.update_label_info(label, tag, _clients_info(info, user, store.get_label_info(label, tag)))


@router.put("/datastore/updatelabelinfo", include_in_schema=False)
def update_label_info_by_params(label: str, tag: str, user: Annotator, params: Params = "{}") -> None:
    """The same by its former name."""
    update_label_info(label, tag, user, params)


def _clients_info(text: str, user: User, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a client wants to be kept beside an image or a label.

    Args:
        text: JSON.
        user: who sends it.
        known: what is kept there already.

    Raises:
        InputError: for no JSON object, or entries that are the server's own.
        TooLargeError: if clients' entries there became too long.
    """
    info = parse_params(text)
    if taken := sorted(_SERVERS_INFO & info.keys()):
        raise InputError(f"info must not hold {taken}, which the server keeps itself")
    kept = {key: value for key, value in {**known, **info}.items() if key not in _SERVERS_INFO}
    if len(json.dumps(kept, indent=2, default=str)) > MAX_INFO_BYTES:
        raise TooLargeError(f"info may have {MAX_INFO_BYTES} bytes in all; keep what is longer elsewhere")
    return {**info, "user": user.username}


@router.put("/session/", form_limits={"max_files": MAX_SERIES})
def create_session(
    files: list[UploadFile],
    user: Reader,
    uncompress: bool = False,
    expiry: int = 0,
    *,
    slot: UploadSlot,
) -> Any:
    """Take the image of a session; no archives, whose members could be written anywhere."""
    names = [check_upload(file) for file in files]
    if len({"", ABOUT, *names}) < 2 + len(names):
        raise InputError(f"each file needs a name of its own, other than {ABOUT}")
    if uncompress:
        raise InputError("archives are not accepted; send the image, or the files of one DICOM series")
    sessions = running_app().sessions()
    if sessions is None:
        raise NotFoundError("this server has no sessions; its operator can allow them with MONAI_LABEL_SESSIONS")
    with tempfile.TemporaryDirectory() as folder:
        series = Path(folder) / "series"
        series.mkdir()
        received = [save_upload(file, series) for file in files]
        session_id, about = sessions.add_session(str(series if len(received) > 1 else received[0]), expiry)
    return {"session_id": session_id, "session_info": _told_session(about.to_json())}


@router.get("/session/{session_id}")
def get_session(session_id: str, user: Reader, update_ts: bool = False, image: bool = False) -> Any:
    """What is known of a session, or its image if that is one file."""
    answer = session.get_session(session_id, update_ts, image)
    if isinstance(answer, FileResponse) and not Path(answer.path).is_file():
        raise InputError("the image of this session is a series of several files")
    return answer if image else _told_session(answer)


@router.delete("/session/{session_id}")
def remove_session(session_id: str, user: Reader) -> Any:
    """End a session, and remove its scan."""
    return _told_session(session.remove_session(session_id))


def _told_session(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a session, without where the server keeps it."""
    return {**about, "path": "", "image": Path(about["image"]).name}


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, user: Reader, slot: Slot, params: dict[str, Any] | None = None) -> Any:
    """Ask a strategy; without any study the answer says so."""
    app = running_app()
    app.known("strategy", strategy, app._strategies)
    found = activelearning.sample(strategy, params, user.username) or NO_STUDY
    note(str(found.get("id", "")))
    return found


@router.post("/train/{model}")
async def start_training(
    model: str, user: Admin, params: dict[str, Any] | None = None, run_sync: bool = False, enqueue: bool = False
) -> Any:
    """Start a training after checking its request; a second one is refused with 429 while one runs.

    With a queue that is a second one of the same study; the others wait for a worker. Whoever waits for the end of
    one takes up no thread.
    """
    app = running_app()
    trainer = app.known("model", model, app._trainers)
    request = await run_in_threadpool(trainer.prepare, params or {})
    note(request["image"])
    if app.queue is None:
        return await run_in_threadpool(_train, trainer, request, run_sync, enqueue)
    ticket = await run_in_threadpool(app.queue.add, request, user.username)
    if not run_sync:
        return await run_in_threadpool(app.queue.task, ticket)
    while not ticket.over.is_set():
        await asyncio.sleep(LOOK_S)
    return await run_in_threadpool(app.training, ticket.image)


def _train(trainer: PropagateTrainer, request: Mapping[str, Any], run_sync: bool, enqueue: bool) -> Any:
    """Start MONAI Label's training process."""
    app = running_app()
    waiting = [task for task in tasks("train") if task["status"] in ("SUBMITTED", "RUNNING")]
    if enqueue and len(waiting) >= MAX_TRAININGS:
        raise BusyError(f"{MAX_TRAININGS} trainings wait already; try again later", retry_after_s=60)
    over = app.training()["status"] not in ("SUBMITTED", "RUNNING")  # its process takes a second longer to end
    try:
        answer = train.run_model(NAME, dict(request), run_sync, enqueue or over)
    except HTTPException as error:
        busy = f"a training is running already, of {app.training().get('image')}; wait for its end or stop it"
        raise BusyError(busy, retry_after_s=10) from error
    if not run_sync:
        trainer.submitted(request)
    return answer


@router.post("/train/", include_in_schema=False)
async def start_all_trainings(user: Admin, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """The same for the only trainer; options may lie under its name, as OHIF sends them."""
    options = first_choices(params or {})
    answer = await start_training(NAME, user, options.get(NAME, options), run_sync, enqueue=True)
    return {NAME: {"result": answer, "detail": None}}


@router.get("/train/")
def get_trainings(user: Reader, all: bool = False, check_if_running: bool = False) -> Any:
    """The last training, or all of them; with a queue the user's last one, or everybody's."""
    queue = running_app().queue
    if queue is None:
        found = train.status(all, check_if_running)
        return _told(found, "" if all else running_app().training().get("error", ""))
    found = queue.tasks(None if all else user.username)
    if not found or (check_if_running and found[-1]["status"] not in OPEN):
        raise NotFoundError("no training is running" if check_if_running else "there was no training yet")
    return found if all else found[-1]


@router.delete("/train/")
def stop_training(user: Admin, image: str = "") -> Any:
    """Stop the training; the best model so far is kept.

    With a queue that of `image`, without it the user's latest running one.
    """
    queue = running_app().queue
    stopped = train.stop() if queue is None else queue.stop(user.username, image)
    if stopped:
        note(stopped["request"]["image"])
    return stopped if queue else _told(stopped)


def _told(task: Any, error: str = "") -> Any:
    """A task of MONAI Label, or all of them, without what its process printed, which names folders of the server.

    3D Slicer fails where there is no last line of `details`.

    Args:
        task: one, several, or None.
        error: why it failed, if it did and that is known.
    """
    if isinstance(task, list):
        return [_told(one) for one in task]
    if not task:
        return task
    last = error if error and task["status"] == "ERROR" else task["status"].lower()
    return {**task, "details": [last]}


@router.post("/scoring/{method}")
def start_scoring(method: str, user: Annotator, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """Start a scoring after checking its request."""
    app = running_app()
    app.known("scoring method", method, app._scoring_methods)
    app.workspace.store.check_reach()
    known = {}
    if params and params.get("image"):
        known = {"image": app.workspace.case(params["image"]).image_id}
        note(known["image"])
    try:
        return scoring.run_method(method, known, run_sync)
    except HTTPException as error:
        raise BusyError("a scoring is running already; wait for its end", retry_after_s=10) from error


@router.post("/scoring/", include_in_schema=False)
def start_all_scorings(user: Annotator, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """The same for the only method."""
    return {SCORING: {"result": start_scoring(SCORING, user, params, run_sync), "detail": None}}


@router.post("/batch/infer/{model}")
def start_batch(
    model: str,
    user: Admin,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    """Start a batch inference after checking its request."""
    app, options = running_app(), first_choices(params or {})
    app.known("model", model, app._infers)
    app.workspace.store.check_reach()
    result_tag(options)
    options["user"] = user.username
    if options.get("max_batch_size") is not None:
        options["max_batch_size"] = whole_number(options, "max_batch_size", 0)
    if strange := sorted((_RESERVED | _SERVERS_OWN) & options.keys()):
        raise InputError(f"params must not hold {strange}; they are the server's to choose")
    try:
        return batch_infer.run(model, images, options, run_sync)
    except HTTPException as error:
        raise BusyError("a batch is running already; wait for its end", retry_after_s=60) from error


@router.get("/scoring/")
def get_scorings(user: Reader, all: bool = False, check_if_running: bool = False) -> Any:
    """The last scoring, or all of them."""
    return _told(scoring.status(all, check_if_running))


@router.delete("/scoring/")
def stop_scoring(user: Annotator) -> Any:
    """Stop the scoring."""
    return _told(scoring.stop())


@router.get("/batch/infer")
def get_batches(user: Reader, all: bool = False, check_if_running: bool = False) -> Any:
    """The last batch, or all of them."""
    return _told(batch_infer.status(all, check_if_running))


@router.delete("/batch/infer")
def stop_batch(user: Admin) -> Any:
    """Stop the batch; what is computed already stays."""
    return _told(batch_infer.stop())


@router.get("/labelprop/result")
def get_result(
    background_tasks: BackgroundTasks, image: str, user: Reader, kind: str = "labels", *, slot: ReadSlot
) -> Response:
    """One volume of the last propagation of a study, as NIfTI."""
    if kind not in KINDS:
        raise NotFoundError(f"unknown kind {kind!r}, choose from {', '.join(KINDS)}")
    workspace = running_app().workspace
    case = workspace.case(image)
    scan = workspace.scan(case)
    array = case.record.result(kind) if case.record else None
    if array is None:
        raise NotFoundError(f"there is no result for {image!r} yet; run POST /infer/{NAME}?image={image}")
    file = write_result(array, scan, {})
    background_tasks.add_task(file.unlink)
    return FileResponse(file, filename=f"{image}_{kind}.nii.gz", media_type="application/gzip")


@router.get("/labelprop/checkpoints")
def list_checkpoints(user: Reader) -> list[dict[str, Any]]:
    """All checkpoints; the one that was trained on a study has the image's id."""
    return running_app().workspace.checkpoints.listing()


@router.get("/labelprop/checkpoints/{checkpoint_id}")
def get_checkpoint(checkpoint_id: str, user: Reader) -> Response:
    """A checkpoint as safetensors."""
    note(checkpoint_id)
    file = running_app().workspace.checkpoints.existing(checkpoint_id)
    return opened(FileResponse(file, filename=file.name, media_type="application/octet-stream"))


@router.put("/labelprop/checkpoints/{checkpoint_id}")
async def put_checkpoint(checkpoint_id: str, request: Request, user: Annotator) -> dict[str, Any]:
    """Store a checkpoint: safetensors as the body, or as `file` of a form."""
    note(checkpoint_id)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"upload{SUFFIX}"
        with file.open("wb") as target:
            async for chunk in _checkpoint_chunks(request):
                target.write(chunk)
        async with turn(request.app.state.uploads, request):
            return await run_in_threadpool(_store_checkpoint, checkpoint_id, file)


async def _checkpoint_chunks(request: Request) -> AsyncIterator[bytes]:
    """The bytes of a checkpoint as they arrive: all at once may be many."""
    if not request.headers.get("Content-Type", "").startswith("multipart/form-data"):
        async for chunk in request.stream():
            yield chunk
        return
    part = (await request.form(max_fields=MAX_FIELDS, max_files=MAX_FILES)).get("file")
    if not isinstance(part, Upload):
        raise InputError("the form has no file; send the checkpoint as its part `file`, or as the body")
    while chunk := await part.read(CHUNK):
        yield chunk


def _store_checkpoint(checkpoint_id: str, file: Path) -> dict[str, Any]:
    workspace = running_app().workspace
    if checkpoint_id not in workspace.store.list_images():
        new_name(checkpoint_id, "checkpoint id")
    model = load_checkpoint(file)
    if model.study_hash is not None and checkpoint_id in workspace.store.list_images():
        study = workspace.open(workspace.case(checkpoint_id), LabelOptions()).study
        if model.study_hash != study.study_hash:
            raise CheckpointError(
                f"this checkpoint was trained on another study than {checkpoint_id!r}; "
                "store it under another id and name that as `init`"
            )
    workspace.checkpoints.save(checkpoint_id, model)
    return {"id": checkpoint_id}
