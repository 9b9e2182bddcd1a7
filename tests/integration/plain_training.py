"""A training in plain TensorFlow and Keras: what a report says of a step is held against it.

A training of the tests records itself with a `Recorder`. `PlainRecorder` takes its place and knows
nothing of nanreplay: the steps before the one in question run as the training has them, that one
runs eagerly while TensorFlow tells of each op, as often as asked, each time from the same state.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

Batch = Any
"""What a step is given, as nested lists of arrays."""
AfterOp = Callable[["OpRun"], None]
"""Called with each op that has just run."""


class Ended(Exception):
    """The training went as far as it had to."""


@dataclass
class OpRun:
    """One op as it ran eagerly."""

    number: int
    type: str
    inputs: list[Any]
    outputs: list[Any]
    lines: list[tuple[str, int]]
    """File and line of each call that led to it, outermost first."""
    layers: tuple[str, ...] = ()
    """Names of the Keras layers that were being called, outermost first."""

    @cached_property
    def makes_bad(self) -> bool:
        """Whether it made a value worse: non-finite of finite ones, or NaN of no NaN."""
        if self.type in _HANDS_ON:
            return False
        return badness(self.outputs) > badness(self.inputs)


_HANDS_ON = ("ReadVariableOp", "AssignVariableOp")
"""Ops that give what a variable holds."""


def badness(tensors: Sequence[Any]) -> int:
    """2 with a NaN, 1 with an infinity, else 0."""
    arrays = [array for array in map(floats_of, tensors) if array is not None]
    if any(np.isnan(array).any() for array in arrays):
        return 2
    return int(any(np.isinf(array).any() for array in arrays))


def floats_of(tensor: Any) -> Any | None:
    """The values of a float tensor as float64; None for another."""
    if not isinstance(tensor, tf.Tensor):
        return None
    if tensor.dtype.is_complex:
        return np.asarray(tf.cast(tensor, tf.complex128))
    return np.asarray(tf.cast(tensor, tf.float64)) if tensor.dtype.is_floating else None


@dataclass
class EagerStep:
    """What one step did when it ran eagerly."""

    ops: list[OpRun] = field(default_factory=list)
    loss: float | None = None
    gradients: list[Any] = field(default_factory=list)
    """As they came to the optimizer."""
    gradients_of: list[str] = field(default_factory=list)
    """Paths of the variables that they are of."""
    error: Exception | None = None
    bad_variables: int = 0
    """How many variables are not finite after it and were before."""
    began_backward: int | None = None
    """How many ops had run before the gradient was asked for, of the last tape that was."""
    began_update: int | None = None

    def fails(self, by_gradients: bool = False) -> bool:
        """Whether it raised, or its loss or a variable (or a gradient) is not finite."""
        bad_loss = self.loss is not None and not np.isfinite(self.loss)
        bad_gradient = by_gradients and badness([g for g in self.gradients if g is not None]) > 0
        return self.error is not None or bad_loss or self.bad_variables > 0 or bad_gradient


Step = Callable[..., EagerStep]
"""Runs the failing step: `step(batch, after=..., eagerly=True)`, from the same state each time."""
Look = Callable[[Step, Batch], None]


@contextmanager
def told_of_ops(step: EagerStep, after: AfterOp | None) -> Iterator[None]:
    """Note every eager op, and when the backward and the update phase begin."""
    gradient, call = tf.GradientTape.gradient, keras.layers.Layer.__call__
    layers: list[str] = []
    is_after: list[bool] = []

    def op_ran(op_type: Any, inputs: Any, attrs: Any, outputs: Any, *_: Any) -> None:
        lines = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack(limit=90)]
        if is_after:  # an op of `after` itself
            return
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        run = OpRun(len(step.ops), name, list(inputs), list(outputs), lines, tuple(layers))
        step.ops.append(run)
        if after is not None:
            is_after.append(True)
            after(run)
            is_after.pop()

    def asked(tape: Any, *arguments: Any, **options: Any) -> Any:
        step.began_backward = len(step.ops)
        return gradient(tape, *arguments, **options)

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        layers.append(self.name)
        try:
            return call(self, *arguments, **options)
        finally:
            layers.pop()

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(keras.layers.Layer, "__call__", called))
        stack.enter_context(mock.patch.object(tf.GradientTape, "gradient", asked))
        for optimizer in (keras.optimizers.Optimizer, keras.mixed_precision.LossScaleOptimizer):
            stack.enter_context(mock.patch.object(optimizer, "apply", _noting(optimizer, step)))
        tf.config.run_functions_eagerly(True)
        stack.callback(tf.config.run_functions_eagerly, False)
        op_callbacks.add_op_callback(op_ran)
        stack.callback(op_callbacks.remove_op_callback, op_ran)
        yield


def _noting(optimizer: Any, step: EagerStep) -> Callable[..., Any]:
    """An optimizer's `apply` that notes the gradients which come to it first."""
    apply = optimizer.apply

    def applied(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if step.began_update is None:
            step.began_update = len(step.ops)
            step.gradients = list(grads)
            of = trainable_variables or getattr(self, "_trainable_variables", ())
            step.gradients_of = [getattr(one, "path", one.name.partition(":")[0]) for one in of]
        return apply(self, grads, trainable_variables)

    return applied


def make_finite(op: OpRun) -> None:
    """Put 1 in the place of what an op made bad, where its outputs are held.

    TensorFlow takes no other outputs from an op callback, so the memory itself is written.
    """
    for output in op.outputs:
        if floats_of(output) is not None:
            held = np.asarray(memoryview(output))
            new = np.where(np.isfinite(held), held, np.ones_like(held))
            ctypes.memmove(held.ctypes.data, new.ctypes.data, new.nbytes)


class PlainRecorder(keras.callbacks.Callback):
    """Has the methods of a `Recorder` that trainings call, and records nothing.

    Args:
        at: The step that `look` is given; none unless given.
        look: Called in the place of that step, which ends the training.
        last: The last step to run, where there is nothing to look at.
        prepared: Given the number of a step and its batch, returns the batch to train on.
        begun: Called with the optimizer before the first step.
    """

    def __init__(
        self,
        at: int | None = None,
        look: Look | None = None,
        last: int | None = None,
        prepared: Callable[[int, Batch], Batch] | None = None,
        begun: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.at, self.look, self.last, self.prepared = at, look, last, prepared
        self.begun = begun
        self.stopped = False
        self.variables: list[Any] = []
        self.initial: dict[int, Any] = {}
        """Values with which variables began, by place."""
        self.losses: list[float] = []
        """Of the steps that ran."""
        self.bad_after: int | None = None
        """The first step whose loss or variables are not finite, or that raised."""
        self._own_losses: list[Any] = []

    # How `Recorder` is used.

    def __call__(self, *arguments: Any, **options: Any) -> PlainRecorder:
        return self

    def __enter__(self) -> PlainRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wrap(self, step: Callable[..., Any], **parts: Any) -> Callable[..., Any]:
        if self.begun is not None:
            self.begun(parts["optimizer"])

        def run(*arguments: Any) -> Any:
            return self._step(arguments, lambda batch: (step(*batch),) * 2)

        return run

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        compute_loss = model.compute_loss
        if self.begun is not None:
            self.begun(model.optimizer)

        def noted(*arguments: Any, **options: Any) -> Any:
            loss = compute_loss(*arguments, **options)
            self._own_losses.append(loss)
            return loss

        model.compute_loss = noted

        def train(data: Any) -> Any:
            self._own_losses.clear()
            return model.train_step(data), self._own_losses[-1]

        compiled = tf.function(train, jit_compile=model.jit_compile, reduce_retracing=True)
        model.train_function = lambda iterator: self._step(next(iterator), compiled)

    # The steps.

    def _step(self, batch: Batch, run: Callable[[Batch], Any]) -> Any:
        number = len(self.losses)
        if not number:
            for place, variable in enumerate(self.variables):
                self.initial.setdefault(place, variable.numpy())
        batch = self._given(number, batch)
        if number == self.at and self.look is not None:
            self.look(partial(self._again, run), batch)
            raise Ended
        try:
            result, loss = run(_tensors(batch))
        except (tf.errors.InvalidArgumentError, FloatingPointError):
            result, loss = None, np.nan
        self.losses.append(_loss(loss))
        is_bad = not np.isfinite(self.losses[-1]) or self._bad_variables() > 0
        if is_bad and self.bad_after is None:
            self.bad_after = number
        if is_bad or number == self.last:
            raise Ended
        return result

    def _given(self, number: int, batch: Batch) -> Batch:
        arrays = tf.nest.map_structure(np.array, batch)
        return arrays if self.prepared is None else self.prepared(number, arrays)

    def _again(
        self,
        run: Callable[[Batch], Any],
        batch: Batch,
        after: AfterOp | None = None,
        eagerly: bool = True,
    ) -> EagerStep:
        before = [variable.numpy() for variable in self.variables]
        were_bad = self._bad_variables()
        known = len(self.variables)
        step = EagerStep()
        with told_of_ops(step, after) if eagerly else nullcontext():
            try:
                step.loss = _loss(run(_tensors(batch))[1])
            except (tf.errors.OpError, FloatingPointError) as error:
                step.error = error
        step.bad_variables = self._bad_variables() - were_bad
        made = range(known, len(self.variables))  # an optimizer makes its own in the first step
        before += [self.initial[place] for place in made]
        for variable, value in zip(self.variables, before, strict=True):
            variable.assign(value)
        return step

    def _bad_variables(self) -> int:
        values = (v for v in self.variables if v.dtype.is_floating)
        return sum(not np.isfinite(np.asarray(tf.cast(v, tf.float64))).all() for v in values)


def _tensors(batch: Batch) -> Any:
    return tf.nest.map_structure(tf.constant, batch)


def _loss(result: Any) -> float:
    """The loss that a step returns: the first number."""
    numbers = [np.asarray(part) for part in tf.nest.flatten(result)]
    return float(next(part for part in numbers if part.ndim == 0))


def run_plain(train: Callable[[], Any], recorder: PlainRecorder) -> PlainRecorder:
    """Run a training that uses `recorder` until it has gone far enough; returns the recorder."""

    def noted(next_creator: Callable[..., Any], **options: Any) -> Any:
        variable = next_creator(**options)
        if tf.executing_eagerly():
            recorder.initial[len(recorder.variables)] = variable.numpy()
        recorder.variables.append(variable)
        return variable

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    try:
        with tf.variable_creator_scope(noted), suppress(Ended):
            train()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    return recorder
