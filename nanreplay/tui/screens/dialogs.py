"""What went wrong, why, and what to do: never a traceback over the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, DataTable, OptionList, Static
from textual.widgets.option_list import Option

from nanreplay.errors import CaptureError, NanreplayError, UnsafeProgramError, UnsupportedOpError

# A short list to choose from: what to copy, how to export.


class ChoiceScreen(ModalScreen[int | None]):
    """Returns the index of what was chosen, None when nothing was.

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

    def action_take(self, place: int) -> None:
        """Choose by number."""
        if place < len(self.labels):
            self.dismiss(place)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        choice = self.query_one(OptionList)
        choice.action_cursor_down() if by > 0 else choice.action_cursor_up()

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)


# Jump mode: a key on everything that can take the focus, and on every tab.

KEYS = "asdfghjklwertuiozxcvbnm"


class JumpScreen(ModalScreen[Widget | None]):
    """Shows a key over each target; that key, or a click, returns the target.

    Args:
        targets: Targets by key.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close", id="jump.close", tooltip="Stay")
    ]

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
        found = (
            target
            for target in self.targets.values()
            if target.region.contains(event.screen_x, event.screen_y)
        )
        self.dismiss(next(found, None))

    def action_leave(self) -> None:
        """Return nothing."""
        self.dismiss(None)


# Help for what has the focus: what the tab is for, and all keys that work there.

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
        found.setdefault((binding.action, binding.tooltip or binding.description), []).append(
            key_display[key]
        )
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
        for key, said in self.keys:
            table.add_row(Text(key, style="bold"), Text(said))
        table.focus()


# --- tui.screens.error

_WAYS_OUT: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        UnsafeProgramError,
        "This capture's program is refused",
        "If the capture is your own, open it again with --trust. What the tables hold can be read all the same.",
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


def explained(error: BaseException) -> tuple[str, str, str]:
    """Title, cause and way out of an error."""
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
        title, cause, way_out = explained(self.error)
        with Vertical(classes="dialog -error"):
            yield Static(f"✗ {title}", classes="dialog-title", markup=False)
            with VerticalScroll(classes="dialog-body"):
                yield Static(cause, markup=False)
                yield Static(way_out, classes="way-out", markup=False)
            yield Button("Close", id="close", compact=True)

    def on_button_pressed(self) -> None:
        """Close the message."""
        self.dismiss()
