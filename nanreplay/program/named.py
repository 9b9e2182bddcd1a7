"""What the names of ops tell of a step that was traced before anybody looked: a function that had run before it was recorded.

Keras opens a name scope for each layer and optimizer that it calls, and the tape one for each op that it differentiates
(`gradient_tape/` before the forward op's own). A layer that is called again has a number after its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from nanreplay.program.observation import Mark, Observation, Region

_NUMBERED = re.compile(r"_\d+$")
_BACKWARD = "gradient_tape/"


def told_by_names(graphs: Iterable[Any], layers: Collection[str], optimizers: Collection[str]) -> Observation:
    """What the names of the ops in some graphs tell.

    Args:
        graphs: FuncGraphs.
        layers: Names of the layers that are known.
        optimizers: Names of the optimizers.
    """
    seen = Observation()
    for graph in graphs:
        marks: list[Mark] = []
        for index, op in enumerate(graph.get_operations()):
            stack = _stack_of(op.name, id(graph), layers, optimizers)
            if not marks or marks[-1].stack != stack:
                marks.append(Mark(index, stack))
            if seen.root_layer is None:
                seen.root_layer = next((region.name for region in stack if region.kind == "layer"), None)
        seen.marks[id(graph)] = marks
    return seen


def _stack_of(name: str, graph: int, layers: Collection[str], optimizers: Collection[str]) -> tuple[Region, ...]:
    scopes = name.removeprefix(_BACKWARD).split("/")[:-1]
    stack = [Region("backward", "", graph)] if name.startswith(_BACKWARD) else []
    for scope in scopes:
        known = next((each for each in (scope, _NUMBERED.sub("", scope)) if each in layers), None)
        if known is not None:
            stack.append(Region("layer", known, graph))
        elif scope in optimizers or _NUMBERED.sub("", scope) in optimizers:
            stack.append(Region("optimizer", scope, graph))
    return tuple(stack)
