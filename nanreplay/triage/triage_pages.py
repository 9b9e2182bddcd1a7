"""The result of a triage as Markdown and as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanreplay import __version__
from nanreplay.limits import readable_size
from nanreplay.report.markdown import folded_lines, inline_text, table_lines
from nanreplay.report.pages import page_environment, page_style
from nanreplay.triage.failure_groups import FailureGroup, TriageResult
from nanreplay.triage.triage_text import (
    OTHER_HEADINGS,
    cheapest_size,
    how_often,
    other_rows,
    summary,
    what_failed,
    when_seen,
)

GROUP_HEADINGS = ("captures", "runs", "seen", "what", "fingerprint")
CAPTURE_HEADINGS = ("capture", "step", "recorded", "size")


def triage_markdown(result: TriageResult) -> str:
    """Write a Markdown document: the groups in a table, then one by one; files are folded."""
    return "\n".join(_lines(result)).rstrip() + "\n"


def _lines(result: TriageResult) -> Iterator[str]:
    yield f"### {summary(result)}"
    yield ""
    if result.groups:
        yield from table_lines(GROUP_HEADINGS, list(map(_group_row, result.groups)))
        yield ""
    for group in result.groups:
        yield f"#### {inline_text(what_failed(group))}"
        yield ""
        yield f"{how_often(group)}, {when_seen(group)}, `{group.key.fingerprint}`"
        yield ""
        yield f"> {inline_text(group.cheapest.answer.sentence)}"
        yield ""
        yield f"Cheapest: `{group.cheapest.answer.path}` ({cheapest_size(group)})"
        yield ""
        yield from folded_lines("Captures", table_lines(CAPTURE_HEADINGS, capture_rows(group)))
    others = list(other_rows(result))
    if others:
        yield "#### Not read or not decided"
        yield ""
        yield from table_lines(OTHER_HEADINGS, others)
        yield ""
    yield f"<sub>nanreplay {__version__}</sub>"


def _group_row(group: FailureGroup) -> tuple[str, ...]:
    return (
        str(len(group.captures)),
        str(len(group.runs)),
        when_seen(group),
        what_failed(group),
        f"`{group.key.fingerprint}`",
    )


def capture_rows(group: FailureGroup) -> list[tuple[str, str, str, str]]:
    """A row a capture of a group, the earliest first."""
    rows = []
    for each in group.captures:
        origin = (each.answer.report or {}).get("origin") or {}
        step = origin.get("step")
        rows.append(
            (
                each.answer.path,
                "" if step is None else str(step),
                each.answer.recorded or "",
                readable_size(each.size_bytes),
            )
        )
    return rows


def _section(group: FailureGroup) -> dict[str, Any]:
    """What the page tells of one group."""
    return {
        "what": what_failed(group),
        "facts": f"{how_often(group)} · {when_seen(group)} · {group.key.fingerprint}",
        "sentence": group.cheapest.answer.sentence,
        "cheapest": f"nanreplay open {group.cheapest.answer.path}",
        "size": cheapest_size(group),
        "rows": capture_rows(group),
    }


def triage_html(result: TriageResult) -> str:
    """Write a whole HTML document; text is escaped by jinja2."""
    return (
        page_environment()
        .get_template("triage.html")
        .render(
            title=summary(result),
            source="",
            style=page_style(),
            groups=list(map(_section, result.groups)),
            capture_headings=CAPTURE_HEADINGS,
            other_headings=OTHER_HEADINGS,
            others=list(other_rows(result)),
            version=__version__,
        )
    )
