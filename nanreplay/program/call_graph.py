"""How the functions of a program call each other: none calls itself, and all calls written out are a program of sane size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nanreplay.errors import UnsafeProgramError

DEEPEST = 100
"""Calls within calls. Nested layers, loops and branches of real trainings stay below 20."""
LARGEST = 50_000_000
"""Ops of a program with every call replaced by the ops of its function."""


def check_calls(graph: Any) -> None:
    """Refuse functions that call themselves, and calls that double and double again until a program never ends.

    Args:
        graph: A GraphDef.

    Raises:
        UnsafeProgramError: They do.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    calls = {name: [each for each in _called(function.node_def) if each in functions] for name, function in functions.items()}
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in _callees_first(calls):
        sizes[name] = len(functions[name].node_def) + sum(sizes[each] for each in calls[name])
        depths[name] = 1 + max((depths[each] for each in calls[name]), default=0)
    called = [each for each in _called(graph.node) if each in functions]
    if max((depths[each] for each in called), default=0) > DEEPEST:
        raise UnsafeProgramError(f"The program is refused: its functions call each other more than {DEEPEST} deep.")
    if len(graph.node) + sum(sizes[each] for each in called) > LARGEST:
        raise UnsafeProgramError(f"The program is refused: its calls, written out, are more than {LARGEST:,} ops.")


def _called(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            yield from (function.name for function in value.list.func)


def _callees_first(calls: Mapping[str, list[str]]) -> Iterator[str]:
    """The functions, each after those that it calls; without recursion, which a hostile program could exhaust."""
    done: set[str] = set()
    for root in calls:
        pending, above = [(root, iter(calls[root]))] if root not in done else [], {root}
        while pending:
            name, rest = pending[-1]
            following = next((each for each in rest if each not in done), None)
            if following is None:
                pending.pop()
                above.discard(name)
                done.add(name)
                yield name
            elif following in above:
                raise UnsafeProgramError(f"The program is refused: its function {following!r} calls itself, so it may never end.")
            else:
                above.add(following)
                pending.append((following, iter(calls[following])))
