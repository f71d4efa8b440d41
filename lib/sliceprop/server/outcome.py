"""What comes of the work on a study: the labels that clients show, taken back or stored for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop.labels import LabelArray
from sliceprop.server.cases import Case
from sliceprop.server.errors import ConflictError
from sliceprop.server.provenance import Annotation, Sent, drawn_by_hand, lay_over
from sliceprop.server.workspace import Workspace
from sliceprop.versions import FINAL


def current_labels(workspace: Workspace, case: Case) -> LabelArray:
    """The last result, under the annotation in force, which may be newer; zeros without both.

    Raises:
        InputError: or a subclass, for a scan or annotation that cannot be used.
    """
    shape, annotation = workspace.scan(case).array.shape, workspace.drawings.annotation(case)
    result = case.record.result("labels") if case.record else None  # after the scan: it may be another one now
    labels = np.zeros(shape, np.int32) if result is None or result.shape != shape else result
    return labels if annotation is None else lay_over(labels, annotation)


def current_drawn(workspace: Workspace, case: Case) -> NDArray[np.bool_] | None:
    """Which voxels of `current_labels` the user decided about, `(i, j, k)`; None if that was not kept.

    Raises:
        InputError: or a subclass, for a scan or annotation that cannot be used.
    """
    shape, annotation = workspace.scan(case).array.shape, workspace.drawings.annotation(case)
    labels = case.record.result("labels") if case.record else None
    drawn = np.zeros(shape, bool)
    if case.record is not None and labels is not None and labels.shape == shape:
        known = case.record.result("drawn")
        if known is None or known.shape != shape:
            return None
        drawn = known > 0
    return drawn if annotation is None else drawn | drawn_by_hand(annotation)


def undo(workspace: Workspace, case: Case) -> None:
    """Take the last propagation back; the one before it is the last one again, and what is annotated stays.

    Raises:
        ConflictError: if it is not remembered what was there before.
    """
    with workspace.lock(case):
        if case.record is None or not case.record.can_undo():
            raise ConflictError("there is no propagation to take back")
        case.record.undo()
        labels, report = current_labels(workspace, case), case.record.report() or {"slice_axis": 0}
        known = workspace.drawings.annotation(case) or Annotation(np.zeros_like(labels), report["slice_axis"], ())
        case.record.save_sent(Sent(labels, known.labels, known.slice_axis, known.annotated_slices))


def finalise(workspace: Workspace, case: Case, by: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Store `current_labels` under the tag `final`; the annotation in force stays.

    Args:
        workspace: of the server.
        case: which study.
        by: `user` and `client`, as far as they are known.

    Returns:
        `dicom_seg`: whether the label is in an archive, and a `sentence` for the user.

    Raises:
        ConflictError: if nothing was annotated or propagated yet.
    """
    with workspace.lock(case):
        annotation, labels = workspace.drawings.annotation(case), current_labels(workspace, case)
        if case.record is None or (annotation is None and not labels.any()):
            raise ConflictError("there is nothing to save yet; paint a slice and propagate first")
        drawn, estimate = workspace.drawings.label_versions(case.image_id), case.record.estimate()
        workspace.drawings.keep(case, FINAL, labels, annotation, "final", drawn=current_drawn(workspace, case), by=by)
        if estimate.get("labels") == drawn:  # nothing was drawn, so what was estimated still holds
            case.record.save_estimate({**estimate, "labels": workspace.drawings.label_versions(case.image_id)})
        return {"dicom_seg": False, "sentence": "Saved on this server as NIfTI.", **workspace.export(case, FINAL)}
