"""The states of a recording, as a table: what each event leads to from each of them."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from nanreplay.recorder.lifecycle import Event, Lifecycle, State

LEADS_TO = {
    State.RECORDING: {
        Event.INCIDENT_ENDS: State.STOPPED,
        Event.INCIDENT_PASSES: State.UNHEALTHY,
        Event.LAST_INCIDENT: State.FULL,
        Event.ERROR: State.FAILED,
    },
    State.UNHEALTHY: {
        Event.HEALTHY_STEP: State.RECORDING,
        Event.NEW_TRAINING: State.RECORDING,
        Event.ERROR: State.FULL,
        Event.INCIDENT_ENDS: State.STOPPED,
    },
    State.FAILED: {
        Event.INCIDENT_ENDS: State.STOPPED,
        Event.INCIDENT_PASSES: State.FULL,
        Event.LAST_INCIDENT: State.FULL,
    },
    State.STOPPED: {Event.NEW_TRAINING: State.RECORDING},
    State.FULL: {},
    State.CLOSED: {},
}


@pytest.mark.parametrize(
    ("state", "event"), itertools.product(State, Event), ids=lambda each: each.name
)
def test_an_event_leads_where_the_table_says_and_else_nowhere(state: State, event: Event) -> None:
    lifecycle = Lifecycle()
    lifecycle.state = state
    expected = State.CLOSED if event is Event.CLOSE else LEADS_TO[state].get(event, state)
    assert lifecycle.note(event) == (expected is not state)
    assert lifecycle.state is expected


def test_writing_is_over_after_an_error_too() -> None:
    lifecycle = Lifecycle()
    with contextlib.suppress(OSError), lifecycle.writing():
        assert lifecycle.is_writing
        raise OSError
    assert not lifecycle.is_writing
    assert lifecycle.is_recording
