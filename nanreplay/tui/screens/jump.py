"""Jump mode: a key on everything that can take the focus, and on every tab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

KEYS = "asdfghjklwertuiozxcvbnm"


class JumpScreen(ModalScreen[Widget | None]):
    """Shows a key over each target; that key, or a click, returns the target.

    Args:
        targets: Targets by key.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "Close", id="jump.close", tooltip="Stay")]

    DEFAULT_CSS = """
    JumpScreen { align: left top; background: $background 40%; }
    JumpScreen .jump-key { width: 3; height: 1; position: absolute; background: $accent; color: $background; text-style: bold; }
    """

    def __init__(self, targets: Mapping[str, Widget]) -> None:
        super().__init__()
        self.targets = targets

    def compose(self) -> ComposeResult:
        """Put each key over its target."""
        for key, target in self.targets.items():
            label = Static(f" {key} ", classes="jump-key", markup=False)
            label.styles.offset = (target.region.x, target.region.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        """Return the target of a key."""
        if event.key in self.targets:
            event.stop()
            self.dismiss(self.targets[event.key])

    def on_click(self, event: events.Click) -> None:
        """Return the target under the mouse."""
        found = (target for target in self.targets.values() if target.region.contains(event.screen_x, event.screen_y))
        self.dismiss(next(found, None))

    def action_leave(self) -> None:
        """Return nothing."""
        self.dismiss(None)
