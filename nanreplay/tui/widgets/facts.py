"""Facts in two columns: a name, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

_NAME = 11
"""Columns of the names."""


class Facts(Widget):
    """Names to the left, values to the right; a value may take several lines. One widget, however many facts there are."""

    DEFAULT_CSS = "Facts { height: auto; }"

    def __init__(self, facts: Iterable[tuple[str, Content | str]] = (), *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.facts: Sequence[tuple[str, Content]] = _kept(facts)

    def show(self, facts: Iterable[tuple[str, Content | str]]) -> None:
        """Show other facts; those without a value are left out."""
        self.facts = _kept(facts)
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many lines the facts take at a width."""
        return len(self._lines(width))

    def render(self) -> Content:
        """Draw the facts."""
        return Content("\n").join(self._lines(self.size.width))

    def _lines(self, width: int) -> list[Content]:
        lines = []
        for name, value in self.facts:
            parts = value.wrap(max(width - _NAME, 10))
            lines.append(Content.assemble((name.ljust(_NAME), "$text-primary"), *parts[:1]))
            lines += [Content.assemble(" " * _NAME, part) for part in parts[1:]]
        return lines


def _kept(facts: Iterable[tuple[str, Content | str]]) -> Sequence[tuple[str, Content]]:
    return tuple((name, Content(value) if isinstance(value, str) else value) for name, value in facts if value)
