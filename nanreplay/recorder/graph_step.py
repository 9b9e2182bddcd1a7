"""A step that trains as one compiled program: each call is recorded around the program that trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.trace import TracedStep
from nanreplay.recorder.session import ProgramSlot, Session
from nanreplay.recorder.trigger import exception_trigger
from nanreplay.records import Trigger


class GraphStep:
    """Runs a traced step and records it.

    Args:
        session: The recording.
        traced: The step with the watch inside.
        bare: The same step without the recorder, for when the recorder detaches itself.
        on_incident: Called with the trigger and the step after an incident's step has run.
    """

    def __init__(self, session: Session, traced: TracedStep, bare: Callable[..., Any], on_incident: Callable[[Trigger, int], None]) -> None:
        self._session = session
        self._traced = traced
        self._bare = bare
        self._on_incident = on_incident
        self._slots: dict[Any, ProgramSlot] = {}
        self._specs: tuple[Any, ...] | None = None
        self._expected: Hashable = None

    def expect(self, *specs: Any) -> None:
        """Trace the step for arguments of these specs, whatever the shapes of those that it gets; they must fit."""
        self._specs, self._expected = specs, _signature_of(specs)

    def __call__(self, *args: Any) -> Any:
        """Run one step; returns what the step returns."""
        session = self._session
        if session.detached:
            return self._bare(*args)
        flat = tf.nest.flatten(args)
        is_plain = all(isinstance(leaf, tf.Tensor) for leaf in flat)
        try:
            slot = self._begin(args, flat if is_plain else _tensors_of(args))
            run = slot.traced.flat_call if is_plain else slot.traced.function  # made here: an error of ours ends in the `except` below
        except Exception as error:
            result = self._bare(*args)  # raises again when the step itself cannot be traced; that is no failure of the recorder
            session.detach(error)
            return result
        try:
            # Not the `tf.function`, nor the whole arguments where tensors are all there is: looking either up again takes time.
            result, watch, fed = run(flat) if is_plain else run(*args)
        except Exception as error:
            trigger = session.guard(functools.partial(exception_trigger, error))
            if trigger is not None:
                earlier = session.guard(session.flush)
                self._on_incident(*(earlier or (trigger, session.step)))
            raise
        if not session.detached:
            found = session.guard(lambda: session.after_late(slot.layout, watch, fed))
            if found is not None:
                self._on_incident(*found)
        return result

    def _begin(self, args: tuple[Any, ...], leaves: list[Any]) -> ProgramSlot:
        key = self._expected if self._specs else _signature_of(args)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._session.add_program(self._traced.program(*(self._specs or args)), leaf_paths(args))
        self._session.before(slot.id, leaves, slot.paths)
        return slot


def _tensors_of(args: Any) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(args, expand_composites=True) if tf.is_tensor(leaf)]


def _signature_of(value: Any) -> Hashable:
    """What decides which trace runs: structure, dtypes, shapes, and the values of what is no tensor."""
    if isinstance(value, tf.Tensor):
        return value.dtype, tuple(value.shape)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _signature_of(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_signature_of, value))
    if tf.is_tensor(value) or isinstance(value, tf.distribute.DistributedValues):  # a ragged or sparse tensor, a variable, a batch
        return type(value), tuple((part.dtype, tuple(part.shape)) for part in tf.nest.flatten(value, expand_composites=True))
    return type(value), value if isinstance(value, Hashable) else id(value)


def leaf_paths(args: Any) -> list[str]:
    """A readable path for each tensor of the flattened arguments; the only argument's own index is left out."""
    only = args[0] if isinstance(args, tuple) and len(args) == 1 else args
    return [path for path, leaf in private_tf.flatten_with_paths(only) if tf.is_tensor(leaf)]
