"""The app as MONAI Label's loader wants it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from sliceprop import __version__
from sliceprop.audit import AuditLog
from sliceprop.config import SuggestConfig, TrainConfig
from sliceprop.engine.contour import interpolate_contours
from sliceprop.errors import InputError
from sliceprop.hashing import digest
from sliceprop.server import background
from sliceprop.server.access import Policy
from sliceprop.server.archive import is_archive, open_archive
from sliceprop.server.audit import sender
from sliceprop.server.batch import BatchTask
from sliceprop.server.datastore import MASK, LocalStudies, Studies
from sliceprop.server.errors import NotFoundError
from sliceprop.server.guard import new_name
from sliceprop.server.infer import PropagateTask, Reply, ScribblesTask
from sliceprop.server.learning import as_stats
from sliceprop.server.limits import Limits
from sliceprop.server.logs import Redaction, quieten
from sliceprop.server.names import configured_names
from sliceprop.server.requests import first_choices, flag, number
from sliceprop.server.results import removed_if_refused, write_result
from sliceprop.server.scoring import QualityScoring
from sliceprop.server.sessions import ScanSessions
from sliceprop.server.strategy import NextSlice, NextStudy
from sliceprop.server.tools import tool_tasks
from sliceprop.server.trainer import PropagateTrainer
from sliceprop.server.training_queue import TrainingQueue, workers_of
from sliceprop.server.workspace import Workspace
from sliceprop.versions import FINAL, SCRIBBLES, SPARSE
from sliceprop.warm_start import AUTO, Kind, WarmStart

logger = logging.getLogger(__name__)

NAME = "labelprop"

CONF = (
    *("labels", "budget_s", "target", "bundle", "folder"),
    *("token_file", "insecure", "hosts"),  # of `Policy`
    *("upload_mib", "upload_s", "jobs", "queue", "wait_s", "request_s"),  # of `Limits`
    *("pretrained", "modality", "anatomy"),  # of `WarmStart`
    *("scheduler", "workers"),  # of `TrainingQueue`
)
"""Keys of the configuration; the app's README describes them."""


def result_tag(options: Mapping[str, Any]) -> str:
    """The tag of a result, `label_tag` or `original`.

    Raises:
        InputError: if it is not allowed as a name, is that of a mask, or one for what users drew or accepted, for
            which no result is ever taken.
    """
    tag = str(options.get("label_tag") or DefaultLabelTag.ORIGINAL.value)
    new_name(f"{new_name(tag, 'label_tag')}{MASK}", "label_tag")
    if tag.casefold() in (SPARSE, FINAL, SCRIBBLES):  # some file systems take Final for final
        raise InputError(f"labels with the tag {tag} are what users drew or accepted; choose another label_tag")
    if tag.casefold().endswith(MASK):
        raise InputError(f"labels with the tag {tag} are masks of what was drawn; choose another label_tag")
    return tag


class LabelPropApp(MONAILabelApp):  # type: ignore[misc]
    """Annotate a few slices, get the volume.

    Args:
        app_dir: folder of the app; nothing of a study is written there.
        studies: folder or DICOMweb address of the images.
        conf: some of `CONF`.

    Raises:
        InputError: or a subclass, for a configuration that cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for that process: spinning threads starve each other
        quieten()
        if settings.MONAI_LABEL_AUTH_ENABLE:
            raise InputError(
                "the login of MONAI Label 0.8.5 lets nobody in (see SECURITY.md); unset MONAI_LABEL_AUTH_ENABLE and "
                "give --conf token_file FILE"
            )
        if settings.MONAI_LABEL_API_STR:
            raise InputError(
                "MONAI_LABEL_API_STR changes the paths of requests, by which it is decided who may send them; unset it "
                "and let a reverse proxy add a prefix"
            )
        unknown = sorted(conf.keys() - set(CONF))
        if unknown:  # a mistyped `token_file` would let everybody in
            raise InputError(f"there is no --conf {', '.join(unknown)}; there are {', '.join(CONF)}")
        about = {"name": "LabelProp", "description": "Annotate a few slices, get the volume", "version": __version__}
        super().__init__(app_dir, studies, conf, **about)
        self._auto_update_scoring = False  # would start a process after every request
        self._check_configuration()
        self.queue: TrainingQueue | None = None
        Redaction(lambda: list(self.datastore()._datastore.objects), self.audit.study_hash).install()

    def _check_configuration(self) -> None:
        """What is made from it when it is needed first; what cannot be used shall end the start.

        Raises:
            InputError: or a subclass.
        """
        _ = self.policy, self.limits, self.target, self.workspace, workers_of(self.conf)

    @cached_property
    def workspace(self) -> Workspace:
        """What tasks and routes share."""
        store = self.datastore()
        kind = Kind(self.conf.get("modality", ""), self.conf.get("anatomy", ""))
        start = WarmStart(self.conf.get("pretrained", AUTO), kind)
        configured = configured_names(self.conf, Path(store._datastore_path))
        workspace = Workspace(store, configured, start)
        if configured not in (None, workspace.names.names):
            logger.warning("labels in use keep their numbers, whatever is configured: %s", workspace.names.indices)
        return workspace

    @cached_property
    def audit(self) -> AuditLog:
        """Who did what to which study."""
        return AuditLog(self.workspace.folder)

    @cached_property
    def policy(self) -> Policy:
        """Who may use the server."""
        origins = frozenset(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS)
        return Policy.configured(self.conf, origins)

    @cached_property
    def limits(self) -> Limits:
        """How much the server takes on."""
        return Limits.configured(self.conf)

    @cached_property
    def target(self) -> float:
        """Estimated Dice above which a slice needs no annotation, where a request does not say."""
        return SuggestConfig(target=number(self.conf, "target", SuggestConfig.target)).target

    def init_datastore(self) -> Datastore:
        """A folder of scans, or an archive; MONAI Label's own access to the kinds of archive that are not DICOMweb."""
        return super().init_datastore() if is_archive(self.studies) else LocalStudies(self.studies)

    def _init_dicomweb_datastore(self) -> Datastore:
        return open_archive(self.studies, self.conf.get("folder"))

    def _load_sessions(self, load: bool = False) -> ScanSessions | None:
        return ScanSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def init_infers(self) -> dict[str, InferTask]:
        """`labelprop` first, which 3D Slicer runs by itself, its twin for the Scribbles tab there, and the tools."""
        return {
            NAME: PropagateTask(self.workspace, self.target),
            f"{NAME}_scribbles": ScribblesTask(self.workspace, self.target),
            **tool_tasks(self.workspace, self.conf.get("bundle")),
        }

    def init_batch_infer(self) -> BatchTask:
        """Any of these on many images."""
        return BatchTask(self.workspace, frozenset({NAME, f"{NAME}_scribbles"}))

    def init_trainers(self) -> dict[str, TrainTask]:
        """`labelprop`."""
        return {NAME: PropagateTrainer(self.workspace, number(self.conf, "budget_s", TrainConfig.budget_s))}

    def training(self, image: str = "", user: str | None = None) -> dict[str, Any]:
        """State of the last training; costs next to nothing.

        Args:
            image: with a queue, that of this study.
            user: with a queue and without `image`, that of this user; None for anybody's.
        """
        if self.queue is not None:
            return as_stats(self.queue.state(image, user))
        state: dict[str, Any] = self._trainers[NAME].stats()
        return state

    def info(self) -> dict[str, Any]:
        """What `/info/` shows; with a queue the last training of whoever asks."""
        return {**super().info(), "train_stats": {NAME: self.training(user=sender().get("user") or None)}}

    def init_strategies(self) -> dict[str, Strategy]:
        """`next_study` first, which 3D Slicer offers first; `next_slice`, also by the key that OHIF always asks for."""
        strategy = NextSlice(self.workspace, self.target)
        return {"next_study": NextStudy(self.workspace, self.target), "next_slice": strategy, "random": strategy}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """`quality`."""
        return {"quality": QualityScoring(self.workspace, self.target)}

    def on_init_complete(self) -> None:
        """Put our routes and processes in place of MONAI Label's; called in the server process only."""
        from sliceprop.server.routes import install

        super().on_init_complete()
        background.install()
        self.queue = TrainingQueue.configured(self.conf, self._trainers[NAME], self.workspace.folder / "studies")
        install(self)
        interpolate_contours.start()  # takes a second or two, which the first preview then need not wait for

    def infer(self, request: Mapping[str, Any], datastore: Studies | None = None) -> dict[str, Any]:
        """Run a model; unlike the stock method it never takes an image id for a path of the server.

        Args:
            request: `model`, `image` and options. `image_id`, if present, says which study it is, and is empty if
                `image` is a file that came with the request or lies in a session.
            datastore: where to save the label, and a mask of what was drawn in it, if the request asks for it.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        request = first_choices(request)
        task = self.known("model", request.get("model"), self._infers)
        image_id = request.get("image_id", request.get("image"))
        tag = result_tag(request)
        reply = task.reply({**request, "image_id": image_id})
        label = reply.file
        if image_id and flag(request, "save_label"):
            with removed_if_refused(Path(reply.file)):
                label = self._store(datastore or self.datastore(), image_id, tag, reply)
        return {"label": label, "tag": tag, "file": reply.file, "params": reply.params}

    def _store(self, store: Studies, image_id: str, tag: str, reply: Reply) -> str:
        """Store a result and its mask; what interrupts this leaves no mask rather than that of another result.

        A label file that is no result, but was put there by hand, becomes a version first.

        Raises:
            ConflictError: if another scan has this id by now.
        """
        case = self.workspace.case(image_id)
        mask = write_result(reply.drawn.astype(np.uint8), self.workspace.scan(case), {})
        try:
            with self.workspace.lock(case):
                self.workspace.check_scan(case, reply.scan)
                self.workspace.drawings.keep_found(case, tag)
                info = {"params": reply.params, "sha256": digest(Path(reply.file))}
                label = store.save_label(image_id, reply.file, tag, info)
                store.save_label(image_id, str(mask), f"{tag}{MASK}", {})
        finally:
            mask.unlink()
        return label

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Refuse: this app has no model for whole-slide images."""
        raise InputError("this app does not work on whole-slide images")

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Refuse: models belong to studies here."""
        raise NotFoundError("there is one model per study; see GET /labelprop/checkpoints")

    def known(self, kind: str, name: Any, tasks: Mapping[str, Any]) -> Any:
        """The task of that name.

        Raises:
            NotFoundError: listing the names that exist.
        """
        if name not in tasks:
            raise NotFoundError(f"unknown {kind} {name!r}, choose from {', '.join(tasks)}")
        return tasks[name]
