"""The semi-automatic tools and the export on the command line; imports nothing heavy before a command runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceprop.common_arguments import add_json
from sliceprop.config import BACKGROUND_SCRIBBLE, MAX_LABEL
from sliceprop.errors import FileError, InputError
from sliceprop.tools.presets import KEEPS, PRESETS

if TYPE_CHECKING:
    from sliceprop.io import Image
    from sliceprop.labels import LabelArray
    from sliceprop.tools.seeds import Range

_IMAGE = "NIfTI, NRRD, MetaImage or folder with a DICOM series"


Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does what the arguments say and tells about it: `files`, and perhaps `volume_ml` and `names`."""


def add_tool_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the subcommands; `add` makes a parser from a name and a text."""
    grow = add("grow-from-seeds", "divide the surroundings of seeds among their labels")
    _add_seeds(grow)
    _add_range(grow)
    grow.add_argument("--margin", type=float, metavar="SHARE", help="of the box around all seeds (default: 0.1)")
    grow.add_argument("--locality", type=float, metavar="SHARE", help="of the grey range, cost of a mm (default: 0)")
    grow.add_argument("--smoothing-mm", type=float, metavar="MM", help="against noise (default: 1; 2 voxels at most)")
    _add_output(grow)

    march = add("fast-marching", "let structures run from their seeds up to a largest volume")
    _add_seeds(march)
    march.add_argument(
        "--max-volume-ml",
        action="append",
        default=[],
        metavar="ML or LABEL=ML",
        help="of each structure, or of one; may be repeated (default: a tenth of the scan)",
    )
    march.add_argument("--tolerance", type=float, metavar="SD", help="from the mean under the seeds (default: 3)")
    _add_range(march)
    _add_output(march)

    threshold = add("threshold-islands", "label what lies between two thresholds, and keep the island that is wanted")
    threshold.add_argument("image", metavar="IMAGE", type=Path, help=_IMAGE)
    _add_range(threshold)
    threshold.add_argument("--preset", choices=tuple(PRESETS), help="thresholds for CT in Hounsfield units")
    threshold.add_argument("--label", type=int, default=1, metavar="N", help="value to write (default: 1)")
    threshold.add_argument(
        "--range",
        nargs=3,
        action="append",
        default=[],
        metavar=("LABEL", "LOWER", "UPPER"),
        help="for several labels; none for an open end; may be repeated",
    )
    threshold.add_argument("--keep", choices=KEEPS, default="largest", help="islands (default: largest)")
    threshold.add_argument("--seeds", type=Path, metavar="F", help="marks in the islands to keep, for --keep selected")
    _add_background(threshold)
    _add_output(threshold)

    fill = add("fill-between-slices", "interpolate the contours of painted slices; no scan is needed")
    fill.add_argument("labels", metavar="LABELS", type=Path, help="painted slices")
    fill.add_argument("--slice-axis", choices=("auto", "0", "1", "2"), default="auto", help="axis that counts slices")
    _add_output(fill)

    points = add("boundary-points", "segment structures from their six outermost points")
    points.add_argument("image", metavar="IMAGE", type=Path, help=_IMAGE)
    points.add_argument(
        "points",
        metavar="POINTS",
        type=Path,
        help='label map with dots, or JSON of voxel indices: {"1": [[i, j, k], ...]}',
    )
    points.add_argument("--margin-mm", type=float, metavar="MM", help="that it may reach beyond them (default: 1)")
    _add_output(points)

    automatic = add("automatic", "run a MONAI bundle that lies on this machine; its labels are a draft")
    automatic.add_argument("image", metavar="IMAGE", type=Path, help=_IMAGE)
    automatic.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="runs code; use what you trust")
    automatic.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, ... (default: cpu)")
    _add_output(automatic)

    export = add("export", "write a label map for another program; the ending of OUT says how")
    export.add_argument("labels", metavar="LABELS", type=Path, help="label map; NRRD of 3D Slicer or MITK has names")
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="*.seg.nrrd, *.nii.gz, *.mha (both with a label description), *.dcm (DICOM SEG), *.stl, *.obj",
    )
    export.add_argument("--names", type=Path, metavar="F", help="label description of ITK-SNAP, or NRRD with names")
    export.add_argument("--dicom", type=Path, metavar="DIR", help="series of the scan, for *.dcm")
    add_json(export)


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", type=Path, help=_IMAGE)
    parser.add_argument("seeds", metavar="SEEDS", type=Path, help="marks on the same grid: label values, 0 is unknown")
    _add_background(parser)


def _add_background(parser: argparse.ArgumentParser) -> None:
    text = f"value of background marks (default: {BACKGROUND_SCRIBBLE})"
    parser.add_argument("--background-scribble", type=int, default=BACKGROUND_SCRIBBLE, metavar="V", help=text)


def _add_range(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lower", type=float, metavar="I", help="lowest intensity (default: open)")
    parser.add_argument("--upper", type=float, metavar="I", help="highest intensity (default: open)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="label map to write")
    add_json(parser)


def _grow_from_seeds(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.tools.grow_from_seeds import GrowConfig, grow_from_seeds

    given = _given(margin=chosen.margin, locality_per_mm=chosen.locality, smoothing_mm=chosen.smoothing_mm)
    config = GrowConfig(_range(chosen), **given)
    scan, seeds = _seeded(chosen)
    return _write(chosen, scan, grow_from_seeds(scan.array, seeds, affine=scan.affine, config=config))


def _fast_marching(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.tools.fast_marching import MarchConfig, fast_marching

    config = MarchConfig(_volumes(chosen.max_volume_ml), _range(chosen), **_given(tolerance=chosen.tolerance))
    scan, seeds = _seeded(chosen)
    return _write(chosen, scan, fast_marching(scan.array, seeds, affine=scan.affine, config=config))


def _threshold_islands(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.tools.threshold_islands import threshold_islands
    from sliceprop.volume import voxel_spacing

    ranges = _ranges(chosen)
    scan = _read_scan(chosen.image)
    seeds = _read_seeds(chosen.seeds, scan, chosen.background_scribble) if chosen.seeds else None
    spacing = voxel_spacing(scan.affine)
    return _write(chosen, scan, threshold_islands(scan.array, ranges, keep=chosen.keep, seeds=seeds, spacing=spacing))


def _fill_between_slices(chosen: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from sliceprop.io import read_image
    from sliceprop.labels import check_labels, sparse_labels
    from sliceprop.tools.fill_between_slices import fill_between_slices
    from sliceprop.volume import resolve_slice_axis

    image = read_image(chosen.labels)
    labels = check_labels(image.array, image.array.shape)
    marked = labels > 0 if labels.any() else None
    axis = resolve_slice_axis(chosen.slice_axis, labels.shape, image.affine, marked)
    filled = fill_between_slices(sparse_labels(np.ascontiguousarray(np.moveaxis(labels, axis, 0))))
    return _write(chosen, image, np.moveaxis(filled, 0, axis))


def _boundary_points(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.tools.boundary_points import PointsConfig, boundary_points, points_of_marks

    config = PointsConfig(**_given(margin_mm=chosen.margin_mm))
    scan = _read_scan(chosen.image)
    if chosen.points.suffix == ".json":
        points = _read_points(chosen.points)
    else:
        points = points_of_marks(_read_labels(chosen.points, scan, "points"))
    return _write(chosen, scan, boundary_points(scan.array, points, affine=scan.affine, config=config))


def _automatic(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.tools.bundle import open_bundle, run_bundle

    bundle, scan = open_bundle(chosen.bundle), _read_scan(chosen.image)
    return _write(chosen, scan, run_bundle(bundle, scan, device=chosen.device), bundle.names)


def _export(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.export import export_labels
    from sliceprop.io import check_not_inputs, read_image
    from sliceprop.labels import check_labels
    from sliceprop.segments import read_segments

    check_not_inputs([chosen.output], (chosen.labels, chosen.names))
    image = read_image(chosen.labels)
    labels = check_labels(image.array, image.array.shape)
    known = read_segments(chosen.names or chosen.labels)
    files = export_labels(chosen.output, labels, image, known, series=chosen.dicom)
    return {"files": [str(file) for file in files]}


def _seeded(chosen: argparse.Namespace) -> tuple[Image, LabelArray]:
    scan = _read_scan(chosen.image)
    return scan, _read_seeds(chosen.seeds, scan, chosen.background_scribble)


def _read_scan(file: Path) -> Image:
    from sliceprop.io import read_image
    from sliceprop.volume import check_image

    scan = read_image(file)
    check_image(scan.array)
    return scan


def _read_labels(file: Path, scan: Image, name: str) -> LabelArray:
    from sliceprop.io import check_same_grid, read_image
    from sliceprop.labels import check_labels

    image = read_image(file)
    labels = check_labels(image.array, scan.array.shape, name)
    check_same_grid(scan, image, name)
    return labels


def _read_seeds(file: Path, scan: Image, background: int) -> LabelArray:
    import numpy as np

    from sliceprop.labels import SCRIBBLED_BACKGROUND

    if not 0 < background <= MAX_LABEL:
        raise InputError(f"the background scribble value must lie in 1..{MAX_LABEL}, not {background}")
    marks = _read_labels(file, scan, "seeds")
    return np.where(marks == background, SCRIBBLED_BACKGROUND, marks).astype(np.int32)


def _read_points(file: Path) -> Mapping[int, Any]:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        return {int(label): points for label, points in given.items()}
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError) as error:
        raise FileError(f'{file}: points are written {{"1": [[i, j, k], ...]}} ({error})') from error


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _range(chosen: argparse.Namespace) -> Range:
    from sliceprop.tools.seeds import Range

    return Range(chosen.lower, chosen.upper)


def _ranges(chosen: argparse.Namespace) -> dict[int, Range]:
    """Of `--range`, or of one label from `--preset` or `--lower` and `--upper`."""
    from sliceprop.tools.seeds import Range

    single = Range(*PRESETS[chosen.preset]) if chosen.preset else _range(chosen)
    if sum((bool(chosen.preset), (chosen.lower, chosen.upper) != (None, None), bool(chosen.range))) > 1:
        raise InputError("give either --preset, or --lower and --upper, or --range")
    if not chosen.range:
        return {_label(chosen.label): single}
    try:
        ends = {int(label): [None if end == "none" else float(end) for end in two] for label, *two in chosen.range}
    except ValueError as error:
        raise InputError(f"--range takes a label and two numbers, or none for an open end ({error})") from error
    return {_label(label): Range(*two) for label, two in ends.items()}


def _label(value: int) -> int:
    if not 0 < value <= MAX_LABEL:
        raise InputError(f"a label value must lie in 1..{MAX_LABEL}, not {value}")
    return value


def _volumes(given: list[str]) -> float | dict[int, float] | None:
    try:
        if len(given) == 1 and "=" not in given[0]:
            return float(given[0])
        return {int(label): float(ml) for label, ml in (text.split("=") for text in given)} or None
    except ValueError as error:
        raise InputError("--max-volume-ml takes one number for all structures, or LABEL=NUMBER for some") from error


def _write(
    chosen: argparse.Namespace, scan: Image, labels: LabelArray, names: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Write the label map; the volume of each label in ml."""
    import math

    import numpy as np

    from sliceprop.io import check_not_inputs, write_image
    from sliceprop.volume import voxel_spacing

    check_not_inputs([chosen.output], (getattr(chosen, key, None) for key in ("image", "seeds", "labels", "points")))
    write_image(chosen.output, labels, scan)
    counts, voxel_ml = np.bincount(labels.ravel()), math.prod(voxel_spacing(scan.affine)) / 1000
    volumes = {str(value): counts[value] * voxel_ml for value in np.flatnonzero(counts) if value}
    return {"files": [str(chosen.output)], "volume_ml": volumes, **({"names": dict(names)} if names else {})}


def _checked(command: Command) -> Command:
    """The command after a look at where it is to write."""

    def run(chosen: argparse.Namespace) -> dict[str, Any]:
        from sliceprop.io import check_folder, check_writable

        (check_folder if chosen.command == "export" else check_writable)(chosen.output)
        return command(chosen)

    return run


def tool_text(told: Mapping[str, Any]) -> str:
    """What a command of `TOOL_COMMANDS` tells, for people."""
    names = told.get("names", {})
    volumes = told.get("volume_ml", {}).items()
    lines = [f"label {value}{_named(names.get(int(value)))}: {ml:.2f} ml" for value, ml in volumes]
    return "\n".join([f"{file}: written" for file in told["files"]] + lines)


def _named(name: str | None) -> str:
    return "" if name is None else f" ({name})"


TOOL_COMMANDS: dict[str, Command] = {
    "grow-from-seeds": _checked(_grow_from_seeds),
    "fast-marching": _checked(_fast_marching),
    "threshold-islands": _checked(_threshold_islands),
    "fill-between-slices": _checked(_fill_between_slices),
    "boundary-points": _checked(_boundary_points),
    "automatic": _checked(_automatic),
    "export": _checked(_export),
}
