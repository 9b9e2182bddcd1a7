"""`nanreplay triage`: bisect many captures, and group those that failed alike."""

from __future__ import annotations

import math
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay import limits
from nanreplay.commands.console import (
    CapturePath,
    as_json,
    check_pages,
    html_page,
    markdown_page,
    max_memory,
    print_json,
    progress_bar,
    trust,
    write_text,
)
from nanreplay.errors import OutputExistsError

if TYPE_CHECKING:
    from nanreplay.triage.failure_groups import TriageResult


@click.command("triage")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=CapturePath(path_type=str)
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="Processes that bisect side by side. Default: one a processor, as far as memory goes.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Let a Dask cluster bisect, such as tcp://host:8786; files must be there on its machines.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    help="Stop a capture that takes longer.",
)
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where answers are kept for the next run. Default: the user's cache folder.",
)
@click.option("--no-cache", is_flag=True, help="Bisect all of them anew, and keep nothing.")
@html_page
@markdown_page
@as_json
@trust
@max_memory
def command(
    paths: tuple[str, ...],
    workers: int | None,
    scheduler: str | None,
    timeout_s: float,
    cache: Path | None,
    no_cache: bool,
    html: Path | None,
    md: Path | None,
    as_json: bool,
    trust: bool,
) -> int:
    """Bisect many captures side by side, and group those that failed alike.

    PATH is a capture, a folder with all below it, a pattern, or a URL. Captures with the same
    cause, op, layers and line of code are one group, whatever the step and the rows. Of each group
    it says how often and when it was seen, in which runs, what happened, and which file is the
    smallest. A second run bisects only what is new. --max-memory holds for each worker.

    Exit codes: 0 all finite, 1 non-finite found, 2 none could be read, 3 could not decide for some.
    """
    _check(workers, scheduler, cache, no_cache)
    if not math.isfinite(timeout_s):
        raise click.UsageError("--timeout takes a number of seconds.")
    if sum([as_json, str(html) == "-", str(md) == "-"]) > 1:
        raise click.UsageError("Of --json, --html - and --md -, only one can go to stdout.")
    check_pages(html, md, paths[0])
    if html is not None or md is not None:
        import_module("nanreplay.triage.triage_pages")  # what it needs is missed now, not later
    from nanreplay.triage.triage_engine import WorkerOptions, triage

    with progress_bar() as reporter:
        if reporter.say is not None:
            reporter.say("bisecting")
        result = triage(
            paths,
            options=WorkerOptions(
                workers, scheduler, timeout_s, os.environ.get(limits.VARIABLE) or None, trust
            ),
            cache=None if no_cache else cache or _users_cache(),
            progress=reporter.progress,
        )
    if any(each.answer.is_stored for each in result.captures):
        click.echo(
            "nanreplay: TensorFlow is not installed, so these are the answers that the captures "
            "hold.",
            err=True,
        )
    for note in result.notes:
        click.echo(f"nanreplay: {note}", err=True)
    _write(result, html, md)
    if as_json:
        from nanreplay.triage.triage_text import triage_to_json

        print_json(triage_to_json(result))
    elif "-" not in (str(html), str(md)):
        from nanreplay.triage.triage_text import triage_lines

        for line in triage_lines(result):
            click.echo(line)
    return result.code


def _users_cache() -> Path | None:
    """The user's cache folder; None where it cannot be made, which costs only the next run time."""
    from nanreplay.triage.answer_cache import AnswerCache, default_cache_folder

    folder = default_cache_folder()
    try:
        AnswerCache(folder)
    except OutputExistsError as error:
        click.echo(f"nanreplay: {error} ({error.hint})", err=True)
        return None
    return folder


def _check(workers: int | None, scheduler: str | None, cache: Path | None, no_cache: bool) -> None:
    if workers is not None and scheduler is not None:
        raise click.UsageError("--workers are of this machine; a Dask cluster has its own.")
    if cache is not None and no_cache:
        raise click.UsageError("--cache and --no-cache exclude each other.")


def _write(result: TriageResult, html: Path | None, md: Path | None) -> None:
    if html is not None:
        from nanreplay.triage.triage_pages import triage_html

        write_text(html, triage_html(result))
    if md is not None:
        from nanreplay.triage.triage_pages import triage_markdown

        write_text(md, triage_markdown(result))
