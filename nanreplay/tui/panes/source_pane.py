"""The source pane: the user's lines of code, from the capture, with the failing one marked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.findings import Origin
from nanreplay.records import Frame
from nanreplay.report.contents import Report
from nanreplay.report.user_sources import SourceFile, SourceLine, Sources, sources_of
from nanreplay.tui.capture_state import CaptureState, ViewPosition
from nanreplay.tui.panes.base import Copyable, Go, Pane

_LEFT_OUT = 'Source left out: recorded with sources="none". Files and lines are named all the same.'


class SourcePane(Pane):
    """Lines of code that made ops, file by file, and the calls that led to the failing one."""

    HELP = (
        "The lines of your code that made the recorded ops, from the capture. ✗ marks the line "
        "where the non-finite value was made, │ the calls that led to it. enter shows the ops of a "
        "line in the bisect tab, o opens your editor there. A capture recorded with "
        'sources="none" names lines without their text.'
    )
    DEFAULT_CSS = """
    SourcePane OptionList {
        height: 1fr; border: none; background: $background;
        &.-textual-compact { padding: 0 1; }
        text-wrap: nowrap; text-overflow: ellipsis;
        & > .option-list--option-disabled { color: $foreground; }
        & > .option-list--option-highlighted, &:focus > .option-list--option-highlighted {
            background: $primary 30%; color: $foreground;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f",
            "failing",
            "Failing line",
            id="source.failing",
            tooltip="Go to the failing line",
        ),
        Binding("j", "line(1)", "Down", show=False, id="source.down", tooltip="One line down"),
        Binding("k", "line(-1)", "Up", show=False, id="source.up", tooltip="One line up"),
    ]

    def __init__(self, state: CaptureState) -> None:
        super().__init__(state)
        self.sources: Sources | None = None
        self._colours: Colours = {}
        self._read_for: Origin | None = None
        """The origin that was known when the lines were read."""
        self._frames: dict[str, Frame] = {}
        """Lines of code by the id of their line here."""
        self._wanted: Frame | None = None
        """The line that another tab has sent the user to."""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield OptionList(id="lines", markup=False, compact=True)

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
        self.sources, self._colours = await asyncio.to_thread(_read_sources, path, self.origin)
        self._show_lines()

    @property
    def lines(self) -> OptionList:
        """The lines, those without code among them."""
        return self.query_one("#lines", OptionList)

    def _show_lines(self) -> None:
        if self.sources is None:
            return
        options, self._frames = [], {}
        for i, (line, frame) in enumerate(_lines(self.sources, self._colours)):
            if frame is not None:
                self._frames[str(i)] = frame
            options.append(Option(line, id=str(i), disabled=frame is None))
        self.lines.set_options(options)
        wanted = self._wanted or self.frame()
        self._go_to(wanted or next(iter(self._frames.values()), None))

    def _go_to(self, frame: Frame | None) -> bool:
        """Put the cursor on a line of a file; tell whether it is here.

        The calls at the top name the line as well: its own place is the last one.
        """
        found = [key for key, known in self._frames.items() if frame and _is_same(known, frame)]
        if found:
            self.lines.highlighted = self.lines.get_option_index(found[-1])
            self.call_after_refresh(self.lines.scroll_to_highlight, top=False)
        return bool(found)

    def show_place(self, place: ViewPosition) -> None:
        """Go to a line of code, once the lines are read."""
        self._wanted = place.frame
        self._go_to(place.frame)

    def frame(self) -> Frame | None:
        """The line at the cursor; before the lines are read, the failing one."""
        position = self.lines.highlighted
        key = None if position is None else self.lines.get_option_at_index(position).id
        return self._frames[key] if key in self._frames else super().frame()

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        """Show the ops that a line made."""
        event.stop()
        frame = self._frames.get(event.option.id or "")
        if frame is not None:
            place = ViewPosition(self.state.failing_step, frame=frame)
            self.post_message(Go("bisect", place))

    def action_line(self, by: int) -> None:
        """Move by a line."""
        if by > 0:
            self.lines.action_cursor_down()
        else:
            self.lines.action_cursor_up()

    def action_failing(self) -> None:
        """Go to the failing line."""
        source = self.origin.source if self.origin is not None else None
        if source is None or not self._go_to(source):
            self.notify("No line of your code made it.", severity="warning")

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
        return "\n".join(line.plain for line, _ in _lines(self.sources, self._colours))


def _read_sources(path: Location, origin: Origin | None) -> tuple[Sources, Colours]:
    """The lines, and the same in colours: colouring takes too long for the event loop."""
    from textual.highlight import highlight

    with Capture(path) as capture:
        sources = sources_of(capture, origin)
    colours = {}
    for file in sources.files:
        lines = [line for line in file.lines if line.code is not None]
        code = "\n".join(" ".join(str(line.code).splitlines()) or " " for line in lines)
        coloured = highlight(code, language="python").split("\n", allow_blank=True)
        pairs = zip(lines, coloured, strict=False)
        colours.update({(file.file, line.line): text for line, text in pairs})
    return sources, colours


Colours = Mapping[tuple[str, int], Content]
"""Lines of code in colours, by file and number."""
_Line = tuple[Content, Frame | None]
"""A line that is shown, and the line of code that it names."""


def _lines(sources: Sources, colours: Colours) -> Iterator[_Line]:
    """All that the pane shows: the calls that led to the failing op, then file by file."""
    if not sources.files:
        yield Content("No line of your code is in the capture."), None
        return
    if sources.is_left_out:
        yield Content.styled(_LEFT_OUT, "$text-warning"), None
        yield Content(""), None
    if sources.calls:
        yield Content.styled("Calls that led to the failing op", "bold"), None
        for depth, frame in enumerate(sources.calls):
            is_last = depth == len(sources.calls) - 1
            call = Content.assemble(
                ("✗ " if is_last else "│ ", "bold $text-error"),
                f"{PurePath(frame.file).name}:{frame.line}",
                (f"  in {frame.function}", "dim"),
            )
            yield call, frame
        yield Content(""), None
    for file in sources.files:
        yield from _file_lines(file, colours)


def _file_lines(file: SourceFile, colours: Colours) -> Iterator[_Line]:
    """A file's name and its lines; `⋮` stands for lines that made no op."""
    yield Content.styled(file.file, "bold underline"), None
    width, before = len(str(file.lines[-1].line)), None
    for line in file.lines:
        if before is not None and line.line > before + 1:
            yield Content.styled(f"  {'⋮'.rjust(width)}", "dim"), None
        before = line.line
        code = colours.get((file.file, line.line))
        yield _code_line(line, code, width), Frame(file.file, line.line, line.function, line.code)
    yield Content(""), None


def _is_same(frame: Frame, other: Frame) -> bool:
    return (frame.file, frame.line) == (other.file, other.line)


def _code_line(line: SourceLine, code: Content | None, width: int) -> Content:
    mark = "  "
    if line.is_failing:
        mark = "✗ "
    elif line.is_on_the_way:
        mark = "│ "
    if code is None:
        code = Content(line.code or f"(left out; in {line.function})")
    ops = f"   {line.ops} op{'s' if line.ops > 1 else ''}" if line.ops else ""
    return Content.assemble(
        (mark, "bold $text-error"),
        (f"{line.line:>{width}} ", "dim"),
        code.stylize("bold") if line.is_failing else code,
        (ops, "dim"),
    )
