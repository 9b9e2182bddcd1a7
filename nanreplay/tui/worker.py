"""What runs in the process beside the interface: TensorFlow, replays, explanations.

`engine` starts the process and speaks to it. Loading TensorFlow holds Python's global lock for
more than a second at a time, so a thread would freeze the keys; a process does not.

Tasks and results cross a pipe between the two as pickles of nanreplay's own dataclasses and numpy
arrays. Nothing that comes from a capture is unpickled.

| message to the worker | meaning |
|---|---|
| `("run", id, task)` | do this after what was asked before |
| `("cancel", id)` | do not begin it, or stop at its next sign of progress |

| message from the worker | meaning |
|---|---|
| `("started", id)` | begun; again when it goes on after another one that went first |
| `("progress", id, line, done, total)` | how far it is; two None where nothing is counted |
| `("partial", id, value)` | an early part of the result |
| `("done", id, value)`, `("failed", id, error)`, `("cancelled", id)` | ended |
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from nanreplay.errors import NanreplayError, ReplayError, first_line, missing_package
from nanreplay.limits import fewer_collections, limited_process
from nanreplay.terminal import load_tensorflow

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
LOADING = "loading TensorFlow"
"""What is said while TensorFlow is loaded."""
_MOST_KEPT = 3
"""How many things `WorkerContext.kept` remembers: an open replay holds a model's weights."""
_PROGRESS_EVERY_S = 0.05
"""Seconds between two messages of progress, so that they do not fill the pipe."""


class CancelledTask(BaseException):
    """Raised inside a task whose result nobody waits for any more.

    A BaseException, so that no `except Exception` on its way catches it.
    """


@dataclass(frozen=True)
class Task(Generic[T]):
    """Work for the worker process: its fields are what it needs, `run` does it.

    ```python
    @dataclass(frozen=True)
    class Explain(Task[Report]):
        label: ClassVar[str] = "explaining"

        def run(self, context: WorkerContext) -> Report:
            from nanreplay.report.explain import explain

            return explain(self.path, trust=context.trust, progress=context.progress)
    ```
    """

    path: str
    """The capture file."""

    label: ClassVar[str] = "working"
    """What the status line says while it runs."""

    uses_tensorflow: ClassVar[bool] = True
    """Whether TensorFlow is loaded first, with a line that says so."""

    goes_first: ClassVar[bool] = False
    """Whether a longer task lets it go first at its next pause, since somebody looks at it now."""

    def is_ready(self, context: WorkerContext) -> bool:
        """Whether it is done in no time, from what earlier tasks left open.

        Such a task does not wait for the end of the one that runs: it is done at its next sign of
        progress. It must not run anything. Asked in the worker process, by that thread.
        """
        return False

    def run(self, context: WorkerContext) -> T:
        """Do the work, in the worker process; the result must be picklable.

        Args:
            context: Whom to tell about progress, and what earlier tasks left open.

        Raises:
            NanreplayError: It cannot be done; the interface shows the message.
        """
        raise NotImplementedError


class Pickled:
    """What is pickled now, and not when it is sent; who receives it gets the object itself."""

    def __init__(self, value: Any) -> None:
        self._data = bytes(ForkingPickler.dumps(value))

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkingPickler.loads, (self._data,)


class WorkerContext:
    """What a task may use while it runs.

    Args:
        send: Sends a message to the interface.
        is_cancelled: Whether the task of an id is no longer wanted.
        trust: Whether a program may run ops that touch files, the network or processes.
        serve: Does what waits and is ready, at every sign of progress; nothing unless given.
        give_way: Does what waits and goes first, and tells whether there was anything.
    """

    def __init__(
        self,
        send: Callable[[Any], None],
        is_cancelled: Callable[[int], bool],
        *,
        trust: bool,
        serve: Callable[[], None] = lambda: None,
        give_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self.trust = trust
        self._serve = serve
        self._give_way = give_way
        self._send = send
        self._is_cancelled = is_cancelled
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._id = -1
        self._line = ""
        self._sent_at = 0.0
        """When progress was last sent, by the monotonic clock; 0 to send at once."""

    def begin(self, task_id: int, line: str) -> None:
        """Start on another task."""
        self._id, self._line, self._sent_at = task_id, line, 0.0

    def say(self, line: str) -> None:
        """Tell which part of the work begins; the task ends here when it was cancelled."""
        self._line, self._sent_at = line, 0.0
        self._tell(None, None)

    def progress(self, done: int, total: int) -> None:
        """Tell how far the current part is; the task ends here when it was cancelled."""
        self._tell(done, total)

    def pause(self) -> None:
        """Let what the user looks at now go first; the task ends here when it was cancelled.

        Called where nothing is half done: what goes first may replay other steps.
        """
        task_id, line = self._id, self._line
        if self._is_cancelled(task_id):
            raise CancelledTask
        if self._give_way():
            self._send(("started", task_id))
            self.begin(task_id, line)
            self._tell(None, None)

    def partial(self, value: Any) -> None:
        """Hand over an early part of the result."""
        self._send(("partial", self._id, value))

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what an earlier task made under `key`, or make it.

        Three such things are kept; the least recently used one is closed.

        Args:
            key: For instance the task's class and the path of the capture.
            make: Makes it; what it returns may have a `close` method.
        """
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        self._close_all_but(_MOST_KEPT)
        kept: T = self._kept[key]
        return kept

    def peek(self, key: Hashable) -> Any:
        """Return what an earlier task made under `key`, None where there is nothing."""
        return self._kept.get(key)

    def forget(self, key: Hashable) -> None:
        """Close what an earlier task made under `key`, so that it is made anew."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.close()

    def close(self) -> None:
        """Close all that is kept: an open replay holds op determinism on for the whole process."""
        self._close_all_but(0)

    def _close_all_but(self, count: int) -> None:
        while len(self._kept) > count:
            _, oldest = self._kept.popitem(last=False)
            with contextlib.suppress(Exception):  # it may have no `close`, or fail to close
                oldest.close()

    def _tell(self, done: int | None, total: int | None) -> None:
        if self._is_cancelled(self._id):
            raise CancelledTask
        self._serve()
        now = time.monotonic()
        if now - self._sent_at >= _PROGRESS_EVERY_S:
            self._sent_at = now
            self._send(("progress", self._id, self._line, done, total))


def work(connection: Connection, trust: bool) -> None:
    """Serve the interface until it closes the pipe; `worker_start` calls this in the process.

    Args:
        connection: The worker's end of the pipe.
        trust: Whether a program may run ops that touch files, the network or processes.
    """
    _stay_quiet()
    inbox = Inbox()
    # A thread of its own reads the pipe, so that a cancellation is heard while a task runs.
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()

    def serve() -> None:
        """Do what is ready while another task runs."""
        for task_id, task in inbox.take_ready(context):
            connection.send(_ready_outcome(task_id, task, context))

    def give_way() -> bool:
        """Do what goes first while another task waits."""
        has_any = False
        while (first := inbox.take_first()) is not None:
            has_any = True
            connection.send(_outcome(*first, context, connection))
        return has_any

    context = WorkerContext(
        connection.send,
        inbox.cancelled.__contains__,
        trust=trust,
        serve=serve,
        give_way=give_way,
    )
    with fewer_collections():
        while True:
            task_id, task = inbox.take()
            connection.send(_outcome(task_id, task, context, connection))


class Inbox:
    """Tasks that wait, the oldest first; one thread puts them in, another takes them out."""

    def __init__(self) -> None:
        self.cancelled: set[int] = set()
        """Ids of tasks that nobody waits for any more."""
        self._waiting: deque[tuple[int, Task[Any]]] = deque()
        self._changed = threading.Condition()

    def put(self, task_id: int, task: Task[Any]) -> None:
        """Add a task."""
        with self._changed:
            self._waiting.append((task_id, task))
            self._changed.notify()

    def take(self) -> tuple[int, Task[Any]]:
        """Take the oldest task; wait until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting))
            return self._waiting.popleft()

    def take_first(self) -> tuple[int, Task[Any]] | None:
        """Take the oldest task that goes first; None where none waits."""
        if not self._waiting:
            return None
        with self._changed:
            first = next((entry for entry in self._waiting if entry[1].goes_first), None)
            if first is not None:
                self._waiting.remove(first)
        return first

    def take_ready(self, context: WorkerContext) -> Sequence[tuple[int, Task[Any]]]:
        """Take the tasks that are done in no time; most often there are none."""
        if not self._waiting:
            return ()
        with self._changed:
            ready = [(task_id, task) for task_id, task in self._waiting if task.is_ready(context)]
            for entry in ready:
                self._waiting.remove(entry)
        return ready


def _listen(connection: Connection, inbox: Inbox) -> None:
    """Put tasks into the inbox and note cancellations, until the interface closes the pipe."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            # The interface has gone, maybe killed, and nobody wants what runs here. sys.exit would
            # end this thread only.
            os._exit(0)
        if message[0] == "cancel":
            inbox.cancelled.add(message[1])
        else:
            inbox.put(*message[1:])


def _ready_outcome(task_id: int, task: Task[Any], context: WorkerContext) -> tuple[Any, ...]:
    """Do a task that is ready, within another one; return the message that says how it ended."""
    try:
        return "done", task_id, task.run(context)
    except NanreplayError as error:
        return "failed", task_id, error
    except Exception as error:
        return "failed", task_id, _unexpected(error)


def _outcome(
    task_id: int, task: Task[Any], context: WorkerContext, connection: Connection
) -> tuple[Any, ...]:
    """Run a task, and return the message that says how it ended."""
    context.begin(task_id, task.label)
    connection.send(("started", task_id))
    try:
        if task.uses_tensorflow:
            context.say(LOADING)
            load_tensorflow()
        context.say(task.label)
        with limited_process():
            return "done", task_id, task.run(context)
    except CancelledTask:
        return "cancelled", task_id
    except NanreplayError as error:
        return "failed", task_id, error
    except Exception as error:
        missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None:
            return "failed", task_id, missing
        return "failed", task_id, _unexpected(error)


def _unexpected(error: Exception) -> ReplayError:
    """Return an error in words, whatever it is: the interface shows it and lives on.

    The error itself may not be picklable, and its class may be TensorFlow's.
    """
    return ReplayError(f"Unexpected {type(error).__name__}: {first_line(error)}")


def _stay_quiet() -> None:
    """Keep all output off the screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow's C++ and recorded programs write to the descriptors, not to sys.stdout. Output
    # would land in the middle of the interface, since both processes share the terminal.
    devnull = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(devnull, descriptor)
    os.close(devnull)
