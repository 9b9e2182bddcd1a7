"""What opens above a screen: a choice, keys to jump to, the help, an error.

The capture screen and the chooser push these dialogs; each gives its result to a callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Button, DataTable, OptionList, Static
from textual.widgets.option_list import Option

from nanreplay.errors import CaptureError, NanreplayError, UnsafeProgramError, UnsupportedOpError


class ChoiceScreen(ModalScreen[int | None]):
    """A short list to choose from; returns the index of what was chosen, None when nothing was.

    Args:
        title: What is asked.
        labels: What can be chosen; the digits choose, too.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close", id="choice.close", tooltip="Choose nothing"),
        Binding("j", "move(1)", "Down", show=False, id="choice.down", tooltip="Down"),
        Binding("k", "move(-1)", "Up", show=False, id="choice.up", tooltip="Up"),
        *(
            Binding(str(number), f"take({number - 1})", show=False, id=f"choice.{number}")
            for number in range(1, 10)
        ),
    ]

    def __init__(self, title: str, labels: Sequence[str]) -> None:
        super().__init__()
        self.heading = title
        self.labels = tuple(labels)

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="dialog"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            yield OptionList(
                *(Option(f"{number}  {label}") for number, label in enumerate(self.labels, 1)),
                markup=False,
                compact=True,
            )

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def action_take(self, position: int) -> None:
        """Choose by number."""
        if position < len(self.labels):
            self.dismiss(position)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        options = self.query_one(OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)


JUMP_KEYS = "asdfghjklwertuiozxcvbnm"
"""Keys of targets, those under the fingers first; `q` is not one, since it closes."""


class JumpScreen(ModalScreen[Widget | None]):
    """Shows a key over each target; that key, or a click, returns the target.

    Args:
        targets: What can be jumped to, by key: tabs, and widgets that can take the focus.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close", id="jump.close", tooltip="Stay")
    ]

    DEFAULT_CSS = """
    JumpScreen { align: left top; background: $background 40%; }
    JumpScreen .jump-key {
        width: 3; height: 1; position: absolute;
        background: $accent; color: $background; text-style: bold;
    }
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
        under_mouse = (
            target
            for target in self.targets.values()
            if target.region.contains(event.screen_x, event.screen_y)
        )
        self.dismiss(next(under_mouse, None))

    def action_leave(self) -> None:
        """Return nothing."""
        self.dismiss(None)


Key = tuple[str, str]
"""A key as it is written, and what it does."""


class HelpScreen(ModalScreen[None]):
    """A text and a table of keys.

    Args:
        title: Name of the tab.
        text: What it is for.
        keys: Keys, and what they do.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape,q,question_mark,f1",
            "dismiss",
            "Close",
            id="help.close",
            tooltip="Close the help",
        ),
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
        for key, about in self.keys:
            table.add_row(Text(key, style="bold"), Text(about))
        table.focus()


def working_keys(screen: Screen[Any]) -> list[Key]:
    """List the keys that work on a screen now; several for one action share a line.

    Args:
        screen: The screen whose widget has the focus.
    """
    keys_by_action: dict[Key, list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        about = binding.tooltip or binding.description
        if not binding.system and about:
            keys = keys_by_action.setdefault((binding.action, about), [])
            keys.append(screen.app.get_key_display(binding))
    # Two keys may be written alike: `?` and f1 share a key_display.
    return [(" ".join(dict.fromkeys(keys)), about) for (_, about), keys in keys_by_action.items()]


_WAYS_OUT: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        UnsafeProgramError,
        "This capture's program is refused",
        "If the capture is your own, open it again with --trust. "
        "What the tables hold can be read all the same.",
    ),
    (
        UnsupportedOpError,
        "This step cannot be run op by op",
        "The timeline and the facts of the run can be read all the same.",
    ),
    (
        CaptureError,
        "The file cannot be read",
        "Copy it again from where it was written; `nanreplay info` says what can be read of it.",
    ),
)
"""Class of an error, title, and way out; the first that fits holds."""


def error_words(error: BaseException) -> tuple[str, str, str]:
    """Title, cause and way out of an error; the error's own hint comes before the usual one."""
    hint = error.hint if isinstance(error, NanreplayError) else None
    for kind, title, way_out in _WAYS_OUT:
        if isinstance(error, kind):
            return title, str(error), hint or way_out
    if isinstance(error, NanreplayError):
        return "This did not work", str(error), hint or "f5 tries it again."
    return (
        "Something unexpected happened",
        f"{type(error).__name__}: {error}",
        "f5 tries it again; the rest of the program goes on.",
    )


class ErrorScreen(ModalScreen[None]):
    """An error above the screen; any of escape, enter or a click closes it.

    Args:
        error: What was raised.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape,enter,q", "dismiss", "Close", id="error.close", tooltip="Close this message"
        )
    ]

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        title, cause, way_out = error_words(self.error)
        with Vertical(classes="dialog -error"):
            yield Static(f"✗ {title}", classes="dialog-title", markup=False)
            with VerticalScroll(classes="dialog-body"):
                yield Static(cause, markup=False)
                yield Static(way_out, classes="way-out", markup=False)
            yield Button("Close", id="close", compact=True)

    def on_button_pressed(self) -> None:
        """Close the message."""
        self.dismiss()
