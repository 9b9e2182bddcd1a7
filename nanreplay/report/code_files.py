"""A user's file as code: as it is on this machine where it has not changed, else as recorded.

The terminal interface shows ops beside their lines. Imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanreplay.capture import Capture
from nanreplay.records import Frame
from nanreplay.report.first_look import text_of
from nanreplay.report.fix_patch import find_source


@dataclass(frozen=True)
class CodeFile:
    """A file of the user's code, or what the capture holds of it."""

    file: str
    """As it was recorded."""
    lines: Mapping[int, str]
    """Text by number, ascending; recorded lines have no indentation."""
    path: str | None
    """Where the whole file is on this machine; None where it is not, or has changed."""


def code_file(capture: Capture, file: str) -> CodeFile:
    """Return a file whose lines made ops.

    The file on this machine is taken when every line of it that was recorded still stands there.

    Args:
        capture: An open capture.
        file: As frames name it.
    """
    recorded = {}
    for frame in capture.frames:
        if frame.file == file and frame.code is not None:
            recorded[frame.line] = frame.code
    path = find_source(file, str(capture.path))
    text = text_of(path) if path is not None else []
    if recorded and all(_still_stands(text, line, code) for line, code in recorded.items()):
        return CodeFile(file, dict(enumerate(text, 1)), str(path))
    return CodeFile(file, {line: recorded[line] for line in sorted(recorded)}, None)


def _still_stands(text: list[str], line: int, code: str) -> bool:
    first = code.splitlines()[0].strip() if code.strip() else ""
    return 1 <= line <= len(text) and text[line - 1].strip() == first


def path_to_edit(capture: str, frame: Frame) -> str | None:
    """Return where a frame's file is on this machine, changed or not; None where it is not."""
    path = find_source(frame.file, capture)
    return None if path is None else str(path)
