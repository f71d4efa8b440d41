"""What users change in the list of labels: add, rename, recolour, remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sliceprop import io
from sliceprop.errors import InputError, MemoryTakenError
from sliceprop.server.colors import check_color
from sliceprop.server.errors import ConflictError
from sliceprop.server.names import NOT_STRUCTURES, check_names, check_number, extended
from sliceprop.server.workspace import Workspace
from sliceprop.versions import Version


@dataclass(frozen=True)
class LabelEdits:
    """Changes to the list of labels; labels that are not mentioned stay as they are.

    Attributes:
        names: labels as they are to be called, those that do not exist yet among them.
        renamed: `{old name: new name}`.
        colors: `{name: "#rrggbb"}`.
        removed: names to remove.
    """

    names: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


def parse_edits(body: Mapping[str, Any]) -> LabelEdits:
    """The body of `PUT /labelprop/labels`.

    Raises:
        InputError: for wrong types, colours, or names that are empty, doubled or reserved.
    """
    labels, removed = body.get("labels", []), body.get("removed", [])
    if not isinstance(labels, list) or not all(isinstance(one, Mapping) for one in labels):
        raise InputError('labels must be a list like [{"name": "liver", "color": "#aa3300"}]')
    if not isinstance(removed, list):
        raise InputError("removed must be a list of names")
    names = [name.strip() if isinstance(name := one.get("name"), str) else name for one in labels]
    check_names(names)
    if reserved := sorted(NOT_STRUCTURES & set(names)):
        raise InputError(f"{reserved[0]!r} cannot be the name of a label")
    pairs = list(zip(names, labels, strict=True))
    renamed = {str(old): name for name, one in pairs if (old := one.get("renamed_from")) and old != name}
    colors = {name: check_color(one["color"]) for name, one in pairs if one.get("color")}
    return LabelEdits(tuple(names), renamed, colors, tuple(map(str, removed)))


def edit_labels(workspace: Workspace, edits: LabelEdits) -> None:
    """Change names and colours; a renamed label keeps its index, a new one gets the next.

    Raises:
        InputError: if the operator gave the names, or there would be too many.
        ConflictError: if a label to rename is gone, its new name taken, or one to remove in use.
    """
    table = workspace.names
    with table.lock:
        before = table.names
        names = _changed(before, edits)
        for name in sorted(set(edits.removed) & set(names), key=names.index, reverse=True):
            _check_removable(workspace, names, name)
            names.pop()
        check_number(names, before)
        if table.fixed and names != before:
            raise InputError(f"this server's labels are given by its operator: {', '.join(before)}")
        if names != before:
            table.replace(names, edits.renamed)
        if edits.colors or edits.renamed:
            workspace.colors.change(edits.colors, edits.renamed)


def _changed(before: list[str], edits: LabelEdits) -> list[str]:
    done = {old for old, new in edits.renamed.items() if old not in before and new in before}
    if gone := [old for old in edits.renamed if old not in before and old not in done]:
        raise ConflictError(f"there is no label {gone[0]!r} any more; it was renamed or removed meanwhile")
    names = [edits.renamed.get(name, name) for name in before]
    if taken := [name for name in edits.renamed.values() if names.count(name) > 1]:
        raise ConflictError(f"there is a label {taken[0]!r} already; choose another name")
    return extended(names, (name for name in edits.names if name not in names))


def _check_removable(workspace: Workspace, names: list[str], name: str) -> None:
    if name != names[-1]:
        raise ConflictError(
            f"{name!r} cannot be removed, since the numbers of later labels must stay; rename it instead"
        )
    if _in_use(workspace, len(names)):
        raise ConflictError(f"{name!r} cannot be removed, since voxels or versions have it; rename it instead")


def _in_use(workspace: Workspace, index: int) -> bool:
    """Whether a voxel of any study has this label index, or one of a version that somebody may restore."""
    if workspace.names.is_used(index):
        return True
    for record in workspace.records():
        if record.holds(index) or any(_has(version, index) for version in record.versions.newest_first()):
            return True
    return any(_painted(file, index) for file in workspace.store.label_files())


def _has(version: Version, index: int) -> bool:
    """Whether a version has voxels of this label index; those put there by hand may not list their labels."""
    listed, file = [label["idx"] for label in version.entry.label_info], version.labels_file
    return index in listed if listed or file is None else _painted(file, index)


def _painted(file: Path, index: int) -> bool:
    """Whether a file holds a label index; one that cannot be read shows none, and cannot be restored either."""
    try:
        return bool((io.read_image(file).array == index).any())
    except MemoryTakenError:
        raise
    except InputError:
        return False
