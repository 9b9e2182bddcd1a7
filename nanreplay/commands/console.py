"""What commands share: results go to stdout, all else to stderr; progress only where somebody watches."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nanreplay import limits


@dataclass(frozen=True)
class ProgressReporter:
    """Whom long work tells how far it is; nobody, when stderr is no terminal."""

    progress: Callable[[int, int], None] | None = None
    """Called with (steps done, steps in all)."""
    say: Callable[[str], None] | None = None
    """Called with a line before each part of the work."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
trust = click.option(
    "--trust",
    is_flag=True,
    help="Run programs that reach files, the network or processes. Only for captures of your own.",
)


def _set_limit(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if limits.parse_size(value) is None:
        raise click.BadParameter(f"{value!r} is no size; give one such as 8GiB.")
    os.environ[limits.VARIABLE] = (
        value  # holds for the worker process of the terminal interface too
    )


max_memory = click.option(
    "--max-memory",
    metavar="SIZE",
    expose_value=False,
    callback=_set_limit,
    help="Refuse what takes more memory, such as 8GiB. Default: three quarters of the machine's.",
)
output_file = click.option(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    type=click.Path(path_type=str),
    help="The file to write.",
)
force = click.option("--force", is_flag=True, help="Replace files that exist.")
capture_files = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=str)
)
capture_file = click.argument("file", metavar="FILE", type=click.Path(path_type=str))


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def check_output(path: Path, capture: str) -> None:
    """Say now, not after the work, that a file cannot be written.

    Raises:
        ClickException: It is a folder, lies in none, or is the capture itself.
    """
    if str(path) == "-":
        return
    if path.is_dir():
        raise click.ClickException(f"Cannot write {path}: it is a folder.")
    if not path.absolute().parent.is_dir():
        raise click.ClickException(
            f"Cannot write {path}: the folder {path.absolute().parent} does not exist."
        )
    if path.exists() and os.path.exists(capture) and path.samefile(capture):
        raise click.ClickException(f"Cannot write {path}: it is the capture.")


def write_text(path: Path, text: str) -> None:
    """Write all of `text` to `path`, or leave what is there; "-" is stdout.

    Raises:
        ClickException: It cannot be written.
    """
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise click.ClickException(f"Cannot write {path}: {error.strerror}.") from error


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressReporter]:
    """A progress bar on stderr while work goes on, when that is a terminal."""
    if not sys.stderr.isatty():
        yield ProgressReporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield ProgressReporter(
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=lambda line: bar.update(task, description=line, completed=0, total=None),
        )
