"""What was recorded of steps: their programs, their batches and their place in the source.

`RecordedSteps` is the half of `Replay` that runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nanreplay.capture.arrays import as_array
from nanreplay.capture.reader import Capture
from nanreplay.capture.tables import check_batch
from nanreplay.errors import FormatError, MissingPartError
from nanreplay.program.lowered_graph import LoweredOps
from nanreplay.records import (
    ArrayLike,
    BatchRecord,
    Frame,
    Incident,
    OpInfo,
    Signature,
    VariableInfo,
)
from nanreplay.replay.provenance import FeedKind
from nanreplay.replay.replay_programs import Program

BATCHES_BYTES = 2**29
"""What batches that were read may take together, unless the one in use alone is larger."""


class RecordedSteps:
    """The steps of a capture with their programs and batches; runs nothing.

    Each is read once, but for batches that are too large to be kept.

    Args:
        capture: An open capture.
        trust: Let programs pass that touch files, the network or processes.
    """

    def __init__(self, capture: Capture, *, trust: bool = False) -> None:
        """Read nothing yet."""
        self.capture = capture
        self.notes: list[str] = []
        """Readable lines about the replay itself."""
        self._trust = trust
        self._programs: dict[str, Program] = {}
        self._program_of: dict[int, Program] = {}
        """By step, once its batch was found to fit it: a batch may be large to read again."""
        self._batches: dict[int, BatchRecord] = {}
        self._batches_bytes = 0
        """What those take that were read, and can be read again."""
        self._edited: set[int] = set()
        """Steps whose batches are not those of the file."""
        self._steps: tuple[int, ...] | None = None
        self._losses: dict[int, float] | None = None
        self._sources: tuple[Sequence[Sequence[int]], Sequence[Frame]] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be replayed, ascending.

        They are reached from a keyframe through steps that have a program, without a gap.
        """
        if self._steps is None:
            self._steps = tuple(self._reached())
        return self._steps

    def window(self, first: int | None, last: int | None) -> list[int]:
        """Return the steps from `first` to `last` that can be replayed.

        Raises:
            MissingPartError: There are none.
        """
        steps = []
        for step in self.steps:
            if (first is None or step >= first) and (last is None or step <= last):
                steps.append(step)
        if not steps:
            which = "" if first is None else f" from {first} on"
            raise MissingPartError(
                f"{self.capture.path}: holds no step that can be replayed{which}."
            )
        return steps

    def _reached(self) -> Iterator[int]:
        keyframes = set(self.capture.keyframe_steps)
        previous: int | None = None
        for step in self.capture.steps:
            follows = previous is not None and step == previous + 1
            known = self._batches.get(step)
            has_program = bool(self.capture.batch_program(step) if known is None else known.program)
            if has_program and (step in keyframes or follows):
                previous = step
                yield step
            else:
                previous = None

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        return self.capture.incident

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        return self.capture.variables_info

    @property
    def optimizer_slots(self) -> list[int]:
        """Indices of the optimizer's arrays."""
        variables = enumerate(self.variables)
        return [index for index, info in variables if info.role == "optimizer" and info.shape]

    def program(self, step: int) -> Program:
        """Return the program of a step.

        Raises:
            UnsafeProgramError: It holds ops that reach beyond tensors.
            UnsupportedOpError: It holds ops that cannot be replayed.
            FormatError: The file does not hold all that the program is fed with.
        """
        known = self._program_of.get(step)
        if known is not None:
            return known
        batch = self.batch(step)
        record = self.capture.program(batch.program)
        name = record.id
        if not batch.fed and record.signature.fed:
            # the step raised before it gave the outputs of these ops, so a replay runs them anew
            name = f"{name}, drawing anew"
            record = replace(record, signature=replace(record.signature, fed=()))
        if name not in self._programs:
            self._programs[name] = Program(
                record,
                trust=self._trust,
                read_optimized=lambda: self.capture.optimized_graph(record.id),
            )
            self._note_lowered(self._programs[name].lowered)
        if len(batch.fed) != len(record.signature.fed):
            raise FormatError(
                f"{self.capture.path}: the batch of step {step} lacks outputs of ops "
                "that its program is fed with."
            )
        check_batch(batch, self._programs[name].signature)
        self._program_of[step] = self._programs[name]
        return self._programs[name]

    def _note_lowered(self, lowered: LoweredOps) -> None:
        """Say which ops of a program run here in a form of their own."""
        notes = []
        if lowered.forms:
            notes.append(
                "This machine has no GPU, so these ops ran in a form that the CPU has, which may "
                f"differ in the last bits: {', '.join(lowered.forms)}."
            )
        if lowered.in_float32:
            notes.append(
                "These ops of half precision ran in float32 between two casts, since the CPU has "
                f"no kernel for them: {', '.join(lowered.in_float32)}."
            )
        self.notes += [note for note in notes if note not in self.notes]

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        batch = self._batches.pop(step, None)
        if batch is None:
            batch = self.capture.batch(step)
            self._batches_bytes += _size_bytes(batch)
            if self._batches_bytes > BATCHES_BYTES:
                self._forget_batches()
        self._batches[step] = batch  # the one asked for last is at the end
        return batch

    def _forget_batches(self) -> None:
        """Let go of batches that were read, the one asked for last at the end."""
        for step in [known for known in self._batches if known not in self._edited]:
            if self._batches_bytes <= BATCHES_BYTES:
                break
            self._batches_bytes -= _size_bytes(self._batches.pop(step))

    def _edit_batch(self, step: int, batch: BatchRecord) -> None:
        """Take another input than the file has for a step."""
        known = self._batches.get(step)
        if known is not None and step not in self._edited:
            self._batches_bytes -= _size_bytes(known)
        self._edited.add(step)
        self._batches[step] = batch
        self._program_of.pop(step, None)

    def timeline_loss(self, step: int) -> float | None:
        """Return the loss of a step as the timeline has it."""
        if self._losses is None:
            self._losses = {}
            columns = self.capture.timeline_columns()
            if "loss" in columns:
                steps, losses = columns["step"].tolist(), columns["loss"].tolist()
                self._losses = dict(zip(steps, losses, strict=True))
        return self._losses.get(step)

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        return self.program(step).signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        """Return what is known of each op of the step's program, by function and name."""
        return self.program(step).infos

    def constants(self, step: int) -> Sequence[ArrayLike]:
        """Return the tensors that the step's function closed over, as they were recorded."""
        return self.program(step).record.constants

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a leaf, variable or constant by index."""
        return self.program(step).feed_names

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        if self._sources is None:
            self._sources = self.capture.stacks, self.capture.frames
        stacks, frames = self._sources
        is_known = 0 <= stack < len(stacks) and stacks[stack]
        return frames[stacks[stack][-1]] if is_known else None

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        return self.program(step).inputs_of


def _size_bytes(batch: BatchRecord) -> int:
    return sum(as_array(array).nbytes for array in (*batch.arrays, *batch.overrides.values()))


def in_words(steps: Sequence[int]) -> str:
    """Steps as a message names them: "steps 3 to 12"."""
    return f"steps {steps[0]} to {steps[-1]}" if steps else "none"
