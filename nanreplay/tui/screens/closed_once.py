"""`ClosedOnce`, for all screens that a key closes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.await_complete import AwaitComplete
from textual.screen import Screen

if TYPE_CHECKING:
    _Base = Screen[Any]
else:
    # Textual takes styles from the first base that is a widget: that is the screen beside this.
    _Base = object


class ClosedOnce(_Base):
    """A screen that is closed once, however fast a key comes again.

    Textual closes whatever screen is on top when a second key reaches one that was closed a moment
    ago, and in the end has none left.
    """

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close the screen, unless that was done.

        Args:
            result: What whoever opened it gets.
        """
        return super().dismiss(result) if self.is_active else AwaitComplete()
