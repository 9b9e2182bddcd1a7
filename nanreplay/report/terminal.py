"""Writing a report to a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.text import Text


def print_parts(parts: Iterable[RenderableType], console: Console) -> None:
    """Write `parts` one below the other; a file gets neither colour nor padding."""
    if console.is_terminal:
        console.print(Group(*parts))
        return
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, Text))  # a line of text is not broken, a table is
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")
