"""`nanreplay logs`: what logs and checkpoints tell of a training that nobody recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import (
    as_json,
    check_pages,
    html_page,
    markdown_page,
    max_memory,
    print_json,
    progress_bar,
    write_text,
)
from nanreplay.terminal import FINITE, NONFINITE, UNDECIDED, UNREADABLE

if TYPE_CHECKING:
    from nanreplay.logs.log_answer import LogAnswer


def _check_pattern(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    try:
        groups = re.compile(value).groupindex
    except re.error as error:
        raise click.BadParameter(f"is no regular expression: {error}.", context, option) from error
    if not groups:
        raise click.BadParameter(r"has no named group, such as (?P<loss>\S+).", context, option)
    return value


@click.command("logs")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "--pattern",
    metavar="REGEX",
    callback=_check_pattern,
    help=r"Lines of a console log of your own, such as 'it (?P<step>\d+) L=(?P<loss>\S+)'.",
)
@click.option(
    "--script",
    metavar="FILE",
    default="train.py",
    show_default=True,
    help="The file of your program, for the line that records it.",
)
@html_page
@markdown_page
@as_json
@max_memory
def command(
    paths: tuple[str, ...],
    pattern: str | None,
    script: str,
    html: Path | None,
    md: Path | None,
    as_json: bool,
) -> int:
    """Read logs and checkpoints of a training that nobody recorded: when did it go wrong, and how?

    PATH is a file, a folder with all below it, a pattern, or a URL: TensorBoard's event files,
    CSVLogger's and History's files, JSON lines, MLflow's and W&B's local files, console output;
    .keras, .weights.h5, .h5, TensorFlow checkpoints, SavedModels. Nothing in them is run, and
    TensorFlow is not needed.

    Exit codes: 0 finite, 1 non-finite found, 2 unreadable, 3 could not decide.
    """
    check_pages(html, md, paths[0])
    from nanreplay.logs.log_answer import answer
    from nanreplay.logs.run_reader import read_runs

    with progress_bar() as reporter:
        read = read_runs(paths, pattern=pattern, progress=reporter.progress, say=reporter.say)
        answers = list(map(answer, read.runs))
    _write_pages(answers, read.problems, script, html, md)
    if as_json:
        from nanreplay.logs.log_json import logs_to_json

        print_json(logs_to_json(answers, read.problems, script))
    elif str(md) != "-":
        _print(answers, script)
    for problem in read.problems:
        click.echo(f"nanreplay: {' '.join(problem.split())}", err=True)
    return _code(answers)


def _print(answers: list[LogAnswer], script: str) -> None:
    from nanreplay.logs.log_text import log_lines

    for place, each in enumerate(answers):
        if place:
            click.echo()
        for line in log_lines(each, script, has_name=len(answers) > 1):
            click.echo(line)


def _write_pages(
    answers: list[LogAnswer],
    problems: tuple[str, ...],
    script: str,
    html: Path | None,
    md: Path | None,
) -> None:
    if html is None and md is None:
        return
    from nanreplay.logs.log_pages import logs_html, logs_markdown

    if html is not None:
        write_text(html, logs_html(answers, problems, script))
    if md is not None:
        write_text(md, logs_markdown(answers, problems, script))


def _code(answers: list[LogAnswer]) -> int:
    statuses = {each.status for each in answers}
    if "nonfinite" in statuses:
        return NONFINITE
    if all(each.status == "undecided" and each.run.checkpoints for each in answers):
        return UNREADABLE  # also where there is none
    return UNDECIDED if "undecided" in statuses else FINITE
