"""The interface's side of the worker process: asks for work, awaits results, cancels. See `worker` for why it is a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.report.contents import Report
from nanreplay.tui.worker import Task, WorkerContext, work

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from nanreplay.replay.replay_programs import Mode
    from nanreplay.report.explain import Fixes


# Tasks for the worker process that call the library's engines. Imports no TensorFlow; the tasks
# do when they run.


@dataclass(frozen=True)
class ReplayedStep:
    """What one step gave; the part of `nanreplay.replay.StepResult` that is shown, without that module's imports."""

    step: int
    finite: bool
    loss: float | None
    bit_exact: bool | None
    max_ulp: int | None


@dataclass(frozen=True)
class ReplayedSteps:
    """The window replayed in one mode."""

    mode: str
    steps: tuple[ReplayedStep, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Explain(Task[Report]):
    """Replay, judge, bisect, diagnose, try fixes. Its early part is the report without fixes."""

    fixes: Fixes = "fast"
    """Which fixes are tried."""
    label: ClassVar[str] = "replaying"

    def run(self, context: WorkerContext) -> Report:
        """Explain the capture."""
        from nanreplay.report.explain import explain

        given = None if self.fixes == "none" else context.partial
        return explain(
            self.path,
            trust=context.trust,
            fixes=self.fixes,
            progress=context.progress,
            say=context.say,
            before_fixes=given,
        )


@dataclass(frozen=True)
class ReplaySteps(Task[ReplayedSteps]):
    """Replay every step of the window in one mode."""

    mode: str = "recorded"
    """`recorded`, `graph`, `ops` or `float64`."""
    label: ClassVar[str] = "replaying the window"

    def run(self, context: WorkerContext) -> ReplayedSteps:
        """Replay the steps."""
        from nanreplay.capture import Capture
        from nanreplay.report.replayed_steps import replay_steps

        context.say(f"replaying the window, {self.mode}")
        with Capture(self.path) as capture:
            results, notes = replay_steps(
                capture, cast("Mode", self.mode), trust=context.trust, progress=context.progress
            )
        steps = tuple(
            ReplayedStep(each.step, each.finite, each.loss, each.bit_exact, each.max_ulp)
            for each in results
        )
        return ReplayedSteps(self.mode, steps, notes)


# --- tui.engine

T = TypeVar("T")
PATIENCE_S = 2.0
"""Seconds that a cancelled task has to stop by itself; then its process is ended and started anew."""


class StoppedError(NanreplayError):
    """The user has stopped a task."""


@dataclass(frozen=True)
class Progress:
    """How far the task that runs is."""

    line: str
    """What is being done."""
    done: int | None = None
    """Steps done; None where nothing is counted."""
    total: int | None = None
    """Steps in all."""
    waiting: int = 0
    """How many tasks wait for this one."""


@dataclass
class _Asked:
    task: Task[Any]
    future: asyncio.Future[Any]
    partial: Callable[[Any], None] | None


class Engine:
    """Runs tasks in a worker process, one after another.

    ```python
    report = await engine.run(Explain(path))
    ```

    Cancelling the `asyncio` task (or Textual worker) that awaits `run` cancels the work. The process starts with the first task,
    lives on between tasks, and starts anew after it was ended or has crashed.

    Args:
        trust: Whether programs that reach beyond tensors may run.
    """

    def __init__(self, *, trust: bool = False) -> None:
        self.progress: Progress | None = None
        """How far the running task is; None while nothing runs."""
        self._trust = trust
        self.changed: Callable[[], None] = lambda: None
        """Called in the event loop when `progress` has changed."""
        self._asked: dict[int, _Asked] = {}
        self._ids = itertools.count()
        self._running: int | None = None
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    async def run(self, task: Task[T], *, partial: Callable[[Any], None] | None = None) -> T:
        """Run a task in the worker process and return its result.

        Args:
            task: What to do.
            partial: Called in the event loop with early parts of the result.

        Raises:
            NanreplayError: What the task raised, or that its process ended.
            StoppedError: The user has stopped it.
        """
        task_id, future = next(self._ids), asyncio.get_running_loop().create_future()
        self._asked[task_id] = _Asked(task, future, partial)
        self._send(("run", task_id, task))
        self._tell(self.progress or Progress("starting"))
        try:
            result: T = await future
        except asyncio.CancelledError:
            self._withdraw(task_id)
            raise
        return result

    def stop(self) -> bool:
        """Stop the task that runs, or the next one, for the user; returns whether there was one."""
        task_id = self._running if self._running in self._asked else next(iter(self._asked), None)
        if task_id is None:
            return False
        future = self._asked[task_id].future
        self._withdraw(task_id)
        if not future.done():
            future.set_exception(StoppedError("Stopped."))
        return True

    def close(self) -> None:
        """End the process; whatever is still asked for is cancelled."""
        asked, self._asked = list(self._asked.values()), {}
        for each in asked:
            each.future.cancel()
        self._end()

    def _send(self, message: Any) -> None:
        if self._process is None:
            self._start()
        assert self._connection is not None
        with contextlib.suppress(
            OSError
        ):  # its end was not noticed yet; `_gone` sends again what is asked for
            self._connection.send(message)

    def _start(self) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        process = spawn.Process(
            target=work, args=(theirs, self._trust), name="nanreplay worker", daemon=True
        )
        with contextlib.redirect_stderr(
            sys.__stderr__
        ):  # multiprocessing asks for its descriptor, and Textual's stand-in has none
            process.start()
        self._process = process
        theirs.close()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._listen,
            args=(self._connection, loop),
            daemon=True,
            name="nanreplay replies",
        ).start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(1.0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._running = None
        self._tell(None)

    def _listen(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the interface ends
            while True:
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    loop.call_soon_threadsafe(self._gone, connection)
                    return
                loop.call_soon_threadsafe(self._receive, message)

    def _receive(self, message: tuple[Any, ...]) -> None:
        kind, task_id, *rest = message
        asked = self._asked.get(task_id)
        if kind == "started":
            self._running = task_id
            if asked is not None:
                self._tell(Progress(asked.task.label))
        elif kind == "progress":
            self._tell(Progress(*rest))
        elif kind == "partial":
            if asked is not None and asked.partial is not None:
                asked.partial(rest[0])
        else:
            self._ended(task_id, kind, rest)

    def _ended(self, task_id: int, kind: str, rest: list[Any]) -> None:
        self._running = None
        asked = self._asked.pop(task_id, None)
        if asked is not None and not asked.future.done():
            if kind == "done":
                asked.future.set_result(rest[0])
            elif kind == "failed":
                asked.future.set_exception(rest[0])
            else:
                asked.future.set_exception(StoppedError("Stopped."))
        self._tell(Progress("starting") if self._asked else None)

    def _withdraw(self, task_id: int) -> None:
        """Tell the process that a task is not wanted any more, and end it when it does not hear."""
        if self._asked.pop(task_id, None) is None or self._process is None:
            return
        self._send(("cancel", task_id))
        if self._running == task_id:
            self._tell(Progress("stopping"))
            asyncio.get_running_loop().call_later(PATIENCE_S, self._end_if_running, task_id)

    def _end_if_running(self, task_id: int) -> None:
        if self._running == task_id:
            self._end()
            self._ask_again()

    def _gone(self, connection: Connection) -> None:
        """The process ended by itself: say so to the task that ran, and run the others in a new one."""
        if connection is not self._connection:
            return
        process, running = self._process, self._running
        if process is not None:
            process.join(1.0)
        self._end()
        asked = (
            self._asked.pop(running, None)
            if running is not None
            else self._asked.pop(next(iter(self._asked), -1), None)
        )
        if asked is not None and not asked.future.done():
            code = None if process is None else process.exitcode
            asked.future.set_exception(
                ReplayError(
                    f"The process that replays ended unexpectedly (exit code {code}): {asked.task.label}."
                )
            )
        self._ask_again()

    def _ask_again(self) -> None:
        for task_id, asked in list(self._asked.items()):
            self._send(("run", task_id, asked.task))

    def _tell(self, progress: Progress | None) -> None:
        waiting = max(len(self._asked) - 1, 0)
        self.progress = None if progress is None else replace(progress, waiting=waiting)
        self.changed()
