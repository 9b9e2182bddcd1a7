"""What is noted of a call of a Keras layer, a tape, an optimizer or an op's gradient function.

`observe` puts each `observed_*` in the place of a method: given the original, it makes a function
that calls it with the same arguments and notes what happens in the current `Observation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nanreplay.program.keras_parts import layer_part
from nanreplay.program.listening import current_notes, muted, op_clock, region, thread_state
from nanreplay.program.observation import (
    BackwardSpan,
    Observation,
    TapeGradient,
    layer_path,
    notes_of,
)
from nanreplay.tensorflow_internals import tf_distribution, tf_functions

_TOKEN = ".nanreplay-op."
"""Parts a name scope from the number of the op.

It is allowed in a name scope: a tape may outlive the last recording, and then uses the scope as it
is.
"""


def run_observed(
    seen: Observation,
    make: Callable[[Any], Any],
    original: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> Any:
    """Call `make(original)` with the arguments, in the place of `original`.

    An error of ours never reaches the step, and never makes `original` run twice: it ends the
    observation, and the step goes on with what `original` returned. An error of `original` itself
    is raised as ever.
    """
    once: _Once | None = None
    try:
        once = _Once(original)
        return make(once)(*args, **kwargs)
    except Exception as error:
        if once is not None and error is once.raised:
            raise
        seen.failed = error
        return once.result if once is not None and once.was_called else original(*args, **kwargs)


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


# Layers and optimizers.


def observed_layer_call(original: Any) -> Any:
    """Note which layer runs, and the outermost layers, whose variables have paths."""

    # Its name stands in tracebacks, where people know Keras's own.
    def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        seen = current_notes()
        if seen is not None:
            if seen.root_layer is None:
                seen.root_layer = layer.name
            if not any(entry.kind == "layer" for entry in thread_state.stack):
                seen.layers.append(layer)
                _tell_used(layer)
        with region("layer", layer.name):
            if seen is not None:
                _note_part(seen, layer)
            inner = _wrapped_layer(layer)
            if inner is None:
                return original(layer, *args, **kwargs)
            with region("layer", inner.name):
                if seen is not None:
                    _note_part(seen, inner)
                return original(layer, *args, **kwargs)

    return __call__


def _wrapped_layer(layer: Any) -> Any:
    """The layer within a layer of Keras 3 that calls its `call`, of which nothing is noted.

    So does `TimeDistributed` alone; it adds slices and a stack of them to what that layer does.
    """
    for kind in type(layer).__mro__:
        if kind.__name__ == "TimeDistributed" and kind.__module__.startswith("keras."):
            return layer.layer
    return None


def _note_part(seen: Observation, layer: Any) -> None:
    """Note what a layer that begins to run is set to, once a place."""
    path = layer_path(thread_state.stack)
    if path not in seen.parts:
        seen.parts[path] = layer_part(path, layer)


def observed_apply(original: Any) -> Any:
    """Note an update of a Keras 3 optimizer; gradients may come from a generator."""

    def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        # Without variables, Keras takes those that the optimizer was built with. Their list has no
        # public name: `optimizer.variables` are the optimizer's own.
        variables = getattr(optimizer, "_trainable_variables", [])
        if trainable_variables is not None:
            trainable_variables = variables = list(trainable_variables)
        _note_update(optimizer, grads, variables)
        with region("optimizer", optimizer.name):
            return original(optimizer, grads, trainable_variables)

    return apply


def observed_apply_gradients(original: Any) -> Any:
    """Note an update of a Keras 2 optimizer; pairs may come from a generator."""

    def apply_gradients(optimizer: Any, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        gradients = [gradient for gradient, _ in pairs]
        _note_update(optimizer, gradients, [variable for _, variable in pairs])
        # Optimizers of `tf_keras.optimizers.legacy` have a private name alone.
        name = getattr(optimizer, "name", None) or getattr(optimizer, "_name", "optimizer")
        with region("optimizer", str(name)):
            return original(optimizer, pairs, *args, **kwargs)

    return apply_gradients


def _note_update(optimizer: Any, gradients: list[Any], variables: Any) -> None:
    seen = current_notes()
    # An optimizer within another one (loss scaling) makes one update with it.
    if seen is None or any(entry.kind == "optimizer" for entry in thread_state.stack):
        return
    _tell_eager()
    if tf.executing_eagerly() and not seen.optimizers:
        with muted():
            seen.learning_rate = learning_rate_now(optimizer)
            seen.loss_scale = loss_scale_now(optimizer)
    _tell_used(optimizer)
    seen.optimizers.append(optimizer)
    own_variables = []
    for variable in variables:
        own_variables.append(tf_distribution.current_variable(variable))
    seen.applied.append((gradients, own_variables))


def _tell_used(used: Any) -> None:
    """Tell an eager step, before it happens, that Python uses a layer, an optimizer, a variable."""
    if tf.executing_eagerly() and thread_state.eager is not None:
        thread_state.eager.about_to_use(used)


def learning_rate_now(optimizer: Any) -> Any:
    """The learning rate of the next update, a tensor; None where it cannot be told."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "learning_rate", None)
    if callable(rate) and not hasattr(rate, "dtype"):  # Keras 2 hands its schedules out
        rate = rate(inner.iterations)
    return None if rate is None else tf.convert_to_tensor(rate)


def schedule_of(optimizer: Any) -> Any:
    """The schedule of an optimizer's learning rate; None where a variable or a number holds it."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # Keras 3 has a schedule in a private attribute, and its value in the public one.
    for name in ("_learning_rate", "learning_rate"):
        rate = getattr(inner, name, None)
        if callable(rate) and not hasattr(rate, "dtype"):
            return rate if hasattr(rate, "get_config") else None
    return None


def updates_of(optimizer: Any) -> Any:
    """The number of updates of an optimizer by which its schedule goes."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # Of Keras 3, the public one counts those that were applied, where gradients are accumulated.
    updates = getattr(inner, "_iterations", None)
    return tf.convert_to_tensor(inner.iterations if updates is None else updates)


def loss_scale_now(optimizer: Any) -> Any:
    """The loss scale of the next update, a tensor; None for an optimizer that scales no loss."""
    initial = getattr(optimizer, "initial_scale", None)
    if initial is None:
        return None
    # Keras 3 makes the variable `dynamic_scale` in `build`; Keras 2 has the property `loss_scale`.
    scale = None
    if getattr(optimizer, "built", True):
        scale = getattr(optimizer, "dynamic_scale", None)
    if scale is None:
        scale = getattr(optimizer, "loss_scale", initial)
    return tf.convert_to_tensor(scale, tf.float32)


def _tell_eager() -> None:
    """Tell the listener that this thread trains outside of compiled functions."""
    if tf.executing_eagerly() and thread_state.listener is not None:
        thread_state.listener.trained_eagerly()


def observed_scale_loss(original: Any) -> Any:
    """Note which loss a scaled loss was made of."""

    def scale_loss(optimizer: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        scaled = original(optimizer, loss, *args, **kwargs)
        seen = current_notes()
        if seen is not None and scaled is not loss and tf.is_tensor(scaled):
            seen.unscaled[id(scaled)] = loss
            seen.scaled.append(scaled)
        return scaled

    return scale_loss


# Tapes.


def observed_gradient(original: Any) -> Any:
    """Note what a tape differentiates, and that ops made meanwhile are in the backward pass."""

    def gradient(tape: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        for source in tf.nest.flatten(sources):
            _tell_used(tf_distribution.current_variable(source))
        # A gradient function may have a tape of its own, as that of `tf.recompute_grad` does.
        is_within = any(entry.kind == "backward" for entry in thread_state.stack)
        with region("backward"):
            gradients = original(tape, target, sources, *args, **kwargs)
        seen = current_notes()
        if seen is not None:
            _tell_eager()
            variables = []
            for leaf in tf.nest.flatten(sources):
                variables.append(tf_distribution.current_variable(leaf))
            call = TapeGradient(
                targets=tf.nest.flatten(target),
                sources=variables,
                gradients=tf.nest.flatten(gradients),
                replica=tf_distribution.current_replica(),
                is_inner=is_within or tf_functions.is_tape_recording(),
            )
            seen.tape_gradients.append(call)
        return gradients

    return gradient


# The ops of a gradient. A tape asks for the gradient function of an op with the name scope that it
# remembered for the op as it ran. `forward_token` puts a number into that scope, under which the
# op's first output is kept: `mlp/dense` becomes `mlp/dense.nanreplay-op.7`, and
# `observed_gradient_function` finds the very op that is differentiated.


def _tokens() -> dict[str, Any] | None:
    """The ops that the tape may ask for, by token.

    They are those of the whole trace (the functions within it too), or of the eager step.
    """
    if tf.executing_eagerly():
        return None if thread_state.eager is None else thread_state.eager.tokens
    graph = tf.compat.v1.get_default_graph()
    if not isinstance(graph, tf_functions.FuncGraph):
        return None
    tokens: dict[str, Any] = notes_of(tf_functions.outermost_graph(graph)).tokens
    return tokens


def forward_token(scope: str, outputs: Any) -> str:
    """A name scope for the tape that remembers the very op."""
    seen = current_notes()
    if seen is None or seen.failed is not None:
        return scope
    token = run_observed(
        seen, lambda original: _token_of, lambda scope, outputs: scope, (scope, outputs), {}
    )
    return str(token)


def _token_of(scope: str, outputs: Any) -> str:
    tokens = _tokens()
    if tokens is None or not len(outputs) or not tf.is_tensor(outputs[0]):
        return scope
    token = f"{scope}{_TOKEN}{len(tokens)}"
    tokens[token] = outputs[0]
    return token


def observed_gradient_function(
    call: Callable[[str], Any],
    op_type: str,
    scope: str,
    inputs: Any,
    outputs: Any,
    *,
    is_custom: bool = False,
) -> Any:
    """Call the gradient function of an op, and note which ops it made."""
    plain_scope, seen = scope.split(_TOKEN, maxsplit=1)[0], current_notes()
    if seen is None or seen.failed is not None:
        return call(plain_scope)
    noted = functools.partial(
        _noted_gradient,
        seen,
        op_type=op_type,
        inputs=inputs,
        outputs=outputs,
        is_custom=is_custom,
    )
    return run_observed(
        seen,
        lambda once: functools.partial(noted, once),
        lambda scope: call(plain_scope),
        (scope,),
        {},
    )


def _noted_gradient(
    seen: Observation,
    call: Callable[[str], Any],
    scope: str,
    *,
    op_type: str,
    inputs: Any,
    outputs: Any,
    is_custom: bool,
) -> Any:
    """Call a gradient function and note the ops that it made as one `BackwardSpan`."""
    forward = (_tokens() or {}).get(scope)
    scope = scope.split(_TOKEN, maxsplit=1)[0]
    if forward is None:
        forward = next((tensor for tensor in outputs or () if tensor is not None), None)
    graph, start = op_clock()
    result = call(scope)
    _, end = op_clock()
    if end > start:
        seen.spans.append(
            BackwardSpan(graph, start, end, op_type, scope, forward, tuple(inputs or ()), is_custom)
        )
    return result
