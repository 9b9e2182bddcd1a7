"""What commands share: options, printing, progress.

Results go to stdout, all else to stderr, and progress shows only where stderr is a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import click

from nanreplay import limits
from nanreplay.errors import CaptureNotFoundError
from nanreplay.terminal import new_bar

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console

# Options and arguments of several commands, as decorators.

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
html_page = click.option(
    "--html",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write one HTML page that needs no network.",
)
markdown_page = click.option(
    "--md",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write Markdown that reads well in an issue; - for stdout.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Print the sentence alone.")
trust = click.option(
    "--trust",
    is_flag=True,
    help="Run programs that reach files, the network or processes. Only for captures of your own.",
)


def _set_limit(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if limits.parse_size(value) is None:
        raise click.BadParameter(f"{value!r} is no size. Write one such as 8GiB.")
    # in the environment, so that it holds for the worker process of the terminal interface too
    os.environ[limits.VARIABLE] = value
    if not limits.HOLDS_PROCESSES:
        click.echo(
            "nanreplay: --max-memory refuses tensors and programs that would take more; only Linux "
            "also holds the process itself to it.",
            err=True,
        )


max_memory = click.option(
    "--max-memory",
    metavar="SIZE",
    expose_value=False,
    callback=_set_limit,
    help="Use no more memory, such as 8GiB. Default: three quarters of the machine's.",
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


class CapturePath(click.Path):
    """A path that a shell completes to captures, and to folders that may hold some."""

    endings: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")
    """How the files are named that it completes to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, which is not empty: `pathlib` would take the working folder for it."""
        if value == "":
            raise CaptureNotFoundError("A path is empty; `.` is the folder that you are in.")
        return super().convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files and folders that begin so; where no file fits, what the shell offers."""
        from click.shell_completion import CompletionItem

        folder, name = os.path.split(incomplete)
        try:
            entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
        except OSError:
            return []
        begun = [entry for entry in entries if entry.name.startswith(name)]
        fitting = [entry for entry in begun if entry.name.endswith(self.endings)]
        if not fitting:
            return [CompletionItem(incomplete, type="file")]
        files, folders = [], []
        for entry in begun:
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                folders.append(f"{path}/")
            elif entry in fitting and entry.is_file():
                files.append(path)
        return [CompletionItem(path) for path in (*files, *folders)]


class ScriptPath(CapturePath):
    """A path that a shell completes to Python files, and to folders."""

    endings = (".py",)


capture_files = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=CapturePath(path_type=str)
)
capture_file = click.argument("file", metavar="FILE", type=CapturePath(path_type=str))
fixes_or_none = click.option(
    "--fixes/--no-fixes",
    "fixes",
    default=None,
    help="Try all fixes that fit the cause, or none. Default: all where each takes no longer than "
    "20 eager steps, else about 5 s of work.",
)
FIXES: dict[bool | None, Literal["fast", "all", "none"]] = {
    None: "fast",
    True: "all",
    False: "none",
}
"""What `explain` tries, by the value of `--fixes/--no-fixes`."""


# Files and printing.


def check_readable(*files: str) -> None:
    """Let a capture that cannot be read say so before TensorFlow loads.

    Raises:
        CaptureError: One cannot be read.
    """
    from nanreplay.capture import Capture

    for file in files:
        Capture(file).close()


def print_result(
    value: Any, as_json: bool, lines: Callable[[Any], Iterable[str]], to_json: Callable[[Any], Any]
) -> None:
    """Print what a command found as JSON or as lines for people.

    Args:
        value: What it found.
        as_json: Whether the command line has `--json`.
        lines: Puts it into lines.
        to_json: Puts it into plain JSON values.
    """
    if as_json:
        print_json(to_json(value))
        return
    for line in lines(value):
        click.echo(line)


def results_console() -> Console:
    """Rich's console for results; in a file or pipe tables are 140 characters wide."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140
    return Console(file=sys.stdout, highlight=False, width=width)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def check_output(path: Path, capture: str = "") -> None:
    """Say now, not after the work, that a file cannot be written.

    Args:
        path: The file.
        capture: The capture that the command reads; "" for none.

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


def check_pages(html: Path | None, md: Path | None, capture: str) -> None:
    """Say now that a page cannot be written, or that two pages are to be one file.

    Raises:
        ClickException: As of `check_output`.
        UsageError: Both are the same file.
    """
    for path in filter(None, (html, md)):
        check_output(path, capture)
    if html is not None and md is not None and os.path.realpath(html) == os.path.realpath(md):
        raise click.UsageError(f"--html and --md are both {html}: give each a file of its own.")


def write_text(path: Path, text: str) -> None:
    """Write all of `text` to `path`, or leave what is there; "-" is stdout.

    Raises:
        ClickException: It cannot be written.
    """
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    from nanreplay.capture.temporary import written_whole

    try:
        with written_whole(path) as temporary:
            # a file's name may hold bytes that are no text
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror}.") from error


# Progress.


@dataclass(frozen=True)
class ProgressReporter:
    """Whom long work tells how far it is; nobody, when stderr is no terminal."""

    progress: Callable[[int, int], None] | None = None
    """Called with (steps done, steps in all)."""
    say: Callable[[str], None] | None = None
    """Called with a line before each part of the work."""


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressReporter]:
    """A progress bar on stderr while work goes on, when that is a terminal."""
    if not sys.stderr.isatty():
        yield ProgressReporter()
        return
    with new_bar(shows_counts=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield ProgressReporter(
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=lambda line: bar.update(task, description=line, completed=0, total=None),
        )
