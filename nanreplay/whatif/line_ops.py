"""The ops that one piece of source code makes: who edits a line edits all of them.

A class of layers is called many times, a line runs in the body of a loop, and a function that is
recomputed for its gradient runs twice. `code_site` tells which piece of code made an op,
`CodeSite.ops` finds what it made in any program of the capture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nanreplay.bisect.tensor_stats import words
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.records import Frame, OpInfo
from nanreplay.whatif.fix_code import count_operands

Source: TypeAlias = Callable[[int], Frame | None]
"""The innermost line of the user's code of a stack."""
_OWN_GRADIENT = words("IdentityN PartitionedCall StatefulPartitionedCall")
"""Ops that may have a gradient function of the user's, or run a forward function once more."""
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class CodeSite:
    """One place of the source code that makes ops of one type."""

    frame: Frame
    type: str
    operands: int
    """How many operands of such ops the line shows; 0 where a library's code makes the op."""
    operand: int = 0
    """Which of them it is, in the order in which they are computed."""
    like: tuple[str, ...] = ()
    """What else tells the op, where the line shows no operand."""

    def ops(self, editor: ProgramEditor, source: Source) -> Iterator[OpKey]:
        """Return what this place made in a program.

        Args:
            editor: Holds the program.
            source: Tells the line of a stack.
        """
        made = []
        for key, info in editor.infos.items():
            if info.type == self.type and self._is_made_by(editor, info, source):
                made.append(key)
        if self.operands <= 1:
            yield from made
            return
        for group in _by_call(editor, made):
            if len(group) % self.operands == 0:
                yield from group[self.operand :: self.operands]

    def _is_made_by(self, editor: ProgramEditor, info: OpInfo, source: Source) -> bool:
        frame = source(info.stack)
        if frame is None or (frame.file, frame.line) != (self.frame.file, self.frame.line):
            return False
        if not editor.holds((info.function, info.name)):
            return False
        if self.operands:
            return not info.forward or _has_own_gradient(editor, info)
        return not info.forward and _marks(editor, info) == self.like


def code_site(editor: ProgramEditor, source: Source, key: OpKey) -> CodeSite | None:
    """Return the piece of code that made an op; None where that is not known."""
    info = editor.infos.get(key)
    frame = None if info is None else source(info.stack)
    if info is None or frame is None:
        return None
    count = count_operands(frame, info.type)
    if not count:
        return None if info.forward else CodeSite(frame, info.type, 0, like=_marks(editor, info))
    whole = CodeSite(frame, info.type, 1)
    if count == 1:
        return whole
    # Of the ops that one call of the line makes, the first computes the first operand.
    for group in _by_call(editor, list(whole.ops(editor, source))):
        if key in group and len(group) % count == 0:
            return CodeSite(frame, info.type, count, group.index(key) % count)
    return None


def _by_call(editor: ProgramEditor, keys: Sequence[OpKey]) -> Iterator[list[OpKey]]:
    """Ops by the call of the line that made them: one function, one layer, one stack."""
    groups: dict[tuple[str, str, int], list[OpKey]] = defaultdict(list)
    for key in keys:
        info = editor.infos[key]
        groups[key[0], info.layer_path, info.stack].append(key)
    yield from groups.values()


def _has_own_gradient(editor: ProgramEditor, info: OpInfo) -> bool:
    """Whether an op is of a gradient that Python code computes, not TensorFlow's own rules.

    `tf.recompute_grad` runs the forward function once more there. A line such as
    `[g / n for g in tape.gradient(...)]` makes both kinds.
    """
    forward = editor.infos.get((info.forward_function, info.forward))
    return forward is not None and forward.type in _OWN_GRADIENT


def _marks(editor: ProgramEditor, info: OpInfo) -> tuple[str, ...]:
    """What ops of one piece of a library's code share, whichever call made them.

    A layer's ops are numbered within the scope of the layer. An optimizer numbers those of all
    variables alike, so there the ops that make the operands tell which is which.
    """
    name = info.name.rpartition("/")[2]
    if info.where != "optimizer":
        return info.where, name
    makers = _makers(editor, (info.function, info.name))
    types = [editor.node(maker).op for maker in makers]
    for maker in makers:
        for earlier in _makers(editor, maker):
            types.append(editor.node(earlier).op)
    return info.where, _NUMBER.sub("", name), *types


def _makers(editor: ProgramEditor, key: OpKey) -> list[OpKey]:
    makers = []
    for tensor in editor.data_inputs(key):
        makers.append((key[0], tensor.partition(":")[0]))
    return [maker for maker in makers if editor.holds(maker)]
