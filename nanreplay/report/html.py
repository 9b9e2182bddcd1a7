"""A page about one capture as one HTML file that needs no network, and the same in a notebook."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nanreplay import __version__
from nanreplay.report.facts import FIX_HEADINGS, advice, fact_rows, fix_row
from nanreplay.report.figure import timeline_svg
from nanreplay.report.inventory import fact_lines, inventory
from nanreplay.report.numbers import readable_trigger
from nanreplay.report.page import Page, history_of, page_of

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.findings import Report

_CODE = re.compile(r"`([^`]*)`")


def html_page(page: Page) -> str:
    """Write a whole HTML document: no scripts, styles and pictures inside."""
    return _environment().get_template("page.html").render(page=page, style=_style(), body=_body(page), version=__version__)


def report_fragment(report: Report) -> str:
    """Write the page of a report as one element, for a notebook; what stands around it is read from its capture."""
    from nanreplay.capture import Capture

    with Capture(report.path) as capture:
        return _fragment(_body(page_of(report, capture)))


def capture_fragment(capture: Capture) -> str:
    """Write what an open capture holds as one element, for a notebook; nothing is replayed."""
    facts = inventory(capture)
    body = (
        _environment()
        .get_template("recorded.html")
        .render(
            title=f"{capture.path.name}: step {capture.incident.step}, {readable_trigger(capture.incident.trigger)}",
            figure=Markup(timeline_svg(history_of(capture))),
            recorded=list(fact_lines(facts)),
            notes=capture.incident.notes,
        )
    )
    return _fragment(body)


def _fragment(body: str) -> str:
    return f'<style>{_style()}</style><div class="nanreplay">{body}</div>'


def _body(page: Page) -> Markup:
    report = page.report
    return Markup(
        _environment()
        .get_template("body.html")
        .render(
            page=page,
            report=report,
            figure=Markup(timeline_svg(page.history)),
            root_step=report.findings.root.step if report.findings.root is not None else None,
            facts=list(fact_rows(report)),
            fix_headings=FIX_HEADINGS,
            fix_rows=[fix_row(fix) for fix in report.fixes],
            advice=advice(report.fixes),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nanreplay.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["code"] = _with_code
    return environment


def _style() -> Markup:
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, "style.css")[0])


def _with_code(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
