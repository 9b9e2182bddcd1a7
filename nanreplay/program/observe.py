"""Noting what Keras layers, tapes and optimizers do while a step is traced, or runs eagerly.

The functions of Keras and TensorFlow that tell of it are replaced once per process, for as long as anybody records. What they
tell goes to the graph that is being traced, whoever traces it, or to the eager step that the thread is running. Nothing is
added to a graph, no argument and no result is changed: a step traces as it would without. `PATCHED` says what is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import tensorflow as tf

from nanreplay.program.collectives import ReplicaThreads
from nanreplay.program.observation import (
    BackwardSpan,
    Mark,
    Observation,
    Region,
    RegionKind,
    TapeGradient,
    notes_of,
)
from nanreplay.tensorflow_internals import tf_distribution, tf_eager, tf_functions, tf_variables

_TOKEN = ".nanreplay-op."
"""Parts a name scope from the number of the op. A scope may hold it: a tape may outlive the last recording, and uses it as it is then."""


class CallListener(Protocol):
    """Is told of calls of compiled functions."""

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a ConcreteFunction in the place of its caller; `run` does so as TensorFlow would."""

    def trained_eagerly(self) -> None:
        """Note that a gradient was computed, or applied, outside of compiled functions."""


class AmbientListener(CallListener, Protocol):
    """Is told of what is in no recorded step, too."""

    def took_gradient(self, sources: Sequence[Any]) -> None:
        """Note that Python code took a gradient with respect to `sources`, which may train."""


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.eager: EagerObserver | None = None
        self.listener: CallListener | None = None
        self.is_muted = False
        self.stack: list[Region] = []


_thread = _ThreadState()
_lock = threading.RLock()
_users: list[object] = []
"""One for each use of the replaced functions."""
_undo = contextlib.ExitStack()
_keras_done: set[str] = set()
ambient: list[AmbientListener] = []
"""Listeners of all threads; the last one is told."""
PATCHED: list[tuple[Any, str]] = []
"""Owner and name of all that is replaced now."""


def install() -> Callable[[], None]:
    """Replace the functions, unless they are; returns what ends this use of them, and puts them back after the last one."""
    use = object()
    with _lock:
        # First of all: a recorder may be collected at any moment here, and end its own use in this very thread.
        _users.append(use)
        if not PATCHED:
            try:
                _patch_tensorflow()
                _patch_keras()
            except BaseException:
                _users.remove(use)
                _uninstall()
                raise

    def release() -> None:
        with _lock:
            if use in _users:
                _users.remove(use)
                if not _users:
                    _uninstall()

    return release


def _uninstall() -> None:
    _undo.close()
    _keras_done.clear()
    PATCHED.clear()


@contextlib.contextmanager
def listening(listener: CallListener | None) -> Iterator[None]:
    """Tell `listener` of the compiled functions that this thread calls, and nobody else."""
    before, _thread.listener = _thread.listener, listener
    try:
        yield
    finally:
        _thread.listener = before


def start_listening(listener: CallListener | None) -> CallListener | None:
    """Tell `listener` of the compiled functions that this thread calls, until `stop_listening`; returns who was told before."""
    before, _thread.listener = _thread.listener, listener
    return before


def stop_listening(listener: CallListener) -> None:
    """Do not tell `listener` any more of what this thread calls."""
    if _thread.listener is listener:
        _thread.listener = None


def mute(is_muted: bool = True) -> bool:
    """Tell nobody of what this thread does from now on, or tell again; returns how it was before."""
    before, _thread.is_muted = _thread.is_muted, is_muted
    return before


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Tell nobody of what this thread does: it is the recorder's own work."""
    before, _thread.is_muted = _thread.is_muted, True
    try:
        yield
    finally:
        _thread.is_muted = before


class EagerObserver:
    """Context manager that fills an `Observation` with what this thread does eagerly.

    Args:
        clock: How many ops have run so far.
    """

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self.observation = Observation()
        self.clock = clock
        self.tokens: dict[str, Any] = {}
        self.n_replicas = 0
        """How many threads of replicas it has seen."""
        self.about_to_use: Callable[[Any], None] = lambda used: None
        """Called with a layer, an optimizer or a variable before it is used in Python."""
        self._before: tuple[EagerObserver | None, bool, list[Region]] = (None, False, [])
        self._release: Callable[[], None] = lambda: None

    def __enter__(self) -> Observation:
        self._release = install()
        self._before = _thread.eager, _thread.is_muted, _thread.stack
        _thread.eager, _thread.is_muted, _thread.stack = self, False, []
        return self.observation

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _thread.eager, _thread.is_muted, _thread.stack = self._before
        self._release()

    @property
    def stack(self) -> tuple[Region, ...]:
        """What is running now, outermost first."""
        return tuple(_thread.stack)


def _notes() -> Observation | None:
    """Where what happens now is noted; None for what nobody wants to know."""
    if _thread.is_muted:
        return None
    try:
        if tf.executing_eagerly():
            return None if _thread.eager is None else _thread.eager.observation
        graph = tf.compat.v1.get_default_graph()
        return notes_of(graph) if isinstance(graph, tf_functions.FuncGraph) else None
    except Exception:  # an error of ours must not reach the step, which runs unobserved then
        return None


def _clock() -> tuple[int, int]:
    """The graph that ops go into (0 for none), and how many it holds, or have run."""
    if tf.executing_eagerly():
        return 0, 0 if _thread.eager is None else _thread.eager.clock()
    graph = tf.compat.v1.get_default_graph()
    return id(graph), tf_functions.op_count(graph)


def _mark() -> None:
    seen = _notes()
    if seen is not None:
        graph, start = _clock()
        seen.marks.setdefault(graph, []).append(Mark(start, tuple(_thread.stack)))


@contextlib.contextmanager
def region(kind: RegionKind, name: str = "") -> Iterator[None]:
    """Attribute the ops made inside to `kind`."""
    outer = len(_thread.stack)
    try:
        _thread.stack.append(Region(kind, name, _clock()[0]))
        _mark()
        yield
    finally:
        del _thread.stack[outer:]
        _mark()


# Replacing functions


def _patch(
    owner: Any, name: str, make: Callable[[Any], Any], *, tells: Callable[..., None] | None = None
) -> None:
    """Replace a method by one that notes; `make(original)` is called where there is something to note it in.

    Args:
        owner: Class of the method.
        name: Its name.
        make: Given the original, makes the one that notes.
        tells: Tells those that record whatever trains of a call in Python that is in no recorded step, given its arguments.
    """
    original = getattr(owner, name)
    inherited = name not in vars(owner)

    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        seen = _notes()
        if seen is None or seen.failed is not None:
            if tells is not None and ambient and is_unheard():
                tells(*args, **kwargs)
            return original(*args, **kwargs)
        return _run(seen, make, original, args, kwargs)

    setattr(owner, name, observed)
    PATCHED.append((owner, name))
    _undo.callback(
        functools.partial(delattr, owner, name)
        if inherited
        else functools.partial(setattr, owner, name, original)
    )


def _tell_update(*args: Any, **kwargs: Any) -> None:
    ambient[-1].trained_eagerly()


def _tell_gradient(tape: Any, target: Any, sources: Any = None, *args: Any, **kwargs: Any) -> None:
    ambient[-1].took_gradient(tf.nest.flatten(sources))


def is_unheard() -> bool:
    """Whether this thread runs Python code of which no recorder is told."""
    return not _thread.is_muted and _thread.listener is None and tf.executing_eagerly()


def _run(
    seen: Observation,
    make: Callable[[Any], Any],
    original: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> Any:
    """Call `make(original)`; an error of ours never reaches the step, and never makes `original` run twice."""
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


def _patch_tensorflow() -> None:
    for name in ("gradient", "jacobian", "batch_jacobian"):
        _patch(tf.GradientTape, name, _observed_gradient, tells=_tell_gradient)
    _patch_calls()
    _undo.callback(replica_threads.follow())
    _undo.callback(tf_eager.hook_gradient_functions(_forward_token, _observed_gradient_function))


def _patch_calls() -> None:
    owner, name = tf_functions.FUNCTION_CALL
    original = getattr(owner, name)

    @functools.wraps(original)
    def call_flat(self: Any, tensor_inputs: Any, captured_inputs: Any) -> Any:
        try:
            listener = _listener_for(self)
        except Exception:  # an error of ours must not reach the training
            listener = None
        if listener is None:
            return original(self, tensor_inputs, captured_inputs)
        return listener.call(
            self,
            tensor_inputs,
            captured_inputs,
            lambda: original(self, tensor_inputs, captured_inputs),
        )

    setattr(owner, name, call_flat)
    PATCHED.append((owner, name))
    _undo.callback(functools.partial(setattr, owner, name, original))

    owner, name = tf_functions.GRAPH_MADE
    make_graph = getattr(owner, name)

    @functools.wraps(make_graph)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(
            Exception
        ):  # Keras may have been imported since; a training goes on without its layers' names
            _patch_keras()
        make_graph(self, *args, **kwargs)

    setattr(owner, name, init)
    PATCHED.append((owner, name))
    _undo.callback(functools.partial(setattr, owner, name, make_graph))


def _listener_for(function: Any) -> CallListener | None:
    """Who is told of a call: nobody within a trace, or of the recorder's own work."""
    if _thread.is_muted or not tf_functions.is_top_level():
        return None
    if _thread.listener is not None:
        return _thread.listener
    owner = notes_of(tf_functions.func_graph(function), make=False)
    if (
        owner is not None
        and owner.listener is not None
        and (listener := owner.listener()) is not None
    ):
        return cast("CallListener", listener)
    return ambient[-1] if ambient else None


def claim_trace(listener: CallListener) -> None:
    """Let `listener` be told of calls of the function that is being traced now: a step of its own is part of it."""
    graph = tf.compat.v1.get_default_graph()
    if isinstance(graph, tf_functions.FuncGraph):
        notes_of(tf_functions.outermost(graph)).listener = weakref.ref(listener)


def _patch_keras() -> None:
    """Replace the methods of Keras 3, and of Keras 2 (`tf_keras`), once they are imported."""
    with _lock:
        if (
            "keras" in sys.modules
            and "keras" not in _keras_done
            and hasattr(sys.modules["keras"], "layers")
        ):
            _keras_done.add("keras")
            _patch_keras_3(sys.modules["keras"])
        if (
            "tf_keras" in sys.modules
            and "tf_keras" not in _keras_done
            and hasattr(sys.modules["tf_keras"], "layers")
        ):
            _keras_done.add("tf_keras")
            _patch_keras_2(sys.modules["tf_keras"])


def _patch_keras_3(keras: Any) -> None:
    _patch(keras.layers.Layer, "__call__", _observed_layer_call)
    for optimizer in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        _patch(optimizer, "apply", _observed_apply, tells=_tell_update)
        _patch(optimizer, "scale_loss", _observed_scale_loss)


def _patch_keras_2(keras: Any) -> None:
    _patch(keras.layers.Layer, "__call__", _observed_layer_call)
    for name in ("Optimizer", "legacy.Optimizer", "experimental.Optimizer"):
        optimizer = functools.reduce(
            lambda found, part: getattr(found, part, None), name.split("."), keras.optimizers
        )
        if optimizer is not None and "apply_gradients" in vars(optimizer):
            _patch(optimizer, "apply_gradients", _observed_apply_gradients, tells=_tell_update)
    for scaling in tf_variables.keras_2_loss_scaling(keras):
        _patch(scaling, "apply_gradients", _observed_apply_gradients)
        _patch(scaling, "get_scaled_loss", _observed_scale_loss)


# What is noted


def _observed_layer_call(original: Any) -> Any:
    def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
        seen = _notes()
        if seen is not None:
            if seen.root_layer is None:
                seen.root_layer = layer.name
            if not any(entry.kind == "layer" for entry in _thread.stack):
                seen.layers.append(layer)
                _tell_used(layer)
        with region("layer", layer.name):
            return original(layer, *args, **kwargs)

    return __call__


def _observed_apply(original: Any) -> Any:
    def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        variables = (
            getattr(optimizer, "_trainable_variables", [])
            if trainable_variables is None
            else list(trainable_variables)
        )
        _note_update(optimizer, grads, variables)
        with region("optimizer", optimizer.name):
            return original(optimizer, grads, None if trainable_variables is None else variables)

    return apply


def _observed_apply_gradients(original: Any) -> Any:
    """Keras 2 hands over pairs, which may come from a generator."""

    def apply_gradients(optimizer: Any, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        _note_update(
            optimizer, [gradient for gradient, _ in pairs], [variable for _, variable in pairs]
        )
        with region(
            "optimizer",
            str(getattr(optimizer, "name", None) or getattr(optimizer, "_name", "optimizer")),
        ):
            return original(optimizer, pairs, *args, **kwargs)

    return apply_gradients


def _note_update(optimizer: Any, gradients: list[Any], variables: Any) -> None:
    seen = _notes()
    if seen is None or any(entry.kind == "optimizer" for entry in _thread.stack):
        return
    _tell_eager()
    if tf.executing_eagerly() and not seen.optimizers:
        with muted():
            seen.learning_rate, seen.loss_scale = (
                learning_rate_now(optimizer),
                loss_scale_now(optimizer),
            )
    _tell_used(optimizer)
    seen.optimizers.append(optimizer)
    seen.applied.append(
        (gradients, [tf_distribution.component(variable) for variable in variables])
    )


def _tell_used(used: Any) -> None:
    if tf.executing_eagerly() and _thread.eager is not None:
        _thread.eager.about_to_use(used)


def learning_rate_now(optimizer: Any) -> Any:
    """The learning rate of the next update, a tensor; None where it cannot be told."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "learning_rate", None)
    if callable(rate) and not hasattr(rate, "dtype"):  # Keras 2 hands its schedules out
        rate = rate(inner.iterations)
    return None if rate is None else tf.convert_to_tensor(rate)


def loss_scale_now(optimizer: Any) -> Any:
    """The loss scale of the next update, a tensor; None for an optimizer that scales no loss."""
    initial = getattr(optimizer, "initial_scale", None)
    if initial is None:
        return None
    built = getattr(optimizer, "dynamic_scale", None) if getattr(optimizer, "built", True) else None
    scale = built if built is not None else getattr(optimizer, "loss_scale", initial)
    return tf.convert_to_tensor(scale, tf.float32)


def _tell_eager() -> None:
    if tf.executing_eagerly() and _thread.listener is not None:
        _thread.listener.trained_eagerly()


def _observed_scale_loss(original: Any) -> Any:
    def scale_loss(optimizer: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        scaled = original(optimizer, loss, *args, **kwargs)
        seen = _notes()
        if seen is not None and scaled is not loss and tf.is_tensor(scaled):
            seen.unscaled[id(scaled)] = loss
            seen.scaled.append(scaled)
        return scaled

    return scale_loss


def _observed_gradient(original: Any) -> Any:
    def gradient(tape: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        for source in tf.nest.flatten(sources):
            _tell_used(tf_distribution.component(source))
        with region("backward"):
            gradients = original(tape, target, sources, *args, **kwargs)
        seen = _notes()
        if seen is not None:
            _tell_eager()
            flat = [tf_distribution.component(source) for source in tf.nest.flatten(sources)]
            replica, is_inner = tf_distribution.current_replica(), tf_functions.is_tape_recording()
            targets, found = tf.nest.flatten(target), tf.nest.flatten(gradients)
            seen.tape_gradients.append(TapeGradient(targets, flat, found, replica, is_inner))
        return gradients

    return gradient


def _tokens() -> dict[str, Any] | None:
    """The ops that the tape may ask for, of the trace (the functions within it too), or of the eager step."""
    if tf.executing_eagerly():
        return None if _thread.eager is None else _thread.eager.tokens
    graph = tf.compat.v1.get_default_graph()
    return (
        notes_of(tf_functions.outermost(graph)).tokens
        if isinstance(graph, tf_functions.FuncGraph)
        else None
    )


def _forward_token(scope: str, outputs: Any) -> str:
    """A name scope for the tape that remembers the very op; `_observed_gradient_function` reads it back."""
    seen = _notes()
    if seen is None or seen.failed is not None:
        return scope
    return str(
        _run(seen, lambda original: _token_of, lambda scope, outputs: scope, (scope, outputs), {})
    )


def _token_of(scope: str, outputs: Any) -> str:
    tokens = _tokens()
    if tokens is None or not len(outputs) or not tf.is_tensor(outputs[0]):
        return scope
    token = f"{scope}{_TOKEN}{len(tokens)}"
    tokens[token] = outputs[0]
    return token


def _observed_gradient_function(
    call: Callable[[str], Any], op_type: str, scope: str, inputs: Any, outputs: Any
) -> Any:
    """Call the gradient function of an op, and note which ops it made."""
    plain, seen = scope.split(_TOKEN)[0], _notes()
    if seen is None or seen.failed is not None:
        return call(plain)
    noted = functools.partial(
        _noted_gradient, seen, op_type=op_type, inputs=inputs, outputs=outputs
    )
    return _run(
        seen, lambda once: functools.partial(noted, once), lambda scope: call(plain), (scope,), {}
    )


def _noted_gradient(
    seen: Observation,
    call: Callable[[str], Any],
    scope: str,
    *,
    op_type: str,
    inputs: Any,
    outputs: Any,
) -> Any:
    forward = (_tokens() or {}).get(scope)
    scope = scope.split(_TOKEN)[0]
    if forward is None:
        forward = next((tensor for tensor in outputs or () if tensor is not None), None)
    graph, start = _clock()
    result = call(scope)
    _, end = _clock()
    if end > start:
        seen.spans.append(
            BackwardSpan(graph, start, end, op_type, scope, forward, tuple(inputs or ()))
        )
    return result


# Replicas


def _switched(devices: tuple[str, ...]) -> None:
    """Another thread goes on: that of a replica, or the one that started them."""
    seen = _notes()
    if seen is not None and devices:
        seen.replica_devices = devices
    _mark()


replica_threads = ReplicaThreads(lambda: _thread, _switched)


def _inherit() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A thread of a replica of an eager step goes on with its observation."""
    eager, listener = _thread.eager, _thread.listener

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        if eager is not None:
            eager.n_replicas += 1
        _thread.eager, _thread.listener = (
            eager,
            listener,
        )  # TensorFlow hands op callbacks on by itself
        yield

    return enter


replica_threads.inherited.append(_inherit)
