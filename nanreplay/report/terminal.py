"""Writing a report to a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType


def print_parts(parts: Iterable[RenderableType], console: Console) -> None:
    """Write `parts` one below the other; a file gets neither colour nor padding."""
    if console.is_terminal:
        console.print(Group(*parts))
        return
    with console.capture() as captured:
        console.print(Group(*parts), soft_wrap=True)
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")
