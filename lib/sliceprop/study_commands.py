"""What the server keeps of a study, on the command line: versions, provenance, manifests, erasure."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sliceprop.common_arguments import add_json
from sliceprop.errors import FileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sliceprop.io import Image
    from sliceprop.versions import Versions

Command = Callable[[argparse.Namespace], dict[str, Any]]
"""Does what the arguments say and tells about it, with a `text` for people."""


def add_study_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the subcommands; `add` makes a parser from a name and a text."""
    versions = add("versions", "list everything that was submitted for a study of a server, and what is damaged")
    _add_study(versions)

    restore = add("restore", "make an old version of a study's labels count again, as a new one")
    _add_study(restore)
    restore.add_argument("version", metavar="VERSION", type=int, help="its number, from `sliceprop versions`")

    provenance = add("provenance", "write which voxels of a study's labels were drawn (1), the others were propagated")
    _add_study(provenance)
    provenance.add_argument("--version", type=int, metavar="N", help="of this version (default: of the last result)")
    provenance.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="mask to write")
    provenance.add_argument("--image", type=Path, metavar="F", help="the scan, where it is not in the folder")

    erase = add("erase", "remove every version, result, checkpoint and label of a study; the audit says that it was")
    _add_study(erase)
    erase.add_argument("--scan", action="store_true", help="the scan as well")

    reproduce = add("reproduce", "make a result again from its manifest, and see whether every byte is the same")
    reproduce.add_argument(
        "manifest", metavar="MANIFEST", help="from propagate --manifest; with --studies a server's, or a study's id"
    )
    reproduce.add_argument("--studies", type=Path, metavar="DIR", help="the server's, which holds what manifests name")
    reproduce.add_argument("-o", "--output", type=Path, metavar="OUT", help="write the label map as well")
    add_json(reproduce)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="id of the image")
    parser.add_argument(
        "--studies", type=Path, default=Path("sample-data"), metavar="DIR", help="the server's (default: sample-data)"
    )
    add_json(parser)


def _versions(chosen: argparse.Namespace) -> dict[str, Any]:
    kept = _kept(chosen)
    found, damaged = [one.told() for one in kept.newest_first()], kept.damaged()
    _audit(chosen, "read")
    lines = [_line(one) for one in found]
    lines += [f"{number:>6}  {reason}" for number, reason in damaged.items()]
    text = "\n".join([f"{'number':>6}  {'time':<24}  {'tag':<10}  {'how':<10}  slices, by", *lines])
    return {"versions": found, "damaged": {str(number): reason for number, reason in damaged.items()}, "text": text}


def _restore(chosen: argparse.Namespace) -> dict[str, Any]:
    by, kept = {"user": _user(), "client": "sliceprop restore"}, _kept(chosen)
    _check_nothing_waits(chosen, kept)
    version = kept.restore(chosen.version, by)
    _audit(chosen, "write")
    text = f"version {chosen.version} counts again, as version {version.number}; the server takes it up at its next use"
    return {**version.told(), "text": text}


def _provenance(chosen: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from sliceprop.erasure import study_folder
    from sliceprop.io import check_not_inputs, check_writable, read_image, write_image

    check_writable(chosen.output)
    folder = study_folder(chosen.studies, chosen.study)
    image = chosen.image or _scan(chosen.studies, chosen.study)
    check_not_inputs([chosen.output], [image])
    scan = read_image(image)
    drawn = _drawn(chosen, folder, scan)
    write_image(chosen.output, drawn.astype(np.uint8), scan)
    _audit(chosen, "export")
    share = float(drawn.mean())
    text = f"{chosen.output}: written, {100 * share:.1f} % of the voxels were drawn by hand"
    return {"files": [str(chosen.output)], "drawn": int(drawn.sum()), "share": share, "text": text}


def _erase(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.erasure import erase_study

    gone = erase_study(chosen.studies, chosen.study, scan=chosen.scan, user=_user())
    return {"erased": [str(path) for path in gone], "text": "\n".join([*map(str, gone), f"{len(gone)} removed"])}


def _reproduce(chosen: argparse.Namespace) -> dict[str, Any]:
    from sliceprop.io import check_writable, write_image
    from sliceprop.manifest import check_same, find_manifest, reproduce

    manifest = find_manifest(chosen.manifest, chosen.studies)
    if chosen.output:
        check_writable(chosen.output)
    again = reproduce(manifest)
    if chosen.output:
        write_image(chosen.output, again.result.labels, again.scan)
    check_same(manifest, again)
    text = f"{', '.join(again.same)}: the same bytes"
    return {"same": dict(again.same), "files": [str(chosen.output)] if chosen.output else [], "text": text}


def _audit(chosen: argparse.Namespace, event: str) -> None:
    from sliceprop.audit import AuditLog
    from sliceprop.io import FOLDER

    about = {"user": _user(), "client": f"sliceprop {chosen.command}"}
    AuditLog(chosen.studies / FOLDER).record(event, **about, study=chosen.study)


def _kept(chosen: argparse.Namespace) -> Versions:
    from sliceprop.erasure import study_folder
    from sliceprop.versions import study_versions

    return study_versions(study_folder(chosen.studies, chosen.study))


def _check_nothing_waits(chosen: argparse.Namespace, kept: Versions) -> None:
    """Refuse while a label file that somebody put there is no version yet: the server would let it count afterwards.

    Raises:
        FileError: saying what to do.
    """
    from sliceprop.hashing import digest
    from sliceprop.versions import FINAL, SCRIBBLES, SPARSE

    for tag in (SPARSE, FINAL, SCRIBBLES):
        known = {one.digest for one in kept.newest_first(tag)}
        for file in _label_files(chosen.studies, chosen.study, tag):
            if digest(file) not in known:
                raise FileError(f"{file} is no version yet; open the study once in a client of the server before")


def _drawn(chosen: argparse.Namespace, folder: Path, scan: Image) -> NDArray[np.bool_]:
    """Which voxels of a version, or of the last result, were drawn.

    Args:
        chosen: what is asked for.
        folder: of the study.
        scan: that they shall lie on.

    Raises:
        InputError: if there is no such version, or it is of another scan than this one.
        FileError: if it was not kept what was drawn.
    """
    from sliceprop.files import read_table
    from sliceprop.hashing import array_digest
    from sliceprop.io import read_image
    from sliceprop.versions import check_grid, grid_of, result_mask

    if chosen.version is not None:
        version = _kept(chosen).get(chosen.version)
        drawn, grid = version.drawn(), version.entry.grid
        if drawn is not None and grid is None and version.labels_file is not None:  # of an earlier release
            grid = grid_of(read_image(version.labels_file))
        check_grid(grid, scan, f"version {chosen.version} was drawn")
    else:
        known, drawn = read_table(folder / "scan.json") or {}, result_mask(folder)
        check_grid(known.get("grid"), scan, "the last result was made")
        if chosen.image is None and known.get("voxels") not in (None, array_digest(scan.array)):
            raise FileError("the last result is of another scan of this name; propagate once more")
    if drawn is None:
        raise FileError(f"it was not kept which voxels of {chosen.study!r} were drawn; propagate once more")
    return drawn


def _scan(studies: Path, study: str) -> Path:
    found = _files(studies, study)
    if not found:
        raise FileError(f"there is no scan {study!r} in {studies}; name it with --image")
    return found[0]


def _label_files(studies: Path, study: str, tag: str) -> list[Path]:
    """The label file of a study that MONAI Label knows; all that there are if it knows none yet."""
    from sliceprop.files import read_json
    from sliceprop.versions import DATASTORE

    known = (read_json(studies / DATASTORE) or {}).get("objects", {}).get(study, {}).get("labels", {}).get(tag)
    folder = studies / "labels" / tag
    if known:
        return [file for file in [folder / f"{study}{known['ext']}"] if file.is_file()]
    segmentation = [] if _files(studies, f"{study}.seg") else _files(folder, f"{study}.seg")  # of 3D Slicer
    return _files(folder, study) + segmentation


def _files(folder: Path, name: str) -> list[Path]:
    """Images of this name, of any format."""
    from sliceprop.io import SUFFIXES

    return [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]


def _line(one: Mapping[str, Any]) -> str:
    slices = "" if one["annotated_slices"] is None else ",".join(map(str, one["annotated_slices"]))
    by = " ".join(filter(None, one["by"].values()))
    how = one["event"] + (f" {one['restored']}" if one["restored"] else "")
    return f"{one['version']:>6}  {one['time']:<24}  {one['tag']:<10}  {how:<10}  {slices}  {by}".rstrip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


STUDY_COMMANDS: dict[str, Command] = {
    "versions": _versions,
    "restore": _restore,
    "provenance": _provenance,
    "erase": _erase,
    "reproduce": _reproduce,
}
