"""The scoring method `quality`: how good the propagated labels of each study are estimated to be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod

from sliceprop.errors import SlicePropError
from sliceprop.server.requests import LabelOptions
from sliceprop.server.results import named
from sliceprop.server.workspace import Workspace
from sliceprop.study import propagate

logger = logging.getLogger(__name__)


class QualityScoring(ScoringMethod):  # type: ignore[misc]
    """Stores `quality` and `suggestion` in the datastore's image info of every annotated study.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        super().__init__("Estimated Dice and border distance of the propagated labels, per label and slice")
        self._workspace, self._target = workspace, target

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Score one study or all; called by MONAI Label in the scoring process.

        Args:
            request: `image` for one study.
            datastore: the workspace's.

        Returns:
            `{image id: {"quality", "suggestion"}}` as in the report of a propagation; studies that cannot be used are
            logged and left out.
        """
        images = [request["image"]] if request.get("image") else self._workspace.annotated_images()
        scores: dict[str, Any] = {}
        for image_id in images:
            try:
                scores[image_id] = self._score(image_id)
            except SlicePropError:
                logger.exception("%s cannot be scored", image_id)
            else:
                datastore.update_image_info(image_id, scores[image_id])
        return scores

    def _score(self, image_id: str) -> dict[str, Any]:
        case = self._workspace.case(image_id)
        opened, names = self._workspace.open(case, LabelOptions()), self._workspace.names.by_index
        drawn = self._workspace.drawings.label_versions(image_id)
        report = case.record.report() if case.record else None
        if report is None or opened.annotation is None or report["source"] != opened.annotation.source:
            model = self._workspace.models.choose(case, opened.study).model
            report = propagate(opened.study, model, target=self._target, names=names).report
            self._workspace.keep_estimate(case, report["suggestion"], self._target, drawn)
        told = named(report, names)
        return {key: told[key] for key in ("quality", "suggestion")}
