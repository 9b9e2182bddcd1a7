"""Whether updates threw the weights off, and whether the learning rate made them so large.

An update is the learning rate times what the optimizer makes of the gradient. The rate is to blame
where the updates were too large from the first one on, or since the rate was raised, and where the
gradient alone does not explain their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nanreplay.bisect.growth import learning_rate_at
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import is_float
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.case import Case
from nanreplay.diagnose.rules import overflow
from nanreplay.errors import NanreplayError
from nanreplay.findings import Cause
from nanreplay.records import Timeline, batch_name

EARLY = 10
"""Steps within which initial weights can be to blame."""
OVERSHOOT = 0.3
"""A step that changes weights by more than this share of their norm overshoots."""
FAR_OFF = 5.0
"""After an update of this many times the weights' norm, whatever fails is its consequence."""
THROWN_OFF = 1.0
"""Updates of more than the weights' own norm throw them off.

They explain gradients that grow, wherever these overflow in the end.
"""
_MOST_UPDATES = 4
"""How many updates before the failing step are looked at."""
_BOUNDED = 10.0
"""Optimizers such as Adam change no weight by more than a few times the rate."""
_STEEP = 50.0
"""A gradient of more than this many times the weights' norm is large by itself."""
_RAISED = 10.0
"""How many times a rate was raised where that counts as the beginning."""
_SOON = 3
"""Steps within which the first update can be what failed."""
_UNSCALED = 10.0
"""Data of which half is larger than this was not scaled."""


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
        if update.ratio <= THROWN_OFF:
            break
        thrown = update
    if thrown is None or thrown.learning_rate is None:
        return None
    began_with_rate = thrown.step == 0 or _was_raised(timeline, thrown.step, thrown.learning_rate)
    return thrown if began_with_rate and _is_of_rate(thrown) else None


def _updates_before(runner: StepRunner, timeline: Timeline, step: int) -> Iterator[Update]:
    """The updates before a step, the last one first."""
    for earlier in range(step - 1, max(step - 1 - _MOST_UPDATES, -1), -1):
        try:
            # of an eager loop the states are known, though the step itself cannot be replayed
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


def first_update(case: Case) -> Cause | None:
    """The first update of an optimizer such as Adam overshot, and within a few steps one overflows.

    Its size is that of the rate, whatever the gradient was.
    """
    steps = case.replay.steps
    if not 1 < case.step <= EARLY or not {0, 1} <= set(steps) or not overflow.is_plain(case):
        return None
    change, rate = case.replay.change(0), learning_rate_at(case.timeline, 0)
    first = Update(0, change.ratio, change.largest, rate)
    if first.ratio <= OVERSHOOT or not first.is_bounded:
        return None
    evidence = f"No weight changed by more than {first.largest:.3g}; step {case.step} overflows."
    return Cause("high_learning_rate", 0.84, first.sentence, (evidence,))


def first_update_on_unscaled_data(case: Case) -> Cause | None:
    """The gradient of the first step is large because the data are, and so is its update."""
    steps = case.replay.steps
    is_in_loop = case.origin is not None and case.origin.loop
    if not 0 < case.step <= _SOON or not {0, 1} <= set(steps) or case.outliers or is_in_loop:
        return None
    rate = learning_rate_at(case.timeline, 0)
    if rate is None or not overflow.is_plain(case):
        return None
    change = case.replay.change(0)
    update = Update(0, change.ratio, change.largest, rate)
    unscaled = _largest_usual_size(case, 0)
    if update.ratio <= FAR_OFF or update.is_bounded or unscaled is None:
        return None
    name, size = unscaled
    sentence = f"{update.sentence} `{name}` is not scaled: half of it is larger than {size:.3g}."
    evidence = f"What failed in step {case.step} is a consequence: `{case.op}`."
    return Cause("high_learning_rate", 0.84, sentence, (evidence,))


def large_data(case: Case) -> tuple[str, ...]:
    """Evidence that the data of a training that diverges are large; empty where they are not."""
    steps = case.replay.steps
    found = _largest_usual_size(case, steps[0]) if steps and not case.outliers else None
    if found is None:
        return ()
    name, size = found
    return (
        f"Half of `{name}` is larger than {size:.3g} in step {steps[0]}: data that are scaled to "
        "about 1 make smaller gradients.",
    )


def _largest_usual_size(case: Case, step: int) -> tuple[str, float] | None:
    """The array of a step's batch with the largest median, which is that, where it is large."""
    record = case.replay.batch(step)
    found: tuple[str, float] | None = None
    for path, leaf in zip(record.paths, record.leaves, strict=False):
        array = as_array(leaf)
        if is_float(array) and array.size:
            size = float(np.median(np.abs(array.astype(np.float64))))
            if size > max(_UNSCALED, found[1] if found else 0.0):
                found = batch_name(path), size
    return found
