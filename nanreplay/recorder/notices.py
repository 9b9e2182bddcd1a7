"""What the recorder says: one line, with the user's own line as its place."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import NamedTuple


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int

    def __str__(self) -> str:
        """The place as an editor takes it."""
        return f"{self.file}:{self.line}"


class _Spoken:
    """How many lines were said in this process."""

    count = 0


def spoken() -> int:
    """Return how many lines were said in this process."""
    return _Spoken.count


def say(message: str, place: Place | None = None) -> None:
    """Warn of something.

    `warnings.warn` names a frame by its number, and how many of TensorFlow's, of Keras's and of
    ours lie above the user's is not known where a message is made.

    Args:
        message: What to say, without the name of the package.
        place: Where; unless given, the innermost line of the user's that is running, or the line
            that calls this where none is.
    """
    _Spoken.count += 1
    frame = _user_frame() or sys._getframe(1)
    where = place or Place(frame.f_code.co_filename, frame.f_lineno)
    is_here = where.file == frame.f_code.co_filename
    names = frame.f_globals if is_here else {}
    warnings.warn_explicit(
        f"nanreplay: {message}",
        UserWarning,
        where.file,
        where.line,
        module=names.get("__name__") or where.file,  # for None, Python drops the warning
        registry=names.setdefault("__warningregistry__", {}),
    )


def user_place() -> Place | None:
    """Return the innermost line of the user's code that is running; None where none is."""
    frame = _user_frame()
    return None if frame is None else Place(frame.f_code.co_filename, frame.f_lineno)


def _user_frame() -> FrameType | None:
    from nanreplay.program.op_facts import is_user_file  # imports TensorFlow

    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename, frame.f_code.co_name):
            return frame
        frame = frame.f_back
    return None
