"""What becomes of an incident: a file; then an exception, a stop, or nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

from nanreplay.capture.storage import Location
from nanreplay.errors import NonFiniteError
from nanreplay.program.fingerprint import Layout
from nanreplay.recorder import signals
from nanreplay.recorder.session import Found, Session
from nanreplay.recorder.trigger import find_trigger
from nanreplay.records import Trigger


class Incidents:
    """Writes the incidents of one recorder.

    Args:
        session: The recording.
        stop: Asks the training to stop.
    """

    def __init__(self, session: Session, stop: Callable[[], None]) -> None:
        self._session = session
        self._stop = stop
        self._count = 0
        self.path: Location | None = None
        """The last file."""
        self.stopped = False
        """Whether an incident asks the training to stop."""

    def handle(self, trigger: Trigger, step: int) -> None:
        """Write the capture; then raise, stop, or go on.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        session, on_nan = self._session, self._session.settings.on_nan
        if session.unhealthy:  # an exception before any step was healthy again
            return
        unwritten = f"step {step}: {trigger.name} is not healthy. The capture could not be written.", None, step
        sentence, path, step = session.guard(lambda: self._write(trigger, step)) or unwritten
        if on_nan != "continue":
            self.stopped = session.detached = True
            if trigger.what != "exception" and on_nan == "raise":
                raise NonFiniteError(sentence, path=path, step=step)
            self._stop()
        # Where warnings are errors, this one must not take the place of the step's own exception.
        with contextlib.suppress(UserWarning) if trigger.what == "exception" else contextlib.nullcontext():
            warnings.warn(f"nanreplay: {sentence}" + (f" Capture: {path} (nanreplay bisect {path})" if path else ""), stacklevel=2)

    def _write(self, trigger: Trigger, step: int) -> tuple[str, Location | None, int]:
        """Write the capture, and prepare for what comes; returns what to say, the file, and the incident's step."""
        path, problem = self._session.write(trigger, step)
        if path is not None and self._session.dated is not None:
            trigger, step = self._session.dated
        self.path = path or self.path
        self._count += 1
        sentence = " ".join(filter(None, [f"step {step}: {describe(trigger)}.", problem]))
        if self._session.settings.on_nan == "continue" and not self._session.detached:
            sentence += self._go_on(trigger)
        return sentence, path, step

    def _go_on(self, trigger: Trigger) -> str:
        session = self._session
        if self._count >= session.settings.max_incidents:
            session.detached = True
            session.release()
            session.on_detach()
            return f" No further incident is recorded (max_incidents={self._count})."
        session.step += trigger.what == "exception"  # the step was called, and is over
        session.rearm(unhealthy=True)
        return ""

    def settle(self) -> bool:
        """Look at what was not looked at yet; returns whether a step is an incident, which is handled.

        Raises:
            NonFiniteError: As asked for by `on_nan="raise"`.
        """
        found = self._session.guard(self._session.flush) or self._session.guard(self._unmeasured)
        if found is not None:
            self.handle(*found)
        return found is not None

    def _unmeasured(self) -> Found | None:
        """Look at what the last step did not measure: there may be no later one that shows it."""
        session = self._session
        last = session.timeline.rows[-1] if session.timeline.rows else None
        if last is None or session.unhealthy or session.detached:
            return None
        layout = Layout.parse(last.layout)
        if not layout.unmeasured(last.values):
            return None
        trigger, _ = find_trigger(layout, last.values, session.variables, session.loss_of)
        return None if trigger is None else (trigger, last.step)

    def dump(self, reason: str) -> Location | None:
        """Write what is held, because somebody asks; returns the file."""
        if self.settle():
            return self.path
        session = self._session
        trigger, step = Trigger("manual", "dump", reason), max(0, session.step - 1)
        found: tuple[Location | None, str] = session.guard(lambda: session.write(trigger, step)) or (None, "")
        path, problem = found
        if path is None:
            if not session.detached:  # else it has been said
                warnings.warn(f"nanreplay: {problem}", stacklevel=3)
            return None
        self.path = path
        signals.answer_pending()
        return path

    def begin(self) -> None:
        """A new training: an incident of the last one is over."""
        if self.stopped:
            self.stopped = self._session.detached = False
            self._session.variables.forgive_slots()
            self._session.rearm(unhealthy=False)


def describe(trigger: Trigger) -> str:
    """What happened, for a sentence."""
    if trigger.what == "exception":
        return f"the step raised {trigger.name}: {trigger.value}".rstrip(".")
    value = {"nan": "NaN", "inf": "infinite", "-inf": "infinite"}.get(trigger.value)
    if value is None:  # a sentence of its own, such as updates that loss scaling skipped
        return f"{trigger.name}: {trigger.value}"
    return f"{trigger.name} is {value}" if trigger.what == "loss" else f"{trigger.what} {trigger.name} is {value}"
