"""Help for what has the focus: what the tab is for, and all keys that work there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

Key = tuple[str, str]


def keys_of(bindings: Mapping[str, ActiveBinding], key_display: Mapping[str, str]) -> Iterator[Key]:
    """Keys that work, several for one action on one line, and what they do.

    Args:
        bindings: `screen.active_bindings`.
        key_display: How each key is written.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for key, active in bindings.items():
        binding = active.binding
        if binding.system or not (binding.tooltip or binding.description):
            continue
        found.setdefault((binding.action, binding.tooltip or binding.description), []).append(key_display[key])
    for (_, said), keys in found.items():
        yield " ".join(dict.fromkeys(keys)), said


class HelpScreen(ModalScreen[None]):
    """A text and a table of keys.

    Args:
        title: Name of the tab.
        text: What it is for.
        keys: Keys, and what they do.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "Close", id="help.close", tooltip="Close the help"),
    ]

    def __init__(self, title: str, text: str, keys: list[Key]) -> None:
        super().__init__()
        self.heading, self.text, self.keys = title, text, keys

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="dialog -tall-dialog"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            with VerticalScroll(classes="dialog-body", can_focus=False):
                yield Static(self.text, markup=False)
            yield DataTable(id="keys", cursor_type="row", show_header=False, zebra_stripes=True)

    def on_mount(self) -> None:
        """Fill the table."""
        table = self.query_one(DataTable)
        table.add_columns("key", "what it does")
        for key, said in self.keys:
            table.add_row(Text(key, style="bold"), Text(said))
        table.focus()
