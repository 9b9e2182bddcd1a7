"""Watching a training step being traced or executed: which Keras layer was called, what was differentiated.

The observer patches five public Keras/TensorFlow methods (and two private gradient hooks, see `private_tf`) on entry
and puts them back on exit. It notes facts and never changes an argument or a result, so the step traces as it would
without it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import tensorflow as tf

from nanreplay.program import private_distribution, private_tf
from nanreplay.program.observation import BackwardSpan, Mark, Observation, Region, RegionKind, TapeGradient
from nanreplay.program.replicas import ReplicaThreads

_TOKEN = "\x1f"
"""Parts a name scope from the number of the op; no scope can hold it."""


class Observer:
    """Context manager that fills an `Observation` while a step is traced or run in the current thread.

    Args:
        clock: How many ops the current graph holds, or have run so far in eager mode.
    """

    def __init__(self, clock: Callable[[], tuple[int, int]] | None = None) -> None:
        self.observation = Observation()
        self._clock = clock or self._graph_clock
        self._threads: ReplicaThreads[Region] = ReplicaThreads(self._switched)
        self._undo = contextlib.ExitStack()
        self.failed: Exception | None = None
        """An error of the observer's own; from then on the step runs unobserved."""

    def __enter__(self) -> Observation:
        try:
            self._patch_all()
        except BaseException:
            self._undo.close()
            raise
        return self.observation

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._undo.close()
        except Exception as failure:  # the rest has been put back all the same
            self.failed = failure

    @property
    def _stack(self) -> list[Region]:
        return self._threads.stack

    @property
    def stack(self) -> tuple[Region, ...]:
        """What is running now, outermost first."""
        return tuple(self._stack)

    @contextlib.contextmanager
    def region(self, kind: RegionKind, name: str = "") -> Iterator[None]:
        """Attribute the ops made inside to `kind`."""
        graph, _ = self._clock()
        self._stack.append(Region(kind, name, graph))
        self._mark()
        try:
            yield
        finally:
            self._stack.pop()
            self._mark()

    def _graph_clock(self) -> tuple[int, int]:
        graph = tf.compat.v1.get_default_graph()
        self.observation.graphs[id(graph)] = graph
        return id(graph), private_tf.op_count(graph)

    def _mark(self) -> None:
        graph, start = self._clock()
        self.observation.marks.setdefault(graph, []).append(Mark(start, tuple(self._stack)))

    def _switched(self) -> None:
        """Another thread goes on: that of a replica, or the one that started them."""
        self.observation.replica_devices = self._threads.devices
        self._mark()

    def _is_mine(self) -> bool:
        return self._threads.is_mine()

    def _patch(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        inherited = name not in vars(owner)

        @functools.wraps(original)
        def observed(*args: Any, **kwargs: Any) -> Any:
            return self._run(make, original, args, kwargs)

        setattr(owner, name, observed)
        self._undo.callback(functools.partial(delattr, owner, name) if inherited else functools.partial(setattr, owner, name, original))

    def _run(self, make: Callable[[Any], Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call `make(original)`; an error of ours never reaches the step, and never makes `original` run twice."""
        if self.failed is not None:
            return original(*args, **kwargs)
        once: _Once | None = None
        try:
            once = _Once(original)
            return make(once)(*args, **kwargs)
        except Exception as error:
            if once is not None and error is once.raised:
                raise
            self.failed = error
            return once.result if once is not None and once.was_called else original(*args, **kwargs)

    def _patch_all(self) -> None:
        import keras

        self._patch(keras.layers.Layer, "__call__", self._observed_layer_call)
        for optimizer in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
            self._patch(optimizer, "apply", self._observed_apply)
            self._patch(optimizer, "scale_loss", self._observed_scale_loss)
        self._patch(tf.GradientTape, "gradient", self._observed_gradient)
        self._undo.callback(self._threads.follow())
        self._undo.callback(private_tf.hook_gradient_functions(self._forward_token, self._observed_gradient_function))
        self._tokens: dict[str, Any] = {}

    def _observed_layer_call(self, original: Any) -> Any:
        observer = self

        def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if not observer._is_mine():
                return original(layer, *args, **kwargs)
            if observer.observation.root_layer is None:
                observer.observation.root_layer = layer.name
            if not any(region.kind == "layer" for region in observer._stack):
                observer.observation.layers.append(layer)
            with observer.region("layer", layer.name):
                return original(layer, *args, **kwargs)

        return __call__

    def _observed_apply(self, original: Any) -> Any:
        observer = self

        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            if not observer._is_mine():
                return original(optimizer, grads, trainable_variables)
            grads = list(grads)
            if not any(region.kind == "optimizer" for region in observer._stack):
                observer.observation.optimizers.append(optimizer)
                variables = trainable_variables
                if variables is None:
                    variables = getattr(optimizer, "_trainable_variables", [])
                variables = list(variables)
                trainable_variables = variables if trainable_variables is not None else None
                observer.observation.applied.append((grads, [private_distribution.component(variable) for variable in variables]))
                observer._note_rates(optimizer)
            with observer.region("optimizer", optimizer.name):
                return original(optimizer, grads, trainable_variables)

        return apply

    def _note_rates(self, optimizer: Any) -> None:
        """Read learning rate and loss scale before the update moves the schedule on."""
        seen = self.observation
        if seen.learning_rate is not None:
            return
        with self.region("watch"):
            initial_scale = getattr(optimizer, "initial_scale", None)
            if initial_scale is not None:  # a LossScaleOptimizer; it makes its variables in its first update
                seen.loss_scale = tf.convert_to_tensor(optimizer.dynamic_scale if optimizer.built else float(initial_scale))
            rate = getattr(optimizer, "learning_rate", None)
            if rate is not None:
                seen.learning_rate = tf.convert_to_tensor(rate)

    def _observed_scale_loss(self, original: Any) -> Any:
        observer = self

        def scale_loss(optimizer: Any, loss: Any) -> Any:
            scaled = original(optimizer, loss)
            if observer._is_mine() and scaled is not loss:
                observer.observation.unscaled[id(scaled)] = loss
                observer.observation.scaled.append(scaled)
            return scaled

        return scale_loss

    def _observed_gradient(self, original: Any) -> Any:
        observer = self

        def gradient(tape: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            if not observer._is_mine():
                return original(tape, target, sources, *args, **kwargs)
            with observer.region("backward"):
                gradients = original(tape, target, sources, *args, **kwargs)
            flat = [private_distribution.component(source) for source in tf.nest.flatten(sources)]
            call = TapeGradient(tf.nest.flatten(target), flat, tf.nest.flatten(gradients), private_distribution.current_replica())
            observer.observation.tape_gradients.append(call)
            return gradients

        return gradient

    def _forward_token(self, scope: str, outputs: Any) -> str:
        """A name scope for the tape that remembers the very op; `_observed_gradient_function` reads it back."""
        return str(self._run(lambda original: self._token_of, lambda scope, outputs: scope, (scope, outputs), {}))

    def _token_of(self, scope: str, outputs: Any) -> str:
        if not self._is_mine() or not len(outputs) or not tf.is_tensor(outputs[0]):
            return scope
        token = f"{scope}{_TOKEN}{len(self._tokens)}"
        self._tokens[token] = outputs[0]
        return token

    def _observed_gradient_function(self, call: Callable[[str], Any], op_type: str, scope: str, inputs: Any, outputs: Any) -> Any:
        """Call the gradient function of an op, and note which ops it made."""
        plain = scope.split(_TOKEN)[0]
        return self._run(
            lambda once: lambda scope: self._noted_gradient(once, op_type, scope, inputs, outputs), lambda scope: call(plain), (scope,), {}
        )

    def _noted_gradient(self, call: Callable[[str], Any], op_type: str, scope: str, inputs: Any, outputs: Any) -> Any:
        forward = self._tokens.get(scope)
        scope = scope.split(_TOKEN)[0]
        if not self._is_mine():
            return call(scope)
        if forward is None:
            forward = next((tensor for tensor in outputs or () if tensor is not None), None)
        graph, start = self._clock()
        result = call(scope)
        _, end = self._clock()
        if end > start:
            self.observation.spans.append(BackwardSpan(graph, start, end, op_type, scope, forward, tuple(inputs or ())))
        return result


class _Once:
    """A function that is called at most once, and what came of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.was_called = False
        self.result: Any = None
        self.raised: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.was_called = True
        try:
            self.result = self._function(*args, **kwargs)
        except BaseException as error:
            self.raised = error
            raise
        return self.result
