"""Trying candidates of a smaller failure: each is replayed, and its origin is compared.

`smallest_part` searches the smallest part of a set, `place_of` and `is_same` say what must stay the
same of an origin, `FailureTrials` replays a candidate. `minimize` and `redact` are made of these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import tensorflow as tf

from nanreplay.bisect import locate
from nanreplay.bisect.delta_debugging import ddmin
from nanreplay.capture import Capture, write_capture
from nanreplay.errors import NanreplayError
from nanreplay.findings import Origin
from nanreplay.records import BatchRecord, CaptureContents
from nanreplay.replay import Replay
from nanreplay.report.numbers import jsonable
from nanreplay.report.sentence import bad_output

T = TypeVar("T")


class TrialBudgetSpentError(Exception):
    """No more replays are allowed, or the time is over."""


def smallest_part(units: Sequence[T], happens: Callable[[Sequence[T]], bool]) -> tuple[T, ...]:
    """Return a part of `units` with which it still happens and of which no unit can be left out.

    When `happens` raises `TrialBudgetSpentError`, the smallest part so far is returned; it may hold
    more than it must.

    Args:
        units: With all of them it happens; this is not tried.
        happens: Whether it happens with these units, which keep their order.
    """
    try:
        if not units or happens(()):
            return ()
    except TrialBudgetSpentError:
        return tuple(units)
    return ddmin(units, happens, spent=TrialBudgetSpentError)


# What must stay the same of an origin when a failure is made smaller or is shared.

Place: TypeAlias = tuple[object, ...]
"""Step, phase, layer, op, loop iterations, and whether it gave NaN, inf or -inf."""


def place_of(origin: Origin) -> Place:
    """Return what identifies an origin."""
    output = bad_output(origin)
    value = None if output is None else jsonable(output.value)
    loops = tuple((loop.op, loop.iteration) for loop in origin.loop)
    # An origin in the batch has no op: its name is that of the array.
    is_of_batch = origin.op_type is None and bool(origin.operands)
    name = origin.operands[0].name if is_of_batch else origin.op_name
    return (
        origin.step,
        origin.phase,
        origin.layer_path,
        origin.op_type,
        name,
        loops,
        origin.kind,
        # "nan" or "inf" is text in JSON. A finite value may differ with the batch, and is left out.
        value if isinstance(value, str) else None,
    )


_WITHOUT_KIND = 6
"""How many elements of a place come before the kind of failure: NaN of one is inf of another."""


def is_same(origins: Sequence[Origin], wanted: Sequence[Origin]) -> bool:
    """Whether the first origin is the same, and no other has come in that was not there before.

    Where no rows of the batch do it alone, it must not have spread either: with one row in all
    places of a batch every feature is constant, and divides by a variance of zero.

    Args:
        origins: The origins of a candidate, the first one first.
        wanted: Those of the recording; the first one with its rows.
    """
    if not origins or place_of(origins[0]) != place_of(wanted[0]):
        return False
    if wanted[0].rows is None and _has_spread(origins[0], wanted[0]):
        return False
    places = {place_of(origin)[:_WITHOUT_KIND] for origin in origins}
    return places <= {place_of(origin)[:_WITHOUT_KIND] for origin in wanted}


def _has_spread(origin: Origin, wanted: Origin) -> bool:
    """Whether an op makes elements bad that are good in the recording.

    Axes whose length has changed, such as a batch axis with fewer rows, are left out of the indices
    that are compared.
    """
    recorded, output = bad_output(wanted), bad_output(origin)
    if recorded is None or output is None or len(recorded.shape) != len(output.shape):
        return False
    if recorded.shape == output.shape and output.nonfinite > recorded.nonfinite:
        return True
    if len(recorded.indices) != recorded.nonfinite:
        return False  # the list of the recording's elements has an end, so it proves nothing
    sizes = zip(recorded.shape, output.shape, strict=True)
    axes = []
    for axis, (old, new) in enumerate(sizes):
        if old == new:
            axes.append(axis)

    def along_axes(index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(index[axis] for axis in axes)

    return not set(map(along_axes, output.indices)) <= set(map(along_axes, recorded.indices))


# A draft that is written and replayed.

CANNOT = (NanreplayError, tf.errors.OpError, ValueError, TypeError, KeyError, IndexError)
"""What is raised where a candidate does not fit its program.

TensorFlow refuses wrong shapes with errors of its own or of Python's, depending on the op.
"""


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
            TrialBudgetSpentError: There is none left, or no time.
        """
        if self.done >= self.replays or time.monotonic() > self.ends:
            raise TrialBudgetSpentError
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.replays)


class FailureTrials:
    """One draft of a capture, in a file of its own, replayed with other batches and states.

    Args:
        contents: The draft.
        folder: Where its file goes.
        wanted: Origins of the recording, the first one first.
        budget: What trials are taken from.
        trust: Let ops that touch files, the network or processes run.
    """

    def __init__(
        self,
        contents: CaptureContents,
        folder: Path,
        wanted: Sequence[Origin],
        budget: Budget,
        *,
        trust: bool,
    ) -> None:
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

    def __enter__(self) -> FailureTrials:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the draft's file."""
        self._replay.close()
        self._capture.close()

    @property
    def batch(self) -> BatchRecord:
        """The batch of the first step."""
        return self.contents.batches[self.step]

    def holds(
        self, batch: BatchRecord | None = None, state: Mapping[int, Any] | None = None
    ) -> bool:
        """Whether the origin is the same with another batch, or other variables.

        Raises:
            TrialBudgetSpentError: No more trials are allowed.
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
        """Whether the draft as it is has the origin that is wanted, whatever others it has.

        Raises:
            TrialBudgetSpentError: No more trials are allowed.
        """
        self.budget.spend()
        with contextlib.suppress(*CANNOT):
            origins = locate(self._replay)
            return bool(origins) and place_of(origins[0]) == place_of(self.wanted[0])
        return False

    def runs_as_trained(self) -> bool:
        """Whether the steps run compiled as they were trained.

        What raised in training may raise again, so that is not tried.
        """
        if self.contents.incident.trigger.what != "exception":
            self._replay.run_window("recorded")
        return True

    def with_fingerprints(self) -> CaptureContents:
        """Return the draft with the fingerprints that a replay gives its steps as trained.

        A step that raises has none.
        """
        batches = dict(self.contents.batches)
        for step, batch in batches.items():
            fingerprint = None
            with contextlib.suppress(*CANNOT):
                fingerprint = self._replay.fingerprint(step)
            batches[step] = dataclasses.replace(batch, fingerprint=fingerprint)
        # The fingerprints are of this very replay, so it reproduces them by construction.
        incident = dataclasses.replace(
            self.contents.incident, reproduced=True, bit_exact=True, max_ulp=0
        )
        return dataclasses.replace(self.contents, batches=batches, incident=incident)
