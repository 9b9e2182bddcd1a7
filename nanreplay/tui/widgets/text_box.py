"""`TextBox`, for text that changes with a cursor.

Textual's `Static` lays out the whole screen anew at each change, which takes longer than all else
that a key does.
"""

from __future__ import annotations

from textual.visual import VisualType
from textual.widgets import Static


class TextBox(Static):
    """Text whose box is laid out anew only where it takes another number of lines."""

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show another text.

        Args:
            content: The text.
            layout: Whether a box whose height follows the text is laid out anew when that changes.
        """
        before = self._line_count()
        super().update(content, layout=False)
        if layout and (before is None or self._line_count() != before):
            self.refresh(layout=True)

    def _line_count(self) -> int | None:
        """Lines that the text takes; None before the box has a size, -1 where it never counts."""
        if self.styles.height is not None and not self.styles.is_auto_height:
            return -1
        width = self.content_size.width
        return self.visual.get_height(self.styles.get_rules(), width) if width else None
