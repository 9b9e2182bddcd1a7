"""The interface's side of the worker process: asks for work, awaits results, cancels.

`Engine` is what screens and panes ask. Below it stand the tasks that replay and explain a whole
capture; those that look into a step are in `view_tasks`. See `worker` for why it is a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.limits import no_collections
from nanreplay.report.contents import Report
from nanreplay.triage.capture_answer import CaptureAnswer
from nanreplay.tui.worker import LOADING, Pickled, Task, WorkerContext
from nanreplay.tui.worker_start import begin

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from nanreplay.replay.replay_programs import Mode
    from nanreplay.report.explain import Fixes
    from nanreplay.tui.view_tasks import OpenCapture, StepLook

T = TypeVar("T")
PATIENCE_S = 2.0
"""Seconds that a task has to stop by itself when the user stops it; then its process is ended."""
PATIENCE_WITH_REPLACED_S = 10.0
"""The same for a task that a newer one replaced: a new process would load TensorFlow again."""
_JOIN_S = 1.0
"""Seconds to wait for a process that was killed or has ended, so that it leaves no zombie."""


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
class _PendingTask:
    """A task that has not ended, and who waits for it."""

    task: Task[Any]
    future: asyncio.Future[Any]
    partial: Callable[[Any], None] | None


class Engine:
    """Runs tasks in a worker process, one after another.

    ```python
    report = await engine.run(Explain(path))
    ```

    Cancelling the `asyncio` task (or Textual worker) that awaits `run` cancels the work. The
    process starts with `start` or with the first task, lives on between tasks, and starts anew
    after it was ended or has crashed.

    All methods run in the event loop. One thread waits at the pipe and hands each message over to
    the loop, so no lock is needed.

    Args:
        trust: Whether a program may run ops that touch files, the network or processes.
    """

    def __init__(self, *, trust: bool = False) -> None:
        self.progress: Progress | None = None
        """How far the running task is; None while nothing runs."""
        self.changed: Callable[[], None] = lambda: None
        """Called in the event loop when `progress` has changed."""
        self._trust = trust
        self._pending: dict[int, _PendingTask] = {}
        """Tasks that were sent and are still wanted, by id, oldest first."""
        self._ids = itertools.count()
        self._running: int | None = None
        """Id of the task that the process runs, wanted or not."""
        self._is_loading = False
        """Whether the process loads TensorFlow."""
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._is_heard = False
        """Whether a thread waits at the pipe."""

    def start(self) -> None:
        """Start the process; there need be no event loop yet.

        Called before Textual is imported, so that the process is there when the first task comes.
        """
        if self._process is None:
            self._start()

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
        self._pending[task_id] = _PendingTask(task, future, partial)
        self._send(("run", task_id, task))
        self._tell(self.progress or Progress("starting"))
        try:
            result: T = await future
        except asyncio.CancelledError:
            self._withdraw(task_id, PATIENCE_WITH_REPLACED_S)
            raise
        return result

    def stop(self) -> bool:
        """Stop the task that runs, else the one that comes next; tell whether there was one."""
        task_id = self._running
        if task_id not in self._pending:  # nothing runs, or what runs is withdrawn already
            task_id = next(iter(self._pending), None)
        if task_id is None:
            return False
        future = self._pending[task_id].future
        self._withdraw(task_id, PATIENCE_S)
        if not future.done():
            future.set_exception(StoppedError("Stopped."))
        return True

    def close(self) -> None:
        """End the process, and cancel whatever is still pending."""
        cancelled, self._pending = list(self._pending.values()), {}
        for pending in cancelled:
            pending.future.cancel()
        self._end()

    # The process

    def _send(self, message: Any) -> None:
        if self._process is None:
            self._start()
        assert self._connection is not None
        if not self._is_heard:
            self._hear(self._connection)
        # The process may have ended a moment ago, unnoticed. `_connection_lost` comes next then,
        # and sends again whatever is pending.
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def _start(self) -> None:
        # `spawn`, not `fork`: a fork copies the locks that other threads hold at that moment, and
        # nobody releases them in the child.
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        self._connection, workers_end = spawn.Pipe()
        process = spawn.Process(
            target=begin, args=(workers_end, self._trust), name="nanreplay worker", daemon=True
        )
        # multiprocessing asks sys.stderr for its file descriptor, and the stand-in that Textual
        # puts there while it runs has none.
        with contextlib.redirect_stderr(sys.__stderr__):
            process.start()
        self._process = process
        # Without this, the pipe has a second owner here, and the end of the process goes unseen.
        workers_end.close()

    def _hear(self, connection: Connection) -> None:
        """Let a thread wait at the pipe, for the event loop that runs."""
        self._is_heard = True
        threading.Thread(
            target=self._listen,
            args=(connection, asyncio.get_running_loop()),
            daemon=True,
            name="nanreplay replies",
        ).start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(_JOIN_S)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._running, self._is_loading, self._is_heard = None, False, False
        self._tell(None)

    def _withdraw(self, task_id: int, patience_s: float) -> None:
        """Tell the process that a task is not wanted any more; end it when it does not stop."""
        if self._pending.pop(task_id, None) is None or self._process is None:
            return
        self._send(("cancel", task_id))
        if self._running == task_id:
            self._tell(Progress("stopping"))
            self._end_later(task_id, patience_s)

    def _end_later(self, task_id: int, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(patience_s, self._end_if_running, task_id, patience_s)

    def _end_if_running(self, task_id: int, patience_s: float) -> None:
        if self._running != task_id:
            return
        if self._is_loading:  # it stops as soon as TensorFlow is there, for the next task to use
            self._end_later(task_id, patience_s)
            return
        self._end()
        self._send_pending()

    def _send_pending(self) -> None:
        """Send to a new process what the old one has not done."""
        for task_id, pending in list(self._pending.items()):
            self._send(("run", task_id, pending.task))

    # What the process says

    def _listen(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Hand every message to the event loop; runs in a thread until the pipe ends."""
        # The loop raises RuntimeError once it is closed: the interface has ended.
        with contextlib.suppress(RuntimeError):
            while True:
                try:
                    connection.poll(None)
                    with no_collections():  # a step is hundreds of thousands of objects
                        message = connection.recv()
                except (EOFError, OSError):
                    loop.call_soon_threadsafe(self._connection_lost, connection)
                    return
                loop.call_soon_threadsafe(self._receive, message)

    def _receive(self, message: tuple[Any, ...]) -> None:
        """Take one message; the table in the docstring of `worker` lists them."""
        kind, task_id, *rest = message
        pending = self._pending.get(task_id)  # None: withdrawn meanwhile
        if kind == "started":
            self._running = task_id
            if pending is not None:
                self._tell(Progress(pending.task.label))
        elif kind == "progress":
            self._is_loading = rest[0] == LOADING
            if pending is not None:  # of a task that is withdrawn, "stopping" stays
                self._tell(Progress(*rest))
        elif kind == "partial":
            if pending is not None and pending.partial is not None:
                pending.partial(rest[0])
        else:
            self._task_ended(task_id, kind, rest)

    def _task_ended(self, task_id: int, kind: str, rest: list[Any]) -> None:
        # One that was ready is done while another task runs.
        is_over = self._running in (None, task_id)
        if is_over:
            self._running, self._is_loading = None, False
        pending = self._pending.pop(task_id, None)
        if pending is not None and not pending.future.done():
            if kind == "done":
                pending.future.set_result(rest[0])
            elif kind == "failed":
                pending.future.set_exception(rest[0])
            else:
                pending.future.set_exception(StoppedError("Stopped."))
        if is_over:
            self._tell(Progress("starting") if self._pending else None)

    def _connection_lost(self, connection: Connection) -> None:
        """The process ended by itself: fail the task that ran, run the others in a new process."""
        if connection is not self._connection:  # that of a process which `_end` has killed
            return
        process, task_id = self._process, self._running
        if process is not None:
            process.join(_JOIN_S)  # else its exit code is not known yet
        self._end()
        if task_id is None:  # it ended before it began: blame the task that came next
            task_id = next(iter(self._pending), -1)
        pending = self._pending.pop(task_id, None)
        if pending is not None and not pending.future.done():
            how = _end_words(None if process is None else process.exitcode)
            message = f"The process that replays ended unexpectedly ({how}): {pending.task.label}."
            pending.future.set_exception(ReplayError(message))
        self._send_pending()

    def _tell(self, progress: Progress | None) -> None:
        waiting = max(len(self._pending) - 1, 0)
        self.progress = None if progress is None else replace(progress, waiting=waiting)
        self.changed()


def _end_words(code: int | None) -> str:
    """How a process ended; `multiprocessing` tells a signal as a negative code."""
    if code == -signal.SIGKILL:
        return "it was killed, as the system does where memory is short"
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


# Tasks for a whole capture. They import TensorFlow's users when they run, in the worker process.


@dataclass(frozen=True)
class Explain(Task[Report]):
    """Replay, judge, bisect, diagnose, try fixes.

    Its early parts are the report without fixes, then a `StepLook`, or None where the step cannot
    be looked at, then a `FixResult` for each fix.
    """

    fixes: Fixes = "fast"
    """Which fixes are tried."""
    is_anew: bool = True
    """Whether the capture is replayed again where that was done before."""
    label: ClassVar[str] = "replaying"

    def run(self, context: WorkerContext) -> Report:
        """Explain the capture."""
        from nanreplay.report.explain import explain_replay
        from nanreplay.tui.view_tasks import key_of_capture, open_in_worker

        if self.is_anew:
            context.forget(key_of_capture(self.path))
        opened = open_in_worker(self.path, context)
        explained = opened.explained
        if explained is None:
            explained = explain_replay(opened.replay, progress=context.progress, say=context.say)
            opened.take(explained)
            report = explained.report()
            # The answer comes first, and the step right after it: a step of thousands of ops is
            # put together and pickled before, so that nobody waits for the tree.
            with no_collections():
                look = Pickled(_look(opened, report))
            context.partial(report)
            context.partial(look)
            if self.fixes == "none":
                return report
        return explained.report(
            self.fixes,
            progress=context.progress,
            say=context.say,
            each_fix=context.partial,
            pause=context.pause,
        )


def _look(opened: OpenCapture, report: Report) -> StepLook | None:
    """What panes show first of the step of the origin."""
    origin = report.findings.origin
    with contextlib.suppress(NanreplayError):  # then the panes ask, and say why not
        return opened.look(origin) if origin is not None else None
    return None


@dataclass(frozen=True)
class AnswerCapture(Task[CaptureAnswer]):
    """What a list says of a capture, and `nanreplay triage` keeps: the report without fixes."""

    label: ClassVar[str] = "replaying"

    def run(self, context: WorkerContext) -> CaptureAnswer:
        """Bisect the capture."""
        from nanreplay.triage.capture_answer import bisected_answer

        return bisected_answer(self.path, context.trust, context.progress, context.say)


@dataclass(frozen=True)
class ReplayedStep:
    """What one step gave: the part of `nanreplay.replay.StepResult` that is shown.

    A class of its own: to unpickle a `StepResult` is to import its module, and that would load
    TensorFlow into the interface's process.
    """

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
            ReplayedStep(result.step, result.finite, result.loss, result.bit_exact, result.max_ulp)
            for result in results
        )
        return ReplayedSteps(self.mode, steps, notes)
