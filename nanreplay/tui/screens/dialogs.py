"""What opens above a screen: a choice, keys to jump to, the help, an error.

The capture screen and the chooser push these dialogs; each gives its result to a callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from nanreplay.errors import CaptureError, NanreplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.tui.screens.closed_once import ClosedOnce
from nanreplay.tui.widgets.code_lines import with_code
from nanreplay.tui.widgets.figures import Facts
from nanreplay.tui.widgets.steady_list import SteadyList


class ChoiceScreen(ClosedOnce, ModalScreen[int | None]):
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
            yield SteadyList(
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


class JumpScreen(ClosedOnce, ModalScreen[Widget | None]):
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
        for target in self.targets.values():
            if target.region.contains(event.screen_x, event.screen_y):
                self.dismiss(target)
                return
        self.dismiss(None)

    def action_leave(self) -> None:
        """Return nothing."""
        self.dismiss(None)


_SHOWS_TAB = "show("
"""How the actions begin that show a tab, each by its digit."""
_A_ROW = 5
"""Keys of one action from which only the first and the last are named."""


class HelpKey(NamedTuple):
    """A key of the help."""

    shown: str
    """As it is written; several for one action have blanks between them."""
    about: str
    """What it does."""
    is_own: bool
    """Whether it belongs to what is shown, and not to the whole screen."""


class HelpScreen(ClosedOnce, ModalScreen[None]):
    """A text, and keys in two columns: those of the tab, and those that work everywhere.

    Args:
        title: Name of the tab.
        text: What it is for.
        keys: Keys, and what they do.
    """

    DEFAULT_CSS = """
    HelpScreen #help { height: auto; max-height: 100%; }
    HelpScreen #about { margin-bottom: 1; }
    HelpScreen #key-columns { height: auto; }
    HelpScreen .key-column { width: 1fr; height: auto; padding-right: 2; }
    HelpScreen .heading { color: $text-muted; text-style: bold; }
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

    def __init__(self, title: str, text: str, keys: list[HelpKey]) -> None:
        super().__init__()
        self.heading, self.text, self.keys = title, text, keys

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        own = [key for key in self.keys if key.is_own]
        others = [key for key in self.keys if not key.is_own]
        with Vertical(classes="dialog"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            with VerticalScroll(id="help"):
                yield Static(with_code(self.text), id="about", markup=False)
                with Horizontal(id="key-columns"):
                    for heading, keys in ((f"Keys of {self.heading}", own), ("Everywhere", others)):
                        if not keys:  # the others have the room of both
                            continue
                        with Vertical(classes="key-column"):
                            yield Static(heading, classes="heading", markup=False)
                            yield Facts((key.shown, key.about) for key in keys)

    def on_mount(self) -> None:
        """Let arrow keys scroll what does not fit."""
        self.query_one("#help").focus()


def working_keys(screen: Screen[Any]) -> list[HelpKey]:
    """List nanreplay's keys that work on a screen now; several for one action share a line.

    Keys of Textual's own, such as those that scroll, have no id and are left out.

    Args:
        screen: The screen whose widget has the focus.
    """
    keys_by_action: dict[tuple[str, str, bool], list[str]] = {}
    # Those of the tab itself come before those of the widget in it that has the focus.
    active_bindings = sorted(
        screen.active_bindings.values(), key=lambda active: len(active.node.ancestors)
    )
    for active in active_bindings:
        binding = active.binding
        about = binding.tooltip or binding.description
        if binding.action.startswith(_SHOWS_TAB):
            about, binding = "A tab, in their order", replace(binding, action=_SHOWS_TAB)
        if binding.id and not binding.system and about:
            is_own = not isinstance(active.node, (Screen, App))
            keys = keys_by_action.setdefault((binding.action, about, is_own), [])
            keys.append(screen.app.get_key_display(binding))
    # Two keys may be written alike: `?` and f1 share a key_display.
    return [
        HelpKey(_written(list(dict.fromkeys(keys))), about, is_own)
        for (_, about, is_own), keys in keys_by_action.items()
    ]


def _written(keys: list[str]) -> str:
    """Keys of one action: `← h`, `1 to 9`."""
    return " ".join(keys) if len(keys) < _A_ROW else f"{keys[0]} to {keys[-1]}"


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


class ErrorScreen(ClosedOnce, ModalScreen[None]):
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
