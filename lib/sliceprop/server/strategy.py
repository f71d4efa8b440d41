"""The active-learning strategies: which slice of the current study to annotate next, and which study."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from sliceprop.config import PLANS, SuggestConfig
from sliceprop.errors import MemoryTakenError, SlicePropError
from sliceprop.server.cases import Case
from sliceprop.server.provenance import given_bare
from sliceprop.server.records import DRAFTS
from sliceprop.server.requests import Options, first_choices, label_options, number, suggest_config
from sliceprop.server.results import named_suggestion
from sliceprop.server.workspace import Workspace
from sliceprop.study import suggest

logger = logging.getLogger(__name__)

NO_STUDY = {"slice": None, "reason": "There is no image that can be worked on; upload one.", "stop": True}
"""The answer without any study; it has no `id`, which is how clients of MONAI Label see that there is none."""

_HIDDEN = frozenset({"quality", "suggestion", "InstanceNumbers"})
"""Of the image info: the last scoring, which would lie beside what holds now, and what takes much space."""

_PLANES = ("sagittal", "coronal", "axial")
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))


class LastingAnswer(dict[str, Any]):
    """An answer whose own entries win over those that MONAI Label puts on top of it with `update`."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add entries without replacing any, some left out."""
        others = dict(*args, **kwargs)
        super().update({key: value for key, value in others.items() if key not in self and key not in _HIDDEN})


class NextSlice(Strategy):  # type: ignore[misc]
    """The slice worth annotating most, or the slices of a plan; never one that is annotated.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation, where the request does not say.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        super().__init__("The slice of the current study that is worth annotating next")
        self._workspace, self._target = workspace, target

    def info(self) -> dict[str, Any]:
        """What `/info/` shows; clients offer the options, a list as choices."""
        choices = {"plan": ["next_slice", *PLANS], "n": SuggestConfig.n, "seed": SuggestConfig.seed}
        return {**super().info(), "config": {**choices, "target": self._target}}

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Answer `POST /activelearning/next_slice`.

        Args:
            request: `image`, else the study used or annotated last is meant; `plan`, `n`, `seed`, `target`,
                `slice_axis`, `init`.
            datastore: the workspace's.

        Returns:
            `id` of the image, the fields of the best `study.Suggestion`, all `n` of them as `suggestions`, and
            `label_names`; empty if there is no image at all.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(request)
        config, case = suggest_config(options, self._target), self._workspace.requested_case(options)
        answer = {} if case is None else _suggest(self._workspace, case, options, config)
        _note_emptied_scene(self._workspace, answer, options)
        return answer


class NextStudy(Strategy):  # type: ignore[misc]
    """The study that needs annotation most, with the slice to start on.

    Studies are compared by what was estimated when they were last used or scored; only the answer is computed anew.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation, where the request does not say.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        super().__init__("The study with the worst estimated quality, else one without annotation, and its next slice")
        self._workspace, self._target = workspace, target

    def info(self) -> dict[str, Any]:
        """What `/info/` shows."""
        return {**super().info(), "config": {"target": self._target}}

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Answer `POST /activelearning/next_study`.

        Args:
            request: `target`.
            datastore: the workspace's.

        Returns:
            as `NextSlice` does, for the study chosen; with `stop` when all are done; empty if there is none to use.

        Raises:
            InputError: if the target cannot be used.
        """
        options = first_choices(request)
        answer = self._choose(SuggestConfig(target=number(options, "target", self._target)))
        _note_emptied_scene(self._workspace, answer, options)
        return answer

    def _choose(self, config: SuggestConfig) -> dict[str, Any]:
        waiting, done = self._workspace.studies_by_need(config.target)
        finished, short = dict[str, Any](), list[MemoryTakenError]()
        for image_id in waiting:
            answer = self._try(image_id, config, short)
            if answer and not answer["stop"]:
                return answer
            finished = finished or answer
        if short:
            raise short[0]
        finished = finished or next(filter(None, (self._try(image_id, config, short) for image_id in done)), {})
        if short and not finished:
            raise short[0]
        if finished:
            finished["reason"] = "Every study is done; no slice is expected below the target."
        return finished

    def _try(self, image_id: str, config: SuggestConfig, short: list[MemoryTakenError]) -> dict[str, Any]:
        """The answer for one study; empty if it cannot be used, which must not keep the user from the others.

        If there is too little memory for it at the moment, the error is added to `short`.
        """
        try:
            return _suggest(self._workspace, self._workspace.case(image_id), {}, config)
        except MemoryTakenError as error:
            short.append(error)
            return {}
        except SlicePropError:
            logger.exception("%s cannot be used", image_id)
            return {}


def _note_emptied_scene(workspace: Workspace, answer: Mapping[str, Any], options: Options) -> None:
    """Remember that 3D Slicer has closed its scene to load the study; only MONAI Label's module sends `client_id`."""
    if not (options.get("client_id") and answer):
        return
    case = workspace.case(answer["id"])
    with workspace.lock(case):
        annotation = workspace.drawings.annotation(case)
        if annotation is not None and case.record is not None:
            case.record.save_sent(given_bare(annotation), DRAFTS)


def _suggest(workspace: Workspace, case: Case, options: Options, config: SuggestConfig) -> LastingAnswer:
    names = workspace.names
    with workspace.lock(case):
        study = workspace.open(case, label_options(options)).study
        model = workspace.models.choose(case, study, options.get("init")).model
        drawn = workspace.drawings.label_versions(case.image_id)
    found = [named_suggestion(one, names.by_index) for one in suggest(study, model, config, names=names.by_index)]
    if config.plan == "next_slice":
        with workspace.lock(case):
            workspace.keep_estimate(case, found[0], config.target, drawn)
    workspace.remember(case)
    shown = _shown_in_ohif(workspace, case, found[0])
    return LastingAnswer(id=case.image_id, **found[0], suggestions=found, label_names=names.indices, **shown)


def _shown_in_ohif(workspace: Workspace, case: Case, suggestion: Mapping[str, Any]) -> dict[str, str]:
    """The suggestion as the modality of the series: OHIF's dialog shows a few attributes of DICOM and nothing else."""
    info = workspace.store.get_image_info(case.image_id)
    if "SeriesInstanceUID" not in info:
        return {}
    if suggestion["slice"] is None:
        return {"Modality": f"{info['Modality']}: {suggestion['reason']}"}
    axis, index, affine = suggestion["slice_axis"], suggestion["slice"], workspace.scan(case).affine
    world = int(np.abs(affine[:3, axis]).argmax())
    place = suggestion["position_ras"][world]
    numbers = info.get("InstanceNumbers") if axis == 2 else None
    number, count = numbers[index] if numbers else index + 1, workspace.scan(case).array.shape[axis]
    where = f"{_PLANES[world]} slice {number} of {count} ({_SIDES[world][place >= 0]} {abs(place):.1f} mm)"
    return {"Modality": f"{info['Modality']}: {'done; best left is' if suggestion['stop'] else 'annotate'} {where}"}
