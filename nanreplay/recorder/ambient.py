"""Recording whatever trains in a process, or in a block of code, without a line of it changed.

Each training has a recorder of its own: what shares a variable with one is part of it, anything
else is another training. `fit` is given its recorder as a callback; compiled functions that train
are seen as they are called. Used by `with Recorder(...)` and by `nanreplay run`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from nanreplay.errors import AttachError, NonFiniteError
from nanreplay.program import listening, observe
from nanreplay.program.python_effects import AssignmentTracker
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder import notices
from nanreplay.recorder.sessions import SessionNotice, SessionWatch
from nanreplay.tensorflow_internals import tf_variables

if TYPE_CHECKING:
    from nanreplay.recorder.block_training import LoopStep
    from nanreplay.recorder.callback import Recorder

KEPT = 4
"""Trainings that are recorded at once; the one that has not trained for longest is let go of."""


class Ambient:
    """Is told of the compiled functions that any thread calls, and of each `fit`.

    Args:
        make: Makes a recorder for one more training.
        in_loop: Told that Python code trains in no step that is recorded; says whether the next one
            will be.
    """

    def __init__(
        self, make: Callable[[], Recorder], in_loop: Callable[[], bool] = lambda: False
    ) -> None:
        self._make = make
        self._in_loop = in_loop
        self._recorders: list[Recorder] = []
        """The one that has trained last comes last."""
        self._trains: dict[int, tuple[Any, bool]] = {}
        """(weak reference to a function, whether it trains), by its id."""
        self._lock = threading.RLock()
        self._release: Callable[[], None] = lambda: None
        self._n_uses = 0
        """How many recorders had been attached in this process, this one among them."""
        self._fitted: list[tuple[Any, Any]] = []
        """(class, its own `fit`) where `fit` was replaced."""
        self._sessions = SessionWatch(SessionNotice())
        self._has_warned = False
        """Whether it was said that eager steps are not recorded."""
        self._differentiated: dict[int, int] = {}
        """Ids of the handles that Python code took gradients of; the tracker wants a number."""
        self._held: list[Any] = []
        """These handles, so that their ids stay theirs."""
        self._assigned: AssignmentTracker | None = None
        """Notes which of these variables are set in Python, until that has been said."""

    def start(self) -> None:
        """Record from now on."""
        self._release = observe.install()
        self._n_uses = observe.uses()
        self._sessions.start()
        listening.ambient.append(self)
        for name in ("keras", "tf_keras"):
            self.keras_imported(name)

    def stop(self) -> None:
        """Look at the last steps of all trainings, and record no more.

        Raises:
            NonFiniteError: One of the last steps was non-finite, and `on_nan` is "raise".
        """
        if self in listening.ambient:
            listening.ambient.remove(self)
        for owner, original in self._fitted:
            owner.fit = original
        self._fitted.clear()
        self._sessions.stop()
        self._forget_gradients()
        self._release()
        first_error: NonFiniteError | None = None
        for recorder in list(self._recorders):
            try:
                recorder.close()
            except NonFiniteError as error:
                first_error = first_error or error
        self._recorders.clear()
        if first_error is not None:
            raise first_error

    @property
    def has_seen_nothing(self) -> bool:
        """Whether no training was seen, by a recorder of the program's own either."""
        return observe.uses() == self._n_uses and not self._recorders

    # `fit`

    def keras_imported(self, name: str) -> None:
        """Have `fit` of Keras 3 (`keras`) or 2 (`tf_keras`) recorded, once it is imported."""
        model = getattr(sys.modules.get(name), "Model", None)
        # The class that defines `fit` is replaced in: in Keras 3 that is a trainer, not `Model`.
        bases = getattr(model, "__mro__", ())
        owner = next((base for base in bases if "fit" in vars(base)), None)
        if owner is None or any(owner is known for known, _ in self._fitted):
            return
        original = owner.fit
        signature = inspect.signature(original)

        @functools.wraps(original)
        def fit(*args: Any, **kwargs: Any) -> Any:
            try:
                call = self._with_recorder(signature.bind(*args, **kwargs))
            except TypeError:  # wrong arguments: fit says so
                call = None
            except Exception as error:
                notices.say(f"fit is not recorded: {type(error).__name__}: {error}")
                call = None
            if call is None:
                return original(*args, **kwargs)
            return original(*call.args, **call.kwargs)

        owner.fit = fit
        self._fitted.append((owner, original))

    def _with_recorder(self, call: inspect.BoundArguments) -> inspect.BoundArguments | None:
        """The call of `fit` with one callback more.

        None where it has a recorder already, or cannot have one.
        """
        # Imports Keras, which a program may set up before it imports it.
        from nanreplay.recorder.callback import Recorder
        from nanreplay.recorder.fit_hooks import check_model

        model = next(iter(call.arguments.values()))
        argument = call.arguments.get("callbacks")
        callbacks = _callbacks_in(argument)
        if any(isinstance(callback, Recorder) for callback in callbacks):
            return None
        try:
            check_model(model)
        except AttachError as error:
            notices.say(f"fit is not recorded: {error}")
            return None
        recorder = self.recorder_of_handles(handles_in([model]))
        is_callback_list = hasattr(argument, "append") and not isinstance(argument, (list, tuple))
        if argument is not None and is_callback_list:
            # A `CallbackList` of the user's own has told its callbacks of the model already.
            argument.append(recorder)
            recorder.set_model(model)
        else:
            call.arguments["callbacks"] = [*callbacks, recorder]
        return call

    # Loops that train in Python

    def iterations(self, values: Iterable[Any], last: LoopStep | None) -> LoopStep:
        """What records the iterations of a loop that is entered.

        Args:
            values: What the loop works with: models, optimizers, variables, and what holds some.
            last: What recorded it when it was entered before; goes on where `values` do not tell
                which training this is.
        """
        handles = handles_in(values)
        if last is not None and last.is_active and (not handles or last.knows(handles)):
            return last
        return self.recorder_of_handles(handles).in_block.record_iterations()

    # Compiled functions

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a compiled function, in the recording of its training if it trains."""
        if not self._does_train(function):
            recorder = self._known_recorder([*captured, *inputs])
            if recorder is not None:
                recorder.in_block.note_call(function, inputs, captured)
            return run()
        recorder = self.recorder_of_handles([*captured, *inputs])
        return recorder.in_block.record_call(function, inputs, captured, run)

    def _does_train(self, function: Any) -> bool:
        known = self._trains.get(id(function))
        # The id of a function that is gone may have become that of another one.
        if known is None or known[0]() is not function:
            with listening.muted():
                try:
                    trains = TrainingFunction(function).trains
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    notices.say(f"a compiled function is not recorded: {reason}")
                    trains = False
            known = self._trains[id(function)] = weakref.ref(function), trains
        return known[1]

    def recorder_of_handles(self, handles: Sequence[Any]) -> Recorder:
        """The recorder of the training that has one of these variables, else one of a new one."""
        with self._lock:
            recorder = self._known_recorder(handles)
            if recorder is None:
                recorder = self._make()
                self._recorders.append(recorder)
                while len(self._recorders) > KEPT:
                    self._recorders.pop(0).close()
            elif recorder is not self._recorders[-1]:
                self._recorders.remove(recorder)
                self._recorders.append(recorder)
            recorder.in_block.remember(handles)
            return recorder

    def _known_recorder(self, handles: Sequence[Any]) -> Recorder | None:
        with self._lock:
            for recorder in self._recorders:
                if recorder.in_block.knows(handles):
                    return recorder
            return None

    # Eager steps, which are not recorded

    def trained_eagerly(self) -> None:
        """Say once that a step in Python is not recorded: where it begins is not seen."""
        if self._has_warned or self._in_loop():
            return
        self._has_warned = True
        self._forget_gradients()
        tell_of_eager_training(notices.user_place())

    def _forget_gradients(self) -> None:
        if self._assigned is not None:
            self._assigned.stop()
        self._assigned = None
        self._held.clear()

    def took_gradient(self, sources: Sequence[Any]) -> None:
        """Python code takes a gradient.

        If it had set a variable between two of them, it trains step by step. A gradient alone is no
        training: a program may look at it.
        """
        handles = handles_in(sources, 0)
        if self._has_warned or not handles or self._in_loop():
            return
        with self._lock:
            if self._assigned is not None and self._assigned.take():
                self.trained_eagerly()
            self._differentiated.update({id(handle): 0 for handle in handles})
            self._held += handles
            if self._assigned is None:
                self._assigned = AssignmentTracker(self._differentiated)
                self._assigned.start()


def tell_of_eager_training(place: notices.Place | None) -> None:
    """Say that a line of the program trains step by step in Python, unrecorded."""
    notices.say(
        f"{place or 'the program'} trains step by step in Python, which is not recorded. "
        "To record it: `step = recorder.wrap(step)` with nanreplay.Recorder, called for each "
        "batch, or `@tf.function` above the step.",
        place,
    )


def _callbacks_in(argument: Any) -> list[Any]:
    """The callbacks that `fit` was given: one, a list of them, or a `CallbackList`."""
    callbacks = getattr(argument, "callbacks", argument)
    if isinstance(callbacks, (list, tuple)):
        return list(callbacks)
    return [] if callbacks is None else [callbacks]


# Variables

_MOST_ELEMENTS = 1000
"""Of longer lists, only the beginning is looked through."""


def handles_in(values: Iterable[Any], depth: int = 2) -> list[Any]:
    """Handles of the variables in what a piece of a program works with.

    Args:
        values: Variables, models, optimizers; lists of some, and objects with attributes that are
            some.
        depth: How many such objects deep to look.
    """
    handles: list[Any] = []
    for value in values:
        # A property of the program's own may raise anything; it holds no variables then.
        with contextlib.suppress(Exception):
            handles += _handles_of(value, depth)
    return handles


def _handles_of(value: Any, depth: int) -> list[Any]:
    handle = tf_variables.handle_of(value)
    if tf.is_tensor(handle) and handle.dtype == tf.resource:
        return [handle]
    if isinstance(value, tf.Module) or _is_of_keras(value):
        return handles_in(tf_variables.variables_in(value), 0)
    if not depth:
        return []
    if isinstance(value, (list, tuple)):
        return handles_in(value[:_MOST_ELEMENTS], depth - 1)
    if isinstance(value, dict):
        return handles_in(list(value.values())[:_MOST_ELEMENTS], depth - 1)
    attributes = getattr(value, "__dict__", None)
    if type(value).__module__ != "builtins" and isinstance(attributes, dict):
        return handles_in(list(vars(value).values()), depth - 1)
    return []


def _is_of_keras(value: Any) -> bool:
    return any(
        kind.__module__.partition(".")[0] in ("keras", "tf_keras") for kind in type(value).__mro__
    )
