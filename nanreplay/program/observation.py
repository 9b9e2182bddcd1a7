"""What the names of ops tell of a step that was traced before anybody looked: a function that had run before it was recorded.

Keras opens a name scope for each layer and optimizer that it calls, and the tape one for each op that it differentiates
(`gradient_tape/` before the forward op's own). A layer that is called again has a number after its name.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from nanreplay.tensorflow_internals import tf_variables

# What a trace of a training step, or an eager run of it, showed: plain data, filled by `observe`.

RegionKind = Literal["layer", "optimizer", "backward", "watch"]


class Region(NamedTuple):
    """What was running, entered while ops went into `graph` (0 in eager mode)."""

    kind: RegionKind
    name: str
    graph: int


class Mark(NamedTuple):
    """From the `start`-th op of its graph on, `stack` was running."""

    start: int
    stack: tuple[Region, ...]


class BackwardSpan(NamedTuple):
    """Ops `start` to `end` of `graph` compute the gradient of one forward op."""

    graph: int
    start: int
    end: int
    op_type: str
    scope: str
    forward: Any
    """The forward op's first output tensor, or None when the tape dropped it."""
    inputs: tuple[Any, ...] = ()
    """The forward op's inputs; None where the tape dropped one."""


class TapeGradient(NamedTuple):
    """One call of `GradientTape.gradient`."""

    targets: list[Any]
    sources: list[Any]
    gradients: list[Any]
    replica: int | None = None
    """The replica, within its process, in which it was called."""
    is_inner: bool = False
    """Whether another tape was recording, which may differentiate what this one gave: no loss of the step, then."""


class WeakList:
    """Objects that are not kept alive: TensorFlow keeps the graphs of some steps for ever, and notes go with their graph."""

    def __init__(self) -> None:
        self._references: list[Any] = []

    def append(self, each: Any) -> None:
        """Add one."""
        self._references.append(weakref.ref(each))

    def extend(self, others: Iterable[Any]) -> None:
        """Add several."""
        for each in others:
            self.append(each)

    def __iter__(self) -> Iterator[Any]:
        return iter([each for reference in self._references if (each := reference()) is not None])

    def __bool__(self) -> bool:
        return any(True for _ in self)


@dataclass
class Observation:
    """What one trace (or one eager execution) of a step showed."""

    marks: dict[int, list[Mark]] = field(default_factory=dict)
    """Marks by graph, in order of `start`."""
    spans: list[BackwardSpan] = field(default_factory=list)
    tape_gradients: list[TapeGradient] = field(default_factory=list)
    applied: list[tuple[list[Any], list[Any]]] = field(default_factory=list)
    """(gradients, variables) of each outermost `optimizer.apply`."""
    unscaled: dict[int, Any] = field(default_factory=dict)
    """The loss before loss scaling, by id of the scaled loss."""
    scaled: list[Any] = field(default_factory=list)
    """Scaled losses, kept so that their ids stay theirs."""
    optimizers: WeakList = field(default_factory=lambda: WeakList())
    layers: WeakList = field(default_factory=lambda: WeakList())
    """Outermost Keras layers that were called; their variables have paths."""
    learning_rate: Any = None
    """In an eager step: the learning rate of the first optimizer, read just before its first update."""
    loss_scale: Any = None
    """In an eager step: the loss scale of the first optimizer that scales the loss, read just before its first update."""
    returned_losses: list[Any] = field(default_factory=list)
    """Scalar floats that the step returned; they stand for the loss when nothing was differentiated by a tape."""
    root_layer: str | None = None
    """The first layer that was called: the model."""
    replica_devices: tuple[str, ...] = ()
    """The device of each replica of this process, where a strategy traces its replicas by themselves."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """First output of each op that a tape recorded, by the name scope that the tape remembers for it."""
    failed: Exception | None = None
    """An error of ours while this was filled; what came after it is missing."""
    listener: Callable[[], Any] | None = None
    """Gives whom to tell of calls of the function of this trace."""

    def losses(self) -> list[Any]:
        """What was differentiated, before loss scaling, without repeats and without non-float tensors.

        The target of a tape within another one (a gradient penalty) is no loss, unless there is no other.
        """
        outer = [call for call in self.tape_gradients if not call.is_inner] or self.tape_gradients
        found: dict[int, Any] = {}
        for call in outer:
            for target in call.targets:
                tensor = self.unscaled.get(id(target), target)
                if tf.is_tensor(tensor) and (tensor.dtype.is_floating or tensor.dtype.is_complex):
                    found[id(tensor)] = tensor
        return list(found.values()) or self.returned_losses[:1]

    def loss_replicas(self) -> tuple[int, ...]:
        """The replica of each of `losses`; empty where no strategy runs several."""
        replica = {
            id(self.unscaled.get(id(target), target)): call.replica
            for call in self.tape_gradients
            for target in call.targets
        }
        found = tuple(
            number for loss in self.losses() if (number := replica.get(id(loss))) is not None
        )
        return found if len(self.replica_devices) > 1 and len(found) == len(self.losses()) else ()

    def note_result(self, result: Any) -> None:
        """Remember what may be the loss among the step's results."""
        flat = tf.nest.flatten(result, expand_composites=True)
        self.returned_losses = [
            leaf
            for leaf in flat
            if tf.is_tensor(leaf) and leaf.dtype.is_floating and leaf.shape.rank == 0
        ]

    def gradients(self) -> list[tuple[Any, Any]]:
        """(gradient, variable) pairs as they reached the optimizer, else as the tape gave them."""
        pairs = self.applied or [(call.gradients, call.sources) for call in self.tape_gradients]
        found: dict[int, tuple[Any, Any]] = {}
        for gradients, variables in pairs:
            for gradient, variable in zip(gradients, variables, strict=False):
                handle = tf_variables.handle_of(variable)
                if gradient is not None and handle is not None:
                    found[id(handle)] = (gradient, variable)
        return list(found.values())


_NOTES = "_nanreplay_notes"


def notes_of(graph: Any, *, make: bool = True) -> Any:
    """What was noted while `graph` was traced; it goes with the graph. None where nothing was, and `make` is False."""
    found = getattr(graph, _NOTES, None)
    if found is None and make:
        found = Observation()
        setattr(graph, _NOTES, found)
    return found


def merged(graphs: Iterable[Any]) -> Observation:
    """What was noted in several graphs, a program's main graph first."""
    whole = Observation()
    for graph in graphs:
        seen = notes_of(graph, make=False)
        if seen is None:
            continue
        for number, marks in seen.marks.items():
            whole.marks.setdefault(number, []).extend(marks)
        for name in ("spans", "tape_gradients", "applied", "scaled", "optimizers", "layers"):
            getattr(whole, name).extend(getattr(seen, name))
        whole.unscaled |= seen.unscaled
        whole.root_layer = whole.root_layer or seen.root_layer
        whole.replica_devices = whole.replica_devices or seen.replica_devices
        whole.failed = whole.failed or seen.failed
    return whole


# --- program.named

_NUMBERED = re.compile(r"_\d+$")
_BACKWARD = "gradient_tape/"


def observation_from_names(
    graphs: Iterable[Any], layers: Collection[str], optimizers: Collection[str]
) -> Observation:
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
                seen.root_layer = next(
                    (region.name for region in stack if region.kind == "layer"), None
                )
        seen.marks[id(graph)] = marks
    return seen


def _stack_of(
    name: str, graph: int, layers: Collection[str], optimizers: Collection[str]
) -> tuple[Region, ...]:
    scopes = name.removeprefix(_BACKWARD).split("/")[:-1]
    stack = [Region("backward", "", graph)] if name.startswith(_BACKWARD) else []
    for scope in scopes:
        known = next((each for each in (scope, _NUMBERED.sub("", scope)) if each in layers), None)
        if known is not None:
            stack.append(Region("layer", known, graph))
        elif scope in optimizers or _NUMBERED.sub("", scope) in optimizers:
            stack.append(Region("optimizer", scope, graph))
    return tuple(stack)
