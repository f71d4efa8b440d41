"""MONAI Label's batch inference: a model runs on the images of the server, and one that fails ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from sliceprop.audit import AuditLog
from sliceprop.errors import FileError, SlicePropError
from sliceprop.server.datastore import Studies
from sliceprop.server.infer import SHOWN
from sliceprop.server.workspace import Workspace

logger = logging.getLogger(__name__)

INFO = "batch"
"""Entry of an image's info that tells what became of it: `model`, `label_tag`, and `error`, None if there was none."""

_ERRORS = (SlicePropError, OSError, MemoryError)

Infer = Callable[[Mapping[str, Any], Studies], dict[str, Any]]


class BatchTask(BatchInferTask):  # type: ignore[misc]
    """Runs `LabelPropApp.infer` on many images and stores each result under the tag of the request.

    Args:
        workspace: of the server.
        propagating: models that need something drawn; what is not annotated is left out of theirs, since an empty
            result would look like one.
    """

    def __init__(self, workspace: Workspace, propagating: frozenset[str]) -> None:
        self._workspace, self._propagating = workspace, propagating

    def get_images(self, request: Mapping[str, Any], datastore: Studies) -> list[str]:
        """Ids of the images to work on: `all`, `labeled` (those with a final label) or `unlabeled`."""
        asked = {key: value for key, value in request.items() if key != "label_tag"}  # that of the results
        chosen: list[str] = list(super().get_images(asked, datastore))
        if request["model"] not in self._propagating:
            return chosen
        annotated = set(self._workspace.annotated_images())
        return [image for image in chosen if image in annotated]

    def __call__(self, request: Mapping[str, Any], datastore: Studies, infer: Infer) -> dict[str, Any]:
        """Work through the images.

        Args:
            request: `model`, `images`, perhaps `label_tag`, `user` and options of the model.
            datastore: the workspace's.
            infer: runs the model on one image.

        Returns:
            the answer to each image, `error` in place of one that failed.
        """

        about = {"user": request.get("user"), "method": "POST", "route": "/batch/infer/{model}"}
        log = AuditLog(self._workspace.folder)

        def one(options: Mapping[str, Any], store: Studies) -> dict[str, Any]:
            answer = _attempt(options, store, infer)
            told = {"model": options["model"], "label_tag": options["label_tag"], "error": answer.get("error")}
            with suppress(FileError, ImageNotFoundException):  # a full disk; an image removed meanwhile
                store.update_image_info(options["image"], {INFO: told})
            log.record("compute", **about, study=options["image"], done=told["error"] is None)
            return answer

        # MONAI Label divides by the number of GPUs otherwise, also by none, and its default tag is no text.
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        answers: dict[str, Any] = super().__call__({**request, "label_tag": tag, "multi_gpu": False}, datastore, one)
        return answers


def _attempt(options: Mapping[str, Any], store: Studies, infer: Infer) -> dict[str, Any]:
    try:
        return infer({**options, SHOWN: False}, store)
    except Exception as error:
        known = isinstance(error, _ERRORS)
        logger.warning("batch: %s failed: %s", options["image"], error, exc_info=not known)
        return {"error": str(error) or "the memory is full" if known else f"unexpected {type(error).__name__}"}
