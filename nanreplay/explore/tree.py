"""A step as a tree: phase, layers, loops with their iterations, ops. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from nanreplay.explore.health import Health, worst
from nanreplay.explore.step import Op, SegmentKind
from nanreplay.records import PHASES

NodeKind: TypeAlias = Literal["phase", "op"] | SegmentKind


@dataclass(frozen=True, slots=True)
class Node:
    """A phase, a layer, a loop, an iteration, or one execution of an op."""

    key: str
    """Unique in the tree, and the same in every tree of the step."""
    kind: NodeKind
    label: str
    children: tuple[Node, ...]
    """In the order in which they first ran; empty for an op."""
    ops: int
    """How many ops it holds."""
    nonfinite: int
    """How many of them gave something non-finite."""
    health: Health
    """The worst of them."""
    has_origin: bool
    """Whether one of them is an origin."""
    absmax: float | None
    """Largest finite absolute value that they gave."""
    first: int
    """Serial of the first of them."""
    op: Op | None = None
    """The op itself, for an op."""


class Row(NamedTuple):
    """One line of a tree that is partly open."""

    node: Node
    depth: int
    is_open: bool


def grow(ops: Iterable[Op]) -> tuple[Node, ...]:
    """Return the phases that some ops of a step belong to, with everything below."""
    branches: dict[str, _Branch] = {phase: _Branch("phase", phase) for phase in PHASES}
    for op in ops:
        branch = branches[op.phase]
        for kind, name in op.place:
            branch = branch.branches.setdefault((kind, name), _Branch(kind, name))
        branch.ops.append(op)
    return tuple(_node(branch, phase) for phase, branch in branches.items() if branch.ops or branch.branches)


def keys_of(op: Op) -> tuple[str, ...]:
    """Return the keys of the nodes on the way to an op, its own last."""
    keys = [str(op.phase)]
    for kind, name in op.place:
        keys.append(f"{keys[-1]}/{kind}:{name}")
    return (*keys, _op_key(op))


def rows_of(nodes: Sequence[Node], opened: AbstractSet[str], depth: int = 0) -> Iterator[Row]:
    """Yield the lines that show when the nodes of some keys are open; what is the only child of an open node is open too."""
    for node in nodes:
        is_open = bool(node.children) and (node.key in opened or (depth > 0 and len(nodes) == 1))
        yield Row(node, depth, is_open)
        if is_open:
            yield from rows_of(node.children, opened, depth + 1)


class _Branch:
    __slots__ = ("branches", "kind", "name", "ops")

    def __init__(self, kind: NodeKind, name: str) -> None:
        self.kind: NodeKind = kind
        self.name = name
        self.branches: dict[tuple[SegmentKind, str], _Branch] = {}
        self.ops: list[Op] = []


def _node(branch: _Branch, key: str) -> Node:
    inner = [_node(below, f"{key}/{kind}:{name}") for (kind, name), below in branch.branches.items()]
    children = tuple(sorted([*inner, *map(_leaf, branch.ops)], key=lambda node: node.first))
    sizes = [node.absmax for node in children if node.absmax is not None]
    return Node(
        key,
        branch.kind,
        f"iteration {branch.name}" if branch.kind == "iteration" else branch.name,
        children,
        sum(node.ops for node in children),
        sum(node.nonfinite for node in children),
        worst(node.health for node in children),
        any(node.has_origin for node in children),
        max(sizes, default=None),
        children[0].first,
    )


def _leaf(op: Op) -> Node:
    stat = op.stat
    absmax = max((size for each in op.outputs if (size := each.absmax) is not None), default=None)
    bad = int(stat is not None and stat.nonfinite > 0)
    return Node(_op_key(op), "op", op.type, (), 1, bad, op.health, op.is_origin, absmax, op.serial, op)


def _op_key(op: Op) -> str:
    return f"#{op.serial}"
