"""Label files as DICOM SEG, written by dcmqi's converter."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sliceprop.errors import SlicePropError

logger = logging.getLogger(__name__)

CONVERTER = "itkimage2segimage"
PATIENCE_S = 300

FIRST_SERIES_NUMBER = 300
"""Of the segmentations of a scan, out of the way of the scanner's own series."""

_TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
"""A user's names have no code; this one says no more than is known."""


class ExportError(SlicePropError):
    """A label that cannot be written as DICOM SEG."""


def write_dicom_seg(
    labels: Path,
    series: Path,
    label_info: Iterable[Mapping[str, Any]],
    target: Path,
    *,
    series_number: int = FIRST_SERIES_NUMBER,
) -> None:
    """Write a label file as DICOM SEG that refers to a series, as a series of its own that is described by the time.

    Args:
        labels: label file on the grid of the series.
        series: folder with the DICOM files of the scan.
        label_info: `name`, `idx` (the value in the file) and perhaps `color` (`#rrggbb`) of each label in it.
        target: file to write.
        series_number: of the new series.

    Raises:
        ExportError: for an empty label, or with the converter's reason.
    """
    segments = [_segment(one) for one in label_info]
    if not segments:
        raise ExportError("a DICOM SEG cannot be empty, and the label is")
    with tempfile.TemporaryDirectory() as folder:
        description = Path(folder) / "description.json"
        description.write_text(json.dumps(_description(segments, series_number)), encoding="utf-8")
        options = {"inputImageList": labels, "inputDICOMDirectory": series, "outputDICOM": target}
        command = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        # Values that break DICOM's rules come from the archive's own files: they are no reason to keep the label out.
        _run([_converter(), *command, "--inputMetadata", str(description), "--noDicomValueChecks"])
    if not target.is_file():
        raise ExportError("the converter wrote no DICOM SEG")


def _converter() -> str:
    """The program, beside this interpreter or on the path.

    Raises:
        ExportError: if it is not installed.
    """
    found = shutil.which(CONVERTER, path=str(Path(sys.executable).parent)) or shutil.which(CONVERTER)
    if found is None:
        raise ExportError(f"{CONVERTER} is missing; install it with `pip install dcmqi`")
    return found


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"the converter to DICOM SEG does not work ({error})") from error
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    logger.info("%s: %s", " ".join(command), "; ".join(lines))
    if done.returncode:
        reason = next((line for line in lines if "ERROR" in line.upper()), lines[-1] if lines else done.returncode)
        raise ExportError(f"the converter to DICOM SEG refuses the series or the label ({reason})")


def _description(segments: list[dict[str, Any]], series_number: int) -> dict[str, Any]:
    return {
        "ContentCreatorName": "sliceprop",
        "ClinicalTrialSeriesID": "1",
        "ClinicalTrialTimePointID": "1",
        "ClinicalTrialCoordinatingCenterName": "sliceprop",
        "SeriesDescription": f"LabelProp {time.strftime('%Y-%m-%d %H:%M')}",
        "SeriesNumber": str(series_number),
        "InstanceNumber": "1",
        "BodyPartExamined": "",
        "ContentLabel": "SEGMENTATION",
        "ContentDescription": "annotated slices carried through the volume; research use only",
        "segmentAttributes": [segments],
    }


def _segment(label: Mapping[str, Any]) -> dict[str, Any]:
    color = str(label.get("color") or "#ff0000").removeprefix("#")
    return {
        "labelID": int(label["idx"]),
        "SegmentLabel": str(label["name"])[:64],
        "SegmentDescription": str(label["name"])[:64],
        "SegmentAlgorithmType": "SEMIAUTOMATIC",
        "SegmentAlgorithmName": "sliceprop",
        "SegmentedPropertyCategoryCodeSequence": _TISSUE,
        "SegmentedPropertyTypeCodeSequence": _TISSUE,
        "recommendedDisplayRGBValue": [int(color[n : n + 2], 16) for n in (0, 2, 4)],
    }
