"""What becomes of an incident: a file; then an exception, a stop, or nothing.

A `Recorder` hands each `Suspicion` to its `Incidents`, and asks it for files on demand.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable

from nanreplay import notebook
from nanreplay.capture.storage import Location
from nanreplay.errors import NonFiniteError
from nanreplay.recorder import notices, signals
from nanreplay.recorder.explanations import explain_beside
from nanreplay.recorder.lifecycle import Event, Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.records import Trigger

UNWRITTEN = "The capture could not be written."


class Incidents:
    """Writes the incidents of one recorder.

    Args:
        recording: The recording.
        stop: Asks the training to stop.
        before_writing: Brings in what steps have fetched and nobody took yet.
    """

    def __init__(
        self, recording: Recording, stop: Callable[[], None], before_writing: Callable[[], None]
    ) -> None:
        self._recording = recording
        self._stop = stop
        self._before_writing = before_writing
        self._count = 0
        self.path: Location | None = None
        """The last file."""
        self.raised: tuple[weakref.ref[NonFiniteError], str] | None = None
        """The last error that was raised for an incident, and its message.

        The reference is weak, for the frames of the error hold the training.
        """

    def handle(self, suspicion: Suspicion) -> None:
        """Write the capture, if this is an incident; then raise, stop, or go on.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        recording, on_nan = self._recording, self._recording.settings.on_nan
        if not recording.lifecycle.awaits_incident:
            return  # such as an exception before any step was healthy again
        recording.guard(self._before_writing)
        if (
            not suspicion.is_certain
            and recording.guard(lambda: recording.confirm(suspicion)) is False
        ):
            self._note_harmless(suspicion)
            return
        trigger = suspicion.trigger
        sentence, path, step = self._write(trigger, suspicion.step)
        told = None if path is None else recording.settings.told(path)
        if on_nan != "continue":
            recording.lifecycle.note(Event.INCIDENT_ENDS)
            if trigger.what != "exception" and on_nan == "raise":
                error = NonFiniteError(sentence, path=path, step=step, told=told)
                self.raised = weakref.ref(error), str(error)
                raise error
            self._stop()
        message = sentence
        if path:
            notebook.show_incident_after_cell(os.fspath(path))
            message += f" Capture: {told} (nanreplay bisect {told})"
        # Where warnings are errors, this one must not take the place of the step's own exception.
        suppressed = (UserWarning,) if trigger.what == "exception" else ()
        with contextlib.suppress(*suppressed):
            notices.say(message)

    def _note_harmless(self, suspicion: Suspicion) -> None:
        notes, trigger = self._recording.notes, suspicion.trigger
        beginning = f"The {trigger.name} that steps return is {trigger.value}"
        if not any(note.startswith(beginning) for note in notes):
            notes.append(f"{beginning} from step {suspicion.step} on; all that trains is finite.")

    def _write(self, trigger: Trigger, step: int) -> tuple[str, Location | None, int]:
        """Write the capture, and prepare for what comes.

        Returns:
            A sentence for the user, the file, and the incident's step.
        """
        recording = self._recording
        path, problem = recording.guard(lambda: recording.write(trigger, step)) or (None, UNWRITTEN)
        if path is not None and recording.dated is not None:
            trigger, step = recording.dated
        self.path = path or self.path
        if path is not None and recording.settings.explain:
            goes_on = recording.settings.on_nan == "continue"
            recording.guard(lambda: explain_beside(path, goes_on=goes_on))
        self._count += 1
        happened = recording.guard(lambda: describe(trigger)) or f"{trigger.name} is not healthy"
        sentence = f"step {step}: {happened}."
        if problem:
            sentence += f" {problem}"
        if recording.settings.on_nan == "continue":
            addition = recording.guard(lambda: self._go_on(trigger))
            if addition is None:  # the recorder has failed and said so
                recording.lifecycle.note(Event.LAST_INCIDENT)
            sentence += addition or ""
        return sentence, path, step

    def _go_on(self, trigger: Trigger) -> str:
        """Prepare for the next incident; returns what is to be added to the sentence."""
        recording = self._recording
        if self._count >= recording.settings.max_incidents or recording.lifecycle.has_failed:
            recording.lifecycle.note(Event.LAST_INCIDENT)
            recording.release()
            recording.on_detach()
            return f" No further incident is recorded (max_incidents={self._count})."
        if trigger.what == "exception":
            recording.step += 1  # the step was called, and is over
        recording.lifecycle.note(Event.INCIDENT_PASSES)
        recording.rearm()
        return ""

    def settle(self) -> bool:
        """Look at what was not looked at yet; returns whether an incident was found and handled.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        recording = self._recording
        if not recording.lifecycle.is_active:
            return False
        suspicion = recording.guard(recording.flush) or recording.guard(recording.look_now)
        if suspicion is None:
            return False
        count_before = self._count
        self.handle(suspicion)
        return self._count > count_before

    def dump(self, reason: str) -> Location | None:
        """Write what is held, because somebody asks; returns the file."""
        if self.settle():
            return self.path
        recording = self._recording
        recording.guard(self._before_writing)
        trigger, step = Trigger("manual", "dump", reason), max(0, recording.step - 1)
        had_failed = recording.lifecycle.has_failed
        written: tuple[Location | None, str] | None
        written = recording.guard(lambda: recording.write(trigger, step))
        path, problem = written or (None, "")
        if path is None:
            # A failure of the recorder's own has been told of already.
            if problem and recording.lifecycle.has_failed == had_failed:
                notices.say(problem)
            return None
        self.path = path
        signals.answer_pending()
        return path

    def begin(self) -> None:
        """A new training: an incident of the last one is over."""
        recording = self._recording
        if recording.lifecycle.is_stopped:
            recording.lifecycle.note(Event.NEW_TRAINING)
            recording.variables.forgive()
            recording.rearm()


def describe(trigger: Trigger) -> str:
    """What happened, for a sentence."""
    if trigger.what == "exception":
        return f"the step raised {trigger.name}: {trigger.value}".rstrip(".")
    value = {"nan": "NaN", "inf": "infinite", "-inf": "infinite"}.get(trigger.value)
    if value is None:  # a sentence of its own, such as updates that loss scaling skipped
        return f"{trigger.name}: {trigger.value}"
    if trigger.what == "loss":
        return f"{trigger.name} is {value}"
    return f"{trigger.what} {trigger.name} is {value}"
