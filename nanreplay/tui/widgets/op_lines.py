"""What a line of the tree of ops says: the user's code, or the op's type and name."""

from __future__ import annotations

from nanreplay.explore import Node
from nanreplay.tui.widgets.op_words import code_words, name_tail


def fitted(title: str, about: str, room: int) -> tuple[str, str]:
    """The two, so that both fit: what is too long ends in dots, before the line of the code."""
    about = f"  {about}" if about else ""
    over = len(title) + len(about) - room
    if over > 0:
        code, colon, line = title.rpartition("  :")
        kept = max(len(code) - over - 1, 1) if colon else max(len(title) - over - 1, 1)
        title = f"{code[:kept]}…{colon}{line}" if colon else f"{title[:kept]}…"
    return title, about


def op_title(node: Node, before: Node | None, *, shows_names: bool) -> tuple[str, str]:
    """What a line says, and what it says beside that.

    Args:
        node: Of the line.
        before: Of the line before: ops of one line of code name it once.
        shows_names: Whether an op is told by its name.
    """
    op = node.op
    if op is None:
        return node.label, ""
    if shows_names:
        return op.type, op.name
    code = code_words(op.source)
    is_same = before is not None and before.op is not None and before.op.source == op.source
    if not code:
        return op.type, name_tail(op)
    return (f"  {op.type}", "") if is_same else (code, op.type)
