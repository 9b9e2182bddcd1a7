"""Whether a step that has run is an incident: what is measured of it, and the verdict.

`VariableMeter` measures the variables, at those steps at which `Recording` asks for it.
`HealthCheck` judges the numbers of a step: those that it returned, and those that were measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import listening, observed_calls
from nanreplay.program.fingerprint import Layout, NonFinite
from nanreplay.program.nonfinite_values import (
    VariableSums,
    nonfinite_kind,
    read_variable,
    squares_fit,
)
from nanreplay.program.traced_program import is_float_variable
from nanreplay.recorder.learning_rates import RateReading
from nanreplay.recorder.lifecycle import Lifecycle, Suspicion, variable_trigger
from nanreplay.recorder.timeline_ring import RanStep
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.records import Trigger, loss_name
from nanreplay.tensorflow_internals import tf_variables

MOST_DOUBTED = 32
"""Steps between the last two questions about a doubtful number."""


@dataclass(slots=True)
class DoubtfulNumber:
    """A returned number that is not finite, though all that trains is.

    It may be a mean that overflowed, and stays so until it is reset. Whether the loss itself is
    finite is then asked of a re-execution, after 1, 2, 4, ... more steps, and not for ever.
    """

    next_step: int
    gap: int = 1

    def is_due(self, step: int) -> bool:
        """Whether to ask now; then the next question comes after twice as many steps."""
        if step < self.next_step or self.gap > MOST_DOUBTED:
            return False
        self.next_step = step + self.gap
        self.gap *= 2
        return True


_UNTOLD = (AttributeError, TypeError, ValueError, tf.errors.OpError)
"""What an optimizer of the user's own may raise that does not tell its rate."""


@dataclass(frozen=True, slots=True)
class _Schedule:
    """A learning-rate schedule of Keras."""

    schedule: Any

    def __call__(self, updates: int) -> float:
        """The rate of the update that follows so many; NaN where the schedule gives none."""
        with listening.muted(), contextlib.suppress(*_UNTOLD):
            return float(self.schedule(tf.constant(updates, tf.int64)))
        return math.nan


class VariableMeter:
    """Measures the variables, and reads the learning rate.

    Args:
        variables: The variables of the recording.
    """

    def __init__(self, variables: VariableTable) -> None:
        self.checked: list[int] = []
        """Indices of the variables that `measure` reads, in the order of its result."""
        self._variables = variables
        self._sums: VariableSums | None = None
        self._optimizers: list[Any] = []
        self._schedules: dict[int, _Schedule] = {}
        """Learning-rate schedules, by id."""

    def forget_variables(self) -> None:
        """Variables were added: choose anew which ones to measure."""
        self._sums = None

    def measure(self) -> Any:
        """Half the sum of squares of each checked variable, as one tensor."""
        if self._sums is None:
            self.checked = self.checked_variables()
            self._sums = VariableSums([self._variables.handles[index] for index in self.checked])
        return self._sums()

    def checked_variables(self) -> list[int]:
        """Indices of the variables to check: all float ones but metrics, seeds and slots."""
        unchecked = set()
        for handle in self._variables.unchecked(slots=True):
            unchecked.add(id(handle))
        checked = []
        for index, handle in enumerate(self._variables.handles):
            if id(handle) not in unchecked and is_float_variable(handle):
                checked.append(index)
        return checked

    def learn_optimizer(self, optimizer: Any) -> bool:
        """Read the learning rate of this optimizer too; returns whether it is a new one."""
        if any(optimizer is known for known in self._optimizers):
            return False
        self._optimizers.append(optimizer)
        return True

    def read_rate(self, first: int, *, was_set: bool) -> RateReading:
        """Read the learning rate of the first optimizer that tells one, just after a call.

        Args:
            first: The first step of the call.
            was_set: Whether something outside of the steps set a number of an optimizer before it.
        """
        for optimizer in self._optimizers:
            # A wrapper of the user's own need not have a learning rate, or may compute it.
            with listening.muted(), contextlib.suppress(*_UNTOLD):
                schedule = observed_calls.schedule_of(optimizer)
                if schedule is not None:
                    updates = int(observed_calls.updates_of(optimizer))
                    told = self._schedules.setdefault(id(schedule), _Schedule(schedule))
                    return RateReading(first, math.nan, updates, told, was_set)
                rate = observed_calls.learning_rate_now(optimizer)
                if rate is not None:
                    return RateReading(first, float(rate), was_set=was_set)
        return RateReading(first)


class HealthCheck:
    """Judges steps that have run.

    Args:
        variables: The variables of the recording.
        lifecycle: Its state.
        notes: Its notes for the file; a metric that is not finite is noted once.
    """

    def __init__(self, variables: VariableTable, lifecycle: Lifecycle, notes: list[str]) -> None:
        self._variables = variables
        self._lifecycle = lifecycle
        self._notes = notes
        self.doubts: dict[str, DoubtfulNumber] = {}
        """Returned numbers that are not finite, though all that trains is, by name."""

    # Compiled steps

    def suspicion(
        self,
        ran: RanStep,
        numbers: Mapping[str, Any],
        sums: Any,
        state_before: Mapping[int, Any] | None,
    ) -> Suspicion | None:
        """What in a compiled step is not as it should be, or None.

        Args:
            ran: The step.
            numbers: The numbers that it returned, by name in the fingerprint.
            sums: Half the sums of squares of the checked variables; None if not measured.
            state_before: The keyframe before the step, where the variables have moved on.
        """
        bad_names = [name for name, value in numbers.items() if not math.isfinite(value)]
        checks_slots = ran.with_keyframe or self._lifecycle.is_unhealthy
        self.doubts = {name: doubt for name, doubt in self.doubts.items() if name in bad_names}
        suspicion = self._bad_loss(ran, numbers, bad_names)
        if suspicion is not None:
            return suspicion
        variable = self._bad_variable(sums, ran.checked)
        if variable is None and (checks_slots or not _are_finite(sums)):
            variable = self._variables.bad_slot(state_before)
        if variable is not None:
            return self._of_variable(variable, ran.step)
        return self._doubtful_loss(ran, numbers, bad_names)

    def _bad_loss(
        self, ran: RanStep, numbers: Mapping[str, Any], bad_names: Sequence[str]
    ) -> Suspicion | None:
        """The first loss of the step itself that is not finite: that is certain."""
        name = next((name for name in bad_names if name.startswith("loss:")), None)
        if ran.slot is None or name is None:
            return None
        trigger = Trigger("loss", ran.slot.name_of(name), _kind(numbers[name]))
        return Suspicion(trigger, ran.step, is_certain=True)

    def _doubtful_loss(
        self, ran: RanStep, numbers: Mapping[str, Any], bad_names: Sequence[str]
    ) -> Suspicion | None:
        """A number that stands for a loss, when it is time to ask; other metrics are only noted."""
        if ran.slot is None:
            return None
        for name in bad_names:
            kind = _kind(numbers[name])
            if not ran.slot.is_loss(name):
                self._note_metric(name, ran.slot.name_of(name), kind, ran.step)
                continue
            doubt = self.doubts.setdefault(name, DoubtfulNumber(ran.step))
            if doubt.is_due(ran.step):
                trigger = Trigger("loss", ran.slot.name_of(name), kind)
                return Suspicion(trigger, ran.step, is_certain=False)
        return None

    def _note_metric(self, name: str, shown: str, kind: str, step: int) -> None:
        if name not in self.doubts:
            self.doubts[name] = DoubtfulNumber(step)
            what = f"The metric {shown}" if shown else "A number that the step returns"
            self._notes.append(f"{what} is {kind} from step {step} on.")

    # Variables

    def _bad_variable(self, sums: Any, checked: Iterable[int]) -> int | None:
        """Index of the first checked variable that holds NaN or an infinity, given the sums.

        The square of a finite number may overflow its sum: such a variable is read.
        """
        if _are_finite(sums):
            return None
        for index, total in zip(checked, sums, strict=True):
            if np.isfinite(total) or index in self._variables.born_nonfinite:
                continue
            if nonfinite_kind(read_variable(self._variables.handles[index])):
                return index
        return None

    def measured_suspicion(self, sums: Any, checked: Iterable[int], step: int) -> Suspicion | None:
        """What the variables show after `step`, slots of the optimizer included."""
        index = self._bad_variable(sums, checked)
        if index is None:
            index = self._variables.bad_slot()
        return None if index is None else self._of_variable(index, step)

    def _suspicion_now(self, step: int) -> Suspicion | None:
        """A variable that is not finite now, whatever the state of the recording."""
        table = self._variables
        for index, info in enumerate(table.infos):
            if info.role in ("metric", "seed") or index in table.born_nonfinite:
                continue
            if nonfinite_kind(read_variable(table.handles[index])):
                return self._of_variable(index, step)
        return None

    def after_failure(self, result: Any, step: int) -> Suspicion | None:
        """What is not finite after a step that is not recorded any more.

        Args:
            result: What the step returned; its scalar floats are looked at, then the variables.
            step: The step.
        """
        try:
            leaves = tf.nest.flatten(result, expand_composites=True)
            for leaf in filter(tf_variables.is_value, leaves):
                if not leaf.dtype.is_floating or leaf.shape.rank != 0:
                    continue
                kind = nonfinite_kind(leaf)
                if kind:
                    return Suspicion(Trigger("loss", "loss", kind), step, is_certain=True)
            return self._suspicion_now(step)
        except Exception:  # the recorder has failed already; the training goes on
            return None

    def _of_variable(self, index: int, step: int) -> Suspicion:
        return Suspicion(variable_trigger(self._variables, index), step, is_certain=True)

    # Eager steps

    def judge_eager(
        self,
        layout: Layout,
        values: Any,
        *,
        with_keyframe: bool,
        loss_keys: Callable[[], Sequence[str]],
    ) -> tuple[Trigger | None, bool]:
        """What in an eager step is not as it should be, and whether its update was skipped.

        Loss scaling skips some updates, which is no incident.

        Args:
            layout: Of its fingerprint.
            values: Its fingerprint.
            with_keyframe: Whether the plan asked for a keyframe before the step.
            loss_keys: Gives the key under which it returned each loss (see `Signature`).
        """
        nonfinite, skipped = layout.find_nonfinite(
            values,
            loss_scaled="loss_scale" in layout.names,
            bad_variable=self.kind_of_variable,
        )
        if nonfinite is not None:
            return self._trigger_of(nonfinite, loss_keys()), skipped
        checks_slots = with_keyframe or self._lifecycle.is_unhealthy
        if skipped or (not checks_slots and layout.gradients_fit(values)):
            return None, skipped
        slot = self._variables.bad_slot()
        trigger = None if slot is None else variable_trigger(self._variables, slot)
        return trigger, skipped

    def _trigger_of(self, nonfinite: NonFinite, loss_keys: Sequence[str]) -> Trigger:
        if nonfinite.what == "loss":
            name = loss_name(nonfinite.subject, keys=loss_keys)
        else:
            name = self._variables.path(nonfinite.subject)
        return Trigger(nonfinite.what, name, nonfinite.kind)

    def kind_of_variable(self, index: int) -> str:
        """How a variable is not finite ("nan", "inf", "-inf"), or "" if that is no incident."""
        value = read_variable(self._variables.handles[index])
        if index in self._variables.born_nonfinite or squares_fit(value):
            return ""
        return nonfinite_kind(value)


def _are_finite(sums: Any) -> bool:
    """Whether no sum shows anything; so too where nothing was measured."""
    return sums is None or bool(np.isfinite(sums).all())


def _kind(value: Any) -> str:
    if np.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"
