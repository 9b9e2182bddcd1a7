"""What watching a training step showed: plain data, filled by `observe.Observer` and by `flat.observe_eager`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from nanreplay.program import private_tf

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
    graphs: dict[int, Any] = field(default_factory=dict)
    """Graphs by id, kept so that their ids stay theirs."""
    optimizers: list[Any] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)
    """Outermost Keras layers that were called; their variables have paths."""
    learning_rate: Any = None
    """Learning rate of the first optimizer, read just before its first update."""
    loss_scale: Any = None
    """Loss scale of the first LossScaleOptimizer, read just before its first update."""
    returned_losses: list[Any] = field(default_factory=list)
    """Scalar floats that the step returned; they stand for the loss when nothing was differentiated by a tape."""
    root_layer: str | None = None
    """The first layer that was called: the model."""
    replica_devices: tuple[str, ...] = ()
    """The device of each replica of this process, where a strategy traces its replicas by themselves."""

    def losses(self) -> list[Any]:
        """What was differentiated, before loss scaling, without repeats and without non-float tensors."""
        found: dict[int, Any] = {}
        for call in self.tape_gradients:
            for target in call.targets:
                tensor = self.unscaled.get(id(target), target)
                if tf.is_tensor(tensor) and (tensor.dtype.is_floating or tensor.dtype.is_complex):
                    found[id(tensor)] = tensor
        return list(found.values()) or self.returned_losses[:1]

    def loss_replicas(self) -> tuple[int, ...]:
        """The replica of each of `losses`; empty where no strategy runs several."""
        replica = {id(self.unscaled.get(id(target), target)): call.replica for call in self.tape_gradients for target in call.targets}
        found = tuple(number for loss in self.losses() if (number := replica.get(id(loss))) is not None)
        return found if len(self.replica_devices) > 1 and len(found) == len(self.losses()) else ()

    def note_result(self, result: Any) -> None:
        """Remember what may be the loss among the step's results."""
        flat = tf.nest.flatten(result, expand_composites=True)
        self.returned_losses = [leaf for leaf in flat if tf.is_tensor(leaf) and leaf.dtype.is_floating and leaf.shape.rank == 0]

    def gradients(self) -> list[tuple[Any, Any]]:
        """(gradient, variable) pairs as they reached the optimizer, else as the tape gave them."""
        pairs = self.applied or [(call.gradients, call.sources) for call in self.tape_gradients]
        found: dict[int, tuple[Any, Any]] = {}
        for gradients, variables in pairs:
            for gradient, variable in zip(gradients, variables, strict=False):
                handle = private_tf.handle_of(variable)
                if gradient is not None and handle is not None:
                    found[id(handle)] = (gradient, variable)
        return list(found.values())
