"""The source pane: the user's lines of code, from the capture, with the failing one marked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.findings import Origin
from nanreplay.report.contents import Report
from nanreplay.report.user_sources import SourceFile, SourceLine, Sources, sources_of
from nanreplay.tui.capture_state import CaptureState
from nanreplay.tui.panes.base import Copyable, Pane

_LINES_ABOVE = 3
"""Lines above the failing one when it is scrolled to."""
_LEFT_OUT = 'Source left out: recorded with sources="none". Files and lines are named all the same.'


class SourcePane(Pane):
    """Lines of code that made ops, file by file, and the calls that led to the failing one."""

    HELP = (
        "The lines of your code that made the recorded ops, from the capture. ✗ marks the line "
        "where the non-finite value was made, │ the calls that led to it. A capture recorded with "
        'sources="none" names lines without their text.'
    )
    DEFAULT_CSS = """
    SourcePane #page { padding: 0 1; }
    SourcePane Static { width: auto; min-width: 100%; }
    SourcePane #page { overflow-x: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f",
            "failing",
            "Failing line",
            id="source.failing",
            tooltip="Scroll to the failing line",
        ),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.sources: Sources | None = None
        self._read_for: Origin | None = None
        """The origin that was known when the lines were read."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with VerticalScroll(id="page", can_focus=True):
            yield Static("Reading the capture ...", id="lines", markup=False)

    def on_mount(self) -> None:
        """Read the lines."""
        self.read()

    def show_report(self, report: Report) -> None:
        """Mark the failing line; reports come again with each fix."""
        if self._read_for != report.findings.origin:
            self.read()

    @work(exclusive=True, group="sources", exit_on_error=False)
    async def read(self) -> None:
        """Read the lines from the capture."""
        # In a thread: the table of ops can be long, and a key waits for the event loop.
        path, self._read_for = self.state.opened.path, self.origin
        self.sources = await asyncio.to_thread(_read_sources, path, self.origin)
        self.query_one("#lines", Static).update(Content("\n").join(_lines(self.sources)))

    def action_failing(self) -> None:
        """Scroll to the failing line."""
        if self.sources is None:
            return
        marked = (i for i, line in enumerate(_lines(self.sources)) if line.plain.startswith("✗"))
        position = next(marked, None)
        if position is None:
            self.notify("No line of your code made it.", severity="warning")
        else:
            top = max(position - _LINES_ABOVE, 0)
            self.query_one("#page").scroll_to(y=top, animate=False)

    def copies(self) -> Sequence[Copyable]:
        """The failing line."""
        source = self.origin.source if self.origin is not None else None
        if source is None:
            return []
        copies = [Copyable("file and line", f"{source.file}:{source.line}")]
        if source.code:
            copies.append(Copyable("the failing line", source.code))
        return copies

    def as_text(self) -> str:
        """The lines."""
        if self.sources is None:
            return ""
        return "\n".join(line.plain for line in _lines(self.sources))


def _read_sources(path: Location, origin: Origin | None) -> Sources:
    with Capture(path) as capture:
        return sources_of(capture, origin)


def _lines(sources: Sources) -> Iterator[Content]:
    """All that the pane shows: the calls that led to the failing op, then file by file."""
    if not sources.files:
        yield Content("No line of your code is in the capture.")
        return
    if sources.is_left_out:
        yield Content.styled(_LEFT_OUT, "$text-warning")
        yield Content("")
    if sources.calls:
        yield Content.styled("Calls that led to the failing op", "bold")
        for depth, frame in enumerate(sources.calls):
            is_last = depth == len(sources.calls) - 1
            yield Content.assemble(
                ("✗ " if is_last else "│ ", "bold $text-error"),
                f"{PurePath(frame.file).name}:{frame.line}",
                (f"  in {frame.function}", "dim"),
            )
        yield Content("")
    for file in sources.files:
        yield from _file_lines(file)


def _file_lines(file: SourceFile) -> Iterator[Content]:
    """A file's name and its lines; `⋮` stands for lines that made no op."""
    yield Content.styled(file.file, "bold underline")
    width, before = len(str(file.lines[-1].line)), None
    for line in file.lines:
        if before is not None and line.line > before + 1:
            yield Content.styled(f"  {'⋮'.rjust(width)}", "dim")
        before = line.line
        yield _code_line(line, width)
    yield Content("")


def _code_line(line: SourceLine, width: int) -> Content:
    mark = "  "
    if line.is_failing:
        mark = "✗ "
    elif line.is_on_the_way:
        mark = "│ "
    code = line.code if line.code is not None else f"(left out; in {line.function})"
    ops = f"   {line.ops} op{'s' if line.ops > 1 else ''}" if line.ops else ""
    return Content.assemble(
        (mark, "bold $text-error"),
        (f"{line.line:>{width}} ", "dim"),
        (code, "bold" if line.is_failing else ""),
        (ops, "dim"),
    )
