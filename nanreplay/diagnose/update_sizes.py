"""Whether updates threw the weights off, and whether the learning rate made them so large.

An update is the learning rate times what the optimizer makes of the gradient. The rate is to blame
where the updates were too large from the first one on, or since the rate was raised, and where the
gradient alone does not explain their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nanreplay.bisect.growth import learning_rate_at
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.errors import NanreplayError
from nanreplay.records import Timeline

_THROWN_OFF = 1.0
"""An update of more than the weights' own norm throws them off."""
_MOST_UPDATES = 4
"""How many updates before the failing step are looked at."""
_BOUNDED = 10.0
"""Optimizers such as Adam change no weight by more than a few times the rate."""
_STEEP = 50.0
"""A gradient of more than this many times the weights' norm is large by itself."""
_RAISED = 10.0
"""How many times a rate was raised where that counts as the beginning."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step changed of the trainable matrices."""

    step: int
    ratio: float
    """Norm of the change, relative to the norm of what was there."""
    largest: float
    """Largest change of one weight."""
    learning_rate: float | None
    """None where it is not recorded."""

    @property
    def is_bounded(self) -> bool:
        """Whether no weight changed by much more than the rate, as with Adam."""
        return self.learning_rate is not None and self.largest <= _BOUNDED * self.learning_rate

    @property
    def sentence(self) -> str:
        """The update in numbers."""
        rate = ""
        if self.learning_rate is not None:
            rate = f", at a learning rate of {self.learning_rate:.6g}"
        return (
            f"The update of step {self.step} changed the weights by {self.ratio:.3g} times "
            f"their norm{rate}."
        )


def overshooting_update(runner: StepRunner, timeline: Timeline, step: int) -> Update | None:
    """Return the first update that threw the weights off, where the learning rate made it so large.

    None where updates were of a usual size, or where they became large at a usual rate: then a
    gradient exploded.

    Args:
        runner: Replays the window's steps.
        timeline: What was recorded of all steps.
        step: Step of the origin.
    """
    thrown: Update | None = None
    for update in _updates_before(runner, timeline, step):
        if update.ratio <= _THROWN_OFF:
            break
        thrown = update
    if thrown is None or thrown.learning_rate is None:
        return None
    began_with_rate = thrown.step == 0 or _was_raised(timeline, thrown.step, thrown.learning_rate)
    return thrown if began_with_rate and _is_of_rate(thrown) else None


def _updates_before(runner: StepRunner, timeline: Timeline, step: int) -> Iterator[Update]:
    """The updates before a step, the last one first."""
    for earlier in range(step - 1, max(step - 1 - _MOST_UPDATES, -1), -1):
        if earlier not in runner.steps or earlier + 1 not in runner.steps:
            return
        try:
            change = runner.change(earlier)
        except NanreplayError:
            return
        rate = learning_rate_at(timeline, earlier)
        yield Update(earlier, change.ratio, change.largest, rate)


def _is_of_rate(update: Update) -> bool:
    """Whether the rate, not the size of the gradient, explains how large an update is."""
    rate = update.learning_rate
    if not rate or rate <= 0:
        return False
    return update.is_bounded or update.ratio / rate <= _STEEP


def _was_raised(timeline: Timeline, step: int, rate: float) -> bool:
    """Whether the learning rate of a step is far above that of the step before it."""
    before = learning_rate_at(timeline, step - 1)
    return before is not None and rate > _RAISED * before
