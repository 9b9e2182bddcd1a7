"""What the file alone says of a failure, before anything is replayed: lines of code and the batch.

The first screen and the batch pane read it in a thread. Needs no TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.diagnose.keras_lines import is_call_of_keras
from nanreplay.errors import NanreplayError
from nanreplay.explore import BatchView
from nanreplay.findings import Origin
from nanreplay.records import Frame
from nanreplay.report.batch_reader import BatchReader
from nanreplay.report.fix_patch import find_source
from nanreplay.report.user_sources import sources_of

_LINES_AROUND = 8
"""Lines before and after the marked one, at most; those of another function are left out."""
_DEFINITION = re.compile(r"\s*(async\s+)?def\s")


@dataclass(frozen=True)
class CodeLine:
    """One line of the user's code."""

    number: int
    text: str
    """With its indentation where the file is on this machine, else without."""
    is_marked: bool


@dataclass(frozen=True)
class CodeExcerpt:
    """The lines around one that matters."""

    file: str
    function: str
    lines: tuple[CodeLine, ...]
    role: str
    """What the marked line is, in words."""


@dataclass(frozen=True)
class FirstLook:
    """What the file says; a part is None where the file does not hold it."""

    code: CodeExcerpt | None
    batch: BatchView | None


def first_look(path: Location, batches: BatchReader, origin: Origin | None, step: int) -> FirstLook:
    """Read the marked line and the batch of a step.

    Args:
        path: The capture file.
        batches: Reads its batches.
        origin: What failed, once it is known; before that, the user's last line before the loss is
            marked.
        step: The step whose batch is read.
    """
    try:
        with Capture(path) as capture:
            code = _excerpt(capture, origin)
    except NanreplayError:  # the sources are damaged; the batch may be whole
        code = None
    try:
        batch = batches.view(step, origin)
    except NanreplayError:  # the batch of this step is not held, or damaged
        batch = None
    return FirstLook(code, batch)


# The source


def _excerpt(capture: Capture, origin: Origin | None) -> CodeExcerpt | None:
    frame = origin.source if origin is not None else _last_own_line(capture)
    if frame is None or frame.code is None:
        return None
    if is_call_of_keras(frame.code):
        role = "Keras is called here"
    else:
        role = "the line that failed" if origin is not None else "your last line before the loss"
    lines = _lines_on_disk(frame, str(capture.path)) or _recorded_lines(capture, origin, frame)
    return CodeExcerpt(frame.file, frame.function, tuple(lines), role)


def _last_own_line(capture: Capture) -> Frame | None:
    """The user's line that made the last op of the loss, else of the layers, before the gradients.

    A line that only starts a training is taken where there is no other.
    """
    frames, stacks = capture.frames, capture.stacks
    step = capture.incident.step
    if step not in capture.steps or not (program := capture.batch(step).program):
        return None
    lines: dict[str, Frame] = {}
    for op in capture.program(program).ops:
        if op.phase in ("loss", "forward") and 0 <= op.stack < len(stacks) and stacks[op.stack]:
            frame = frames[stacks[op.stack][-1]]
            lines["call" if is_call_of_keras(frame.code) else op.phase] = frame
    return lines.get("loss") or lines.get("forward") or lines.get("call")


def _lines_on_disk(frame: Frame, capture: str) -> list[CodeLine]:
    """The lines around a recorded one, of the file as it is now; none where it has changed."""
    path = find_source(frame.file, capture)
    text = text_of(path) if path is not None else []
    at = frame.line - 1
    if not 0 <= at < len(text) or text[at].strip() != str(frame.code).splitlines()[0].strip():
        return []
    block = _function_around(text, at)
    first, end = max(at - _LINES_AROUND, block.start), min(at + _LINES_AROUND + 1, block.stop)
    return [CodeLine(i + 1, text[i], i == at) for i in range(first, end)]


def _function_around(text: Sequence[str], at: int) -> range:
    """The lines of the function that a line stands in; all lines where it stands in none."""
    inner = _indentation(text[at])
    starts = (
        i
        for i in range(at - 1, -1, -1)
        if _DEFINITION.match(text[i]) and _indentation(text[i]) < inner
    )
    start = next(starts, None)
    if start is None:
        return range(len(text))
    outer = _indentation(text[start])
    for i in range(at + 1, len(text)):
        if text[i].strip() and _indentation(text[i]) <= outer:
            return range(start, i)
    return range(start, len(text))


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def text_of(path: Path) -> list[str]:
    """Return the lines of a file of code; none where it cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8").expandtabs(4).splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _recorded_lines(capture: Capture, origin: Origin | None, frame: Frame) -> list[CodeLine]:
    """The recorded lines of a file that are nearest to one of them."""
    files = {}
    for file in sources_of(capture, origin).files:
        files[file.file] = file.lines
    lines = []
    for line in files.get(frame.file, ()):
        if line.code is not None:
            lines.append(line)
    numbers = [line.line for line in lines]
    if frame.line not in numbers:
        return [CodeLine(frame.line, str(frame.code), True)]
    at = numbers.index(frame.line)
    shown = lines[max(at - _LINES_AROUND, 0) : at + _LINES_AROUND + 1]
    return [CodeLine(line.line, str(line.code), line.line == frame.line) for line in shown]
