"""Trying candidates of a smaller failure: each is replayed, and holds only when its origin is the same."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorflow as tf

from nanreplay.bisect import locate
from nanreplay.capture import Capture, write_capture
from nanreplay.errors import NanreplayError
from nanreplay.findings import Origin
from nanreplay.records import BatchRecord, CaptureContents
from nanreplay.replay import Replay
from nanreplay.share.ddmin import BudgetSpentError
from nanreplay.share.place import is_same, place_of

CANNOT = (NanreplayError, tf.errors.OpError, ValueError, TypeError, KeyError, IndexError)
"""What is raised where a candidate does not fit its program: TensorFlow refuses wrong shapes in many ways."""


@dataclasses.dataclass(slots=True)
class Budget:
    """How many replays a search may take, and how long."""

    replays: int
    ends: float
    """Time of `time.monotonic`."""
    progress: Callable[[int, int], None] | None = None
    """Called with (replays done, replays allowed)."""
    done: int = 0

    def spend(self) -> None:
        """Take one replay.

        Raises:
            BudgetSpentError: There is none left, or no time.
        """
        if self.done >= self.replays or time.monotonic() > self.ends:
            raise BudgetSpentError
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.replays)


class Bench:
    """One draft of a capture, written to a file of its own and replayed with other batches and states.

    Args:
        contents: The draft.
        folder: Where its file goes.
        wanted: Origins of the recording, the first one first.
        budget: What trials are taken from.
        trust: Let ops that touch files, the network or processes run.
    """

    def __init__(self, contents: CaptureContents, folder: Path, wanted: Sequence[Origin], budget: Budget, *, trust: bool) -> None:
        """Write the draft."""
        self.contents = contents
        self.wanted = wanted
        self.budget = budget
        self.step = min(contents.batches)
        folder.mkdir(exist_ok=True)
        path = folder / f"draft-{budget.done}.h5"
        write_capture(path, contents)
        self._capture = Capture(path)
        self._replay = Replay(self._capture, trust=trust)

    def __enter__(self) -> Bench:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the draft's file."""
        self._replay.close()
        self._capture.close()

    @property
    def batch(self) -> BatchRecord:
        """The batch of the first step."""
        return self.contents.batches[self.step]

    def holds(self, batch: BatchRecord | None = None, state: Mapping[int, Any] | None = None) -> bool:
        """Whether the origin is the same with another batch, or other variables.

        Raises:
            BudgetSpentError: No more trials are allowed.
        """
        self.budget.spend()
        if batch is not None:
            self._replay.replace_batch(self.step, batch)
        if state is not None:
            self._replay.replace_state(self.step, state)
        with contextlib.suppress(*CANNOT):
            return is_same(locate(self._replay), self.wanted)
        return False

    def has_origin(self) -> bool:
        """Whether the draft as it is has the origin that is wanted, whatever others it has."""
        self.budget.spend()
        with contextlib.suppress(*CANNOT):
            found = locate(self._replay)
            return bool(found) and place_of(found[0]) == place_of(self.wanted[0])
        return False

    def runs_as_trained(self) -> bool:
        """Whether the steps can be run compiled as they were trained; what raised in training may raise again."""
        if self.contents.incident.trigger.what != "exception":
            self._replay.run_window("recorded")
        return True

    def with_fingerprints(self) -> CaptureContents:
        """Return the draft with the fingerprints that a replay gives its steps as they were trained, none where it raises."""
        batches = dict(self.contents.batches)
        for step, batch in batches.items():
            found = None
            with contextlib.suppress(*CANNOT):
                found = self._replay.fingerprint(step)
            batches[step] = dataclasses.replace(batch, fingerprint=found)
        incident = dataclasses.replace(self.contents.incident, reproduced=True, bit_exact=True, max_ulp=0)
        return dataclasses.replace(self.contents, batches=batches, incident=incident)
