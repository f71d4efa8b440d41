"""The active-learning strategy: which slice of the current study to annotate next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

from sliceprop.server.requests import first_choices, label_options
from sliceprop.server.workspace import Workspace
from sliceprop.study import suggest


class LastingAnswer(dict[str, Any]):
    """An answer whose own entries win over those that MONAI Label puts on top of it with `update`."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add entries without replacing any."""
        super().update({**dict(*args, **kwargs), **self})


class NextSlice(Strategy):  # type: ignore[misc]
    """The slice worth annotating most; never one that is annotated.

    Args:
        workspace: of the server.
        target: estimated Dice above which a slice needs no annotation.
    """

    def __init__(self, workspace: Workspace, target: float) -> None:
        super().__init__("The slice of the current study that is worth annotating next")
        self._workspace, self._target = workspace, target

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Answer `POST /activelearning/next_slice`.

        Args:
            request: `image`, else the study used or annotated last is meant; `slice_axis`.
            datastore: the workspace's.

        Returns:
            `id` of the image and the fields of `study.Suggestion`; empty if there is no image at all.

        Raises:
            InputError: or a subclass, for anything that cannot be used.
        """
        options = first_choices(request)
        case = self._workspace.requested_case(options)
        if case is None:
            return {}
        with self._workspace.lock(case):
            study = self._workspace.open(case, label_options(options)).study
            model = self._workspace.model(case, study, options.get("init"))
            best = suggest(study, model, target=self._target, names=self._workspace.names.by_index)[0]
        self._workspace.remember(case)
        return LastingAnswer(id=case.image_id, **asdict(best))
