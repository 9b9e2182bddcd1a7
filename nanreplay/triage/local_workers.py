"""Workers that are processes of this machine.

`pebble` runs them: one that crashes, is killed or takes too long costs the capture that it had, and
another takes its place. `concurrent.futures` and `loky` give up all that waits in such a case.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from nanreplay import limits
from nanreplay.triage.capture_answer import (
    CaptureAnswer,
    answer_of,
    begin_worker,
    undecided_answer,
)

Work = Callable[[str, bool], CaptureAnswer]
_CAPTURES_A_PROCESS = 25
"""After these a process is replaced: TensorFlow keeps what it has traced."""
_MOST_POOLS = 3
"""How often processes are started anew where all of them ended without a capture."""
_LEAST_BYTES = 2 * 2**30
"""No more workers are started than have this much memory each."""


def default_workers(n_captures: int) -> int:
    """How many workers this machine has room for: one a processor, as far as memory goes."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    room = max(1, limits.max_memory() // _LEAST_BYTES)
    return max(1, min(processors, room, n_captures))


def memory_of_worker(workers: int) -> str:
    """What each worker may take, as NANREPLAY_MAX_MEMORY says it.

    A limit that was given holds for each; otherwise the workers share that of the machine.
    """
    return os.environ.get(limits.VARIABLE) or f"{limits.max_memory() // workers} B"


def answers_here(
    paths: Sequence[str],
    *,
    trust: bool,
    workers: int,
    timeout_s: float,
    max_memory: str | None = None,
    work: Work = answer_of,
) -> Iterator[CaptureAnswer]:
    """Bisect captures in processes of this machine; gives each answer as it is ready.

    Args:
        paths: The captures.
        trust: Let ops that touch files, the network or processes run.
        workers: How many processes.
        timeout_s: Seconds that a capture may take.
        max_memory: Memory of a worker as `--max-memory` takes it; what it inherits unless given.
        work: What a worker does with a capture; a function that its process can import.
    """
    left = list(paths)
    # A process that starts looks for its pool's locks, which go with the pool. One that has been
    # given up just now would not find them, and would print a traceback.
    pools = []
    for _ in range(_MOST_POOLS):
        pool = ProcessPool(
            max_workers=workers,
            max_tasks=_CAPTURES_A_PROCESS,
            initializer=begin_worker,
            initargs=(max_memory,),
            context=get_context("spawn"),  # a fork would take over locks of this one's threads
        )
        pools.append(pool)
        left = yield from _answers_of_pool(pool, left, trust, timeout_s, work)
        if not left:
            return
    reason = "the processes that should bisect it ended before they could begin."
    for path in left:
        yield undecided_answer(path, reason)


def _answers_of_pool(
    pool: Any, paths: Sequence[str], trust: bool, timeout_s: float, work: Work
) -> Generator[CaptureAnswer, None, list[str]]:
    """Give the answers of a pool; returns the captures that it gave up without a try."""
    left = []
    try:
        waiting: dict[Future[CaptureAnswer], str] = {
            pool.schedule(work, args=(path, trust), timeout=timeout_s): path for path in paths
        }
        for future in as_completed(waiting):
            path = waiting[future]
            try:
                yield future.result()
            except TimeoutError:
                yield undecided_answer(
                    path, f"took longer than {timeout_s:g} s and was stopped; see --timeout."
                )
            except ProcessExpired as error:
                yield undecided_answer(path, _end_of_process(error.exitcode))
            except BrokenProcessPool:  # a process was killed while none had a capture
                left.append(path)
            except Exception as error:  # what the process could not send back
                yield undecided_answer(path, f"its worker failed: {type(error).__name__}: {error}")
    finally:
        pool.stop()
        pool.join()
    return left


def _end_of_process(code: int) -> str:
    if code >= 0:
        return f"the process that bisected it ended with exit code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = " Maybe memory ran out; see --max-memory." if name == "SIGKILL" else ""
    return f"the process that bisected it was ended by {name}.{memory}"
