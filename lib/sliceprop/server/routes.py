"""Routes of the app: its own, and those of MONAI Label that must check first or must not block the event loop.

They are plain functions, which FastAPI runs in its thread pool; MONAI Label's are coroutines around the same work.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, BackgroundTasks, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, scoring, session, train
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from starlette.datastructures import UploadFile as Upload
from starlette.middleware import Middleware

from sliceprop import io
from sliceprop.checkpoint import load_checkpoint
from sliceprop.errors import CheckpointError, InputError
from sliceprop.server import export_routes, panel_routes, proxy
from sliceprop.server.app import NAME
from sliceprop.server.checkpoints import SUFFIX
from sliceprop.server.errors import NotFoundError, install_error_handlers
from sliceprop.server.guard import NameGuard, plain_filename, plain_name
from sliceprop.server.records import KINDS
from sliceprop.server.requests import LabelOptions, first_choices, label_options, parse_params
from sliceprop.server.results import write_result
from sliceprop.server.strategy import NO_STUDY
from sliceprop.server.web import Admin, Annotator, Params, Reader, running_app, saved
from sliceprop.server.workspace import FINAL
from sliceprop.volume import check_image

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR)

_RESERVED = frozenset({"model", "image", "image_id", "session", "label", "description"})
"""Entries of an infer request that MONAI Label would let a client's `params` replace, paths of files among them."""


def install() -> None:
    """Put the routes, the guard and the translation of errors into MONAI Label's running FastAPI application."""
    from monailabel.app import app as api

    routers = (router, panel_routes.router, export_routes.router, proxy.router)
    api.router.routes[:0] = [route for one in routers for route in one.routes]
    install_error_handlers(api)
    api.user_middleware.append(Middleware(NameGuard))
    api.middleware_stack = None  # built anew, with guard and handlers, at the next request


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
        plain_filename(file.filename)
    options["image_id"] = "" if session_id or file else image
    with saved(label) as label_file:
        options["label"] = str(label_file) if label_file else None
        return infer.run_inference(background_tasks, model, image, session_id, json.dumps(options), file, None, output)


@router.put("/datastore/label")
def save_label(
    image: str, label: UploadFile, user: Annotator, params: Params = "{}", tag: str = FINAL
) -> dict[str, Any]:
    """Store a label file; what was there before stays if anything is wrong with the new one."""
    app, options = running_app(), label_options(parse_params(params))
    with saved(label) as file:
        assert file is not None
        answer = app.workspace.submit(image, tag or FINAL, file, options)
    app.on_save_label(image, image)
    return {**answer, "image": image, "label": image}


@router.put("/datastore/image")
@router.put("/datastore/", include_in_schema=False)
def save_image(
    background_tasks: BackgroundTasks,
    file: UploadFile,
    user: Annotator,
    image: str | None = None,
    params: Params = "{}",
) -> dict[str, str]:
    """Add an image after checking that it can be worked on."""
    parse_params(params)
    with saved(file) as upload:
        assert upload is not None
        check_image(io.read_image(upload).array)
    file.file.seek(0)
    answer: dict[str, str] = datastore.add_image(background_tasks, image, params, file, user.username)
    return answer


@router.put("/session/")
def create_session(
    background_tasks: BackgroundTasks,
    files: list[UploadFile],
    user: Reader,
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    """Take the image of a session; no archives, whose members could be written anywhere."""
    for file in files:
        plain_filename(file.filename)
    if uncompress:
        raise InputError("archives are not accepted; send the image, or the files of one DICOM series")
    return session.create_session(background_tasks, False, expiry, files)


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, user: Reader, params: dict[str, Any] | None = None) -> Any:
    """Ask a strategy; without any study the answer says so."""
    app = running_app()
    app.known("strategy", strategy, app._strategies)
    return activelearning.sample(strategy, params, user.username) or NO_STUDY


@router.post("/train/{model}")
def start_training(
    model: str, user: Admin, params: dict[str, Any] | None = None, run_sync: bool = False, enqueue: bool = False
) -> Any:
    """Start a training after checking its request; a second one is refused with 429 while one runs."""
    app = running_app()
    trainer = app.known("model", model, app._trainers)
    request = trainer.prepare(params or {})
    try:
        answer = train.run_model(model, dict(request), run_sync, enqueue)
    except HTTPException as error:
        busy = f"a training is running already, of {app.training().get('image')}; wait for its end or stop it"
        raise HTTPException(error.status_code, busy) from error
    if not run_sync:
        trainer.submitted(request)
    return answer


@router.post("/train/", include_in_schema=False)
def start_all_trainings(user: Admin, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """The same for the only trainer; options may lie under its name, as OHIF sends them."""
    options = first_choices(params or {})
    answer = start_training(NAME, user, options.get(NAME, options), run_sync, enqueue=True)
    return {NAME: {"result": answer, "detail": None}}


@router.post("/scoring/{method}")
def start_scoring(method: str, user: Annotator, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """Start a scoring after checking its request."""
    app = running_app()
    app.known("scoring method", method, app._scoring_methods)
    if params and params.get("image"):
        app.workspace.case(params["image"])
    return scoring.run_method(method, params, run_sync)


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
    plain_name(str(options.get("label_tag") or ""), "label_tag")
    return batch_infer.run(model, images, options, run_sync)


@router.get("/labelprop/result")
def get_result(background_tasks: BackgroundTasks, image: str, user: Reader, kind: str = "labels") -> Response:
    """One volume of the last propagation of a study, as NIfTI."""
    if kind not in KINDS:
        raise NotFoundError(f"unknown kind {kind!r}, choose from {', '.join(KINDS)}")
    workspace = running_app().workspace
    case = workspace.case(image)
    array = case.record.result(kind) if case.record else None
    if array is None:
        raise NotFoundError(f"there is no result for {image!r} yet; run POST /infer/{NAME}?image={image}")
    file = write_result(array, workspace.scan(case), {})
    background_tasks.add_task(file.unlink)
    return FileResponse(file, filename=f"{image}_{kind}.nii.gz", media_type="application/gzip")


@router.get("/labelprop/checkpoints")
def list_checkpoints(user: Reader) -> list[dict[str, Any]]:
    """All checkpoints; the one that was trained on a study has the image's id."""
    return running_app().workspace.checkpoints.listing()


@router.get("/labelprop/checkpoints/{checkpoint_id}")
def get_checkpoint(checkpoint_id: str, user: Reader) -> Response:
    """A checkpoint as safetensors."""
    file = running_app().workspace.checkpoints.existing(checkpoint_id)
    return FileResponse(file, filename=file.name, media_type="application/octet-stream")


@router.put("/labelprop/checkpoints/{checkpoint_id}")
async def put_checkpoint(checkpoint_id: str, request: Request, user: Annotator) -> dict[str, Any]:
    """Store a checkpoint: safetensors as the body, or as `file` of a form."""
    part = (await request.form()).get("file")
    content = await part.read() if isinstance(part, Upload) else await request.body()
    return await run_in_threadpool(_store_checkpoint, checkpoint_id, content)


def _store_checkpoint(checkpoint_id: str, content: bytes) -> dict[str, Any]:
    workspace = running_app().workspace
    plain_name(checkpoint_id, "checkpoint id")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{checkpoint_id}{SUFFIX}"
        file.write_bytes(content)
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
