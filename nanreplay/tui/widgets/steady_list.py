"""`SteadyList`, the list of options that dialogs and panes show."""

from __future__ import annotations

import contextlib

from textual._widget_navigation import Direction
from textual.widgets import OptionList


class SteadyList(OptionList):
    """Textual's own; page keys that come before its lines are drawn do not end the program."""

    def _move_page(self, direction: Direction) -> None:
        """Move by a page; Textual looks the cursor up among lines that it has not laid out yet.

        Args:
            direction: -1 for up, 1 for down.
        """
        with contextlib.suppress(KeyError, IndexError):
            super()._move_page(direction)
