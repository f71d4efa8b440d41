"""The models of one server's studies, and what learning starts from."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sliceprop.errors import CheckpointError, FileError, InputError, StorageError
from sliceprop.server.cases import Case
from sliceprop.server.checkpoints import Checkpoints, Chosen
from sliceprop.server.manifests import Manifests
from sliceprop.study import Study
from sliceprop.warm_start import AUTO, NONE, WarmStart

logger = logging.getLogger(__name__)


class Models:
    """Finds the model of a study.

    Args:
        checkpoints: models by study.
        start: where studies without a model of their own start learning from.
    """

    def __init__(self, checkpoints: Checkpoints, start: WarmStart) -> None:
        self._checkpoints, self._start = checkpoints, start

    def check(self, init: Any) -> None:
        """Refuse an `init` of `choose` that does not exist.

        Raises:
            NotFoundError: if there is no such checkpoint.
        """
        if init not in (None, AUTO, NONE):
            self._checkpoints.existing(str(init))

    def choose(self, case: Case, study: Study, init: Any = None, *, keep: bool = False) -> Chosen:
        """The model for a study: its own if it has one that fits, else none.

        Args:
            case: which study.
            study: opened, to see whether its own model still fits.
            init: id of another checkpoint; `none` for no model; None or `auto` for the study's own.
            keep: keep its file, for a result's manifest.

        Raises:
            NotFoundError: if there is no checkpoint `init`.
            CheckpointError: if the checkpoint `init` cannot be used.
        """
        if init not in (None, AUTO, NONE):
            return self._read(case, str(init), keep)
        if init == NONE or not case.image_id or case.image_id not in self._checkpoints:
            return Chosen()
        try:
            chosen = self._read(case, case.image_id, keep)
        except (CheckpointError, FileError):
            logger.exception("the checkpoint of %s is ignored", case.image_id)
            return Chosen(note="The checkpoint of this study is damaged or of another release; learning starts afresh.")
        assert chosen.model is not None
        if chosen.model.study_hash in (None, study.study_hash):
            return chosen
        return Chosen(note="The checkpoint of this study was learned on another scan; learning starts afresh.")

    def choose_start(self, case: Case, study: Study, init: Any = None) -> Chosen:
        """The model that learning starts from: that of `choose`, else a pretrained one unless `init` is `none`.

        Raises:
            NotFoundError: if there is no checkpoint `init`.
            CheckpointError: if the checkpoint `init` cannot be used.
        """
        chosen = self.choose(case, study, init)
        if chosen.model is not None or init not in (None, AUTO):
            return chosen
        try:
            file = self._start.checkpoint(case.image)
            return chosen if file is None else replace(chosen, model=self._checkpoints.read(file))
        except InputError:
            logger.exception("there is no pretrained model to start from")
            unusable = "The server's pretrained model cannot be used; learning starts from nothing."
            return replace(chosen, note=f"{chosen.note} {unusable}".strip())

    def _read(self, case: Case, checkpoint_id: str, keep: bool) -> Chosen:
        file = self._checkpoints.existing(checkpoint_id)
        if keep and case.record is not None and case.image_id:
            try:
                kept = Manifests(case.record.folder).keep_model(file)
                return Chosen(self._checkpoints.read(kept), kept)
            except (OSError, StorageError):
                logger.exception("the model of a result of %s cannot be kept", case.image_id)
        return Chosen(self._checkpoints.load(checkpoint_id))
