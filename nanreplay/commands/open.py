"""`nanreplay open`: the terminal interface. Files are checked before any screen opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import CapturePath, max_memory, progress_bar, trust
from nanreplay.errors import CaptureError, OutputExistsError
from nanreplay.terminal import FINITE

if TYPE_CHECKING:
    from nanreplay.capture.storage import Location
    from nanreplay.logs.log_answer import LogAnswer


@click.command("open")
@click.argument("paths", metavar="FILE... | FOLDER", nargs=-1, required=True, type=CapturePath())
@click.option(
    "--at",
    "at",
    metavar="TAB[:PLACE]",
    help="Begin at a tab, an op or a step: source, bisect:dense/Log, timeline:12.",
)
@trust
@max_memory
def command(paths: Sequence[str], at: str | None, trust: bool) -> int:
    """Read the answer for FILE, see how the run got there, walk back from the NaN, try fixes.

    The result can be copied. Several files, or a folder, open a list of captures to choose from.
    Logs and checkpoints of a training that nobody recorded are shown as `nanreplay logs` reads
    them. Needs a terminal; `nanreplay bisect` prints the same answer.

    Exit codes: 0 left, 2 unreadable file, or no terminal.
    """
    link = None
    if at is not None:
        from nanreplay.tui.view_link import parse_link

        link = parse_link(at)
    try:
        captures = readable_captures(paths)
    except CaptureError:
        answers = _logs(paths)
        if not answers:
            raise
        _check_terminal("nanreplay logs PATH")
        from nanreplay.tui.logs_app import show_logs

        show_logs(answers)
        return FINITE
    if link is not None and len(captures) != 1:
        raise click.UsageError("--at takes one capture")
    from nanreplay.tui import show

    _check_terminal("nanreplay bisect FILE")
    show(captures, trust=trust, at=link)
    return FINITE


def _check_terminal(instead: str) -> None:
    import_module("textual")  # what is not installed is said before what else would be in the way
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        what = "open needs a terminal."
    elif os.environ.get("TERM") == "dumb":  # such as a shell within Emacs: it has no cursor
        what = "open needs a terminal that moves its cursor, and TERM=dumb has none."
    else:
        return
    raise click.UsageError(f"{what} `{instead}` prints the answer; --json is for programs.")


def _logs(paths: Sequence[str]) -> list[LogAnswer]:
    """What logs and checkpoints under the paths tell; [] where there are none."""
    from nanreplay.logs.log_answer import answer
    from nanreplay.logs.run_reader import read_runs

    if any(map(_is_capture, paths)):
        return []  # what stands beside a capture is taken for one
    with progress_bar() as reporter:
        read = read_runs(paths, progress=reporter.progress, say=reporter.say)
    answers = []
    for run in read.runs:
        # A folder of checkpoints none of which could be read is no log.
        if run.series or any(each.variables for each in run.checkpoints):
            answers.append(answer(run))
    return answers


def _is_capture(path: str) -> bool:
    from nanreplay.capture.storage import location

    try:
        _check(location(path))
    except CaptureError:
        return False
    return True


def readable_captures(paths: Sequence[str]) -> list[Location]:
    """The capture files that are named, and those of the folders.

    Raises:
        CaptureError: A named file cannot be read, or a folder holds no capture.
    """
    from nanreplay.capture.storage import location

    captures: dict[Location, None] = {}  # a set that keeps the order
    for path in map(location, paths):
        if isinstance(path, Path) and path.is_dir():
            captures.update(dict.fromkeys(_in_folder(path)))
        else:
            _check(path)
            captures[path] = None
    return list(captures)


def _in_folder(folder: Path) -> list[Location]:
    """The captures of a folder as `nanreplay triage` finds them, damaged ones too.

    Raises:
        CaptureError: There are none, or all are damaged.
    """
    from nanreplay.triage.answer_cache import AnswerCache, default_cache_folder
    from nanreplay.triage.found_captures import find_captures

    try:  # of thousands of files, only those are opened that no triage has found in order
        known = AnswerCache(default_cache_folder())
    except OutputExistsError:
        known = AnswerCache(None)
    found = find_captures([str(folder)], known.knows)
    errors = [each.error for each in found if each.error is not None]
    if len(errors) == len(found):
        raise errors[0]
    return [each.where for each in found]


def _check(path: Location) -> None:
    from nanreplay.capture import Capture

    Capture(path).close()
