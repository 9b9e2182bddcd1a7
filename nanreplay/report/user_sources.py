"""The user's lines that a capture holds, file by file, and the calls that led to the origin.

For pages about a capture and for the terminal interface. Imports no TensorFlow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanreplay.findings import Origin
from nanreplay.records import Frame, OpInfo

if TYPE_CHECKING:
    from nanreplay.capture import Capture


@dataclass(frozen=True)
class SourceLine:
    """One line of the user's code that made ops, or called what did."""

    line: int
    code: str | None
    """None when sources were left out of the capture."""
    function: str
    ops: int
    """How many ops of the programs it made itself."""
    is_failing: bool
    """Whether the origin was made here."""
    is_on_the_way: bool
    """Whether it is one of the calls that led to the origin."""


@dataclass(frozen=True)
class SourceFile:
    """Known lines of one file, ascending."""

    file: str
    lines: tuple[SourceLine, ...]


@dataclass(frozen=True)
class Sources:
    """What a capture knows of the user's code."""

    files: tuple[SourceFile, ...]
    """That of the origin first."""
    calls: tuple[Frame, ...]
    """Calls that led to the origin, outermost first; empty when it is not known."""

    @property
    def is_left_out(self) -> bool:
        """Whether the capture names lines without their text."""
        for file in self.files:
            if any(line.code is not None for line in file.lines):
                return False
        return bool(self.files)


def sources_of(capture: Capture, origin: Origin | None) -> Sources:
    """Return the user's lines of an open capture.

    Args:
        capture: The capture.
        origin: Where the non-finite value was born, when it is known.
    """
    frames, stacks = capture.frames, capture.stacks
    ops: list[OpInfo] = []
    for name in capture.programs:
        for op in capture.program(name).ops:
            if 0 <= op.stack < len(stacks):  # -1 stands for an op whose line is not known
                ops.append(op)
    # the innermost frame of an op's stack is the line that made it
    op_counts = Counter(stacks[op.stack][-1] for op in ops if stacks[op.stack])
    calls: Sequence[int] = ()
    if origin is not None and origin.source is not None:
        # Several stacks may end at the failing line. That of the op itself is right, where an op
        # of that name has one; another tells at least one way to the line.
        named = []
        for op in ops:
            if op.name == origin.op_name:
                named.append(stacks[op.stack])
        calls = _first_ending_at(origin.source, (*named, *stacks), frames)
    files = _files(frames, op_counts, calls, origin)
    return Sources(files, tuple(frames[index] for index in calls))


def _first_ending_at(
    source: Frame, stacks: Iterable[Sequence[int]], frames: Sequence[Frame]
) -> Sequence[int]:
    for stack in stacks:
        if stack and _is_at(frames[stack[-1]], source):
            return stack
    return ()


def _files(
    frames: Sequence[Frame],
    op_counts: Mapping[int, int],
    calls: Sequence[int],
    origin: Origin | None,
) -> tuple[SourceFile, ...]:
    """The lines of all frames by file, the origin's file first."""
    lines_of: dict[str, dict[int, SourceLine]] = {}
    failing = origin.source if origin is not None else None
    for index, frame in enumerate(frames):
        line = SourceLine(
            frame.line,
            frame.code,
            frame.function,
            op_counts.get(index, 0),
            failing is not None and _is_at(frame, failing),
            index in calls,
        )
        lines_of.setdefault(frame.file, {}).setdefault(frame.line, line)
    files = []
    for file, lines in lines_of.items():
        files.append(SourceFile(file, tuple(lines[number] for number in sorted(lines))))
    return tuple(sorted(files, key=lambda file: not _has_failing_line(file)))


def _has_failing_line(file: SourceFile) -> bool:
    return any(line.is_failing for line in file.lines)


def _is_at(frame: Frame, place: Frame) -> bool:
    return (frame.file, frame.line) == (place.file, place.line)
