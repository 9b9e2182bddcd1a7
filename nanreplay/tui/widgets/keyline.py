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
        """Column and words of the keys that fit; those of the help and the palette come last and always fit."""
        keys = {key: (key, shown, said) for key, shown, said in self._keys()}
        last = [*[keys.pop(key) for key in ("question_mark", "f1") if key in keys][:1], ("ctrl+p", "^p", "Palette")]
        keys.pop("ctrl+p", None)
        room, column = self.size.width - sum(_width(*each) for each in last), 0
        for each in keys.values():
            if column + _width(*each) > room:
                break
            yield column, *each
            column += _width(*each)
        for each in last:
            yield column, *each
            column += _width(*each)

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


def _width(_: str, shown: str, said: str) -> int:
    return cell_len(f"{shown} {said}  ")
