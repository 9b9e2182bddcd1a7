"""The last line: the few keys that matter here. One widget, where Textual's footer makes one a key and is slower to change."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget


class KeyLine(Widget):
    """Keys of what has the focus, then those of the screen, as many as fit; a click does what the key does."""

    DEFAULT_CSS = """
    KeyLine { height: 1; padding: 0 1; background: $panel; color: $foreground; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def on_mount(self) -> None:
        """Draw anew when other keys work."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if self.is_attached:
            self.refresh()

    def _keys(self) -> Iterator[tuple[str, str, str]]:
        """Key, how it is written, and what it does; several keys of one action once."""
        seen = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and binding.action not in seen:
                seen.add(binding.action)
                yield binding.key, self.app.get_key_display(binding), binding.description

    def _placed(self) -> Iterator[tuple[int, str, str, str]]:
        """The keys that fit, each with its column; the palette's key comes last and always fits."""
        keys, column = list(self._keys()), 0
        palette = ("ctrl+p", "^p", "palette")
        for key, shown, said in [key for key in keys if key[0] != "ctrl+p"]:
            width = cell_len(f"{shown} {said}  ")
            if column + width + len("^p palette") > self.size.width:
                break
            yield column, key, shown, said
            column += width
        yield column, *palette

    def render(self) -> Content:
        """Draw the keys."""
        return Content.assemble(*(part for _, _, shown, said in self._placed() for part in ((shown, "bold $text-accent"), f" {said}  ")))

    def on_click(self, event: events.Click) -> None:
        """Do what the key under the mouse does."""
        x = event.x - self.styles.padding.left
        for column, key, shown, said in self._placed():
            if column <= x < column + cell_len(f"{shown} {said}"):
                self.app.simulate_key(key)
                return
