"""The loops of a program that train in Python, as `nanreplay run` sees them: what runs around each iteration."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.machinery
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.training_functions import hands_gradient_out
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep, Run
from nanreplay.recorder.ending import Ending
from nanreplay.recorder.loop_rewriter import (
    END,
    NEXT,
    LoopBody,
    LoopRewriter,
    TrainingNames,
    imported_names,
)
from nanreplay.recorder.recording import Recording

if TYPE_CHECKING:
    from nanreplay.recorder.ambient import Ambient


# Eager steps that are the iterations of a loop: what `EagerStep` does with a call, done between
# two moments.


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
        self, session: Recording, calls: CompiledCalls, eager: EagerStep, ending: Ending,
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
        self._stop.enter_context(listening.listening(self))

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

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Note a compiled function; it is a step if it trains, unless iterations train in Python."""
        if self._session.guard(
            lambda: hands_gradient_out(function)
        ):  # Python applies it, or adds up until it does
            self._calls.trained_eagerly()
        if self._is_eager or self._calls.is_eager:
            return self._eager.call(function, inputs, captured, run)
        self._eager.note_variables([*inputs, *captured])
        return self._calls.call(function, inputs, captured, run)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self._calls.trained_eagerly()


# --- recorder.loops

_PACKAGE = Path(__file__).resolve().parents[1]


class _LoopThread(threading.local):
    def __init__(self) -> None:
        self.entered: list[WatchedLoop] = []
        """The loops whose bodies the thread is in, outermost first."""
        self.active_depth = 0
        """In which of them, counted from 1, an iteration is recorded; 0 for none."""
        self.iteration: Iteration | None = None
        """The iteration that is recorded, or run once more."""


class Loops:
    """Compiles the files of a program, with its loops that train put under watch.

    Args:
        folder: Where the program's own modules are.
        ambient: Gives what records; None while nothing is to be recorded.
    """

    def __init__(self, folder: str, ambient: Callable[[], Ambient | None]) -> None:
        self._folder = Path(folder).resolve()
        self._ambient = ambient
        self._names = TrainingNames()
        self._n_loops = 0
        self._learned: set[str] = set()
        self.thread = _LoopThread()
        vars(builtins)[NEXT] = self._next
        vars(builtins)[END] = _EndOfBody

    def compile(self, source: bytes, file: str) -> CodeType:
        """The code of a file of the program."""
        plain: CodeType = compile(
            source, file, "exec", dont_inherit=True
        )  # its errors are those of Python
        try:
            return self._rewritten(source, file)
        except (
            Exception
        ):  # what is not understood runs as it is; that it trains unseen is said when it does
            return plain

    def _rewritten(self, source: bytes, file: str) -> CodeType:
        tree = ast.parse(source, file)
        self._learn(tree, file)
        rewriter = LoopRewriter(file, self._names, self._n_loops)
        code: CodeType = compile(
            ast.fix_missing_locations(rewriter.visit(tree)), file, "exec", dont_inherit=True
        )
        self._n_loops += len(rewriter.bodies)
        for body in rewriter.bodies:
            vars(builtins)[body.name] = WatchedLoop(self, body)
        return code

    def _learn(self, tree: ast.Module, file: str) -> None:
        """Learn which functions train, those of the program's modules that are imported first: a loop may call them."""
        if file in self._learned:
            return
        self._learned.add(file)
        for name in sorted(imported_names(tree)):
            origin = self._file_of(name)
            if origin is not None:
                with contextlib.suppress(
                    SyntaxError, ValueError, OSError
                ):  # maybe it is never imported
                    self._learn(ast.parse(origin.read_bytes(), str(origin)), str(origin))
        self._names.learn(tree)

    def _file_of(self, module: str) -> Path | None:
        path = self._folder.joinpath(*module.split("."))
        return next(
            (each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()),
            None,
        )

    def loader_of(
        self, spec: importlib.machinery.ModuleSpec
    ) -> importlib.machinery.SourceFileLoader | None:
        """A loader for a module of the program, None for any other."""
        if type(spec.loader) is not importlib.machinery.SourceFileLoader or not spec.origin:
            return None
        path = Path(spec.origin).resolve()
        is_own = (
            path.is_relative_to(self._folder)
            and "site-packages" not in path.parts
            and not path.is_relative_to(_PACKAGE)
        )
        return _Loader(spec.name, spec.origin, self) if is_own else None

    def iterations(
        self, body: LoopBody, namespace: Mapping[str, Any], last: LoopStep | None
    ) -> LoopStep | None:
        """What records a loop that is entered; None for nothing."""
        ambient = self._ambient()
        if ambient is None:
            return None
        return ambient.iterations(
            [namespace[name] for name in body.names if name in namespace], last
        )

    def trained_eagerly(self) -> bool:
        """Python code trains, and no recorder is told: the innermost loop is recorded from its next iteration on."""
        loop = self.thread.entered[-1] if self.thread.entered else None
        return loop is not None and not self.thread.active_depth and loop.trains()

    def _next(self, *arguments: Any) -> Any:
        """`next`; an iteration that runs once more is given what it was given at first."""
        iteration = self.thread.iteration
        return next(*arguments) if iteration is None else iteration.next(*arguments)


class _EndOfBody(BaseException):
    """A body that runs once more has come to its `return`."""


class Iteration:
    """One run of the body of a loop.

    Args:
        body: The body.
        namespace: All names at its beginning.
        thread: Where to say that it runs once more.
        step: Records it.
    """

    def __init__(
        self, body: LoopBody, namespace: dict[str, Any], thread: _LoopThread, step: LoopStep
    ) -> None:
        self._body = body
        self._step = step
        self._namespace = namespace
        self._thread = thread
        self._taken: deque[Any] = deque()
        self._again: deque[Any] | None = None

    def given(self) -> dict[str, Any]:
        """What the loop gives the body, by name."""
        return {
            name: self._namespace[name] for name in self._body.targets if name in self._namespace
        }

    def next(self, *arguments: Any) -> Any:
        """`next`, noted or repeated."""
        if self._again:
            return self._again.popleft()
        value = next(*arguments)
        if self._again is None:
            self._taken.append(value)
            self._step.taken(value)
        return value

    def run_again(self) -> None:
        """Run the body once more, from the names at its beginning."""
        before, self._thread.iteration = self._thread.iteration, self
        self._again = self._taken.copy()
        try:
            exec(self._body.code, dict(self._namespace))
        except _EndOfBody:
            pass
        finally:
            self._thread.iteration, self._again = before, None


class WatchedLoop:
    """The context manager around the body of one loop.

    Args:
        loops: The program's loops.
        body: The body.
    """

    def __init__(self, loops: Loops, body: LoopBody) -> None:
        self._loops = loops
        self._body = body
        self._of_thread = _LoopOfThread()

    def entered(self) -> None:
        """The loop is about to begin: it may be another training than before."""
        self._of_thread.is_entered = True

    def trains(self) -> bool:
        """Its iterations are to be recorded; returns whether they can be."""
        self._of_thread.is_on = True
        return not self._of_thread.is_off

    def __enter__(self) -> None:
        thread = self._loops.thread
        thread.entered.append(self)
        if (
            not thread.active_depth
            and (self._of_thread.is_on or self._body.trains)
            and not self._of_thread.is_off
        ):
            try:
                self._begin(thread, sys._getframe(1))
            except Exception as error:  # an attribute of the program's own may raise as it is looked at; training goes on
                self._of_thread.is_off = True
                warnings.warn(
                    f"nanreplay: a loop is not recorded: {type(error).__name__}: {error}",
                    stacklevel=2,
                )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        thread, own = self._loops.thread, self._of_thread
        thread.entered.pop()
        if thread.active_depth != len(thread.entered) + 1 or own.step is None:
            return
        thread.active_depth, thread.iteration = 0, None
        own.step.end(error)
        own.is_off = own.step.is_compiled

    def _begin(self, thread: _LoopThread, frame: FrameType) -> None:
        from nanreplay.program import listening

        if (
            not listening.is_unheard()
        ):  # a recorder of the program's own is told, or this is a trace
            return
        own, namespace = self._of_thread, {**frame.f_globals, **frame.f_locals}
        if own.is_entered:
            own.step = self._loops.iterations(self._body, namespace, own.step)
            own.is_entered = False
        if own.step is None or not own.step.is_active:
            return
        iteration = Iteration(self._body, namespace, thread, own.step)
        own.step.begin(lambda: (iteration.given(), iteration.run_again))
        thread.active_depth, thread.iteration = len(thread.entered), iteration


class _LoopOfThread(threading.local):
    def __init__(self) -> None:
        self.step: LoopStep | None = None
        """What records it."""
        self.is_entered = False
        """Whether it has been entered anew, and no iteration has begun since."""
        self.is_on = False
        """Whether it was seen to train."""
        self.is_off = False
        """Whether compiled functions train in it, which are seen by themselves."""


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module of the program, without the bytecode that Python keeps beside it."""

    def __init__(self, name: str, path: str, loops: Loops) -> None:
        super().__init__(name, path)
        self._loops = loops

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module, its loops under watch."""
        path = self.get_filename(fullname)
        return self._loops.compile(self.get_data(path), path)
