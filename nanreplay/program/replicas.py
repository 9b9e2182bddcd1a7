"""Several replicas in one process: the threads that trace them one after another, and what tells whose an op or a batch is.

A mirrored strategy traces each replica of a process in a thread of its own. They take turns, and what merges them (the sum of
gradients, the update) runs in the thread that started them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from nanreplay.program import private_distribution

_SCOPE = re.compile(r"(?:^|/)replica_(\d+)/")


class ReplicaThreads:
    """Hands the stack of the thread that traces a step on to the threads of its replicas, and to what merges them.

    Args:
        local: Gives what the current thread holds; its `stack` is handed on.
        switched: Called in the thread that goes on, whenever another one does, with the devices of the replicas.
    """

    def __init__(self, local: Callable[[], Any], switched: Callable[[tuple[str, ...]], None]) -> None:
        self._local = local
        self._switched = switched
        self.inherited: list[Callable[[], Callable[[], AbstractContextManager[None]]]] = []
        """What else a thread of a replica has from the one that starts it: called there, each gives what to enter here."""

    def follow(self) -> Callable[[], None]:
        """Follow the threads of replicas; returns what undoes it."""
        return private_distribution.hook_replica_threads(self._started, self._merging, self._resumed)

    def _started(self, thread: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        stack, devices, is_muted = list(self._local().stack), tuple(thread.devices), self._local().is_muted
        inherited = [inherit() for inherit in self.inherited]

        def run(*args: Any, **kwargs: Any) -> Any:
            own = self._local()
            own.stack, own.is_muted = list(stack), is_muted
            self._switched(devices)
            with ExitStack() as entered:
                for enter in inherited:
                    entered.enter_context(enter())
                return function(*args, **kwargs)

        return run

    def _merging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that merges, under the stack of the replica that asked for it."""
        asked = list(self._local().stack)

        def merge(*args: Any, **kwargs: Any) -> Any:
            local = self._local()
            own, local.stack = local.stack, asked
            self._switched(())
            try:
                return function(*args, **kwargs)
            finally:
                local.stack = own
                self._switched(())

        return merge

    def _resumed(self) -> None:
        self._switched(())


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
