"""Names and colours that a label file has of its own: 3D Slicer and MITK write them into the header of NRRD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sliceprop.segments import Segment, read_segments
from sliceprop.server.names import NOT_STRUCTURES
from sliceprop.server.requests import LabelOptions

NAMING_SUFFIX = ".nrrd"


def segments_in(file: Path) -> list[Segment]:
    """The segments that a label file names; none for files of other formats.

    Raises:
        FileError: if the header is damaged.
    """
    return read_segments(file) if file.suffix == NAMING_SUFFIX else []


def named_by_file(options: LabelOptions, segments: Sequence[Segment]) -> LabelOptions:
    """What a client says about a label file, with the file's own names for its values.

    The file's names count where the client gives none, or the same ones: 3D Slicer lists its segments by position, and
    the values in its own format are others. Where the client calls labels otherwise, it means to.

    Args:
        options: of the request.
        segments: of the file.
    """
    told = {entry.get("name") for entry in options.label_info or ()}
    own = {segment.name for segment in segments}
    if not own or (told and not own - NOT_STRUCTURES <= told):
        return options
    return replace(options, label_info=tuple({"name": one.name, "idx": one.value} for one in segments))
