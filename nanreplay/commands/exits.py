"""How an error becomes one line on stderr and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import sys

import click

from nanreplay.errors import NanreplayError, UnsafeProgramError, missing_package
from nanreplay.terminal import INTERRUPTED, UNDECIDED, UNREADABLE, code_of


def fail(error: BaseException) -> int:
    """Say in one line on stderr what went wrong; returns the exit code.

    With NANREPLAY_DEBUG set, an error that nobody foresaw is raised on.
    """
    if isinstance(error, click.BadParameter):
        error = _with_the_number_wanted(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"see {context.command_path} --help" if context is not None else None
        return _say(UNREADABLE, error.format_message(), hint)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say(INTERRUPTED, "interrupted")
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error) or error
    if isinstance(error, NanreplayError):
        advice = "--trust runs it all the same" if isinstance(error, UnsafeProgramError) else None
        return _say(code_of(error), str(error), error.hint or advice)
    if os.environ.get("NANREPLAY_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _say(UNREADABLE, f"{error.filename}: {error.strerror}.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _say(UNREADABLE, f"What was found could not be written: {error.strerror}.")
    message = f"unexpected {type(error).__name__}: {error}"
    return _say(UNDECIDED, message, "NANREPLAY_DEBUG=1 shows the traceback")


def _with_the_number_wanted(error: click.BadParameter) -> click.BadParameter:
    """The same error for a number, in the words of the other ones: click speaks of its types."""
    kind = error.param.type if error.param is not None else None
    given = re.match(r"'?(.*?)'? is not (?:a valid|in the range)", error.message)
    if not isinstance(kind, (click.IntRange, click.FloatRange)) or given is None:
        return error
    number = "a whole number" if isinstance(kind, click.IntRange) else "a number"
    beyond = "above" if kind.min_open else "of at least"
    least = f" {beyond} {kind.min:g}" if kind.min is not None else ""
    message = f"Expected {number}{least}. Received: {given[1]}"
    return click.BadParameter(message, error.ctx, error.param)


def leave(code: int) -> None:
    """End the process, without taking TensorFlow apart first.

    Graphs and kernels are let go of one by one at the end of Python, which takes 0.5 s of a command
    of a few. What is registered for the exit, such as the removal of temporary files, runs. Returns
    where output cannot be flushed: Python itself tells of that.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return
    atexit._run_exitfuncs()
    os._exit(code)


def _say(code: int, message: str, hint: str | None = None) -> int:
    text = " ".join(message.split())
    with contextlib.suppress(OSError):  # stderr may be closed; the code still tells
        click.echo(f"nanreplay: {text}" + (f" ({hint})" if hint else ""), err=True)
    return code
