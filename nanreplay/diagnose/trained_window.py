"""The steps up to the failing one, run as they were trained.

TensorFlow's graph optimizers take most of the time of a first compiled call. What they made of a
program at the dump is in the file; of one where it is not, those alone that decide about bits
mostly give the same. Whether they do, the recording tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanreplay.bisect.failing_step import judged_tensors
from nanreplay.diagnose.faults import KeyframeComparison, is_same_machine
from nanreplay.errors import ReplayError, UnsafeProgramError
from nanreplay.program.graph_nodes import data_inputs
from nanreplay.program.safety import all_nodes
from nanreplay.records import Trigger
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.session import Replay, StepResult
from nanreplay.tensorflow_internals.tf_functions import Optimizers, forget_optimized

_SUMS = ("AddN", "AccumulateNV2")
_PLANNED_BYTES = 64 << 20
"""Weights of more may have their sums taken apart.

TensorFlow's plan for memory does that with sums of three and more tensors, and so decides about
bits, where it takes a step's tensors for more than four fifths of 256 MiB: so much memory has a
CPU, as TensorFlow tells it. Weights and their gradients are there together at least. After one
round of optimizers the parts of such a sum are added as they arrive, so that its last bits hang on
the timing of threads; only two rounds, as in training, give the same bits each time.
"""


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
        """Run the window; where fewer optimizers give other bits, again with all.

        Fewer are tried where the recorded bits can be met: on the machine that trained, with
        nothing drawn anew. They count only if each step is the recorded one bit for bit.

        Raises:
            ReplayError: A step could not be run.
        """
        numbers = range(self.first, self.replay.incident.step + 1)
        programs = list(dict.fromkeys(self.replay.program(step) for step in numbers))
        if programs[0].signature.compilation != "eager":
            programs[0].meanwhile = self._plan
        fewer = self._fewer_optimizers(programs)
        if fewer is not None:
            try:
                results = self._attempt(programs, fewer)
                if _are_as_trained(results, self.replay.incident.trigger):
                    forget_optimized()  # what runs next, op by op, takes memory of its own
                    return results
            except UnsafeProgramError:
                raise
            except ReplayError:  # told by the run with all optimizers, where that raises too
                pass
            forget_optimized()
        results = self._attempt(programs, Optimizers.ALL)
        forget_optimized()
        return results

    def _plan(self) -> None:
        """Plan the run of the failing step op by op, which comes after the window."""
        failing = self.replay.incident.step
        self.replay.plan_ops(failing, judged_tensors(self.replay, failing))

    def _fewer_optimizers(self, programs: Sequence[Program]) -> Optimizers | None:
        """Those that are worth trying; None where only all of them are."""
        if not is_same_machine(self.replay):
            return None
        for program in programs:
            if program.signature.compilation != "graph" or program.unrecorded:
                return None
        if all(program.optimized is not None for program in programs):
            return Optimizers.NONE
        return Optimizers.DECIDING if all(map(self._may_need_few, programs)) else None

    def _may_need_few(self, program: Program) -> bool:
        """Whether a part of the optimizers is worth trying."""
        trained_bytes = 0
        for info in self.replay.variables:
            if info.role == "trainable":
                trained_bytes += 4 * math.prod(info.shape)
        is_planned = trained_bytes > _PLANNED_BYTES and _adds_many(program)
        return not (is_planned or _has_channels_first(program))

    def _attempt(self, programs: Sequence[Program], optimizers: Optimizers) -> list[StepResult]:
        """Run the window.

        Args:
            programs: Those of its steps.
            optimizers: TensorFlow's graph optimizers by which they are compiled; where that is a
                part of them, the first step with other bits is the last.
        """
        for program in programs:
            program.optimizers = optimizers
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
            # then the attempt does not count
            stops_at_other_bits=optimizers is not Optimizers.ALL,
        )


def _has_channels_first(program: Program) -> bool:
    """Whether images have their channels first: TensorFlow's plan for layouts then decides."""
    return any(
        "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC")
        for _, node in all_nodes(program.graph)
    )


def _adds_many(program: Program) -> bool:
    """Whether a program has sums of three and more tensors."""
    return any(
        node.op in _SUMS and len(data_inputs(node)) > 2 for _, node in all_nodes(program.graph)
    )


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
