"""What trains in a block of code that nobody wrapped: calls, and iterations of loops in Python.

`Ambient` finds the training of a call, and has its `BlockTraining` record it. Of a loop that trains
in Python each iteration is one eager step: what `EagerStep` does with a call, a `LoopStep` does
between the beginning and the end of an iteration, of which `loops` tells it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.traced_program import is_float_variable
from nanreplay.program.training_functions import hands_gradient_out
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerCall, EagerStep
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.lifecycle import Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.tensorflow_internals import tf_functions


class LoopStep:
    """Records the iterations of a loop, each that trains in Python as one eager step.

    An iteration in which nothing is computed for a gradient or applied is none: a loop that fills a
    buffer first, say. Once an iteration trains in compiled functions alone, these are the steps,
    and the loop is left alone.

    Args:
        recording: The recording.
        calls: Records compiled functions.
        eager: Records the eager steps.
        ending: Sees the steps begin and end.
        knows: Says whether the training uses one of some variables, given their handles.
        remember: Told of the handles of the variables, once they are known.
    """

    def __init__(
        self,
        recording: Recording,
        calls: CompiledCalls,
        eager: EagerStep,
        ending: Ending,
        knows: Callable[[Any], bool],
        remember: Callable[[Any], None],
    ) -> None:
        self.knows = knows
        self.is_compiled = False
        """Whether compiled functions train, and nothing else."""
        self.is_eager = False
        """Whether an iteration has trained in Python: compiled functions are ops of it then."""
        self._recording = recording
        self._calls = calls
        self._eager = eager
        self._ending = ending
        self._remember = remember
        self._trained_before = 0
        self._n_known = 0
        self._call: EagerCall | None = None
        """The iteration that is under way, where it is recorded."""
        self._stop = contextlib.ExitStack()

    @property
    def is_active(self) -> bool:
        """Whether iterations are recorded."""
        return self._recording.lifecycle.is_active

    def begin(self, arguments: Callable[[], tuple[Any, Callable[[], Any]]]) -> None:
        """An iteration begins.

        Args:
            arguments: Gives what the iteration is given, and what runs it once more.
        """
        self._ending.is_in_step = True
        self._calls.is_eager, self._trained_before = False, self._calls.trained
        self._calls.before_step = self._eager.forget_call
        self._call = self._eager.begin(arguments)
        self._stop = contextlib.ExitStack()
        self._stop.enter_context(listening.listening(self))

    def taken(self, value: Any) -> None:
        """The iteration has taken `value` from a Python iterator: it is part of the batch."""
        call = self._call
        if call is not None:
            self._recording.guard(lambda: self._eager.add_to_batch(call, {"next": value}))

    def end(self, error: BaseException | None) -> None:
        """The iteration is over, by `error` where one passes through.

        Raises:
            NonFiniteError: It was non-finite, and `on_nan` is "raise".
        """
        self._stop.close()
        self._calls.before_step = None
        try:
            self._record_end(error)
        except BaseException as raised:
            self._ending.ended_by(raised)
            raise
        if error is not None:
            self._ending.ended_by(error)
        self._ending.end_step()

    def _record_end(self, error: BaseException | None) -> None:
        call = self._call
        if call is None:
            return
        self.is_eager = self.is_eager or self._calls.is_eager
        if isinstance(error, (tf.errors.OpError, ArithmeticError)):
            self._eager.raised(call, error)
        elif self._calls.is_eager:  # an error of another kind is the program's own affair
            self._eager.ended(call, None)
        else:
            self._recording.guard(self._eager.forget_call)
            self.is_compiled = self._calls.trained > self._trained_before
        handles = self._recording.variables.handles
        if len(handles) != self._n_known:
            self._n_known = len(handles)
            self._remember(handles)

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Note a compiled function: a step if it trains, unless iterations train in Python."""
        # Python applies a gradient that is handed out, or adds up several until it does.
        if self._recording.guard(lambda: hands_gradient_out(function)):
            self._calls.trained_eagerly()
        is_within_tape = tf_functions.is_tape_recording()
        if is_within_tape:
            self._calls.note_within_tape(function)
        if is_within_tape or self.is_eager or self._calls.is_eager:
            return self._eager.call(function, inputs, captured, run)
        self._eager.note_variables([*inputs, *captured])
        return self._calls.call(function, inputs, captured, run)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self._calls.trained_eagerly()


class BlockTraining:
    """Records one of the trainings of a block of code, or of a whole program.

    `Ambient` hears of all that is called there, and finds the training of each call by the
    variables that it uses. Each `Recorder` has a `BlockTraining`.

    Args:
        recording: The recording.
        calls: Records compiled functions.
        ending: Sees the steps begin and end.
        hook: Replaces the functions that tell of a training, where that was undone.
        on_suspicion: Called after a step in which something is not as it should be.
    """

    def __init__(
        self,
        recording: Recording,
        calls: CompiledCalls,
        ending: Ending,
        hook: Callable[[], None],
        on_suspicion: Callable[[Suspicion], None],
    ) -> None:
        self._recording = recording
        self._calls = calls
        self._ending = ending
        self._hook = hook
        self._on_suspicion = on_suspicion
        self._handles: dict[int, Any] = {}
        """Handles of the training's variables by id; held, so that their ids stay theirs."""

    def record_call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a compiled function that trains, and record it."""
        self._hook()
        self._ending.is_in_step = True
        try:
            result = self._calls.call(function, inputs, captured, run)
        except BaseException as error:
            self._ending.ended_by(error)
            raise
        self._ending.end_step()
        return result

    def note_call(self, function: Any, inputs: list[Any], captured: list[Any]) -> None:
        """A compiled function that is no step is about to run.

        It may set variables of this training.
        """
        self._calls.note_other(function, inputs, captured)

    def record_iterations(self) -> LoopStep:
        """What records the iterations of a loop that trains in Python."""
        self._hook()
        self._ending.begin()
        # nothing to call: an iteration of a loop is run by the program itself
        eager = EagerStep(self._recording, lambda: None, self._on_suspicion)
        return LoopStep(
            self._recording, self._calls, eager, self._ending, self.knows, self.remember
        )

    def knows(self, handles: Sequence[Any]) -> bool:
        """Whether one of these handles is that of a variable of this training."""
        return any(id(handle) in self._handles for handle in handles)

    def remember(self, handles: Sequence[Any]) -> None:
        """These handles are part of this training."""
        for handle in handles:
            if is_float_variable(handle):
                self._handles[id(handle)] = handle

    def forget(self) -> None:
        """Let go of the variables."""
        self._handles.clear()
