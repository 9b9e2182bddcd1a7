"""Private names of `tf.distribute`: the variables and the threads of a strategy's replicas.

A mirrored strategy traces each replica of a process in a thread of its own, and they take turns.
The recorder follows these threads; `program.collectives` uses what is here.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import input_lib as _input_lib
from tensorflow.python.distribute import mirrored_run as _mirrored_run
from tensorflow.python.distribute import values as _values
from tensorflow.python.eager import context as _context


@contextlib.contextmanager
def outside_of_scopes() -> Iterator[None]:
    """Make plain variables, though the program is in the scope of a strategy.

    A strategy and its creators of variables belong to the default graph, also in eager execution.
    """
    if not tf.distribute.has_strategy():
        yield
        return
    with tf.Graph().as_default(), _context.eager_mode():
        yield


def replica_variables(variable: Any) -> Sequence[Any]:
    """The variables of this process that a distributed variable is made of, one a replica.

    Any other variable is alone in the list. No public class tells a distributed variable from
    another, and `strategy.experimental_local_results` needs the strategy.
    """
    value = _tf_variable(variable)
    variables: Sequence[Any] = [value]
    if isinstance(value, _values.DistributedValues):
        variables = value.values
    return variables


def _tf_variable(variable: Any) -> Any:
    """The `tf.Variable` of a Keras variable; a method `value` is that of a `tf.Variable` itself."""
    value = getattr(variable, "value", None)
    return variable if value is None or callable(value) else value


def current_variable(variable: Any) -> Any:
    """A distributed variable's part for the replica that this thread traces; any other as it is."""
    if not isinstance(_tf_variable(variable), _values.DistributedValues):
        return variable
    return replica_variables(variable)[current_replica() or 0]


def splits_batches(epoch_iterator: Any) -> bool:
    """Whether the data of a `fit` is a dataset whose batches a strategy splits among its replicas.

    Keras keeps what it iterates over under a private name. A dataset that the user made for each
    replica (`distribute_datasets_from_function`) is of another class, and splits nothing.
    """
    dataset = getattr(epoch_iterator, "_distributed_dataset", None)
    return isinstance(dataset, _input_lib.DistributedDataset)


def current_replica() -> int | None:
    """Number, within this process, of the replica that this thread traces; None for no replica.

    `tf.distribute.get_replica_context` counts over all processes and differs between strategies;
    the thread knows its own number.
    """
    thread = threading.current_thread()
    is_replica = isinstance(thread, _mirrored_run._MirroredReplicaThread)
    return thread.replica_id if is_replica else None  # type: ignore[attr-defined]


def hook_replica_threads(
    started: Callable[[Any, Callable[..., Any]], Callable[..., Any]],
    merging: Callable[[Callable[..., Any]], Callable[..., Any]],
    resumed: Callable[[], None],
) -> Callable[[], None]:
    """Follow the threads that trace replicas; returns what undoes it.

    TensorFlow starts and switches these threads by itself and tells nobody.

    Args:
        started: Given the thread of a replica (it has `devices`) and its function, returns the
            function to run there. It is called in the thread that starts the replica.
        merging: Given the function that merges all replicas, returns the one to call. It is
            called in a replica's thread; the function itself runs in the thread that started the
            replicas, while they wait.
        resumed: Called in a replica's thread as it goes on after merging.
    """
    thread = _mirrored_run._MirroredReplicaThread
    context = _mirrored_run._MirroredReplicaContext
    original = context._merge_call

    def start(self: Any) -> None:
        self.main_fn = started(self, self.main_fn)
        threading.Thread.start(self)

    def merge_call(self: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = original(self, merging(function), args, kwargs)
        resumed()
        return result

    thread.start = start
    context._merge_call = merge_call

    def undo() -> None:
        del thread.start  # the class then inherits that of threading.Thread again
        context._merge_call = original

    return undo


def replica_reducer(strategy: Any) -> Callable[[Any], Any]:
    """The function that makes one of the logs of all replicas, as `model.fit` does.

    Keras's own is taken, since it runs inside of the training's step and another one would change
    the graph.
    """
    # Imported here, since a replay needs no Keras.
    from keras.src.backend.tensorflow.trainer import reduce_per_replica

    return functools.partial(reduce_per_replica, strategy=strategy, reduction="auto")
