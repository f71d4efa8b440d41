"""What came out, for people: a page per study and one for the cohort, plain HTML files that load nothing from afar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment

from sliceprop.cohort.finding import Failure
from sliceprop.io import write_atomically

NOTHING = "nothing"
"""What learning starts from without a checkpoint."""

_STYLE = """
<meta charset="utf-8">
<style>
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; vertical-align: top; padding: .3em .8em; border-bottom: 1px solid #ccc }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; background: black }
td img { max-width: 24em }
.bad { color: #a00 }
</style>
"""

_STUDY = (
    _STYLE
    + """
<title>{{ report.id }}</title>
<h1>{{ report.id }}</h1>
<p>{{ report.annotated_slices | length }} annotated slices ({{ report.annotated_slices | join(", ") }}) along axis
{{ report.slice_axis }} of {{ report.shape | join(" x ") }}. Research use only.</p>
{% if picture %}<p><img src="{{ picture }}" alt="scan above, labels below"></p>{% endif %}
<p><b>Next:</b> {{ next }}</p>
<table>
<tr><th>label<th>estimated Dice<th>borders off by<th>decided by<th>weakest slice</tr>
{% for label in labels %}
<tr><td>{{ label.name }}<td class="number">{{ label.dice }}<td class="number">{{ label.surface }}<td>{{ label.method }}
<td class="number">{{ label.weakest }}</tr>
{% endfor %}
</table>
{% if start %}<p>{{ start }}</p>{% endif %}
<p>Opened in {{ report.seconds.open }} s, learnt in {{ report.seconds.learn }} s, propagated in
{{ report.seconds.propagate }} s, written in {{ report.seconds.write }} s by version {{ report.version }}.</p>
"""
)

_COHORT = (
    _STYLE
    + """
<title>Cohort</title>
<h1>Cohort of {{ rows | length + failures | length }} studies</h1>
<p>{{ rows | length }} finished, {{ failures | length }} failed. Estimates, not measurements. Research use only.</p>
{% if failures %}
<h2 class="bad">Failed</h2>
<table>
<tr><th>file<th>reason</tr>
{% for failure in failures %}<tr><td>{{ failure.name }}<td>{{ failure.reason }}</tr>
{% endfor %}
</table>
{% endif %}
{% if rows %}
<h2>What to review first</h2>
<table>
<tr><th>study<th>estimated Dice<th>weakest label<th>next slice<th>why<th>learnt from
{% if pictures %}<th>{% endif %}</tr>
{% for row in rows %}
<tr><td><a href="{{ row.link }}">{{ row.id }}</a><td class="number">{{ row.dice }}<td>{{ row.weakest }}
<td class="number">{{ row.slice }}<td>{{ row.reason }}
<td title="{{ row.start }}">{{ row.start_name }}
{% if pictures %}<td><img loading="lazy" src="{{ row.picture }}" alt="">{% endif %}</tr>
{% endfor %}
</table>
{% endif %}
"""
)

_pages = Environment(autoescape=True, trim_blocks=True)


def write_study_page(path: Path, report: Mapping[str, Any], picture: str | None) -> None:
    """Write the page of one study.

    Args:
        path: HTML file.
        report: of the study, see `work.run_study`.
        picture: file name beside the page, None for none.

    Raises:
        FileError: if it cannot be written.
    """
    labels = [_label_row(report, value) for value in report["quality"]]
    suggestion = report["suggestion"]
    where = "" if suggestion["slice"] is None else f"slice {suggestion['slice']}. "
    text = _pages.from_string(_STUDY).render(
        report=report, labels=labels, picture=picture, next=where + suggestion["reason"], start=_start_text(report)
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_cohort_page(
    path: Path, summaries: Sequence[Mapping[str, Any]], failures: Sequence[Failure], picture: str | None
) -> None:
    """Write the page of the cohort, which links to those of the studies beside it.

    Args:
        path: HTML file in the folder that holds the studies' folders.
        summaries: of `summary`, in the order of review.
        failures: listed first.
        picture: file name in each study's folder, None for none.

    Raises:
        FileError: if it cannot be written.
    """
    rows = [_cohort_row(each, picture) for each in summaries]
    text = _pages.from_string(_COHORT).render(rows=rows, failures=failures, pictures=picture is not None)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the cohort's report says of a study; `expected_dice` is the mean over its labels, `start` see `_start`."""
    known = {value: q["dice"] for value, q in report["quality"].items() if q["dice"] is not None}
    weakest = min(known, key=known.__getitem__) if known else None
    suggestion = report["suggestion"]
    return {
        "id": report["id"],
        "image": report["image"],
        "expected_dice": round(sum(known.values()) / len(known), 4) if known else None,
        "weakest_label": None if weakest is None else report["label_names"][weakest],
        "weakest_dice": None if weakest is None else known[weakest],
        "next_slice": suggestion["slice"],
        "slice_axis": report["slice_axis"],
        "stop": suggestion["stop"],
        "reason": suggestion["reason"],
        "start": _start(report),
        "seconds": round(sum(report["seconds"].values()), 2),
    }


def review_order(summaries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The studies whose weakest label is expected worst first; before them those of which nothing is known."""
    return sorted(
        summaries, key=lambda each: (-1.0 if each["weakest_dice"] is None else each["weakest_dice"], each["id"])
    )


def _start(report: Mapping[str, Any]) -> str | None:
    """The checkpoint that learning started from, or `NOTHING`; None where nothing was learnt, or it was not noted."""
    if not report["learned"] or "init" not in report:
        return None
    return NOTHING if report["init"] is None else str(report["init"]["path"])


def _start_text(report: Mapping[str, Any]) -> str:
    """Where the model comes from, in a sentence; empty where there is none."""
    if report.get("model"):
        return f"Nothing was learnt: {report['model']['path']} was learnt on this study before."
    start = _start(report)
    return "" if start is None else f"Learning started from {start}."


def _label_row(report: Mapping[str, Any], value: str) -> dict[str, str]:
    quality, slices = report["quality"][value], report["quality"][value]["slices"]
    weakest = min(slices, key=slices.__getitem__, default=None)
    return {
        "name": report["label_names"][value],
        "dice": _decimals(quality["dice"], ".3f"),
        "surface": _decimals(quality["surface_mm"], ".1f", " mm"),
        "method": report["methods"][value],
        "weakest": "-" if weakest is None else f"{weakest} ({slices[weakest]:.2f})",
    }


def _cohort_row(each: Mapping[str, Any], picture: str | None) -> dict[str, str]:
    weakest = "-" if each["weakest_label"] is None else f"{each['weakest_label']} ({each['weakest_dice']:.3f})"
    return {
        "id": each["id"],
        "link": quote(f"{each['id']}/report.html"),
        "picture": quote(f"{each['id']}/{picture}"),
        "dice": _decimals(each["expected_dice"], ".3f"),
        "weakest": weakest,
        "slice": "-" if each["next_slice"] is None else f"{each['next_slice']} along axis {each['slice_axis']}",
        "reason": each["reason"],
        "start": each["start"] or "",
        "start_name": "-" if each["start"] is None else Path(each["start"]).name,
    }


def _decimals(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
