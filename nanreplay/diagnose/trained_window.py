"""The steps up to the failing one, run as they were trained.

TensorFlow's graph optimizers take most of the time of a first compiled call. With one round of them
in place of two a program mostly gives the same bits; whether it does, the recording tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanreplay.diagnose.faults import KeyframeComparison, is_same_machine
from nanreplay.errors import ReplayError, UnsafeProgramError
from nanreplay.records import Trigger
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.session import Replay, StepResult


@dataclass(slots=True)
class TrainedWindow:
    """The window of a capture, for the verdict."""

    replay: Replay
    first: int
    """The step that the replay begins with."""
    progress: Callable[[int, int], None] | None = None
    """Called with (steps done, steps in all)."""
    keyframes: KeyframeComparison = field(init=False)
    """What keyframes on the way showed."""
    next_step: int = field(init=False)
    """The step that runs next, or that raised."""

    def run(self) -> Sequence[StepResult]:
        """Run the window; where one round of optimizers gives other bits, again with all.

        One round is tried where the recorded bits can be met: on the machine that trained, with
        nothing drawn anew. It counts only if each step is the recorded one bit for bit.

        Raises:
            ReplayError: A step could not be run.
        """
        numbers = range(self.first, self.replay.incident.step + 1)
        programs = list(dict.fromkeys(self.replay.program(step) for step in numbers))
        if is_same_machine(self.replay) and all(map(_can_be_optimized_once, programs)):
            try:
                results = self._attempt(programs, optimizes_once=True)
                if _are_as_trained(results, self.replay.incident.trigger):
                    return results
            except UnsafeProgramError:
                raise
            except ReplayError:  # told by the run with all optimizers, where that raises too
                pass
        return self._attempt(programs, optimizes_once=False)

    def _attempt(self, programs: Sequence[Program], *, optimizes_once: bool) -> list[StepResult]:
        for program in programs:
            program.compile_anew(optimizes_once=optimizes_once)
        self.keyframes = KeyframeComparison(self.replay.variables)
        self.next_step = self.first

        def count(number: int, total: int) -> None:
            self.next_step += 1
            if self.progress is not None:
                self.progress(number, total)

        return self.replay.run_window(
            "recorded",
            first=self.first,
            last=self.replay.incident.step,
            progress=count,
            at_keyframe=self.keyframes,
            stops_at_other_bits=optimizes_once,  # then the attempt does not count
        )


def _can_be_optimized_once(program: Program) -> bool:
    return program.signature.compilation == "graph" and not program.unrecorded


def _are_as_trained(results: Sequence[StepResult], trigger: Trigger) -> bool:
    """Whether all steps came out as the recording says, the failing one, the last, among them."""
    if results[-1].exception is not None:
        ends_alike = trigger.what == "exception"
    else:
        ends_alike = is_as_trained(results[-1], trigger)
    return ends_alike and all(result.bit_exact is True for result in results[:-1])


def is_as_trained(result: StepResult, trigger: Trigger) -> bool:
    """Whether the failing step came out as the recording says, bit for bit."""
    return result.bit_exact is True and result.finite is not claims_nonfinite(trigger)


def claims_nonfinite(trigger: Trigger) -> bool:
    """Whether a recording says that the step left something that is not finite."""
    return trigger.what in ("loss", "gradient", "variable")
