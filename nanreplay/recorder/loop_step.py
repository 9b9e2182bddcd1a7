"""Eager steps that are the iterations of a loop: what `EagerStep` does with a call, done between two moments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nanreplay.program import observe
from nanreplay.program.steps import hands_gradient_out
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep, Run
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.session import Session


class LoopStep:
    """Records the iterations of a loop, each that trains in Python as one eager step.

    An iteration in which nothing is computed for a gradient or applied is none: a loop that fills a buffer first, say. Once an
    iteration trains in compiled functions alone, these are the steps, and the loop is left alone.

    Args:
        session: The recording.
        calls: Records compiled functions.
        eager: Records the eager steps.
        ending: Sees the steps begin and end.
        knows: Says whether the training uses one of some variables, given their handles.
        remember: Told of the handles of the variables, once they are known.
    """

    def __init__(
        self, session: Session, calls: CompiledCalls, eager: EagerStep, ending: Ending,
        knows: Callable[[Any], bool], remember: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self.knows = knows
        self.is_compiled = False
        """Whether compiled functions train, and nothing else."""
        self._is_eager = False
        """Whether an iteration has trained in Python: compiled functions are ops of it then."""
        self._session = session
        self._calls = calls
        self._eager = eager
        self._ending = ending
        self._remember = remember
        self._trained_before = 0
        self._n_known = 0
        self._run: Run | None = None
        self._stop = contextlib.ExitStack()

    @property
    def is_active(self) -> bool:
        """Whether iterations are recorded."""
        return self._session.lifecycle.is_active

    def begin(self, call: Callable[[], tuple[Any, Callable[[], Any]]]) -> None:
        """An iteration begins; `call` gives what it is given, and what runs it once more."""
        self._ending.begin_step()
        self._calls.is_eager, self._trained_before = False, self._calls.trained
        self._calls.before_step = self._eager.forget_call
        self._run = self._eager.begin(call)
        self._stop = contextlib.ExitStack()
        self._stop.enter_context(observe.listening(self))

    def taken(self, value: Any) -> None:
        """The iteration has taken `value` from an iterator of Python's: it is part of the batch."""
        run = self._run
        if run is not None:
            self._session.guard(lambda: self._eager.add_to_batch(run, {"next": value}))

    def end(self, error: BaseException | None) -> None:
        """The iteration is over, by `error` where one passes through.

        Raises:
            NonFiniteError: It was non-finite, and `on_nan` is "raise".
        """
        self._stop.close()
        self._calls.before_step = lambda: None
        try:
            self._told(error)
        except BaseException as raised:
            self._ending.ended_by(raised)
            raise
        if error is not None:
            self._ending.ended_by(error)
        self._ending.end_step()

    def _told(self, error: BaseException | None) -> None:
        run = self._run
        if run is None:
            return
        self._is_eager = self._is_eager or self._calls.is_eager
        if not self._calls.is_eager and not isinstance(error, (tf.errors.OpError, ArithmeticError)):
            self._session.guard(self._eager.forget_call)
            self.is_compiled = self._calls.trained > self._trained_before
        elif isinstance(error, (tf.errors.OpError, ArithmeticError)):
            self._eager.raised(run, error)
        else:  # an error of another kind is the program's own affair
            self._eager.ended(run, None)
        handles = self._session.variables.handles
        if len(handles) != self._n_known:
            self._n_known = len(handles)
            self._remember(handles)

    def call(self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]) -> Any:
        """Note a compiled function; it is a step if it trains, unless iterations train in Python."""
        if self._session.guard(lambda: hands_gradient_out(function)):  # Python applies it, or adds up until it does
            self._calls.trained_eagerly()
        if self._is_eager or self._calls.is_eager:
            return self._eager.call(function, inputs, captured, run)
        self._eager.note_variables([*inputs, *captured])
        return self._calls.call(function, inputs, captured, run)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self._calls.trained_eagerly()
