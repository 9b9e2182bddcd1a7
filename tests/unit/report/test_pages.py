"""Pages about a capture: one HTML file without network, Markdown for an issue, captures and reports
in a notebook."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from sample_report import FINDINGS, ORIGIN, sample_report

from nanreplay import Capture
from nanreplay.findings import Cause, FixResult
from nanreplay.records import Frame, Timeline
from nanreplay.report.contents import Report
from nanreplay.report.history import timeline_svg
from nanreplay.report.markdown import markdown_page
from nanreplay.report.pages import history_of, html_page, page_of

SAMPLE = Path(__file__).parents[3] / "sample_runs" / "log_of_zero.h5"
HOSTILE = "<script>alert(1)</script> a|b *bold* _it_ #12 @team [x](http://y) $f$"


class Elements(HTMLParser):
    """Names, links and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "action", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def capture():
    with Capture(SAMPLE) as opened:
        yield opened


def report_of(**changes: object) -> Report:
    causes = (Cause("log_of_zero", 0.9, "`x` is 0.", ("It came from `Softmax`.",)),)
    fixes = (
        FixResult("epsilon", {"value": 1e-7}, True, (0, 12), code="tf.math.log(p + 1e-7)"),
        FixResult("lr", {"scale": 0.1}, False, (0, 12)),
    )
    return replace(sample_report(), path=str(SAMPLE), causes=causes, fixes=fixes, **changes)


def test_the_html_page_holds_the_sentence_the_plots_and_all_tables(capture: Capture) -> None:
    report = report_of()
    text = re.sub(r"\s+", " ", Elements(html_page(page_of(report, capture))).text)
    for part in (
        report.sentence.replace("`", ""),
        "log of zero",
        "epsilon=1e-7",
        "tf.math.log(p + 1e-7)",
        "encoder/norm/var:0",
        "A note.",
        "loss",
    ):
        assert part in text
    for table in page_of(report, capture).tables:
        assert table.title in text


def test_the_html_page_needs_no_network_and_runs_no_script(capture: Capture) -> None:
    found = Elements(html_page(page_of(report_of(), capture)))
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.names)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "svg" in found.names


def test_what_a_capture_says_is_text_and_never_markup(capture: Capture) -> None:
    findings = replace(
        FINDINGS,
        origin=replace(ORIGIN, layer_path=HOSTILE, source=Frame("<b>.py", 1, "call", HOSTILE)),
        notes=(HOSTILE,),
    )
    page = page_of(report_of(findings=findings, sentence=HOSTILE), capture)
    assert "script" not in Elements(html_page(page)).names
    rendered = MarkdownIt("commonmark").enable("table").render(markdown_page(page))
    assert not {"script", "em", "strong", "a"} & set(
        Elements(rendered.replace("<strong>log of zero</strong>", "")).names
    )
    assert HOSTILE in Elements(rendered).text


def test_markdown_reads_well_in_an_issue(capture: Capture) -> None:
    report = report_of()
    text = markdown_page(page_of(report, capture))
    assert text.splitlines()[0] == "### log_of_zero.h5, step 48112"
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert "<blockquote>" in rendered
    assert (
        text.count("<details>")
        == text.count("</details>")
        == 3 + len(page_of(report, capture).tables)
    )
    for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert row.count(" | ") in (1, 3, 4, 5) or set(row) <= set("| -")


def test_code_with_backticks_stays_in_its_fence(capture: Capture) -> None:
    fix = FixResult("epsilon", {"value": 1e-7}, True, (0, 12), code="```\n# not a heading\n```")
    rendered = MarkdownIt("commonmark").render(
        markdown_page(page_of(replace(report_of(), fixes=(fix,)), capture))
    )
    assert "not a heading" not in "".join(re.findall(r"<h1>(.*?)</h1>", rendered))


def test_the_plot_marks_steps_that_were_not_finite(capture: Capture) -> None:
    history = history_of(capture)
    svg = timeline_svg(history)
    ElementTree.fromstring(svg)
    assert "gradient norm" in svg
    assert "currentColor" in svg
    assert "image/svg+xml" not in svg  # text that is read where a notebook drops the tags
    assert timeline_svg(history) == svg  # the same picture each time
    without = replace(
        history.timeline,
        columns={**history.timeline.columns, "loss": np.ones(len(history.steps))},
        matrices={},
    )
    assert "#c4372c" in svg.lower()
    assert svg.count("<use") > timeline_svg(replace(history, timeline=without)).count("<use")


def test_a_timeline_without_numbers_gives_no_plot(capture: Capture) -> None:
    history = history_of(capture)
    empty = Timeline({name: np.zeros(0) for name in history.timeline.columns}, {}, ())
    assert timeline_svg(replace(history, timeline=empty)) == ""
    columns = {name: np.asarray(column)[:1] for name, column in history.timeline.columns.items()}
    assert timeline_svg(replace(history, timeline=Timeline(columns, {}, ()))) == ""


def test_a_notebook_shows_captures_and_reports(capture: Capture) -> None:
    shown = capture._repr_html_()
    assert "loss is NaN" in Elements(shown).text
    assert "<svg" in shown
    assert '<p class="headline"><strong>' in shown  # bold where a notebook drops styles
    assert report_of().sentence.split("`")[0] in Elements(report_of()._repr_html_()).text
