"""Does the training live with a fix? Finite values alone are no answer.

A fix is no fix where the loss ends a thousand times higher, where the weights are thrown far off,
or where the update of the failing step is left out. What usual losses are is told by the steps
before anything grew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nanreplay.bisect.growth import find_growth
from nanreplay.records import VariableInfo
from nanreplay.replay import StepResult
from nanreplay.whatif.trial_window import TrialWindow
from nanreplay.whatif.window_run import TrialOutcome

_RUINED = 1e3
"""A loss this many times above the usual ones is that of a ruined training."""
_NEAR = 3.0
"""Where the update alone is changed, losses stay within this many times of the usual ones."""
_LEAST_LOSS = 1e-3
"""Losses below this are as good as 0: nothing is measured in multiples of them."""
_SAME = 1e-3
"""Relative difference of a loss that the fix did not change: it is the batch's own."""
_RISEN = 10.0
"""Where a fix leaves the loss of the failing step above this many times the usual, it is told."""
_BLOWN_UP = 10.0
"""Weights whose norm grew this many times are blown up."""


@dataclass
class TrainingHealth:
    """What a training is like while it is healthy, to hold a fixed one against.

    Args:
        window: The steps that fixes are replayed in.
    """

    window: TrialWindow

    @cached_property
    def usual_loss(self) -> float | None:
        """The largest loss (without its sign) of the steps before values grew; None without one."""
        replay, failing = self.window.replay, self.window.failing
        timeline = replay.capture.timeline_record()
        if "loss" not in timeline.columns:
            return None
        steps = np.asarray(timeline.columns["step"])
        losses = np.abs(np.asarray(timeline.columns["loss"], np.float64))
        growth = find_growth(timeline, failing, [info.path for info in replay.variables])
        last = failing if growth is None else growth.step + (0 if growth.is_jump else 1)
        usual = losses[(steps < last) & np.isfinite(losses)]
        return float(usual.max()) if usual.size else None

    def ruin(self, outcome: TrialOutcome, *, changes_update: bool) -> str | None:
        """Say in what a run that stayed finite is ruined; None where the training lives.

        Args:
            outcome: The window with the fix.
            changes_update: Whether the fix changes the update alone. Then no batch is to blame for
                a large loss, so all losses have to stay near the usual ones.
        """
        grown = self._grown(outcome, changes_update)
        if outcome.fails_later and grown:
            # The fix let the failing step pass and left weights that cannot be trained on.
            return "the weights are ruined: a step after the window is not"
        return "a step after the window is not" if outcome.fails_later else grown

    def _grown(self, outcome: TrialOutcome, changes_update: bool) -> str | None:
        """Say which of losses and weights end far off; None where none does."""
        first = outcome.results[0].loss
        known = [loss for loss in (self.usual_loss, _size(first)) if loss is not None]
        if not known:
            return self._blown_up(outcome)
        usual = max(*known, _LEAST_LOSS)
        factor = _NEAR if changes_update else _RUINED
        ran = (*outcome.results, *(result for result in outcome.later if result.finite))
        # A loss that the recording has as well is the batch's own, however large.
        for result in (result for result in ran if not _is_recorded(result)):
            loss = _size(result.loss)
            if loss is not None and loss > factor * usual:
                low = usual if self.usual_loss is None else max(self.usual_loss, _LEAST_LOSS)
                return f"the loss grows to {loss:.3g}, from at most {low:.3g} before"
        return self._blown_up(outcome)

    def rise(self, outcome: TrialOutcome, step: int) -> tuple[float, float] | None:
        """Return the loss that a step has with the fix, and the largest usual one.

        None where it is not far above the usual ones, or these are not known.

        Args:
            outcome: The window with the fix.
            step: The failing step.
        """
        losses = [_size(result.loss) for result in outcome.results if result.step == step]
        if self.usual_loss is None or not losses or losses[0] is None:
            return None
        is_far_above = losses[0] > _RISEN * max(self.usual_loss, _LEAST_LOSS)
        return (losses[0], self.usual_loss) if is_far_above else None

    def _blown_up(self, outcome: TrialOutcome) -> str | None:
        before, after = outcome.norms
        if after <= _BLOWN_UP * max(before, _drawn_norm(self.window.replay.variables)):
            return None
        return f"the weights are blown up: their norm goes from {before:.3g} to {after:.3g}"


def _size(loss: float | None) -> float | None:
    return None if loss is None else abs(loss)


def _is_recorded(result: StepResult) -> bool:
    """Whether a loss is what the recording has too: the batch's, not the fix's."""
    loss, recorded = result.loss, result.recorded_loss
    if loss is None or recorded is None or not np.isfinite(recorded):
        return False
    return abs(loss - recorded) <= _SAME * abs(recorded)


def _drawn_norm(infos: Sequence[VariableInfo]) -> float:
    """The norm of kernels as He et al. (2015) draw them: their variance is 2 / fan_in."""
    kernels = []
    for info in infos:
        if info.role == "trainable" and len(info.shape) > 1:
            kernels.append(info.shape)
    return math.sqrt(sum(2 * shape[-1] for shape in kernels))
