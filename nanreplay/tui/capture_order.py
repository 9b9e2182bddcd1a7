"""Which captures the list shows and in which order: filtered, sorted, the same failures together.

Knows nothing of the terminal: cells are text. Pure Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ListedCapture:
    """What the list knows of a capture."""

    name: str
    """Identifies it; the list shows its end."""
    cells: Mapping[str, str]
    """Text by column; "" where nothing is known."""
    sentence: str = ""
    """What replaying says of it, or why it cannot be read."""
    fingerprint: str = ""
    """The same for the same failure; "" where none is known."""


@dataclass(frozen=True)
class CaptureOrder:
    """How the list is arranged."""

    column: str = ""
    """The column that it is sorted by; "" for the order in which captures were named."""
    together: bool = False
    """Whether captures of the same failure stand together, the most frequent failure first."""
    words: str = ""
    """Only captures are shown that have each of these words in a cell or in their sentence."""

    def sorted_by_next(self, columns: Sequence[str]) -> CaptureOrder:
        """Sort by the next column; after the last one, by none."""
        choices = ["", *columns]
        place = choices.index(self.column) + 1
        return replace(self, column=choices[place % len(choices)])

    def arranged(self, captures: Sequence[ListedCapture]) -> list[ListedCapture]:
        """Return the captures that are shown, in their order."""
        shown = []
        for capture in captures:
            if self._is_wanted(capture):
                shown.append(capture)
        if self.column:
            shown.sort(key=self._place_in_column)
        if self.together:
            shown = _by_failure(shown)
        return shown

    def described(self, shown: int, captures: Sequence[ListedCapture]) -> str:
        """Say what the list shows: `3 of 12 captures · sorted by cause · 2 failures`."""
        count = len(captures)
        parts = [f"{count} captures" if shown == count else f"{shown} of {count} captures"]
        if self.words:
            parts.append(f"with {self.words!r}")
        if self.column:
            parts.append(f"sorted by {self.column}")
        if self.together:
            failures = len({each.fingerprint for each in captures if each.fingerprint})
            parts.append(f"{failures} different failure{'' if failures == 1 else 's'}")
        return " · ".join(parts)

    def _is_wanted(self, capture: ListedCapture) -> bool:
        text = "\n".join([*capture.cells.values(), capture.name, capture.sentence]).lower()
        return all(word in text for word in self.words.lower().split())

    def _place_in_column(self, capture: ListedCapture) -> tuple[bool, bool, float, str]:
        """Unknown cells come last; numbers are sorted as numbers, before text."""
        text = capture.cells.get(self.column, "")
        is_number = text.lstrip("-").isdecimal()
        return not text, not is_number, float(text) if is_number else 0.0, text.lower()


def _by_failure(captures: Sequence[ListedCapture]) -> list[ListedCapture]:
    """Put the same failures together, those without a known failure last, else as they were."""
    counts = Counter(each.fingerprint for each in captures if each.fingerprint)
    first: dict[str, int] = {}
    for place, each in enumerate(captures):
        first.setdefault(each.fingerprint, place)
    return sorted(
        captures,
        key=lambda each: (
            not each.fingerprint, -counts[each.fingerprint], first[each.fingerprint]
        ),
    )  # fmt: skip
