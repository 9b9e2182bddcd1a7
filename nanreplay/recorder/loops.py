"""The loops of a program that train in Python, as `nanreplay run` sees them.

`Loops` compiles the program's files, each loop with a `WatchedLoop` around its body. That tells a
`LoopStep` of each `Iteration`, which can run once more.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.machinery
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nanreplay.recorder import notices
from nanreplay.recorder.loop_rewriter import (
    END,
    NEXT,
    LoopBody,
    LoopRewriter,
    TrainingNames,
    imported_names,
)

if TYPE_CHECKING:
    from nanreplay.recorder.ambient import Ambient
    from nanreplay.recorder.block_training import LoopStep

_PACKAGE = Path(__file__).resolve().parents[1]


class Loops:
    """Compiles the files of a program, with its loops that train put under watch.

    The rewritten code finds its helpers among Python's builtins, for it may run in any namespace.

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
        """Files whose functions are known to train or not."""
        self.thread = _LoopThread()
        self.promised: dict[WatchedLoop, notices.Place | None] = {}
        """Loops that are to be recorded from their next iteration on, and the lines that train."""
        vars(builtins)[NEXT] = self._next
        vars(builtins)[END] = _EndOfBody

    # Compiling

    def compile(self, source: bytes, file: str) -> CodeType:
        """The code of a file of the program.

        Raises:
            SyntaxError: As Python raises it for the file as it is.
        """
        plain: CodeType = compile(source, file, "exec", dont_inherit=True)
        try:
            return self._rewritten(source, file)
        except Exception:  # what is not understood runs as it is; that it trains unseen is told
            return plain

    def _rewritten(self, source: bytes, file: str) -> CodeType:
        tree = ast.parse(source, file)
        self._learn(tree, file)
        rewriter = LoopRewriter(file, self._names, self._n_loops)
        rewritten = ast.fix_missing_locations(rewriter.visit(tree))
        code: CodeType = compile(rewritten, file, "exec", dont_inherit=True)
        self._n_loops += len(rewriter.bodies)
        for body in rewriter.bodies:
            vars(builtins)[body.name] = WatchedLoop(self, body)
        return code

    def _learn(self, tree: ast.Module, file: str) -> None:
        """Learn which functions train.

        Those of the program's modules that are imported come first: a loop may call them.
        """
        if file in self._learned:
            return
        self._learned.add(file)
        for name in sorted(imported_names(tree)):
            origin = self._file_of(name)
            if origin is not None:
                # A module that cannot be read is maybe never imported.
                with contextlib.suppress(SyntaxError, ValueError, OSError):
                    self._learn(ast.parse(origin.read_bytes(), str(origin)), str(origin))
        self._names.learn(tree)

    def _file_of(self, module: str) -> Path | None:
        path = self._folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
        return None

    def loader_of(
        self, spec: importlib.machinery.ModuleSpec
    ) -> importlib.machinery.SourceFileLoader | None:
        """A loader for a module of the program, None for any other."""
        if type(spec.loader) is not importlib.machinery.SourceFileLoader or not spec.origin:
            return None
        path = Path(spec.origin).resolve()
        is_own = path.is_relative_to(self._folder) and not path.is_relative_to(_PACKAGE)
        if not is_own or "site-packages" in path.parts:
            return None
        return _WatchingLoader(spec.name, spec.origin, self)

    # Running

    def iterations(
        self, body: LoopBody, namespace: Mapping[str, Any], last: LoopStep | None
    ) -> LoopStep | None:
        """What records a loop that is entered; None for nothing."""
        ambient = self._ambient()
        if ambient is None:
            return None
        values = []
        for name in body.names:
            if name in namespace:
                values.append(namespace[name])
        return ambient.iterations(values, last)

    def trained_eagerly(self) -> bool:
        """Python code trains, and no recorder is told.

        Returns:
            Whether the innermost loop is recorded, from its next iteration on.
        """
        loop = self.thread.entered[-1] if self.thread.entered else None
        if loop is None or self.thread.active_depth or not loop.trains():
            return False
        self.promised.setdefault(loop, notices.user_place())
        return True

    def end(self) -> None:
        """The program has come to its end: say which loop had no next iteration."""
        if self.promised:
            from nanreplay.recorder.ambient import tell_of_eager_training

            tell_of_eager_training(next(iter(self.promised.values())))
            self.promised.clear()

    def _next(self, *arguments: Any) -> Any:
        """`next`; an iteration that runs once more is given what it was given at first."""
        iteration = self.thread.iteration
        return next(*arguments) if iteration is None else iteration.next(*arguments)


class _LoopThread(threading.local):
    """In which loops a thread is."""

    def __init__(self) -> None:
        self.entered: list[WatchedLoop] = []
        """The loops whose bodies the thread is in, outermost first."""
        self.active_depth = 0
        """In which of them, counted from 1, an iteration is recorded; 0 for none."""
        self.iteration: Iteration | None = None
        """The iteration that is recorded, or run once more."""


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
        thread, own = self._loops.thread, self._of_thread
        thread.entered.append(self)
        is_wanted = (own.is_on or self._body.trains) and not own.is_off
        if thread.active_depth or not is_wanted:
            return
        try:
            self._begin(thread, sys._getframe(1))
        except Exception as error:  # an attribute of the program's own may raise when it is read
            own.is_off = True
            notices.say(f"a loop is not recorded: {type(error).__name__}: {error}")

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
        if own.step.is_eager:
            self._loops.promised.pop(self, None)
        own.is_off = own.step.is_compiled

    def _begin(self, thread: _LoopThread, frame: FrameType) -> None:
        # Imports TensorFlow, which a program imports itself before it trains.
        from nanreplay.program import listening

        if not listening.is_unheard():
            return  # a recorder of the program's own is told, or this is a trace
        own, namespace = self._of_thread, {**frame.f_globals, **frame.f_locals}
        if own.is_entered:
            own.step = self._loops.iterations(self._body, namespace, own.step)
            own.is_entered = False
        if own.step is None or not own.step.is_active:
            return
        iteration = Iteration(self._body, namespace, thread, own.step)
        own.step.begin(lambda: (iteration.arguments(), iteration.run_again))
        thread.active_depth, thread.iteration = len(thread.entered), iteration


class _LoopOfThread(threading.local):
    """What a thread knows of one loop."""

    def __init__(self) -> None:
        self.step: LoopStep | None = None
        """What records it."""
        self.is_entered = False
        """Whether it has been entered anew, and no iteration has begun since."""
        self.is_on = False
        """Whether it was seen to train."""
        self.is_off = False
        """Whether compiled functions train in it, which are seen by themselves."""


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
        # Imports NumPy, which whoever trains has imported.
        from nanreplay.recorder.host_generators import HostGenerators

        self._generators = HostGenerators(namespace.values())
        self._taken: deque[Any] = deque()
        """What `next` gave the body at first."""
        self._repeated: deque[Any] | None = None
        """What of it is still to be given, while the body runs once more."""

    def arguments(self) -> dict[str, Any]:
        """What the loop gives the body, by name."""
        bindings = {}
        for name in self._body.targets:
            if name in self._namespace:
                bindings[name] = self._namespace[name]
        return bindings

    def next(self, *arguments: Any) -> Any:
        """`next`, noted or repeated."""
        if self._repeated:
            return self._repeated.popleft()
        value = next(*arguments)
        if self._repeated is None:
            self._taken.append(value)
            self._step.taken(value)
        return value

    def run_again(self) -> None:
        """Run the body once more, from the names at its beginning."""
        running, self._thread.iteration = self._thread.iteration, self
        self._repeated = self._taken.copy()
        try:
            with self._generators.as_remembered():
                exec(self._body.code, dict(self._namespace))
        except _EndOfBody:
            pass
        finally:
            self._thread.iteration, self._repeated = running, None


class _EndOfBody(BaseException):
    """A body that runs once more has come to its `return`."""


class _WatchingLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of the program, without the bytecode that Python keeps beside it."""

    def __init__(self, name: str, path: str, loops: Loops) -> None:
        super().__init__(name, path)
        self._loops = loops

    def get_code(self, fullname: str) -> CodeType | None:
        """The code of the module, its loops under watch."""
        path = self.get_filename(fullname)
        return self._loops.compile(self.get_data(path), path)
