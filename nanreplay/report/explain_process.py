"""Explains a capture in a process of its own, for notebooks.

The kernel keeps its memory, its random numbers and its settings of TensorFlow, and an explanation
that takes too much memory ends alone. The process writes JSON lines to stdout: what it does, how
far it is, and the report.

Usage: python -m nanreplay.report.explain_process FILE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nanreplay.errors import NanreplayError, ReplayError, first_line, own_error

if TYPE_CHECKING:
    from nanreplay.report.contents import Report

MODULE = "nanreplay.report.explain_process"


def explain_elsewhere(
    path: str, progress: Callable[[int, int], None], say: Callable[[str], None]
) -> Report:
    """Explain a capture in another process, and wait for it.

    Args:
        path: The capture.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.

    Raises:
        ReplayError: It could not be explained; the message says why.
    """
    from nanreplay.recorder.explanations import child_environment
    from nanreplay.report.report_json import from_json

    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "report" in message:
                return from_json(message["report"], path)
            if "error" in message:
                raise ReplayError(message["error"])
            if "say" in message:
                say(message["say"])
            else:
                progress(*message["progress"])
        code = process.wait()
        raise ReplayError(
            f"The process that replays it ended with exit code {code}; a negative one names a "
            f"signal, and -9 is often a lack of memory. In a shell: nanreplay bisect {path}"
        )
    finally:  # an interrupt of the kernel comes here too
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> int:
    """Explain the capture that the command line names."""
    # what the recorded program prints goes to stderr
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    from nanreplay.report.explain import explain
    from nanreplay.report.report_json import to_json

    tell(say="loading TensorFlow")
    try:
        report = explain(
            sys.argv[1],
            progress=lambda done, total: tell(progress=[done, total]),
            say=lambda line: tell(say=line),
        )
    except NanreplayError as error:
        tell(error=first_line(error))
    except Exception as error:
        tell(error=own_error("It could not be explained", error))
    else:
        tell(report=to_json(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
