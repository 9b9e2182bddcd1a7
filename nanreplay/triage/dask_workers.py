"""Workers of a Dask cluster.

A task is a few captures. A Dask worker does not bisect them itself, for its threads share one
process that a crash would end and a hang would block: it starts a child (`dask_child`), which does
what this machine does with its own captures. When a Dask worker is lost, the scheduler gives its
tasks to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from nanreplay import __version__
from nanreplay.errors import ClusterError, StorageError, first_line
from nanreplay.triage.capture_answer import CaptureAnswer, answer_from_json, undecided_answer

CONNECT_S = 10.0
"""Seconds that a scheduler has to answer."""
FIRST_WORKER_S = 10.0
"""Seconds that a cluster has to have a worker."""
ANSWER_S = 60.0
"""Seconds that a scheduler has to answer a question once it is connected."""
NO_WORKER_S = 120.0
"""Seconds that a cluster has to replace workers that it lost."""
_LOOK_EVERY_S = 0.5
_MOST_A_TASK = 8
"""Captures that are lost when a Dask worker is: they are bisected again."""
_TASKS_A_THREAD = 4
"""Tasks that each thread gets at least where there are enough captures, so that all end alike."""
_MOST_SAID = 300
Answer = TypeVar("Answer")


class _SilentError(Exception):
    """A scheduler does not answer, though it is connected: its process stopped, or its machine."""


def answers_of_cluster(
    paths: Sequence[str],
    *,
    scheduler: str,
    trust: bool,
    timeout_s: float,
    max_memory: str | None,
) -> Iterator[CaptureAnswer]:
    """Bisect captures on a Dask cluster; gives the answers of each task as it ends.

    Args:
        paths: The captures; files must be there on the machines of the workers too.
        scheduler: Its address, such as `tcp://host:8786`.
        trust: Let ops that touch files, the network or processes run.
        timeout_s: Seconds that a capture may take.
        max_memory: Memory of a worker as `--max-memory` takes it; its share of the Dask worker's
            unless given.

    Raises:
        ClusterError: The scheduler does not answer, it has no workers, or these have another
            nanreplay.
    """
    from distributed import Client, as_completed
    from distributed.comm import get_address_host_port

    connect = partial(Client, scheduler, timeout=CONNECT_S, set_as_default=False)
    try:
        # a client of an address that is none prints a traceback when it is let go of
        get_address_host_port(scheduler)
        # to a port that takes the connection and says nothing, Dask would connect for ever
        client = _answer(connect, 2 * CONNECT_S)
    except _SilentError:
        raise ClusterError(
            f"{scheduler}: no Dask scheduler answers there (nothing in {2 * CONNECT_S:g} s)."
        ) from None
    # a wrong address, no host, no answer in time: each transport has errors of its own
    except Exception as error:
        raise ClusterError(
            f"{scheduler}: no Dask scheduler answers there ({_reason(error)})."
        ) from error
    with _unlogged(), _closed_after(client):
        try:
            n_threads = _threads(client, scheduler)
        except _SilentError:
            raise ClusterError(
                f"{scheduler}: the Dask cluster has not answered for {ANSWER_S:g} s."
            ) from None
        size = min(_MOST_A_TASK, math.ceil(len(paths) / (n_threads * _TASKS_A_THREAD)))
        options = {"trust": trust, "timeout_s": timeout_s, "max_memory": max_memory}
        waiting = {}
        for first in range(0, len(paths), size):
            part = list(paths[first : first + size])
            # pure: the same captures asked for twice are two tasks, for a file may have changed
            waiting[client.submit(answers_in_child, part, options, pure=False)] = part
        completed = as_completed(waiting, loop=client.loop)
        reason = f"the Dask cluster has had no worker for {NO_WORKER_S:g} s."
        try:
            for future in _in_time(client, completed, len(waiting)):
                yield from _answers(future, waiting.pop(future))
        except _SilentError:
            reason = f"the Dask scheduler has not answered for {ANSWER_S:g} s."
        yield from (undecided_answer(path, reason) for part in waiting.values() for path in part)


def _in_time(client: Any, completed: Any, n_tasks: int) -> Iterator[Any]:
    """The tasks as they end, until all have, or there has been no worker for a long time.

    Raises:
        _SilentError: The scheduler does not answer any more.
    """
    had_workers_s = time.monotonic()
    while n_tasks:
        batch = completed.next_batch(block=False)
        yield from batch
        n_tasks -= len(batch)
        if batch or _has_workers(client):
            had_workers_s = time.monotonic()
        elif time.monotonic() - had_workers_s > NO_WORKER_S:
            return
        if not batch:
            time.sleep(_LOOK_EVERY_S)


def _has_workers(client: Any) -> bool:
    """Whether there are workers; where the scheduler went away its tasks end, and that is said."""
    try:
        return bool(_answer(client.nthreads))
    except _SilentError:
        raise
    except Exception:  # each transport has errors of its own
        return True


def _answer(ask: Callable[[], Answer], most_s: float | None = None) -> Answer:
    """What a question to the scheduler gives; Dask itself waits for ever for most answers.

    Args:
        ask: Asks it.
        most_s: Seconds that it may take; `ANSWER_S` unless given.

    Raises:
        _SilentError: There is no answer in time.
    """
    answered: Future[Answer] = Future()

    def put() -> None:
        try:
            answered.set_result(ask())
        except BaseException as error:
            answered.set_exception(error)

    threading.Thread(target=put, daemon=True).start()
    # `result` with a time would raise what a question that timed out raises as well
    if not wait([answered], ANSWER_S if most_s is None else most_s).done:
        raise _SilentError
    return answered.result()


@contextlib.contextmanager
def _closed_after(client: Any) -> Iterator[None]:
    """Close a client at the end, whether or not its scheduler still says good-bye."""
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # each transport has errors of its own
            _answer(client.close)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Leave out what Dask logs, with tracebacks, when its scheduler goes away: answers say that."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    levels = {name: logging.getLogger(name).level for name in names}  # each has its own
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _threads(client: Any, scheduler: str) -> int:
    """How many threads the workers have.

    Raises:
        ClusterError: There are no workers, or some cannot bisect as this process would.
        _SilentError: The scheduler, or one of its workers, does not answer.
    """
    try:
        _answer(partial(client.wait_for_workers, 1, timeout=FIRST_WORKER_S))
    except (OSError, asyncio.TimeoutError):
        raise ClusterError(f"{scheduler}: the Dask cluster has no workers.") from None
    versions = _answer(partial(client.run, _nanreplay_version, on_error="return"))
    for worker, version in versions.items():
        if version != __version__:
            has = (
                f"nanreplay {version}" if isinstance(version, str) else f"none ({_reason(version)})"
            )
            raise ClusterError(
                f"{scheduler}: worker {worker} needs nanreplay {__version__}, and has {has}."
            )
    return sum(_answer(client.nthreads).values())


def _nanreplay_version() -> str:
    return __version__


def _answers(future: Any, paths: Sequence[str]) -> Iterator[CaptureAnswer]:
    if future.status == "finished":
        for value in future.result():
            yield answer_from_json(value)
        return
    reason = "the Dask scheduler went away."  # its tasks are cancelled then
    if future.status == "error":
        error = future.exception()
        reason = f"the Dask cluster could not do it: {type(error).__name__}: {_reason(error)}"
    for path in paths:
        yield undecided_answer(path, reason)


def _reason(error: BaseException) -> str:
    return first_line(error)[:_MOST_SAID] or type(error).__name__


# What runs in a Dask worker.


def answers_in_child(paths: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Bisect captures in a process of their own.

    Args:
        paths: The captures.
        options: `trust`, `timeout_s` and `max_memory`, as of `answers_here`.

    Returns:
        An answer a capture, as `answer_to_json` writes it.

    Raises:
        StorageError: The process ended without all answers.
    """
    limit = options["max_memory"] or _share_of_worker()
    request = json.dumps({"paths": paths, **options, "max_memory": limit})
    child = subprocess.run(
        [sys.executable, "-m", "nanreplay.triage.dask_child"],
        input=request,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        # the worker may have found nanreplay by a path that its children do not inherit
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    answers = [json.loads(line) for line in child.stdout.splitlines()]
    if len(answers) != len(paths):
        message = " ".join(child.stderr.split())[-_MOST_SAID:]
        raise StorageError(f"the child of a Dask worker ended with {child.returncode}. {message}")
    return answers


def _share_of_worker() -> str | None:
    """The memory that each thread of this Dask worker has; None where it has no limit."""
    from distributed import get_worker

    worker = get_worker()
    limit = worker.memory_manager.memory_limit
    return None if not limit else f"{limit // worker.state.nthreads} B"
