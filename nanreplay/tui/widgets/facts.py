"""Facts in two columns: a name, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static


class Facts(Vertical):
    """Names to the left, values to the right; a value may take several lines."""

    DEFAULT_CSS = """
    Facts { height: auto; }
    Facts > Horizontal { height: auto; }
    Facts .fact-name { width: 11; color: $text-primary; }
    Facts .fact-value { width: 1fr; height: auto; }
    """

    def __init__(self, facts: Iterable[tuple[str, Content | str]] = (), *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.facts: Sequence[tuple[str, Content | str]] = tuple(facts)

    def compose(self) -> ComposeResult:
        """Make a row a fact."""
        for name, value in self.facts:
            with Horizontal():
                yield Static(name, classes="fact-name", markup=False)
                yield Static(value, classes="fact-value", markup=False)

    def show(self, facts: Iterable[tuple[str, Content | str]]) -> None:
        """Show other facts; those without a value are left out."""
        self.facts = tuple((name, value) for name, value in facts if value)
        if self.is_attached:
            self.refresh(recompose=True)
