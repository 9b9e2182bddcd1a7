"""Noting what Keras layers, tapes and optimizers do while a step is traced, or runs eagerly.

The functions of Keras and TensorFlow that tell of it are replaced once per process, for as long as
anybody records. What they tell goes to the graph that is being traced, whoever traces it, or to the
eager step that the thread is running. Nothing is added to a graph, no argument and no result is
changed: a step traces as it would without. `PATCHED` says what is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from nanreplay.program.collectives import ReplicaThreads
from nanreplay.program.listening import (
    EagerNotes,
    ambient,
    bystanders,
    current_notes,
    is_unheard,
    listener_for,
    mark_regions,
    tell_bystanders,
    thread_state,
)
from nanreplay.program.observation import Observation, Region
from nanreplay.program.observed_calls import (
    forward_token,
    observed_apply,
    observed_apply_gradients,
    observed_gradient,
    observed_gradient_function,
    observed_layer_call,
    observed_scale_loss,
    run_observed,
)
from nanreplay.tensorflow_internals import tf_eager, tf_functions, tf_traces, tf_variables

_lock = threading.RLock()
_users: list[object] = []
"""One for each use of the replaced functions."""
_n_uses = 0
"""How many uses there have been in this process."""
_undo = contextlib.ExitStack()
_keras_done: set[str] = set()
PATCHED: list[tuple[Any, str]] = []
"""Owner and name of all that is replaced now."""


def install() -> Callable[[], None]:
    """Replace the functions, unless they are replaced already.

    Returns what ends this use of them, and puts them back after the last one.
    """
    global _n_uses  # noqa: PLW0603
    use = object()
    with _lock:
        _n_uses += 1
        # Before anything else: a recorder may be garbage-collected at any moment here, and end its
        # own use in this very thread.
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


def uses() -> int:
    """Return how many uses of the replaced functions there have been in this process."""
    return _n_uses


def _uninstall() -> None:
    _undo.close()
    _keras_done.clear()
    PATCHED.clear()


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
        self._before: tuple[EagerNotes | None, bool, list[Region]] = (None, False, [])
        self._release: Callable[[], None] = lambda: None

    def __enter__(self) -> Observation:
        self._release = install()
        self._before = thread_state.eager, thread_state.is_muted, thread_state.stack
        thread_state.eager, thread_state.is_muted, thread_state.stack = self, False, []
        return self.observation

    def __exit__(self, *error: object) -> None:
        thread_state.eager, thread_state.is_muted, thread_state.stack = self._before
        self._release()

    @property
    def stack(self) -> tuple[Region, ...]:
        """What is running now, outermost first."""
        return tuple(thread_state.stack)


# Replacing functions.


def _patch(
    owner: Any, name: str, make: Callable[[Any], Any], *, tells: Callable[..., None] | None = None
) -> None:
    """Replace a method by one that notes.

    Args:
        owner: Class of the method.
        name: Its name.
        make: Given the original, makes the one that notes; called where there is something to note
            it in.
        tells: Tells those that record whatever trains of a call in Python that is in no recorded
            step, given its arguments.
    """
    original = getattr(owner, name)
    inherited = name not in vars(owner)

    @functools.wraps(original)
    def observed(*args: Any, **kwargs: Any) -> Any:
        seen = current_notes()
        if seen is None or seen.failed is not None:
            if tells is not None and ambient and is_unheard():
                tells(*args, **kwargs)
            return original(*args, **kwargs)
        return run_observed(seen, make, original, args, kwargs)

    setattr(owner, name, observed)
    PATCHED.append((owner, name))
    if inherited:
        _undo.callback(functools.partial(delattr, owner, name))
    else:
        _undo.callback(functools.partial(setattr, owner, name, original))


def _tell_update(*args: Any, **kwargs: Any) -> None:
    ambient[-1].trained_eagerly()


def _tell_gradient(tape: Any, target: Any, sources: Any = None, *args: Any, **kwargs: Any) -> None:
    ambient[-1].took_gradient(tf.nest.flatten(sources))


def _patch_tensorflow() -> None:
    for name in ("gradient", "jacobian", "batch_jacobian"):
        _patch(tf.GradientTape, name, observed_gradient, tells=_tell_gradient)
    _patch_calls()
    _undo.callback(replica_threads.follow())
    _undo.callback(tf_eager.hook_gradient_functions(forward_token, observed_gradient_function))


def _patch_calls() -> None:
    """Replace what runs compiled functions, and what begins a trace."""
    owner, name = tf_functions.FUNCTION_CALL
    original = getattr(owner, name)

    @functools.wraps(original)
    def call_flat(self: Any, tensor_inputs: Any, captured_inputs: Any) -> Any:
        try:
            listener = listener_for(self)
        except Exception:  # an error of ours must not reach the training
            listener = None
        if listener is None:
            if bystanders:
                tell_bystanders(self, tensor_inputs, captured_inputs)
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

    owner, name = tf_traces.FUNCTION_CHOOSES
    choose = getattr(owner, name)

    @functools.wraps(choose)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        chooser = thread_state.chooser
        if chooser is None or kwargs or thread_state.is_muted or not tf_functions.is_top_level():
            return choose(self, *args, **kwargs)
        return chooser.call(self, args, lambda: choose(self, *args))

    setattr(owner, name, call)
    PATCHED.append((owner, name))
    _undo.callback(functools.partial(setattr, owner, name, choose))

    owner, name = tf_functions.GRAPH_MADE
    make_graph = getattr(owner, name)

    @functools.wraps(make_graph)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        # Keras may have been imported since. Should it fail, a training goes on without the names
        # of its layers.
        with contextlib.suppress(Exception):
            _patch_keras()
        make_graph(self, *args, **kwargs)

    setattr(owner, name, init)
    PATCHED.append((owner, name))
    _undo.callback(functools.partial(setattr, owner, name, make_graph))


def _patch_keras() -> None:
    """Replace the methods of Keras 3, and of Keras 2 (`tf_keras`), once they are imported."""
    with _lock:
        for name, patch in (("keras", _patch_keras_3), ("tf_keras", _patch_keras_2)):
            package = sys.modules.get(name)
            # A package that is being imported has no `layers` yet.
            if package is None or name in _keras_done or not hasattr(package, "layers"):
                continue
            _keras_done.add(name)
            patch(package)


def _patch_keras_3(keras: Any) -> None:
    _patch(keras.layers.Layer, "__call__", observed_layer_call)
    for optimizer in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        _patch(optimizer, "apply", observed_apply, tells=_tell_update)
        _patch(optimizer, "scale_loss", observed_scale_loss)


def _patch_keras_2(keras: Any) -> None:
    _patch(keras.layers.Layer, "__call__", observed_layer_call)
    # Optimizers of Keras 2 have three base classes, of which a version may lack some.
    optimizers = keras.optimizers
    for owner in (
        optimizers,
        getattr(optimizers, "legacy", None),
        getattr(optimizers, "experimental", None),
    ):
        optimizer = getattr(owner, "Optimizer", None)
        if optimizer is not None and "apply_gradients" in vars(optimizer):
            _patch(optimizer, "apply_gradients", observed_apply_gradients, tells=_tell_update)
    for scaling in tf_variables.keras_2_loss_scaling(keras):
        _patch(scaling, "apply_gradients", observed_apply_gradients)
        _patch(scaling, "get_scaled_loss", observed_scale_loss)


# Replicas.


def _switched(devices: tuple[str, ...]) -> None:
    """Another thread goes on: that of a replica, or the one that started them."""
    seen = current_notes()
    if seen is not None and devices:
        seen.replica_devices = devices
    mark_regions()


def _replica_failed(error: Exception) -> None:
    """An error of ours in a thread of a replica ends what is noted of the step, not the step."""
    with contextlib.suppress(Exception):
        seen = current_notes()
        if seen is not None:
            seen.failed = error


replica_threads = ReplicaThreads(lambda: thread_state, _switched, _replica_failed)


def _inherit() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A thread of a replica of an eager step goes on with its observation."""
    eager, listener = thread_state.eager, thread_state.listener

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        if eager is not None:
            eager.n_replicas += 1
        # TensorFlow hands op callbacks on by itself.
        thread_state.eager, thread_state.listener = eager, listener
        yield

    return enter


replica_threads.inherited.append(_inherit)
