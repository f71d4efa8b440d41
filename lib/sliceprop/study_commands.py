"""What the server keeps of a study, on the command line: versions, provenance, manifests, erasure."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sliceprop.common_arguments import add_json
from sliceprop.errors import FileError

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
    reproduce.add_argument("manifest", metavar="MANIFEST", type=Path, help="from propagate --manifest, or a server's")
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
    by = {"user": _user(), "client": "sliceprop restore"}
    version = _kept(chosen).restore(chosen.version, by)
    _audit(chosen, "write")
    text = f"version {chosen.version} counts again, as version {version.number}; the server takes it up at its next use"
    return {**version.told(), "text": text}


def _provenance(chosen: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from sliceprop.erasure import study_folder
    from sliceprop.io import check_not_inputs, check_writable, read_image, write_image
    from sliceprop.versions import result_mask

    check_writable(chosen.output)
    if chosen.version:
        drawn = _kept(chosen).get(chosen.version).drawn()
    else:
        drawn = result_mask(study_folder(chosen.studies, chosen.study))
    if drawn is None:
        raise FileError(f"it was not kept which voxels of {chosen.study!r} were drawn; propagate once more")
    image = chosen.image or _scan(chosen.studies, chosen.study)
    check_not_inputs([chosen.output], [image])
    write_image(chosen.output, drawn.astype(np.uint8), read_image(image))
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
    from sliceprop.manifest import check_same, reproduce

    if chosen.output:
        check_writable(chosen.output)
    again = reproduce(chosen.manifest)
    if chosen.output:
        write_image(chosen.output, again.result.labels, again.scan)
    check_same(chosen.manifest, again)
    text = f"{', '.join(again.same)}: the same bytes"
    return {"same": dict(again.same), "files": [str(chosen.output)] if chosen.output else [], "text": text}


def _audit(chosen: argparse.Namespace, event: str) -> None:
    from sliceprop.audit import AuditLog
    from sliceprop.versions import FOLDER

    about = {"user": _user(), "client": f"sliceprop {chosen.command}"}
    AuditLog(chosen.studies / FOLDER).record(event, **about, study=chosen.study)


def _kept(chosen: argparse.Namespace) -> Any:
    from sliceprop.erasure import study_folder
    from sliceprop.versions import study_versions

    return study_versions(study_folder(chosen.studies, chosen.study))


def _scan(studies: Path, study: str) -> Path:
    from sliceprop.io import SUFFIXES

    found = [file for suffix in SUFFIXES if (file := studies / f"{study}{suffix}").is_file()]
    if not found:
        raise FileError(f"there is no scan {study!r} in {studies}; name it with --image")
    return found[0]


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
