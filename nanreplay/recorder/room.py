"""How much memory and disk a recording may take: as it was asked for, or as the machine has room.

`Keeper` asks before it plans, and `dump` before it writes. With "auto", what is taken follows what
the training needs, and what is free of the machine's and the container's memory, and of the disk.
"""

from __future__ import annotations

import math
import time
from functools import cached_property
from pathlib import Path

from nanreplay import limits
from nanreplay.capture.storage import RemotePath, location
from nanreplay.recorder.settings import Settings, expand_path

USUAL_BYTES = 2**30
"""What batches and timeline may take beside copies of the state, and a file whatever the state."""
FREE_SHARE = 2
"""At most one part in so many of what is free is taken: the rest is the training's."""
LARGE_STATE_BYTES = 2**28
"""Of a larger state only the failing step's gradients and the weights before it are written."""
FILE_STATES = 1.75
"""Size of the file of a large state, in states: a keyframe, and once weights and gradients."""
DISK_SHARE = 0.9
"""What of the free disk may be taken."""
FULL_STEPS = 3
"""Steps, the failing one included, whose weights and gradients are written of a small state."""


LOOK_AGAIN_S = 1.0
"""Seconds after which it is asked again what is free."""
LOOK_PARTS = 1000
"""Asking may take one part in so many of the time."""
MOST_SPOOLED = 2
"""Keyframes on disk at once: one to reach the window, and the next."""


class Room:
    """What a recording may take.

    Args:
        settings: What was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sizes = (-1, -1)
        self._free_bytes = 0
        self._look_again_s = -math.inf
        self._disk_bytes = 0
        self._asked_disk_s = -math.inf
        self.memory_bytes = 0
        """What batches, keyframes and the timeline may hold, as `look` found it."""
        self.look(0, 0, 0)

    # Memory

    def look(self, held_bytes: int, state_bytes: int, batch_bytes: int, copies: int = 2) -> None:
        """Find out what may be held now: what the training needs, and no more than is free.

        Args:
            held_bytes: What is held already.
            state_bytes: Size of a keyframe.
            batch_bytes: Size of a batch.
            copies: Keyframes that are wanted at once.
        """
        wanted = self._settings.memory_limit
        if wanted is not None:
            self.memory_bytes = wanted
            return
        began_s = time.monotonic()
        if began_s > self._look_again_s or self._sizes != (state_bytes, copies):
            self._sizes = (state_bytes, copies)
            self._free_bytes = limits.free_memory() + held_bytes  # as if nothing were held
            now_s = time.monotonic()  # the kernel takes long to count where there are many groups
            self._look_again_s = now_s + max(LOOK_AGAIN_S, LOOK_PARTS * (now_s - began_s))
        wanted = USUAL_BYTES + copies * state_bytes + 4 * batch_bytes
        self.memory_bytes = min(wanted, self._free_bytes // FREE_SHARE)

    @property
    def memory_text(self) -> str:
        """The limit of memory, for a sentence."""
        size = limits.readable_size(self.memory_bytes)
        is_given = self._settings.memory_limit is not None
        return f"memory_limit of {size}" if is_given else f'memory_limit="auto" ({size})'

    def has(self, memory_bytes: int, disk_bytes: int) -> bool:
        """Whether as much memory is free, and as much disk."""
        if disk_bytes > self._usable_disk_bytes():
            return False
        # As `look` has found it, and what is held counts as free.
        free = self._free_bytes or limits.free_memory() + self.memory_bytes
        return memory_bytes <= free

    @property
    def history_bytes(self) -> int:
        """What the timeline may take, in memory and in a file."""
        wanted = self._settings.disk_limit
        return min(self.memory_bytes, self.memory_bytes if wanted is None else wanted) // 10

    def rerun_bytes(self) -> int:
        """What re-executing a window may take whose state is not in memory."""
        free = limits.free_memory()
        wanted = self._settings.memory_limit
        return free * 3 // 4 if wanted is None else min(wanted, free)

    # Disk

    @cached_property
    def folder(self) -> Path:
        """The folder of the capture; of a remote one, where it is written first."""
        path = self._settings.path
        if isinstance(location(path), RemotePath):
            return Path.cwd()
        return Path(expand_path(path, step=0)).absolute().parent

    @property
    def is_disk_given(self) -> bool:
        """Whether the user said how large a file may be."""
        return self._settings.disk_limit is not None

    def disk_bytes(self, state_bytes: int, batch_bytes: int) -> int:
        """What a file may take.

        Args:
            state_bytes: Size of a keyframe.
            batch_bytes: Size of a batch.
        """
        wanted = self._settings.disk_limit
        if wanted is not None:
            return wanted
        wanted = max(USUAL_BYTES, int(FILE_STATES * state_bytes)) + 4 * batch_bytes
        return min(wanted, self._usable_disk_bytes())

    def _usable_disk_bytes(self) -> int:
        now_s = time.monotonic()
        if now_s - self._asked_disk_s > LOOK_AGAIN_S:
            self._asked_disk_s = now_s
            self._disk_bytes = int(DISK_SHARE * limits.free_disk(self.folder))
        return self._disk_bytes

    def disk_text(self, state_bytes: int, batch_bytes: int) -> str:
        """The limit of the file, for a sentence."""
        size = limits.readable_size(self.disk_bytes(state_bytes, batch_bytes))
        return f"disk_limit of {size}" if self.is_disk_given else f"a disk with {size} free"

    def spool_places(self, state_bytes: int, batch_bytes: int) -> int:
        """Keyframes that may be on local disk at once: as many as a file may take, at most two.

        Where the user said nothing, there must be room for the file as well.
        """
        file_bytes = self.disk_bytes(state_bytes, batch_bytes)
        free = 0 if self.is_disk_given else self._usable_disk_bytes()
        spool_bytes = file_bytes if self.is_disk_given else free - file_bytes
        return max(0, min(MOST_SPOOLED, spool_bytes // max(1, state_bytes)))

    # What is written

    def full_steps(self, state_bytes: int) -> int:
        """How many steps' weights and gradients are written."""
        wanted = self._settings.full_steps
        if wanted is not None:
            return wanted
        return 1 if self.is_large(state_bytes) else FULL_STEPS

    def is_large(self, state_bytes: int) -> bool:
        """Whether of a state only what a step hangs on most is written a second time."""
        return state_bytes > LARGE_STATE_BYTES
