"""What a capture holds of each step, read once and kept while it is replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nanreplay.capture.reader import Capture
from nanreplay.capture.tables import check_batch
from nanreplay.errors import FormatError
from nanreplay.records import BatchRecord, Frame, Incident, OpInfo, Signature, VariableInfo
from nanreplay.replay.events import FeedKind
from nanreplay.replay.programs import Program


class RecordedSteps:
    """The steps of a capture with their programs and batches; runs nothing.

    Args:
        capture: An open capture.
        trust: Let programs pass that touch files, the network or processes.
    """

    def __init__(self, capture: Capture, *, trust: bool = False) -> None:
        """Read nothing yet."""
        self.capture = capture
        self._trust = trust
        self._programs: dict[str, Program] = {}
        self._batches: dict[int, BatchRecord] = {}
        self._steps: tuple[int, ...] | None = None
        self._losses: dict[int, float] | None = None
        self._sources: tuple[Sequence[Sequence[int]], Sequence[Frame]] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be replayed, ascending: reached from a keyframe through steps that have a program."""
        if self._steps is None:
            keyframes, reached = set(self.capture.keyframe_steps), []
            previous: int | None = None
            for step in self.capture.steps:
                follows = previous is not None and step == previous + 1
                previous = step if self.batch(step).program and (step in keyframes or follows) else None
                reached += [] if previous is None else [step]
            self._steps = tuple(reached)
        return self._steps

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        return self.capture.incident

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        return self.capture.variables_info

    def program(self, step: int) -> Program:
        """Return the program of a step.

        Raises:
            UnsafeProgramError: It holds ops that reach beyond tensors.
            UnsupportedOpError: It holds ops that cannot be replayed.
            FormatError: The file does not hold all that the program is fed with.
        """
        batch = self.batch(step)
        record = self.capture.program(batch.program)
        name = record.id
        if not batch.fed and record.signature.fed:  # the step raised before it gave them
            name, record = f"{name}, drawing anew", replace(record, signature=replace(record.signature, fed=()))
        if name not in self._programs:
            self._programs[name] = Program(record, trust=self._trust)
        if len(batch.fed) != len(record.signature.fed):
            raise FormatError(f"{self.capture.path}: the batch of step {step} lacks outputs of ops that its program is fed with.")
        check_batch(self.batch(step), self._programs[name].signature)
        return self._programs[name]

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        if step not in self._batches:
            self._batches[step] = self.capture.batch(step)
        return self._batches[step]

    def timeline_loss(self, step: int) -> float | None:
        """Return the loss of a step as the timeline has it."""
        if self._losses is None:
            table = self.capture.timeline()
            self._losses = dict(zip(table["step"].tolist(), table["loss"].tolist(), strict=True)) if "loss" in table else {}
        return self._losses.get(step)

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        return self.program(step).signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        """Return what is known of each op of the step's program, by function and name."""
        return self.program(step).infos

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a batch leaf, a variable or a constant, and its index."""
        return self.program(step).feed_names

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        if self._sources is None:
            self._sources = self.capture.stacks, self.capture.frames
        stacks, frames = self._sources
        return frames[stacks[stack][-1]] if 0 <= stack < len(stacks) and stacks[stack] else None

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        return self.program(step).inputs_of
