"""The user's lines that a capture holds, file by file, and the calls that led to the origin. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanreplay.findings import Origin
from nanreplay.records import Frame

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
        return bool(self.files) and all(line.code is None for file in self.files for line in file.lines)


def sources_of(capture: Capture, origin: Origin | None) -> Sources:
    """Return the user's lines of an open capture.

    Args:
        capture: The capture.
        origin: Where the non-finite value was born, when it is known.
    """
    frames, stacks = capture.frames, capture.stacks
    ops = [op for name in capture.programs for op in capture.program(name).ops]
    made: dict[int, int] = {}
    for op in ops:
        if 0 <= op.stack < len(stacks) and stacks[op.stack]:
            made[stacks[op.stack][-1]] = made.get(stacks[op.stack][-1], 0) + 1
    calls: Sequence[int] = ()
    if origin is not None and origin.source is not None:
        named = [stacks[op.stack] for op in ops if op.name == origin.op_name and 0 <= op.stack < len(stacks)]
        ends = [stack for stack in (*named, *stacks) if stack and _is_at(frames[stack[-1]], origin.source)]
        calls = ends[0] if ends else ()
    return Sources(_files(frames, made, calls, origin), tuple(frames[index] for index in calls))


def _files(frames: Sequence[Frame], made: dict[int, int], calls: Sequence[int], origin: Origin | None) -> tuple[SourceFile, ...]:
    found: dict[str, dict[int, SourceLine]] = {}
    failing = origin.source if origin is not None else None
    for index, frame in enumerate(frames):
        line = SourceLine(
            frame.line,
            frame.code,
            frame.function,
            made.get(index, 0),
            failing is not None and _is_at(frame, failing),
            index in calls,
        )
        found.setdefault(frame.file, {}).setdefault(frame.line, line)
    files = [SourceFile(file, tuple(line for _, line in sorted(lines.items()))) for file, lines in found.items()]
    return tuple(sorted(files, key=lambda each: not any(line.is_failing for line in each.lines)))


def _is_at(frame: Frame, place: Frame) -> bool:
    return (frame.file, frame.line) == (place.file, place.line)
