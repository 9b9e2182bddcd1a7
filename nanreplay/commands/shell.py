"""`nanreplay shell`: an IPython session with the failing step's tensors by name."""

from __future__ import annotations

import linecache
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from nanreplay.commands.console import (
    capture_file,
    check_readable,
    max_memory,
    progress_bar,
    trust,
)
from nanreplay.errors import MissingPackageError, missing_package
from nanreplay.terminal import FINITE, NONFINITE, quiet_work

if TYPE_CHECKING:
    from nanreplay.replay import Replay

_BANNER = """{sentence}

trace[name]   tensors of step {step}: {example}
report        the answer: report.sentence, report.findings.origin, report.causes
at(step)      tensors of another step of the window
batch(step)   arrays of a batch, by where they sit in it
capture, replay, np"""
_SHELL = "<nanreplay shell>"
"""What tracebacks call the code of -c."""


@click.command("shell")
@capture_file
@click.option(
    "-c", "code", metavar="CODE", help="Run CODE with the same names, and leave; `-` reads it."
)
@max_memory
@trust
def command(file: str, code: str | None, trust: bool) -> int:
    """Open an IPython session with the failing step of FILE.

    The step is replayed and explained; then `trace["dense_1/Relu:0"]` is a tensor of it as a numpy
    array, `at(11)` has those of step 11, `report` has the answer. IPython comes with
    `pip install 'nanreplay[shell]'`; with -c it is not needed.

    Exit codes: 0 left, 2 unreadable file or IPython is missing; with -c, 1 where CODE raised.
    """
    check_readable(file)
    if code is None:
        _check_ipython()
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.capture import Capture
        from nanreplay.replay import Replay
        from nanreplay.report.explain import explain_replay

        capture = Capture(file)
        replay = Replay(capture, trust=trust)
        explained = explain_replay(replay, progress=reporter.progress, say=reporter.say)
    try:
        names = _names(replay, explained)
        if code is not None:
            return _run(sys.stdin.read() if code == "-" else code, names)
        from IPython import start_ipython

        click.echo(_banner(names))
        start_ipython(argv=["--no-banner"], user_ns=names)
    finally:
        replay.close()
        capture.close()
    return FINITE


def _run(code: str, names: dict[str, Any]) -> int:
    """Run the user's code as a session would, and return the exit code."""
    try:
        exec(compile(code, _SHELL, "exec"), names)
    except Exception as error:
        # As `python -c` shows it: the user's frames alone, with their lines.
        linecache.cache[_SHELL] = (len(code), None, code.splitlines(keepends=True), _SHELL)
        own = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(type(error), error, own)
        return NONFINITE
    return FINITE


def _check_ipython() -> None:
    """Say that IPython is missing before anything is replayed."""
    try:
        import IPython  # noqa: F401
    except ImportError as error:
        missing: MissingPackageError | None = missing_package(error)
        raise missing or error from error


def _names(replay: Replay, explained: Any) -> dict[str, Any]:
    """What the session has."""
    import numpy as np

    from nanreplay.explore import Explorer
    from nanreplay.explore.step_tensors import StepTensors

    report, explorer = explained.report(), Explorer(replay, explained.bisection)
    origin = report.findings.origin
    step = origin.step if origin is not None else replay.incident.step

    def at(step: int) -> StepTensors:
        """Return the tensors of a step of the window."""
        return StepTensors(explorer, step)

    def batch(step: int = step) -> dict[str, Any]:
        """Return the arrays of a batch, by where they sit in it."""
        record = replay.capture.batch(step)
        return dict(zip(record.paths, record.leaves, strict=True))

    return {
        "trace": at(step),
        "report": report,
        "at": at,
        "batch": batch,
        "capture": replay.capture,
        "replay": replay,
        "np": np,
    }


def _banner(names: dict[str, Any]) -> str:
    trace, report = names["trace"], names["report"]
    origin = report.findings.origin
    name = origin.op_name if origin is not None and origin.op_name else next(iter(trace))
    return _BANNER.format(sentence=report.sentence, step=trace.step, example=f'trace["{name}"]')
