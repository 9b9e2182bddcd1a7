"""Several replicas in one process: the threads that trace them one after another, and what tells whose an op or a batch is.

A mirrored strategy traces each replica of a process in a thread of its own. They take turns, and what merges them (the sum of
gradients, the update) runs in the thread that started them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from nanreplay.program import private_distribution

T = TypeVar("T")
_SCOPE = re.compile(r"(?:^|/)replica_(\d+)/")


class ReplicaThreads(Generic[T]):
    """A stack for the thread that made this object, and one for each replica that it traces.

    Args:
        switched: Called in the thread that goes on, whenever another one does.
    """

    def __init__(self, switched: Callable[[], None]) -> None:
        self.devices: tuple[str, ...] = ()
        """The device of each replica, once they were started."""
        self._switched = switched
        self._stacks: dict[threading.Thread, list[T]] = {threading.current_thread(): []}

    def is_mine(self) -> bool:
        """Whether the current thread is one of them."""
        return threading.current_thread() in self._stacks

    @property
    def stack(self) -> list[T]:
        """The stack of the current thread; an empty one in any other."""
        return self._stacks.get(threading.current_thread(), [])

    def follow(self) -> Callable[[], None]:
        """Follow the threads of replicas that a thread of ours starts; returns what undoes it."""
        return private_distribution.hook_replica_threads(self._started, self._merging, self._resumed)

    def _started(self, thread: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.is_mine():
            return function
        self._stacks[thread] = list(self.stack)
        self.devices = tuple(thread.devices)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._switched()
            return function(*args, **kwargs)

        return run

    def _merging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that merges, under the stack of the replica that asked for it."""
        if not self.is_mine():
            return function
        asked = list(self.stack)

        def merge(*args: Any, **kwargs: Any) -> Any:
            thread = threading.current_thread()
            own, self._stacks[thread] = self._stacks[thread], asked
            self._switched()
            try:
                return function(*args, **kwargs)
            finally:
                self._stacks[thread] = own
                self._switched()

        return merge

    def _resumed(self) -> None:
        if self.is_mine():
            self._switched()


def replica_of(name: str, device: str, devices: Sequence[str]) -> int:
    """The replica that an op belongs to, by its scope, else by its device; -1 when it belongs to none or to all.

    Args:
        name: Name of the op.
        device: The device that it was placed on, "" for none.
        devices: The device of each replica; empty when there are not several.
    """
    if not devices:
        return -1
    scope = _SCOPE.search(name)
    if scope is not None:
        return int(scope[1])
    return devices.index(device) if device in devices else -1
