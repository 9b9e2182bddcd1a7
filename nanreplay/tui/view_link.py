"""Links to a view: `bisect:OP`, as `nanreplay open FILE --at` takes them and copying gives them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from nanreplay.errors import NanreplayError
from nanreplay.tui.panes import PANES

_STEP_PANES = ("timeline", "batch")
"""Tabs whose place is a step."""
_OP_PANES = ("bisect", "dataflow", "tensor")
"""Tabs whose place is an op of the failing step."""


class ViewLinkError(NanreplayError, ValueError):
    """A link that names no view."""


@dataclass(frozen=True, slots=True)
class ViewLink:
    """A tab, and what it is to show."""

    pane: str
    """Id of the tab, as in `PANES`."""
    op_name: str | None = None
    """Name of an op of the failing step; None for what the tab shows by itself."""
    output: int = 0
    """Which of the op's outputs."""
    step: int | None = None
    """A step; None for the failing one."""


def parse_link(text: str) -> ViewLink:
    """Take a link apart.

    Args:
        text: A tab (`source`), a tab and an op (`bisect:dense/Log`, `tensor:dense/Log:1` for its
            second output), or a tab and a step (`timeline:12`).

    Raises:
        ViewLinkError: There is no such tab, or it has no such places.
    """
    pane, _, place = text.strip().partition(":")
    ids = [entry.id for entry in PANES]
    if pane not in ids:
        raise ViewLinkError(f"There is no tab {pane!r}. There are: {', '.join(ids)}.")
    if not place:
        return ViewLink(pane)
    if pane in _STEP_PANES:
        if not place.isdecimal():
            raise ViewLinkError(f"The tab {pane} takes a step, such as {pane}:12; not {place!r}.")
        return ViewLink(pane, step=int(place))
    if pane not in _OP_PANES:
        raise ViewLinkError(f"The tab {pane} takes no place: use --at {pane}.")
    name, colon, output = place.rpartition(":")
    if colon and output.isdecimal():
        return ViewLink(pane, name, int(output))
    return ViewLink(pane, place)


def link_command(path: str, pane: str, op_name: str, output: int = 0) -> str:
    """Return the command that opens a view, ready for a shell."""
    place = f"{op_name}:{output}" if output else op_name
    return f"nanreplay open {shlex.quote(path)} --at {shlex.quote(f'{pane}:{place}')}"
