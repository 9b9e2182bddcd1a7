"""What went wrong, why, and what to do: never a traceback over the screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from nanreplay.errors import CaptureError, NanreplayError, UnsafeProgramError, UnsupportedOpError

_WAYS_OUT: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        UnsafeProgramError,
        "This capture's program is refused",
        "If the capture is your own, open it again with --trust. What the tables hold can be read all the same.",
    ),
    (UnsupportedOpError, "This step cannot be run op by op", "The timeline and the facts of the run can be read all the same."),
    (CaptureError, "The file cannot be read", "Copy it again from where it was written; `nanreplay info` says what can be read of it."),
)


def explained(error: BaseException) -> tuple[str, str, str]:
    """Title, cause and way out of an error."""
    hint = error.hint if isinstance(error, NanreplayError) else None
    for kind, title, way_out in _WAYS_OUT:
        if isinstance(error, kind):
            return title, str(error), hint or way_out
    if isinstance(error, NanreplayError):
        return "This did not work", str(error), hint or "f5 tries it again."
    return "Something unexpected happened", f"{type(error).__name__}: {error}", "f5 tries it again; the rest of the program goes on."


class ErrorScreen(ModalScreen[None]):
    """An error above the screen; any of escape, enter or a click closes it.

    Args:
        error: What was raised.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close", id="error.close", tooltip="Close this message")]

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
