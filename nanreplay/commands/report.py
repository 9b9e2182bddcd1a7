"""`nanreplay report`: a page about a capture, to keep, to send, to paste into an issue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay.commands.answers import explaining
from nanreplay.commands.console import (
    capture_file,
    check_pages,
    check_readable,
    fixes_or_none,
    html_page,
    markdown_page,
    max_memory,
    trust,
    write_text,
)
from nanreplay.terminal import CODES, UNDECIDED

if TYPE_CHECKING:
    from nanreplay.report.contents import Report


@click.command("report")
@capture_file
@html_page
@markdown_page
@fixes_or_none
@trust
@max_memory
def command(file: str, html: Path | None, md: Path | None, fixes: bool | None, trust: bool) -> int:
    """Replay the failing step of FILE and write what was found as a page.

    It has the sentence, plots, the cause, fixes, the op chain and tables. Where TensorFlow is not
    installed, it is made of the answer that is stored in FILE.

    Exit codes: 0 healthy, 1 non-finite reproduced, 2 unreadable file or OUT, 3 could not decide.
    """
    if html is None and md is None:
        raise click.UsageError("Say what to write: --html OUT, --md OUT or both.")
    check_pages(html, md, file)
    check_readable(file)
    with explaining(fixes, trust) as explained:
        report = explained(file)
    _write_pages(report, file, html, md)
    click.echo(report.sentence, err=str(md) == "-")  # with --md -, stdout is the page's
    return CODES.get(report.verdict.kind, UNDECIDED)


def _write_pages(report: Report, file: str, html: Path | None, md: Path | None) -> None:
    from nanreplay.capture import Capture
    from nanreplay.report.markdown import markdown_page
    from nanreplay.report.pages import html_page, page_of

    with Capture(file) as capture:
        page = page_of(report, capture)
    if html is not None:
        write_text(html, html_page(page))
    if md is not None:
        write_text(md, markdown_page(page))
    for path in filter(None, (html, md)):
        if str(path) != "-":
            click.echo(f"nanreplay: wrote {path}", err=True)
