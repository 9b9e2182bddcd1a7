"""The state of a recording, and what makes a step an incident.

`Lifecycle` says what a recording may do now, and which event leads to which state. A `Suspicion` is
what a step showed; `Incidents` makes an incident of it.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tensorflow as tf

from nanreplay.errors import reason_line
from nanreplay.program.nonfinite_values import nonfinite_kind, read_variable
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.records import Trigger

DatedIncident = tuple[Trigger, int]
"""An incident and its step."""


class State(enum.Enum):
    """What a recording is doing."""

    RECORDING = "recording"
    """Steps are kept and checked."""
    UNHEALTHY = "unhealthy"
    """An incident was written, and no step has been healthy since: steps are checked, not kept."""
    FAILED = "failed"
    """An error of the recorder's own: no more is kept. What is held goes into a file at the NaN."""
    STOPPED = "stopped"
    """An incident was written, and the training is to end."""
    FULL = "full"
    """As many incidents were written as were asked for."""
    CLOSED = "closed"
    """All was let go of."""


class Event(enum.Enum):
    """What happens to a recording."""

    INCIDENT_ENDS = "an incident, and the training is to end"
    INCIDENT_PASSES = "an incident, and the training goes on"
    LAST_INCIDENT = "the last incident that is written, and the training goes on"
    HEALTHY_STEP = "a healthy step"
    ERROR = "an error of the recorder's own"
    NEW_TRAINING = "fit begins"
    CLOSE = "close"


_S, _E = State, Event
TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (_S.RECORDING, _E.INCIDENT_ENDS): _S.STOPPED,
    (_S.RECORDING, _E.INCIDENT_PASSES): _S.UNHEALTHY,
    (_S.RECORDING, _E.LAST_INCIDENT): _S.FULL,
    (_S.RECORDING, _E.ERROR): _S.FAILED,
    (_S.UNHEALTHY, _E.HEALTHY_STEP): _S.RECORDING,
    (_S.UNHEALTHY, _E.NEW_TRAINING): _S.RECORDING,
    # The incident's file is written, and nothing is held for another.
    (_S.UNHEALTHY, _E.ERROR): _S.FULL,
    (_S.UNHEALTHY, _E.INCIDENT_ENDS): _S.STOPPED,
    (_S.FAILED, _E.INCIDENT_ENDS): _S.STOPPED,
    (_S.FAILED, _E.INCIDENT_PASSES): _S.FULL,
    (_S.FAILED, _E.LAST_INCIDENT): _S.FULL,
    (_S.STOPPED, _E.NEW_TRAINING): _S.RECORDING,
    **{(state, _E.CLOSE): _S.CLOSED for state in State},
}
"""What follows; an event that is not listed for a state changes nothing."""


class Lifecycle:
    """The state of one recording.

    What every step asks of it is decided when the state changes, and is a plain attribute.
    """

    def __init__(self) -> None:
        self.state = State.RECORDING
        self.is_writing = False
        """Whether a file is being written."""

    @property
    def state(self) -> State:
        """What the recording is doing."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self.is_recording = state is State.RECORDING
        """Whether steps are kept."""
        self.is_unhealthy = state is State.UNHEALTHY
        """Whether no step has been healthy since an incident."""
        self.is_active = self.is_recording or self.is_unhealthy
        """Whether steps are looked at: kept, or waited for to be healthy again."""

    def note(self, event: Event) -> bool:
        """Follow an event; returns whether the state changed."""
        before = self.state
        self.state = TRANSITIONS.get((before, event), before)
        return self.state is not before

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While a file is written."""
        self.is_writing = True
        try:
            yield
        finally:
            self.is_writing = False

    @property
    def has_failed(self) -> bool:
        """Whether an error of the recorder's own ended the recording, and no incident followed."""
        return self.state is State.FAILED

    @property
    def awaits_incident(self) -> bool:
        """Whether a step that is not healthy is an incident that leaves a file."""
        return self.state in (State.RECORDING, State.FAILED)

    @property
    def is_stopped(self) -> bool:
        """Whether an incident asks the training to end."""
        return self.state is State.STOPPED


# Suspicions, and the triggers of incidents


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something is not as it should be."""

    trigger: Trigger
    step: int
    """The step after which it was seen; it may have begun before."""
    is_certain: bool
    """False for a number that may have turned non-finite by itself, such as a mean of losses."""


def variable_trigger(variables: VariableTable, index: int) -> Trigger:
    """The trigger of a variable that is not finite."""
    kind = nonfinite_kind(read_variable(variables.handles[index]))
    return Trigger("variable", variables.path(index), kind)


def exception_trigger(error: BaseException) -> Trigger | None:
    """The trigger of a step that raised.

    None when there are no more batches, or the program is to end (KeyboardInterrupt, SystemExit).
    """
    if is_end_of_data(error) or not isinstance(error, Exception):
        return None
    return Trigger("exception", type(error).__name__, reason_line(error)[:500])


def is_end_of_data(error: BaseException) -> bool:
    """Whether an exception only says that there are no more batches."""
    return isinstance(error, (StopIteration, tf.errors.OutOfRangeError))
