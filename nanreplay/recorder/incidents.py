"""What becomes of an incident: a file; then an exception, a stop, or nothing."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable

from nanreplay.capture.storage import Location
from nanreplay.errors import NonFiniteError
from nanreplay.recorder import signals
from nanreplay.recorder.lifecycle import Event, Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.records import Trigger

UNWRITTEN = "The capture could not be written."


class Incidents:
    """Writes the incidents of one recorder.

    Args:
        session: The recording.
        stop: Asks the training to stop.
        before_writing: Brings in what steps have fetched and nobody took yet.
    """

    def __init__(
        self, session: Recording, stop: Callable[[], None], before_writing: Callable[[], None]
    ) -> None:
        self._session = session
        self._stop = stop
        self._before_writing = before_writing
        self._count = 0
        self.path: Location | None = None
        """The last file."""
        self.raised: tuple[weakref.ref[NonFiniteError], str] | None = None
        """The last error that was raised for an incident, and what it says: its frames hold the training."""

    def handle(self, suspicion: Suspicion) -> None:
        """Write the capture, if this is an incident; then raise, stop, or go on.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        session, on_nan = self._session, self._session.settings.on_nan
        if (
            session.lifecycle.is_unhealthy or session.lifecycle.is_stopped
        ):  # an exception before any step was healthy again
            return
        session.guard(self._before_writing)
        if not suspicion.is_certain and session.guard(lambda: session.confirm(suspicion)) is False:
            name, step = suspicion.trigger.name, suspicion.step
            session.note_once(
                f"The {name} that steps return is {suspicion.trigger.value}",
                f" from step {step} on; all that trains is finite.",
            )
            return
        trigger, step = suspicion.trigger, suspicion.step
        sentence, path, step = self._write(trigger, step)
        if on_nan != "continue":
            session.lifecycle.note(Event.INCIDENT_ENDS)
            if trigger.what != "exception" and on_nan == "raise":
                error = NonFiniteError(sentence, path=path, step=step)
                self.raised = weakref.ref(error), str(error)
                raise error
            self._stop()
        # Where warnings are errors, this one must not take the place of the step's own exception.
        with (
            contextlib.suppress(UserWarning)
            if trigger.what == "exception"
            else contextlib.nullcontext()
        ):
            warnings.warn(
                f"nanreplay: {sentence}"
                + (f" Capture: {path} (nanreplay bisect {path})" if path else ""),
                stacklevel=2,
            )

    def _write(self, trigger: Trigger, step: int) -> tuple[str, Location | None, int]:
        """Write the capture, and prepare for what comes; returns what to say, the file, and the incident's step."""
        session = self._session
        failed = None, UNWRITTEN
        path, problem = session.guard(lambda: session.write(trigger, step)) or failed
        if path is not None and session.dated is not None:
            trigger, step = session.dated
        self.path = path or self.path
        self._count += 1
        happened = session.guard(lambda: describe(trigger)) or f"{trigger.name} is not healthy"
        sentence = " ".join(filter(None, [f"step {step}: {happened}.", problem]))
        if session.settings.on_nan == "continue":
            more = session.guard(lambda: self._go_on(trigger))
            if more is None:  # the recorder has failed and said so
                session.lifecycle.note(Event.LAST_INCIDENT)
            sentence += more or ""
        return sentence, path, step

    def _go_on(self, trigger: Trigger) -> str:
        session = self._session
        if self._count >= session.settings.max_incidents or session.lifecycle.has_failed:
            session.lifecycle.note(Event.LAST_INCIDENT)
            session.release()
            session.on_detach()
            return f" No further incident is recorded (max_incidents={self._count})."
        session.step += trigger.what == "exception"  # the step was called, and is over
        session.lifecycle.note(Event.INCIDENT_PASSES)
        session.rearm()
        return ""

    def settle(self) -> bool:
        """Look at what was not looked at yet; returns whether a step is an incident, which is handled.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        session = self._session
        if not session.lifecycle.is_active:
            return False
        found = session.guard(session.flush) or session.guard(session.look_now)
        if found is not None:
            before = self._count
            self.handle(found)
            return self._count > before
        return False

    def dump(self, reason: str) -> Location | None:
        """Write what is held, because somebody asks; returns the file."""
        if self.settle():
            return self.path
        session = self._session
        session.guard(self._before_writing)
        trigger, step = Trigger("manual", "dump", reason), max(0, session.step - 1)
        failed_before = session.lifecycle.has_failed
        found: tuple[Location | None, str] = session.guard(
            lambda: session.write(trigger, step)
        ) or (None, "")
        path, problem = found
        if path is None:
            if problem and session.lifecycle.has_failed == failed_before:  # else it has been said
                warnings.warn(f"nanreplay: {problem}", stacklevel=3)
            return None
        self.path = path
        signals.answer_pending()
        return path

    def begin(self) -> None:
        """A new training: an incident of the last one is over."""
        session = self._session
        if session.lifecycle.is_stopped:
            session.lifecycle.note(Event.NEW_TRAINING)
            session.variables.forgive()
            session.rearm()


def describe(trigger: Trigger) -> str:
    """What happened, for a sentence."""
    if trigger.what == "exception":
        return f"the step raised {trigger.name}: {trigger.value}".rstrip(".")
    value = {"nan": "NaN", "inf": "infinite", "-inf": "infinite"}.get(trigger.value)
    if value is None:  # a sentence of its own, such as updates that loss scaling skipped
        return f"{trigger.name}: {trigger.value}"
    return (
        f"{trigger.name} is {value}"
        if trigger.what == "loss"
        else f"{trigger.what} {trigger.name} is {value}"
    )
