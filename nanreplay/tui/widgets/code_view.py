"""The user's code beside the ops: the lines around the one that made the op under the cursor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.records import Frame
from nanreplay.report.code_files import CodeFile, code_file


@dataclass(frozen=True)
class ColouredFile:
    """A file of code with its lines in colours."""

    code: CodeFile
    lines: Mapping[int, Content]
    """By number, ascending."""


def coloured(code: CodeFile) -> ColouredFile:
    """Colour a file; the first call imports Pygments: away from the event loop."""
    from textual.highlight import highlight

    text = "\n".join(line.splitlines()[0] if line else " " for line in code.lines.values())
    lines = highlight(text, language="python").split("\n", allow_blank=True)
    return ColouredFile(code, dict(zip(code.lines, lines, strict=False)))


def coloured_file(path: Location, file: str) -> ColouredFile:
    """Read a file of code of a capture, in colours.

    Args:
        path: The capture.
        file: As it was recorded.
    """
    with Capture(path) as capture:
        return coloured(code_file(capture, file))


class CodeView(Widget):
    """Lines of a file around a marked one, as many as fit."""

    DEFAULT_CSS = """
    CodeView { height: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.file: ColouredFile | None = None
        self.frame: Frame | None = None
        """The line that is marked; None for what no line of the user's made."""
        self.is_bad = False
        """Whether what the line made is not finite."""
        self.value = ""
        """What it gave at the failing element."""

    def show(
        self, file: ColouredFile | None, frame: Frame | None, *, is_bad: bool, value: str = ""
    ) -> None:
        """Mark a line.

        Args:
            file: The file of the line; None until it is read.
            frame: The line.
            is_bad: Whether what it made is not finite.
            value: What it gave at the failing element; "" for nothing to say.
        """
        self.file, self.frame, self.is_bad, self.value = file, frame, is_bad, value
        self.refresh()

    def render(self) -> Content:
        """Draw the title and the lines."""
        frame = self.frame
        if frame is None:
            return Content.styled("No line of your code made it.", "dim")
        name = frame.file.replace("\\", "/").rsplit("/", 1)[-1]
        where = "" if self.file is None or self.file.code.path is not None else ", as recorded"
        value = f"  → {self.value}" if self.value else ""
        title = Content.assemble(
            (f"{name}:{frame.line}", "bold"),
            f"  {frame.function}{where}",
            (value, "$text-error" if self.is_bad else "$text-accent"),
        )
        if self.file is None:
            return title
        return Content("\n").join([title, *self._lines(self.file, frame)])

    def _lines(self, file: ColouredFile, frame: Frame) -> list[Content]:
        numbers = list(file.lines)
        if frame.line not in file.lines:
            text = frame.code or "(the line was left out of the capture)"
            return [self._line(frame.line, Content(text), len(str(frame.line)), is_marked=True)]
        at, height = numbers.index(frame.line), max(self.size.height - 1, 1)
        first = max(min(at - height // 2, len(numbers) - height), 0)
        shown = numbers[first : first + height]
        width = len(str(shown[-1]))
        lines = []
        for number in shown:
            lines.append(
                self._line(number, file.lines[number], width, is_marked=number == frame.line)
            )
        return lines

    def _line(self, number: int, text: Content, width: int, *, is_marked: bool) -> Content:
        if not is_marked:
            return Content.assemble("  ", (f"{number:>{width}} ", "dim"), text)
        colour = "$text-error" if self.is_bad else "$text-accent"
        mark = ("✗ " if self.is_bad else "▸ ", f"bold {colour}")
        line = Content.assemble(mark, (f"{number:>{width}} ", "bold"), text)
        return line.stylize_before("on $boost")
