"""Collective ops that are inside of branches, brought out of them: replicas exchange sparse gradients that way.

TensorFlow gathers sparse gradients plainly where all replicas have as many rows, and padded to the longest where not. All replicas
take the same branch. Where they run in one program, the padded way is right for both, to the bit: it only moves data.
"""

from __future__ import annotations

from dataclasses import replace

from nanreplay.program.edit import ProgramEditor
from nanreplay.records import OpInfo, ProgramRecord

_GATHER = "CollectiveGatherV2"


def inline_gathers(record: ProgramRecord) -> ProgramRecord:
    """Return a program whose gathers of sparse gradients are in its main graph."""
    editor = ProgramEditor(record)
    added: list[OpInfo] = []
    done: set[str] = set()
    for _, name in [key for key in editor.ops({"If", "StatelessIf"}) if not key[0]]:
        padded = _padded_branch(editor, name)
        if padded is not None:
            outer = editor.infos.get(("", name))
            done |= {editor.node(("", name)).attr[which].func.name for which in ("then_branch", "else_branch")}
            for op in editor.inline(name, padded):
                inner = editor.infos.get((padded, op[len(name) + 1 :]))
                if outer is not None and inner is not None:
                    added.append(replace(outer, name=op, type=inner.type, stack=inner.stack))
    for function in done:
        editor.remove_function(function)
    return replace(editor.edited(), ops=(*record.ops, *added)) if added else record


def _padded_branch(editor: ProgramEditor, name: str) -> str | None:
    """The branch that pads what it gathers, for an If that asks whether the longest part is as long as the shortest."""
    node = editor.node(("", name))
    branches = [node.attr[which].func.name for which in ("then_branch", "else_branch")]
    if not all(any(editor.node((branch, op)).op == _GATHER for op in editor.ops_of(branch)) for branch in branches):
        return None
    condition = editor.node(("", node.input[0].partition(":")[0]))
    compared = {editor.node(("", source.partition(":")[0])).op for source in condition.input if not source.startswith("^")}
    return branches[1] if condition.op == "Equal" and compared == {"Max", "Min"} else None
