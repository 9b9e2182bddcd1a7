"""Op determinism, which TensorFlow has once for a process, shared by the replays that are open."""

from __future__ import annotations

import threading

from nanreplay.program import private_tf

_lock = threading.Lock()
_users = 0
_before = False


class OpDeterminism:
    """Op determinism as one replay wants it. After the last one it is as it was before the first."""

    def __init__(self) -> None:
        global _users, _before
        self._is_wanted = True
        self._is_released = False
        with _lock:
            if not _users:
                _before = private_tf.is_deterministic()
            _users += 1
        self.enter()

    def enter(self) -> None:
        """Have it as this replay wants it: something of this replay is about to run."""
        private_tf.set_deterministic(self._is_wanted)

    def give_up(self) -> bool:
        """Do without from now on, for an op that has no deterministic kernel; returns whether it was wanted until now."""
        was_wanted, self._is_wanted = self._is_wanted, False
        return was_wanted

    def release(self) -> None:
        """The replay is closed."""
        global _users
        with _lock:
            if self._is_released:
                return
            self._is_released = True
            _users -= 1
            if not _users:
                private_tf.set_deterministic(_before)
