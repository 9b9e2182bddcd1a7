"""Private modules of TensorFlow and Keras that belong to `tf.distribute`; see `private_tf`.

Each replica of a process is traced in a thread of its own, and they take turns.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tensorflow.python.distribute import mirrored_run as _mirrored_run
from tensorflow.python.distribute import values as _values


def components(variable: Any) -> Sequence[Any]:
    """The variables that a variable of a distribution strategy is made of, one a replica of this process; else the variable."""
    value = _inner(variable)
    found: Sequence[Any] = value.values if isinstance(value, _values.DistributedValues) else [value]
    return found


def _inner(variable: Any) -> Any:
    """The `tf.Variable` of a Keras variable."""
    value = getattr(variable, "value", None)
    return variable if value is None or callable(value) else value


def component(variable: Any) -> Any:
    """What a variable of a distribution strategy is in the replica that is being traced; another variable as it is."""
    found = components(variable)
    return (
        variable
        if len(found) == 1 and not isinstance(_inner(variable), _values.DistributedValues)
        else found[current_replica() or 0]
    )


def current_replica() -> int | None:
    """Number, within this process, of the replica that this thread traces; None outside of `strategy.run`."""
    thread = threading.current_thread()
    return thread.replica_id if isinstance(thread, _mirrored_run._MirroredReplicaThread) else None


def hook_replica_threads(
    started: Callable[[Any, Callable[..., Any]], Callable[..., Any]],
    merging: Callable[[Callable[..., Any]], Callable[..., Any]],
    resumed: Callable[[], None],
) -> Callable[[], None]:
    """Follow the threads that trace replicas; returns what undoes it.

    Args:
        started: (thread of a replica, which has `devices`; its function) -> the function to run there; called in the thread that starts it.
        merging: (function that merges all replicas) -> the one to call; called in a replica's thread. The function itself
            runs in the thread that started the replicas, while they wait.
        resumed: Called in a replica's thread as it goes on after merging.
    """
    thread, context = _mirrored_run._MirroredReplicaThread, _mirrored_run._MirroredReplicaContext
    original = context._merge_call

    def start(self: Any) -> None:
        self.main_fn = started(self, self.main_fn)
        threading.Thread.start(self)

    def merge_call(self: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = original(self, merging(function), args, kwargs)
        resumed()
        return result

    thread.start, context._merge_call = start, merge_call

    def undo() -> None:
        del thread.start
        context._merge_call = original

    return undo


def replica_reducer(strategy: Any) -> Callable[[Any], Any]:
    """What makes one of the logs of all replicas, as `model.fit` does; Keras's own, since it runs inside the training's step."""
    from keras.src.backend.tensorflow.trainer import reduce_per_replica  # replays need no Keras

    return functools.partial(reduce_per_replica, strategy=strategy, reduction="auto")
