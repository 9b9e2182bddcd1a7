"""What a trace of a training step, or an eager run of it, showed: plain data.

`observe` fills an `Observation` while a step is traced or runs; of a function that was traced
before anybody looked, the names of its ops tell (`observation_from_names`). `program_record` and
`eager_program` describe ops with it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from nanreplay.program.loss_keys import keys_by_id
from nanreplay.records import KerasPart
from nanreplay.tensorflow_internals import tf_datasets, tf_variables

RegionKind = Literal["layer", "optimizer", "backward", "watch"]


class Region(NamedTuple):
    """What was running, entered while ops went into `graph` (0 in eager mode)."""

    kind: RegionKind
    name: str
    graph: int


def layer_path(stack: Iterable[Region]) -> str:
    """Return the layers of a stack, outermost first: `mlp/dense`; "" for none."""
    return "/".join(region.name for region in stack if region.kind == "layer")


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
    is_custom: bool = False
    """Whether the gradient function is one that the user wrote (`tf.custom_gradient`)."""


class TapeGradient(NamedTuple):
    """One call of `GradientTape.gradient`."""

    targets: list[Any]
    sources: list[Any]
    gradients: list[Any]
    replica: int | None = None
    """The replica, within its process, in which it was called."""
    is_inner: bool = False
    """Whether another tape was recording, or was being asked for its gradient.

    It may differentiate what this one gave, or take what it gives: no loss of the step then.
    """


class WeakList:
    """Objects that are not kept alive.

    TensorFlow keeps the graphs of some steps for ever, and notes go with their graph.
    """

    def __init__(self) -> None:
        self._references: list[Any] = []

    def append(self, entry: Any) -> None:
        """Add an object."""
        self._references.append(weakref.ref(entry))

    def extend(self, entries: Iterable[Any]) -> None:
        """Add several objects."""
        for entry in entries:
            self.append(entry)

    def __iter__(self) -> Iterator[Any]:
        alive = [reference() for reference in self._references]
        return iter([entry for entry in alive if entry is not None])

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
    optimizers: WeakList = field(default_factory=WeakList)
    layers: WeakList = field(default_factory=WeakList)
    """Outermost Keras layers that were called; their variables have paths."""
    learning_rate: Any = None
    """In an eager step: that of the first optimizer, read just before its first update."""
    loss_scale: Any = None
    """In an eager step: that of the first optimizer that scales the loss, read likewise."""
    returned_losses: list[Any] = field(default_factory=list)
    """Scalar floats that the step returned.

    The first stands for the loss when nothing was differentiated by a tape.
    """
    result: Any = None
    """What the step returned."""
    parts: dict[str, KerasPart] = field(default_factory=dict)
    """Layers that were called, by the chain of their names."""
    root_layer: str | None = None
    """The first layer that was called: the model."""
    replica_devices: tuple[str, ...] = ()
    """The device of each replica of this process, where a strategy traces each by itself."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """First output of each op that a tape recorded, by the scope that the tape remembers for it."""
    failed: Exception | None = None
    """An error of ours while this was filled; what came after it is missing."""
    listener: Callable[[], Any] | None = None
    """Gives whom to tell of calls of the function of this trace."""

    def losses(self) -> list[Any]:
        """What was differentiated, before loss scaling: float tensors, each one once.

        The target of a tape within another one (a gradient penalty) is no loss, unless there is no
        other.
        """
        outer = [call for call in self.tape_gradients if not call.is_inner] or self.tape_gradients
        by_id: dict[int, Any] = {}
        for call in outer:
            for target in call.targets:
                tensor = self.unscaled.get(id(target), target)
                if tf.is_tensor(tensor) and (tensor.dtype.is_floating or tensor.dtype.is_complex):
                    by_id[id(tensor)] = tensor
        return list(by_id.values()) or self.returned_losses[:1]

    def loss_replicas(self) -> tuple[int, ...]:
        """The replica of each of `losses`; empty where no strategy runs several."""
        replica_of_loss = {}
        for call in self.tape_gradients:
            for target in call.targets:
                replica_of_loss[id(self.unscaled.get(id(target), target))] = call.replica
        losses = self.losses()
        replicas = [replica_of_loss.get(id(loss)) for loss in losses]
        known = tuple(replica for replica in replicas if replica is not None)
        return known if len(self.replica_devices) > 1 and len(known) == len(losses) else ()

    def loss_keys(self) -> tuple[str, ...]:
        """The key under which an eager step returned each loss; empty where none has one."""
        key_of = keys_by_id(tf_datasets.flatten_with_paths(self.result))
        keys = tuple(key_of.get(id(loss), "") for loss in self.losses())
        return keys if any(keys) else ()

    def note_result(self, result: Any) -> None:
        """Remember what may be the loss among the step's results."""
        leaves = tf.nest.flatten(result, expand_composites=True)
        returned_losses = []
        for leaf in leaves:
            if tf_variables.is_value(leaf) and leaf.dtype.is_floating and leaf.shape.rank == 0:
                returned_losses.append(leaf)
        self.returned_losses = returned_losses
        self.result = result

    def gradients(self) -> list[tuple[Any, Any]]:
        """(gradient, variable) pairs as they reached the optimizer, else as the tape gave them."""
        calls = self.applied or [(call.gradients, call.sources) for call in self.tape_gradients]
        by_handle: dict[int, tuple[Any, Any]] = {}
        for gradients, variables in calls:
            # Not strict: Keras takes fewer gradients than variables, and warns.
            for gradient, variable in zip(gradients, variables, strict=False):
                handle = tf_variables.handle_of(variable)
                if gradient is not None and handle is not None:
                    by_handle[id(handle)] = (gradient, variable)
        return list(by_handle.values())


# Notes of a graph: its observation goes with it, as an attribute, and is freed with it.

_NOTES = "_nanreplay_notes"


def notes_of(graph: Any, *, make: bool = True) -> Any:
    """What was noted while `graph` was traced; None where nothing was, and `make` is False."""
    notes = getattr(graph, _NOTES, None)
    if notes is None and make:
        notes = Observation()
        setattr(graph, _NOTES, notes)
    return notes


def merged(graphs: Iterable[Any]) -> Observation:
    """What was noted in several graphs, a program's main graph first."""
    whole = Observation()
    # A trace that serves several functions is there several times; its marks must stay sorted.
    for graph in {id(graph): graph for graph in graphs}.values():
        seen = notes_of(graph, make=False)
        if seen is None:
            continue
        for number, marks in seen.marks.items():
            whole.marks.setdefault(number, []).extend(marks)
        for name in ("spans", "tape_gradients", "applied", "scaled", "optimizers", "layers"):
            getattr(whole, name).extend(getattr(seen, name))
        whole.unscaled |= seen.unscaled
        whole.parts |= seen.parts
        whole.root_layer = whole.root_layer or seen.root_layer
        whole.replica_devices = whole.replica_devices or seen.replica_devices
        whole.failed = whole.failed or seen.failed
    return whole


# What the names of ops tell. Keras opens a name scope for each layer and optimizer that it calls,
# and the tape one for each op that it differentiates (`gradient_tape/` before the forward op's
# own): the op `gradient_tape/mlp/dense_1/MatMul` is in the backward pass of `dense_1` in `mlp`. A
# layer that is called again has a number after its name: `dense_1` may be the layer `dense`, called
# twice.

_NUMBER_SUFFIX = re.compile(r"_\d+$")
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
                layer_names = []
                for region in stack:
                    if region.kind == "layer":
                        layer_names.append(region.name)
                seen.root_layer = layer_names[0] if layer_names else None
        seen.marks[id(graph)] = marks
    return seen


def _stack_of(
    name: str, graph: int, layers: Collection[str], optimizers: Collection[str]
) -> tuple[Region, ...]:
    """The regions that the name scopes of an op stand for, outermost first."""
    stack = [Region("backward", "", graph)] if name.startswith(_BACKWARD) else []
    for scope in name.removeprefix(_BACKWARD).split("/")[:-1]:
        unnumbered = _NUMBER_SUFFIX.sub("", scope)
        if scope in layers:
            stack.append(Region("layer", scope, graph))
        elif unnumbered in layers:
            stack.append(Region("layer", unnumbered, graph))
        elif scope in optimizers or unnumbered in optimizers:
            stack.append(Region("optimizer", scope, graph))
    return tuple(stack)
