"""Whether an op goes bad with other rows in the batch: one replay for each question.

`row_proof` asks it. Rows keep their places in the batch, because random draws and batch statistics
depend on them: a row that is left out is replaced by another row of the batch or by the row of an
earlier batch in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.batch_rows import BatchRows, Rows
from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.event_outputs import with_updated
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, is_update
from nanreplay.bisect.sample_parts import Choice, Leaves, Numbers
from nanreplay.bisect.step_runner import StepRunner, repaired
from nanreplay.bisect.tensor_stats import Mask, is_float, nonfinite, nonfinite_outputs
from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError
from nanreplay.replay.provenance import OpEvent

BUDGET = 40
"""How many replays one proof may take."""
_EARLIER_BATCHES = 3
"""How many earlier batches are tried as donors of rows; a smaller last batch does not fit."""


class RowBudgetSpentError(Exception):
    """Too many replays."""


class StepRaisesError(Exception):
    """With other rows, the step raises before it comes to the op."""


@dataclass(slots=True)
class RowOracle:
    """Replays a step with some rows replaced, and says whether the op goes bad again."""

    runner: StepRunner
    step: int
    suspect: Suspect
    rows: BatchRows
    size: int
    positions: Sequence[int]
    """Where the arrays of `rows` are in the batch; the others belong to other replicas."""
    sinks: Sequence[str] = ()
    """Losses and gradients that were not finite.

    Where some are named, one of them must fail too: an op may be bad in every batch, at elements
    that nothing uses.
    """
    left: int = BUDGET
    """How many more replays there may be."""
    known: dict[tuple[Rows, int], bool] = field(default_factory=dict)
    """Answers, by kept rows and donor."""
    batches: list[Leaves] = field(default_factory=list)
    """Batches that rows are taken from; the first is the batch itself."""
    donors: list[tuple[int, Numbers]] = field(default_factory=list)
    """By donor: its batch, and which row of it stands in for each row."""

    def __post_init__(self) -> None:
        """Begin with the batch itself."""
        self.batches.append(self.rows.leaves)

    @property
    def all_rows(self) -> Rows:
        """Every row."""
        return frozenset(range(self.size))

    def donate_row(self, row: int) -> int:
        """Return the number of the donor that has one row of this batch in all places."""
        self.donors.append((0, np.full(self.size, row)))
        return len(self.donors) - 1

    def donated_row(self, donor: int) -> int | None:
        """Return the row of this batch that a donor has in all places, None for another donor."""
        batch, rows = self.donors[donor]
        return int(rows[0]) if batch == 0 and (rows == rows[0]).all() else None

    def donate_batch(self) -> int | None:
        """Return the number of the donor that is an earlier batch of these shapes.

        None when there is none.
        """
        earlier = [step for step in reversed(self.runner.steps) if step < self.step]
        for step in earlier[:_EARLIER_BATCHES]:
            arrays = self.runner.batch(step).arrays
            other = []
            for position in self.positions:
                if position < len(arrays):
                    other.append(as_array(arrays[position]))
            if self.rows.fits(other):
                self.batches.append(other)
                self.donors.append((len(self.batches) - 1, np.arange(self.size)))
                return len(self.donors) - 1
        return None

    def donate_rolled(self, donor: int) -> int:
        """Return the number of the donor that has the rows of another, each one place further."""
        batch, rows = self.donors[donor]
        self.donors.append((batch, np.roll(rows, 1)))
        return len(self.donors) - 1

    def fails(self, kept: Rows, donor: int) -> bool:
        """Return whether the op goes bad when only the kept rows are the batch's own.

        Raises:
            RowBudgetSpentError: It would take one replay too many.
        """
        if kept == self.all_rows:
            return True
        if (kept, donor) not in self.known:
            if not self.left:
                raise RowBudgetSpentError
            self.left -= 1
            self.known[kept, donor] = self.run(self.mixed(kept, donor))
        return self.known[kept, donor]

    def fails_without(self, rows: Rows) -> bool:
        """Return whether the op goes bad, and with it what failed, in a batch without some rows.

        False where the step takes batches of one size only, or where a lone row would be left.
        """
        rest = sorted(self.all_rows - rows)
        specs = self.runner.signature(self.step).inputs
        if len(rest) < 2 or any(spec.shape and spec.shape[0] is not None for spec in specs):
            return False
        try:
            return self.run_to_sinks(self.batch_of(self.rows.keep(rest)), self.watched())
        except (StepRaisesError, _StopRunError, ReplayError):
            return False

    def step_fails_without(self, rows: Rows) -> bool:
        """Return whether what failed is bad with other rows of the batch in the places of some.

        False where that takes one replay too many, or cannot be tried.
        """
        others = sorted(self.all_rows - rows)
        if not others or not self.left:
            return False
        self.left -= 1
        self.donors.append((0, np.resize(others, self.size)))
        batch = self.batch_of(self.mixed(self.all_rows - rows, len(self.donors) - 1))
        fetches, observer = self.watched(), self.observer(stops=False)
        try:
            fetched = self.runner.run(
                self.step,
                observer.see,
                batch=batch,
                on_error=observer.repair,
                fetches=fetches,
                update=False,
            )
        except (StepRaisesError, _StopRunError, ReplayError):
            return False
        return any(_is_bad(fetched[name]) for name in fetches)

    def watched(self) -> list[str]:
        """Losses and gradients of the step: those that the recorder triggered on, else all."""
        signature, incident = self.runner.signature(self.step), self.runner.incident
        gradients = signature.gradient_tensors
        everything = list(dict.fromkeys([*signature.losses, *gradients]))
        if incident.step != self.step or incident.trigger.what not in ("loss", "gradient"):
            return everything
        if incident.trigger.what == "loss":
            return list(dict.fromkeys(signature.losses)) or everything
        paths = {}
        for spec in signature.gradients:
            paths[spec.tensor] = self.runner.variables[spec.variable].path
        return [name for name in gradients if paths[name] == incident.trigger.name] or everything

    def name_sinks(self) -> bool:
        """Ask for losses and gradients from now on; return whether any was not finite."""
        fetches = self.watched()
        observer = self.observer(stops=False)
        try:
            fetched = self.runner.run(
                self.step, observer.see, on_error=observer.repair, fetches=fetches, update=False
            )
        except (_StopRunError, StepRaisesError):
            return False
        self.sinks = [name for name in fetches if _is_bad(fetched[name])]
        self.known.clear()  # the question is another one now
        return bool(self.sinks)

    def mixed(self, kept: Rows, donor: int) -> Leaves:
        """Return the batch with all rows but the kept ones replaced."""
        batch, rows = self.donors[donor]
        is_kept = np.zeros(self.size, bool)
        is_kept[list(kept)] = True
        places = np.arange(self.size)
        choice = Choice(np.where(is_kept, 0, batch), np.where(is_kept, places, rows))
        return self.rows.pick(self.batches, choice)

    def run(self, leaves: Leaves) -> bool:
        """Run the step as far as the op, and return whether it went bad."""
        batch = self.batch_of(leaves)
        return self.run_to_sinks(batch, self.sinks) if self.sinks else self.run_to_op(batch)

    def batch_of(self, leaves: Leaves) -> list[Any]:
        """Put arrays in their places in the batch."""
        batch: list[Any] = list(self.runner.batch(self.step).arrays)
        for position, leaf in zip(self.positions, leaves, strict=True):
            batch[position] = leaf
        return batch

    def run_to_sinks(self, batch: Leaves, sinks: Sequence[str]) -> bool:
        """Run all that some losses and gradients need."""
        observer = self.observer(stops=False)
        fetched = self.runner.run(
            self.step,
            observer.see,
            batch=batch,
            on_error=observer.repair,
            fetches=sinks,
            update=False,
        )
        return observer.is_bad and any(_is_bad(fetched[name]) for name in sinks)

    def run_to_op(self, batch: Leaves) -> bool:
        """Run what the op needs and end there; an op without outputs needs the whole step."""
        observer = self.observer(stops=True)
        fact = observer.fact
        needs_all = is_update(fact.type) or not fact.outputs
        op_of_main_graph = fact.calls[0].op if fact.calls else fact.name
        try:
            self.runner.run(
                self.step,
                observer.see,
                batch=batch,
                on_error=observer.repair,
                fetches=None if needs_all else [f"{op_of_main_graph}:0"],
                update=needs_all,
            )
        except _StopRunError:
            return observer.is_bad
        return False

    def observer(self, *, stops: bool) -> _OpObserver:
        """Return an observer of the suspect's op.

        One that stops at the op looks at the very elements that failed, where these keep their
        places: others may be bad in every batch, and left out.
        """
        assert self.suspect.fact is not None
        elements = self.suspect.masks if stops and self.rows.is_aligned else {}
        return _OpObserver(self.runner, self.suspect.fact, self.suspect.kind, stops, elements)


class _StopRunError(Exception):
    """The op ran, or the run cannot go on."""


@dataclass(slots=True)
class _OpObserver:
    """Looks out for one execution of an op."""

    runner: StepRunner
    fact: Fact
    kind: str
    stops: bool
    """Whether the run ends there."""
    elements: Mapping[int, Mask]
    """By output: the elements that count; all of an output that is not named or of other shape."""
    is_bad: bool = False
    """Whether the op went bad in the same way as its suspect did."""

    def see(self, event: OpEvent) -> None:
        """Look at an op that ran."""
        if not self.is_observed(event):
            return
        if is_update(event.type):
            event = with_updated(self.runner, event)
        failing = nonfinite_outputs(event.outputs)
        if failing and self.kind == "used":
            self.is_bad = self.counts(failing)
        elif failing:
            blame = assign_blame(event, failing, self.runner.execute)
            self.is_bad = self.counts(blame.turned if self.kind == "turned" else blame.made)
        if self.stops:
            raise _StopRunError

    def repair(self, event: OpEvent) -> Sequence[Any]:
        """Look at an op that raised; give what stands for the outputs of any other."""
        if self.is_observed(event):
            self.is_bad = self.kind == "raised"
            raise _StopRunError
        outputs = repaired(event, self.runner.execute)
        if outputs is None:
            raise StepRaisesError(f"`{event.type}` raises")
        return outputs

    def counts(self, bad: Mapping[int, Mask]) -> bool:
        """Whether one of the elements that count is bad."""
        for k, mask in bad.items():
            wanted = self.elements.get(k)
            if wanted is None or wanted.shape != mask.shape or bool((wanted & mask).any()):
                return True
        return False

    def is_observed(self, event: OpEvent) -> bool:
        """Whether an event is the execution: the op, in the same iterations."""
        identity = (event.name, event.function, event.calls)
        return identity == (self.fact.name, self.fact.function, self.fact.calls)


def _is_bad(value: Any) -> bool:
    return bool(is_float(value) and nonfinite(value).any())
