"""From a run of a step, op by op, to what people look at: a `StepView`, and the tree of its ops.

`Explorer` makes views, the op tree of the terminal interface grows and opens the tree. TensorFlow
runs behind the `StepRunner` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from nanreplay.bisect import Bisection
from nanreplay.bisect.failing_step import Scene, masks_of, targets_of, trace_targets
from nanreplay.bisect.judge import BACKWARD, Attribution, judge
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.origin_facts import name_of
from nanreplay.bisect.step_runner import OpKey, StepRunner
from nanreplay.bisect.walk import walk_back
from nanreplay.capture.arrays import as_array
from nanreplay.explore.step_view import (
    Feed,
    Health,
    Op,
    Segment,
    SegmentKind,
    StepView,
    health_of,
    worst,
)
from nanreplay.findings import LoopIteration, Origin
from nanreplay.records import PHASES, Frame, OpInfo
from nanreplay.replay.provenance import ValueId

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
    nodes = []
    for phase, branch in branches.items():
        if not branch.is_empty:
            nodes.append(_node(branch, phase))
    return tuple(nodes)


def keys_of(op: Op) -> tuple[str, ...]:
    """Return the keys of the nodes on the way to an op, its own last."""
    keys = [str(op.phase)]
    for kind, name in op.place:
        keys.append(f"{keys[-1]}/{kind}:{name}")
    return (*keys, _op_key(op))


def rows_of(nodes: Sequence[Node], opened: AbstractSet[str], depth: int = 0) -> Iterator[Row]:
    """Yield the lines that show when the nodes of some keys are open.

    What is the only child of an open node is open too: one more click would show nothing new.
    """
    for node in nodes:
        is_only_child = depth > 0 and len(nodes) == 1
        is_open = bool(node.children) and (node.key in opened or is_only_child)
        yield Row(node, depth, is_open)
        if is_open:
            yield from rows_of(node.children, opened, depth + 1)


class _Branch:
    """A node while the tree grows; nodes themselves cannot change."""

    __slots__ = ("branches", "kind", "name", "ops")

    def __init__(self, kind: NodeKind, name: str) -> None:
        self.kind: NodeKind = kind
        self.name = name
        self.branches: dict[tuple[SegmentKind, str], _Branch] = {}
        self.ops: list[Op] = []

    @property
    def is_empty(self) -> bool:
        return not self.ops and not self.branches


def _node(branch: _Branch, key: str) -> Node:
    inner_nodes = []
    for (kind, name), below in branch.branches.items():
        inner_nodes.append(_node(below, f"{key}/{kind}:{name}"))
    leaves = map(_leaf, branch.ops)
    # Layers and single ops side by side, as they ran: a layer stands where its first op ran.
    children = tuple(sorted([*inner_nodes, *leaves], key=lambda node: node.first))
    sizes = []
    for node in children:
        if node.absmax is not None:
            sizes.append(node.absmax)
    return Node(
        key=key,
        kind=branch.kind,
        label=f"iteration {branch.name}" if branch.kind == "iteration" else branch.name,
        children=children,
        ops=sum(node.ops for node in children),
        nonfinite=sum(node.nonfinite for node in children),
        health=worst(node.health for node in children),
        has_origin=any(node.has_origin for node in children),
        absmax=max(sizes, default=None),
        first=children[0].first,
    )


def _leaf(op: Op) -> Node:
    worst_stat = op.stat
    sizes = []
    for stat in op.outputs:
        if stat.absmax is not None:
            sizes.append(stat.absmax)
    return Node(
        key=_op_key(op),
        kind="op",
        label=op.type,
        children=(),
        ops=1,
        nonfinite=int(worst_stat is not None and worst_stat.nonfinite > 0),
        health=op.health,
        has_origin=op.is_origin,
        absmax=max(sizes, default=None),
        first=op.serial,
        op=op,
    )


def _op_key(op: Op) -> str:
    return f"#{op.serial}"


# The step as it ran.


def scene_at(runner: StepRunner, step: int, bisection: Bisection | None = None) -> Scene:
    """Return a step as it ran op by op, walked back from what failed in it.

    Args:
        runner: What replays.
        step: One of the runner's steps, healthy or not.
        bisection: What was found already; its scenes are taken as they are.
    """
    search = None if bisection is None else bisection.search
    for scene in search.scenes if search is not None else ():
        # Bisecting has run this step already, which may have taken minutes.
        if scene.step == step:
            return scene
    trace = trace_targets(runner, step)
    attribution, targets = Attribution(runner.ops(step)), targets_of(trace, runner.incident.trigger)

    def is_backward(fact: Fact) -> bool:
        return attribution.place(fact).rank >= BACKWARD

    walk = walk_back(trace, masks_of(targets), is_backward, runner.execute)
    return Scene(step, trace, attribution, targets, walk, judge(walk, attribution))


def view_of(scene: Scene, origin: Origin | None = None) -> StepView:
    """Return everything that a scene shows.

    Args:
        scene: The step as it ran.
        origin: What bisecting found. It counts where the scene shows none: an op that raised while
            nothing that failed leads to it, or one that only the compiled step makes non-finite.
    """
    origins = tuple(_origins(scene, origin))
    views = _OpViews(scene, origins)
    # What enters the step has negative serials: -1 for the first, -2 for the second.
    feeds = []
    for position in range(len(scene.trace.feeds)):
        feeds.append(ValueId(-1 - position, 0))
    return StepView(
        step=scene.step,
        ops=tuple(views.op(fact) for _, fact in sorted(scene.trace.facts.items())),
        feeds=tuple(_feed(scene, value, origins) for value in feeds),
        origins=origins,
        failed=tuple(dict.fromkeys(map(str, scene.targets))),
        stopped=scene.trace.stopped,
    )


def _origins(scene: Scene, origin: Origin | None) -> Iterator[ValueId]:
    for suspect in scene.judgement.suspects:
        if suspect.fact is not None:
            yield ValueId(suspect.fact.serial, min(suspect.masks, default=0))
        elif suspect.leaf is not None:
            yield suspect.leaf
    # What this run itself shows is surer than what a report says that another process wrote.
    if scene.judgement.suspects or origin is None or origin.op_name is None:
        return
    if origin.step == scene.step:
        for fact in scene.trace.facts.values():
            if (fact.name, fact.type) == (origin.op_name, origin.op_type):
                yield ValueId(fact.serial, 0)
                return


def _feed(scene: Scene, value: ValueId, origins: tuple[ValueId, ...]) -> Feed:
    kind, _ = scene.trace.feed(value)
    stat = scene.trace.stat(value)
    health = health_of([] if stat is None else [stat], on_path=value in scene.walk.leaves)
    return Feed(value, kind, name_of(scene.trace, value), stat, health, value in origins)


_Surroundings: TypeAlias = tuple[tuple[LoopIteration, ...], tuple[Segment, ...]]
"""The loops around an execution, and all levels around it."""


class _OpViews:
    """Puts the facts of ops together; remembers what many executions share."""

    def __init__(self, scene: Scene, origins: tuple[ValueId, ...]) -> None:
        self.scene = scene
        self.origin_serials = {value.serial for value in origins}
        self.infos: Mapping[OpKey, OpInfo] = scene.trace.runner.ops(scene.step)
        self.sources: dict[int, Frame | None] = {}
        self.surroundings: dict[tuple[object, ...], _Surroundings] = {}
        """By enclosing calls, function and layers in it."""

    def op(self, fact: Fact) -> Op:
        """Return an execution as people look at it."""
        place = self.scene.attribution.place(fact)
        loop, levels = self.levels(fact)
        failing_at, failing_value = _failing_element(self.scene, fact)
        error = None
        if fact.event is not None and fact.event.error is not None:
            error = (str(fact.event.error).splitlines() or ["?"])[0]
        return Op(
            serial=fact.serial,
            function=fact.function,
            name=fact.name,
            type=fact.type,
            phase=place.phase,
            where=place.where,
            layer_path=place.layer_path if place.where == "layer" else "",
            place=levels if place.where == "layer" or loop else (),
            loop=loop,
            inputs=fact.input_ids,
            stored=fact.via,
            outputs=fact.outputs,
            health=health_of(fact.outputs, on_path=fact.serial in self.scene.walk.failing),
            is_origin=fact.serial in self.origin_serials,
            source=self.source(place.stack),
            error=error,
            failing_at=failing_at,
            failing_value=failing_value,
        )

    def levels(self, fact: Fact) -> _Surroundings:
        """The loops, and the layers and loops, around an execution; ops side by side share them."""
        info = self.infos.get(fact.key)
        layer_path = None if info is None else info.layer_path
        forward_function = None if info is None else info.forward_function
        # A loop makes many executions of few surroundings.
        key = fact.calls, fact.function, layer_path, forward_function
        if key not in self.surroundings:
            loop = self.scene.attribution.loops(fact, self.scene.trace) if fact.calls else ()
            self.surroundings[key] = loop, tuple(self.segments(fact, loop))
        return self.surroundings[key]

    def segments(self, fact: Fact, loop: tuple[LoopIteration, ...]) -> Iterator[Segment]:
        """Yield the levels around an execution, from the calls that led to it."""
        loops = iter(loop)
        for call in fact.calls:
            yield from self.layers((call.function, call.op))
            if call.iteration is not None:
                yield Segment("loop", call.op.rsplit("/", 1)[-1])
                yield Segment("iteration", str(next(loops).iteration))
        yield from self.layers(fact.key)

    def layers(self, key: OpKey) -> Iterator[Segment]:
        """Yield the layers that an op belongs to in its own function."""
        info = self.infos.get(key)
        if info is not None and info.layer_path:
            for name in info.layer_path.split("/"):
                yield Segment("layer", name)

    def source(self, stack: int) -> Frame | None:
        """The line of the user's code that a stack ends at."""
        if stack not in self.sources:
            self.sources[stack] = self.scene.trace.runner.source(stack) if stack >= 0 else None
        return self.sources[stack]


def _failing_element(scene: Scene, fact: Fact) -> tuple[tuple[int, ...] | None, float | None]:
    """Where the first failing element of an op is, and its value."""
    for output, mask in sorted(scene.walk.failing.get(fact.serial, {}).items()):
        if not mask.any():
            continue
        position = int(np.argmax(mask))
        index = tuple(map(int, np.unravel_index(position, mask.shape)))
        tensor = scene.trace.value(ValueId(fact.serial, output))
        # The trace keeps the tensors of non-finite ops only as far as its memory goes; where the
        # element is, the walk knows without them.
        if tensor is None:
            return index, None
        array = as_array(tensor)
        is_real = array.shape == mask.shape and array.dtype.kind not in "cOSU"
        return index, float(array[index]) if is_real else None
    return None, None
