"""`nanreplay report`: a page about a capture, to keep, to send, to paste into an issue."""

from __future__ import annotations

from pathlib import Path

import click

from nanreplay.commands.bisect import FIXES
from nanreplay.commands.console import (
    capture_file,
    check_output,
    max_memory,
    progress_bar,
    trust,
    write_text,
)
from nanreplay.terminal import CODES, UNDECIDED, quiet_work


@click.command("report")
@capture_file
@click.option(
    "--html",
    "html",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write one HTML page that needs no network.",
)
@click.option(
    "--md",
    "md",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write Markdown that reads well in an issue; - for stdout.",
)
@click.option(
    "--fixes/--no-fixes",
    "fixes",
    default=None,
    help="Try all fixes that fit the cause, or none; those that take under 5 s unless given.",
)
@trust
@max_memory
def command(file: str, html: Path | None, md: Path | None, fixes: bool | None, trust: bool) -> int:
    """Replay the failing step of FILE and write what was found as a page: sentence, plots, cause, fixes, op chain, tables.

    Exit codes: 0 healthy, 1 non-finite reproduced, 2 unreadable file or OUT, 3 could not decide.
    """
    from nanreplay.capture import Capture

    outputs = {name: path for name, path in (("html", html), ("md", md)) if path is not None}
    if not outputs:
        raise click.UsageError("Say what to write: --html OUT, --md OUT or both.")
    for path in outputs.values():
        check_output(path, file)
    Capture(file).close()  # a file that cannot be read says so before TensorFlow loads
    with quiet_work(), progress_bar() as watch:
        from nanreplay.report.explain import explain

        report = explain(
            file, trust=trust, fixes=FIXES[fixes], progress=watch.progress, say=watch.say
        )
    with Capture(file) as capture:
        from nanreplay.report.pages import page_of

        page = page_of(report, capture)
    for name, path in outputs.items():
        if name == "html":
            from nanreplay.report.pages import html_page

            write_text(path, html_page(page))
        else:
            from nanreplay.report.pages import markdown_page

            write_text(path, markdown_page(page))
    click.echo(report.sentence, err=str(md) == "-")
    return CODES.get(report.verdict.kind, UNDECIDED)
