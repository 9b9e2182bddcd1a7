"""Where the user came through: back, forward, and the line that shows the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from rich.text import Text

T = TypeVar("T")
_SHOWN_BEFORE, _SHOWN_AFTER = 4, 2
"""Places before and after the present one that are named."""


class Trail(Generic[T]):
    """A way through places, as a browser keeps it: going somewhere new drops what lay ahead."""

    def __init__(self) -> None:
        self.places: list[T] = []
        self.at = -1
        """Position of the present place; -1 on an empty way."""

    @property
    def place(self) -> T | None:
        """Where the user is; None on an empty way."""
        return self.places[self.at] if self.at >= 0 else None

    def begin(self, place: T) -> None:
        """Begin a new way."""
        self.places, self.at = [place], 0

    def go(self, place: T) -> None:
        """Go on; where that is the present place, stay."""
        if self.place != place:
            self.places[self.at + 1 :] = [place]
            self.at += 1

    def move(self, by: int) -> T | None:
        """Go back (-1) or forward (1); None at the end of the way, which stays as it is."""
        if not 0 <= self.at + by < len(self.places):
            return None
        self.at += by
        return self.places[self.at]

    def text(self, title: Callable[[T], str]) -> Text:
        """The way as a line: the present place bold, what lies ahead dim."""
        first = max(self.at - _SHOWN_BEFORE, 0)
        shown = Text("… → " if first else "")
        for i in range(first, min(self.at + _SHOWN_AFTER + 1, len(self.places))):
            style = "bold" if i == self.at else "dim"
            shown.append(" → " if i > first else "", "dim").append(title(self.places[i]), style)
        return shown


def end_words(by: int) -> str:
    """What is said at an end of the way."""
    return "This is where you began." if by < 0 else "Nothing lies ahead: this is the last place."
