"""What the panel in OHIF shows of a study, as plain values and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import io
from sliceprop.labels import LabelArray
from sliceprop.server.archive import ArchivedStudies
from sliceprop.server.cases import Case
from sliceprop.server.errors import NotFoundError
from sliceprop.server.outcome import current_drawn, current_labels
from sliceprop.server.results import named
from sliceprop.server.workspace import Workspace
from sliceprop.volume import resolve_slice_axis

VOXEL_KINDS = ("labels", "annotation", "scribbles", "uncertainty", "drawn")


def study_state(workspace: Workspace, case: Case, training: dict[str, Any]) -> dict[str, Any]:
    """The answer to `GET /labelprop/study`; `apps/labelprop/README.md` lists its keys.

    Args:
        workspace: of the server.
        case: which study.
        training: state of the last training, of whichever study.

    Raises:
        InputError: or a subclass, for a scan or annotation that cannot be used.
    """
    with workspace.lock(case):
        scan, annotation, names = workspace.scan(case), workspace.drawings.annotation(case), workspace.names.indices
        shape = scan.array.shape
        axis = annotation.slice_axis if annotation else resolve_slice_axis("auto", shape, scan.affine, None)
        annotated = list(annotation.annotated_slices) if annotation else []
        return {
            "image": case.image_id,
            "scan": workspace.scan_name(case),
            "shape": list(shape),
            "affine_lps": (io.LPS_TO_RAS @ scan.affine).tolist(),
            "slice_axis": axis,
            "n_slices": shape[axis],
            "annotated_slices": annotated,
            "annotation_version": annotation.source if annotation else "",
            "scribbles_version": workspace.drawings.scribbles_version(case),
            "partial": bool(annotation and annotation.partial),
            "scribbles": workspace.drawings.scribbles(case) is not None,
            "label_names": names,
            "colors": workspace.colors.of(names),
            "fixed_labels": workspace.names.fixed,
            "renamed_labels": workspace.names.renamed,
            "dicom_seg": isinstance(workspace.store, ArchivedStudies),
            "model": case.image_id in workspace.checkpoints,
            "training": training if training.get("image") == case.image_id else None,
            "result": _result_state(workspace, case, axis, annotated),
            "undo": bool(case.record and case.record.can_undo()),
        }


def _result_state(workspace: Workspace, case: Case, axis: int, annotated: list[int]) -> dict[str, Any] | None:
    """The last result; of one along another axis than the study's no slice is named, since its numbers are others.

    A slice that it suggested is not suggested any more when it is annotated.
    """
    report = case.record.report() if case.record else None
    if report is None or case.record is None:
        return None
    told = named(report, workspace.names.by_index)
    sources = workspace.drawings.annotation_version(case), workspace.drawings.scribbles_version(case)
    along = report.get("slice_axis", axis) == axis
    open_yet = along and told["suggestion"]["slice"] not in annotated
    return {
        "current": (report.get("source"), report.get("scribbles")) == sources,
        "version": case.record.version(),
        "labels": True,
        "uncertainty": True,
        "method": told["method"],
        "trained": told["trained"],
        "quality": {name: one["dice"] for name, one in told["quality"].items()},
        "quality_slices": {name: one["slices"] for name, one in told["quality"].items() if along},
        "suggestion": told["suggestion"] if open_yet else None,
    }


def voxels(workspace: Workspace, case: Case, kind: str) -> tuple[NDArray[Any], dict[str, str]]:
    """Voxels of a study, and the headers that describe them.

    Args:
        workspace: of the server.
        case: which study.
        kind: one of `VOXEL_KINDS`; uncertainty comes as 0 to 255.

    Returns:
        `(i, j, k)` uint8, or uint16 if a label index needs it.

    Raises:
        NotFoundError: for another kind, or uncertainty before the first propagation.
        InputError: or a subclass, for a scan or annotation that cannot be used.
    """
    with workspace.lock(case):
        array = _voxels(workspace, case, kind)
        headers = {
            "X-Shape": ",".join(map(str, array.shape)),
            "X-Dtype": str(array.dtype),
            "X-Version": case.record.version() if case.record else "",
            "X-Annotation-Version": workspace.drawings.annotation_version(case),
        }
    return array, headers


def _voxels(workspace: Workspace, case: Case, kind: str) -> NDArray[Any]:
    if kind == "uncertainty":
        doubt = case.record.result("uncertainty") if case.record else None
        if doubt is None or doubt.shape != workspace.scan(case).array.shape:
            raise NotFoundError("nothing was propagated yet, so there is no uncertainty")
        scaled: NDArray[np.uint8] = np.round(np.clip(doubt, 0, 1) * 255).astype(np.uint8)
        return scaled
    if kind == "drawn":
        drawn = current_drawn(workspace, case)
        if drawn is None:
            raise NotFoundError("it was not kept which voxels of this result were drawn; propagate once more")
        return drawn.astype(np.uint8)
    if kind == "labels":
        labels: LabelArray | None = current_labels(workspace, case)
    elif kind == "annotation":
        annotation = workspace.drawings.annotation(case)
        labels = annotation.labels if annotation else None
    elif kind == "scribbles":
        labels = workspace.drawings.scribbles(case)
    else:
        raise NotFoundError(f"unknown kind {kind!r}, choose from {', '.join(VOXEL_KINDS)}")
    return io.compact_labels(np.zeros(workspace.scan(case).array.shape, np.int32) if labels is None else labels)
