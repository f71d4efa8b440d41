"""Training sets out of a finished cohort: nnU-Net's raw format and a datalist in the style of the Decathlon.

A case is a number: nothing of the scans' names, folders or headers goes along. What is known of each label map does:
which slices were drawn, which were reviewed, which were propagated, and how good that should be.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sliceprop import __version__
from sliceprop.cohort.finding import Failure, beside, is_scan, stem
from sliceprop.cohort.run import COHORT
from sliceprop.cohort.work import LABELS, REPORT, UNCERTAINTY
from sliceprop.config import MAX_LABEL
from sliceprop.errors import FileError, InputError
from sliceprop.hashing import digest
from sliceprop.io import (
    FOLDER,
    UNFINISHED,
    Image,
    check_same_grid,
    make_folder,
    read_image,
    write_atomically,
    write_image,
    write_json,
)
from sliceprop.labels import LabelArray, check_labels
from sliceprop.versions import FINAL, Versions

DATASET, DATALIST, PROVENANCE = "dataset.json", "datalist.json", "provenance.json"
IMAGES, TARGETS, WEIGHTS = "imagesTr", "labelsTr", "weightsTr"

RESERVED = ("background", "ignore")
"""What nnU-Net calls the values that are no structure."""

WEIGHT_STEPS = 100
"""Weights are written in hundredths, as the uncertainty is that they come from."""

MAX_NUMBER = 999


@dataclass(frozen=True)
class ExportConfig:
    """How a training set is written.

    Attributes:
        name: of the data set, letters, digits and `_`.
        number: of the data set among nnU-Net's, 1 to 999.
        channel: of the images; nnU-Net treats `CT` by fixed windows and everything else by z-scores.
        ignore_above: voxels that are more uncertain than this get nnU-Net's ignore label; None for none.
        weights: write each voxel's confidence, 1 - uncertainty, for losses that take weights.
        reviewed: folder of label maps `<id>.*` that somebody has corrected or accepted; they replace the results.
    """

    name: str = "Propagated"
    number: int = 501
    channel: str = "scan"
    ignore_above: float | None = None
    weights: bool = False
    reviewed: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.name):
            raise InputError(f"the name of a data set has letters, digits and _ only, not {self.name!r}")
        if not 0 < self.number <= MAX_NUMBER:
            raise InputError(f"the number of a data set must lie in 1..{MAX_NUMBER}, not {self.number}")
        if self.ignore_above is not None and not 0 <= self.ignore_above < 1:
            raise InputError(f"the uncertainty to ignore must lie in 0..1, less than 1, not {self.ignore_above}")
        if self.reviewed is not None and not self.reviewed.is_dir():
            raise FileError(f"{self.reviewed}: no such folder")

    @property
    def folder(self) -> str:
        """As nnU-Net calls it."""
        return f"Dataset{self.number:03d}_{self.name}"


@dataclass(frozen=True)
class Case:
    """A study on its way out.

    Attributes:
        scan: without its header, which may tell who was scanned.
        labels: values of the cohort, `(i, j, k)`.
        uncertainty: float32 in [0, 1]; 0 where somebody drew or reviewed.
        slice_axis: axis that counts slices.
        provenance: slice indices by `drawn`, `reviewed` and `propagated`.
    """

    scan: Image
    labels: LabelArray
    uncertainty: NDArray[np.float32]
    slice_axis: int
    provenance: Mapping[str, list[int]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: of the data set.
        cases: id of each study by its case.
        labels: studies that hold each label, by name; a label that is drawn in some studies only is background in the
            others, which teaches a network to leave it out.
        failures: studies that could not be written, results that the cohort's last run does not count, and reviews of
            no study.
    """

    folder: Path
    cases: Mapping[str, str]
    labels: Mapping[str, int]
    failures: Sequence[Failure]


def export_dataset(
    results: Path, output: Path, config: ExportConfig | None = None, *, mapping: Path | None = None
) -> Exported:
    """Write the finished studies of a cohort as a training set.

    `output/Dataset501_Propagated/` holds `imagesTr/case_0001_0000.nii.gz`, `labelsTr/case_0001.nii.gz`,
    `dataset.json` (nnU-Net), `datalist.json` (for MONAI), `provenance.json`, and with weights
    `weightsTr/case_0001.nii.gz`. The folder appears whole or not at all. Label values are numbered from 1 on.

    Args:
        results: folder of `sliceprop cohort`.
        output: gets the data set; nnU-Net calls it `nnUNet_raw`.
        config: see `ExportConfig`.
        mapping: CSV file outside the data set that tells which case is which study.

    Raises:
        InputError: no finished study, the data set is there already, or names of labels contradict each other.
        FileError: a folder that is missing, read-only or full.
    """
    config = config or ExportConfig()
    reports, failures = _reports(results)
    values, names = _label_values(reports)
    target = output.absolute() / config.folder
    if mapping is not None and mapping.absolute().is_relative_to(target):
        raise InputError(f"{mapping}: tells who is who; keep it out of the data set")
    cases, told, held = dict[str, str](), list[dict[str, Any]](), dict.fromkeys(names, 0)
    with _whole(target) as folder:
        for report in reports:
            name = f"case_{len(cases) + 1:04d}"
            try:
                case = _open(results / report["id"], report, config)
                present = _write(folder, name, case, values, config)
            except InputError as error:
                failures.append(Failure(report["image"], " ".join(str(error).split()), report["id"]))
                for file in (_image_file(name), _label_file(name), _weight_file(name)):
                    (folder / file).unlink(missing_ok=True)
                continue
            cases[name] = report["id"]
            told.append(_told(name, report, case, values))
            for value in present:
                held[names[value - 1]] += 1
        if not cases:
            raise InputError(f"{results}: none of its studies can be exported ({failures[-1].reason})")
        failures += _unknown_reviews(config.reviewed, {report["id"] for report in reports})
        _describe(folder, config, names, list(cases), told)
    if mapping is not None:
        _write_mapping(mapping, cases)
    return Exported(target, cases, held, failures)


def _reports(results: Path) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Of the studies that the cohort's last run has finished, and why other results are left out."""
    try:
        table = json.loads((results / COHORT).read_text(encoding="utf-8"))
        files = [json.loads(file.read_text(encoding="utf-8")) for file in results.glob(f"*/{REPORT}")]
        listed = {str(study["id"]) for study in table["studies"]}
        failed = {str(failure["id"]): str(failure["reason"]) for failure in table["failed"]}
    except FileNotFoundError as error:
        raise FileError(
            f"{results}: holds no {COHORT}; give the results of `sliceprop cohort` that has ended"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{results}: a report cannot be read; run `sliceprop cohort` again ({error})") from error
    reports = {str(report["id"]): report for report in files}
    left_out = dict.fromkeys(reports.keys() - listed, f"is not in {COHORT}; run `sliceprop cohort` again, or remove it")
    left_out |= dict.fromkeys(listed - reports.keys(), "is gone; run `sliceprop cohort` again")
    left_out |= {name: failed[name] for name in reports.keys() & failed.keys()}
    kept = sorted(reports.keys() - left_out.keys())
    if not kept:
        raise FileError(f"{results}: holds no finished studies; run `sliceprop cohort` again")
    return [reports[name] for name in kept], [Failure(str(results / n), left_out[n], n) for n in sorted(left_out)]


def _label_values(reports: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int32], list[str]]:
    """The new value of every old one, and the name of each new one from 1 on."""
    found = dict[int, str]()
    for report in reports:
        for text, name in report["label_names"].items():
            if found.setdefault(int(text), name) != name:
                raise InputError(
                    f"label {text} is {name!r} in {report['id']} and {found[int(text)]!r} elsewhere; one value needs "
                    "one meaning in a data set"
                )
    names = [found[value] for value in sorted(found)]
    if len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise InputError(f"names of labels must differ from each other and from {' and '.join(RESERVED)}")
    table = np.zeros(MAX_LABEL + 1, np.int32)
    table[sorted(found)] = np.arange(1, len(names) + 1)
    return table, names


def _open(folder: Path, report: Mapping[str, Any], config: ExportConfig) -> Case:
    """A finished study, or what somebody made of it."""
    scan = replace(read_image(report["image"]), header=None)
    review = _review(scan, report, config)
    labels = _read_labels(folder / LABELS, scan) if review is None else review
    axis, drawn = int(report["slice_axis"]), [int(s) for s in report["annotated_slices"]]
    others = [s for s in range(scan.array.shape[axis]) if s not in drawn]
    propagated = review is None
    provenance = {"drawn": drawn, "reviewed": [] if propagated else others, "propagated": others if propagated else []}
    if propagated and (config.weights or config.ignore_above is not None):
        doubt = read_image(folder / UNCERTAINTY).array.astype(np.float32)
    else:
        doubt = np.zeros(scan.array.shape, np.float32)
    return Case(scan, labels, doubt, axis, provenance)


def _read_labels(file: Path, scan: Image) -> LabelArray:
    given = read_image(file)
    labels = check_labels(given.array, scan.array.shape)
    check_same_grid(scan, given, "labels")
    return labels


def _review(scan: Image, report: Mapping[str, Any], config: ExportConfig) -> LabelArray | None:
    """Labels that were accepted: in the given folder, else with tag `final` in the studies folder of the scan.

    With that tag users also submit what they draw, and cohorts read that; it is a review if it holds more.
    """
    image = Path(report["image"])
    if config.reviewed is not None and (given := beside(config.reviewed, [report["id"]])):
        return _read_labels(given, scan)
    final = beside(image.parent / "labels" / FINAL, [stem(image)])
    if final is None:
        return None
    labels = _read_labels(final, scan)
    return labels if labels[~_drawn(final, labels.shape, report)].any() else None


def _unknown_reviews(folder: Path | None, ids: Set[str]) -> list[Failure]:
    """Files that are called like no study."""
    files = [] if folder is None else [each for each in sorted(folder.iterdir()) if is_scan(each)]
    reason = "no finished study has this name; rename it, see --mapping"
    return [Failure(str(each), reason) for each in files if stem(each) not in ids]


def _drawn(final: Path, shape: tuple[int, ...], report: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Voxels of a `final` label map that were drawn: those that the server kept with it, else the annotated slices.

    Without the server's word all of it counts as drawn where the cohort has read it as that.
    """
    image = Path(report["image"])
    version = Versions(image.parent / FOLDER / "studies" / stem(image) / "versions").newest(FINAL)
    if version is not None and version.entry.event != "found" and version.digest == digest(final):
        known = version.drawn()
        if known is not None:
            return known
    drawn = np.full(shape, final.resolve() == Path(report["labels"] or "").resolve())
    np.moveaxis(drawn, report["slice_axis"], 0)[report["annotated_slices"]] = True
    return drawn


def _write(folder: Path, name: str, case: Case, values: NDArray[np.int32], config: ExportConfig) -> list[int]:
    """Write the files of one case; the labels in it."""
    labels = values[case.labels]
    if (labels[case.labels > 0] == 0).any():
        raise InputError("holds a label that no study of this cohort has a name for")
    present = [int(value) for value in np.flatnonzero(np.bincount(labels.ravel())) if value]
    if config.ignore_above is not None:
        labels[case.uncertainty > config.ignore_above] = values.max() + 1
    write_image(folder / _image_file(name), case.scan.array, case.scan, dtype=_plain_type(case.scan.array))
    write_image(folder / _label_file(name), labels, case.scan)
    if config.weights:
        weights = np.round((1 - case.uncertainty) * WEIGHT_STEPS) / np.float32(WEIGHT_STEPS)
        write_image(folder / _weight_file(name), weights.astype(np.float32), case.scan)
    return present


def _plain_type(array: NDArray[Any]) -> str:
    """int16 where it holds the scan, else float32: what every program reads."""
    whole = np.issubdtype(array.dtype, np.integer)
    return "int16" if whole and array.min() >= -(2**15) and array.max() < 2**15 else "float32"


def _told(name: str, report: Mapping[str, Any], case: Case, values: NDArray[np.int32]) -> dict[str, Any]:
    """Where the labels of a case come from."""
    checked = not case.provenance["propagated"]
    estimates = {} if checked else {str(values[int(v)]): q["dice"] for v, q in report["quality"].items()}
    return {
        "case": name,
        "slice_axis": case.slice_axis,
        "slices": case.provenance,
        "method": report["method"],
        "estimated_dice": estimates,
        "made_by": f"sliceprop {report['version']}",
    }


def _describe(
    folder: Path, config: ExportConfig, names: Sequence[str], cases: Sequence[str], told: Sequence[Mapping[str, Any]]
) -> None:
    """The three files about the data set."""
    numbered = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    if config.ignore_above is not None:
        numbered["ignore"] = len(names) + 1
    channels = {"0": config.channel}
    dataset = {"channel_names": channels, "labels": numbered, "numTraining": len(cases), "file_ending": ".nii.gz"}
    datalist = {
        "name": config.name,
        "description": "labels propagated from annotated slices; see provenance.json",
        "tensorImageSize": "3D",
        "modality": channels,
        "labels": {str(value): name for name, value in numbered.items()},
        "numTraining": len(cases),
        "training": [_listed(case, config) for case in cases],
        "numTest": 0,
        "test": [],
    }
    provenance = {
        "made_by": f"sliceprop {__version__}",
        "ignored_above_uncertainty": config.ignore_above,
        "cases": list(told),
    }
    for file, value in ((DATASET, dataset), (DATALIST, datalist), (PROVENANCE, provenance)):
        write_json(folder / file, value)


def _listed(case: str, config: ExportConfig) -> dict[str, str]:
    files = {"image": _image_file(case), "label": _label_file(case)}
    return files | ({"weight": _weight_file(case)} if config.weights else {})


def _image_file(case: str) -> str:
    return f"{IMAGES}/{case}_0000.nii.gz"


def _label_file(case: str) -> str:
    return f"{TARGETS}/{case}.nii.gz"


def _weight_file(case: str) -> str:
    return f"{WEIGHTS}/{case}.nii.gz"


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end, and nothing if there is an error before."""
    if target.exists():
        raise InputError(f"{target}: is there already; choose another number or name, or move it away")
    make_folder(target.parent)
    try:
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=UNFINISHED))
    except OSError as error:
        raise FileError(f"{target.parent}: cannot write there ({error.strerror})") from error
    try:
        for name in (IMAGES, TARGETS, WEIGHTS):
            make_folder(made / name)
        yield made
        if not any((made / WEIGHTS).iterdir()):
            (made / WEIGHTS).rmdir()
        made.chmod(0o755)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_mapping(path: Path, cases: Mapping[str, str]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("case", "study"), *cases.items()])

    write_atomically(path, write)
