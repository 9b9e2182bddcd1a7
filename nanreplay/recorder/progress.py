"""A progress bar on stderr for files that take longer than a second to write. It never fails and never shows in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

SHOWN_AFTER_S = 1.0
"""Quicker dumps show nothing."""


class DumpProgress:
    """Shows how far a dump is, when stderr is a terminal.

    Args:
        name: Name of the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._began_s = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None
        self._stage = ("", 0.0)
        self._done = 0.0
        self._usable = True

    def __enter__(self) -> DumpProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.stop()

    def stage(self, what: str, total: float) -> None:
        """Begin a stage: `writing` so many bytes, `replaying` so many steps."""
        self._stage, self._done = (what, total), 0.0
        self._show()

    def advance(self, amount: float) -> None:
        """Some of the stage is done."""
        self._done += amount
        self._show()

    def _show(self) -> None:
        if not self._usable or (self._bar is None and time.perf_counter() - self._began_s < SHOWN_AFTER_S):
            return
        try:
            self._draw()
        except Exception:  # stderr was closed, or is something else than a stream: nobody looks at it
            self._usable = False

    def _draw(self) -> None:
        if self._bar is None:
            if not sys.stderr.isatty():
                self._usable = False
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("")
            self._bar.start()
        what, total = self._stage
        self._bar.update(self._task, description=f"nanreplay: {what} {self._name}", total=total, completed=self._done)
