"""The state of a recording, in one place: what it may do now, and what leads to what."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping


class State(enum.Enum):
    """What a recording is doing."""

    RECORDING = "recording"
    """Steps are kept, and watched."""
    UNHEALTHY = "unhealthy"
    """An incident was written, and no step has been healthy since: steps are watched, nothing is kept."""
    FAILED = "failed"
    """An error of the recorder's own: nothing more is kept. What is held goes into a file at the NaN."""
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
    (_S.UNHEALTHY, _E.ERROR): _S.FAILED,
    (_S.UNHEALTHY, _E.INCIDENT_ENDS): _S.STOPPED,
    (_S.FAILED, _E.INCIDENT_ENDS): _S.STOPPED,
    (_S.FAILED, _E.INCIDENT_PASSES): _S.FULL,
    (_S.FAILED, _E.LAST_INCIDENT): _S.FULL,
    (_S.STOPPED, _E.NEW_TRAINING): _S.RECORDING,
    **{(state, _E.CLOSE): _S.CLOSED for state in State},
}
"""What follows; an event that is not listed for a state changes nothing."""


class Lifecycle:
    """The state of one recording."""

    def __init__(self) -> None:
        self.state = State.RECORDING
        self.is_writing = False
        """Whether a file is being written."""

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
    def is_active(self) -> bool:
        """Whether steps are looked at: kept, or waited for to be healthy again."""
        return self.state in (State.RECORDING, State.UNHEALTHY)

    @property
    def is_recording(self) -> bool:
        """Whether steps are kept."""
        return self.state is State.RECORDING

    @property
    def is_unhealthy(self) -> bool:
        """Whether no step has been healthy since an incident."""
        return self.state is State.UNHEALTHY

    @property
    def has_failed(self) -> bool:
        """Whether an error of the recorder's own ended the recording, and no incident has followed."""
        return self.state is State.FAILED

    @property
    def is_stopped(self) -> bool:
        """Whether an incident asks the training to end."""
        return self.state is State.STOPPED
