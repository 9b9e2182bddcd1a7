"""Stdout and stderr as commands write to them, whoever reads them.

A reader such as `head` may leave early, a terminal may know ASCII alone, and there may be no stdout
at all. None of this changes what a command finds, or the exit code that says it.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_ASCII = {
    "·": "-",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "…": "...",
    "\N{MULTIPLICATION SIGN}": "x",
    "≤": "<=",
    "≥": ">=",
    "│": "|",
    "─": "-",
    "└": "`",
    "├": "|",
    "█": "#",
    "▏": "|",
}
"""What stands for a character where a stream cannot write it; `?` for all others."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    unknown = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in unknown), error.end


codecs.register_error("nanreplay", _in_ascii)


class LastingStream:
    """A text stream that goes on when its reader has gone: what is written then is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """The stream's, but never ASCII.

        Click takes a stream that says ASCII for one that is set up wrongly, and writes UTF-8 to it.
        """
        encoding: str = getattr(self._stream, "encoding", None) or "utf-8"
        return "latin-1" if codecs.lookup(encoding).name == "ascii" else encoding

    def write(self, text: str) -> int:
        """Write to the stream, or to nobody."""
        with self._without_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or nobody's."""
        with self._without_reader():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is buffered is written again at exit. The descriptor leads nowhere from now on.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let commands write to stdout and stderr without a thought of who reads them."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for name, given in zip(("stdout", "stderr"), before, strict=True):
            # None where the process was started with it closed
            stream = given or opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:  # a stand-in of a test or a notebook writes all characters
                reconfigure(errors="nanreplay")
            setattr(sys, name, LastingStream(stream))
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            sys.stdout, sys.stderr = before
