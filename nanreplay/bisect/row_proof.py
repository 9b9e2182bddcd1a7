"""Which rows of the batch make an op go bad, proved by replay.

Rows are proved when they alone do it, and when it does not happen without them. Rows keep their
places in the batch, because random draws and batch statistics depend on them: a row that is left
out is replaced by a harmless one, another row of the batch or the row of an earlier batch in the
same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nanreplay.bisect.batch_rows import (
    BatchRows,
    Choice,
    IndexUse,
    Leaves,
    Numbers,
    Rows,
    own_leaves,
    read_rows,
)
from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.delta_debugging import ddmin
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, is_update, with_updated
from nanreplay.bisect.step_runner import StepRunner, repaired
from nanreplay.bisect.tensor_stats import Mask, is_float, nonfinite, nonfinite_outputs
from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError
from nanreplay.replay.provenance import OpEvent

_BUDGET = 40
"""How many replays one proof may take."""
_SINGLES = 8
"""How many rows are proved one by one."""
_EARLIER_BATCHES = 3
"""How many earlier batches are tried as donors of rows; a smaller last batch does not fit."""


@dataclass(frozen=True, slots=True)
class RowProof:
    """What was proved."""

    rows: tuple[int, ...] | None
    reason: str
    """How the rows were proved, or why there are none."""


class RowBudgetSpentError(Exception):
    """Too many replays."""


class StepRaisesError(Exception):
    """With other rows, the step raises before it comes to the op."""


def prove_rows(
    runner: StepRunner,
    step: int,
    suspect: Suspect,
    prefix: str = "",
    indices: Mapping[int, IndexUse] | None = None,
) -> RowProof:
    """Return the rows of the batch that make an op go bad.

    Args:
        runner: Replays the step.
        step: The origin's step.
        suspect: The origin, an op.
        prefix: How the paths of its replica's part of the batch begin.
        indices: Arrays of the batch that number rows of others (see `index_arrays`).
    """
    assert suspect.fact is not None
    record = runner.batch(step)
    if not prefix and any(info.replica >= 0 for info in runner.ops(step).values()):
        return RowProof(None, "It serves all replicas; rows of single ones were not tried.")
    positions = own_leaves(record.paths, prefix)
    paths = [record.paths[position] for position in positions]
    used = {
        positions.index(place): use for place, use in (indices or {}).items() if place in positions
    }
    if not prefix:  # `arrays` holds the recorded outputs of ops too: draws of a row go with it
        positions = list(range(len(record.arrays)))
    leaves = [as_array(record.arrays[position]) for position in positions]
    rows = read_rows(paths, leaves, used)
    if rows.size is None:
        return RowProof(None, f"Rows were not tried. {rows.reason}")
    if not rows.size:
        whose = "The batch" if not prefix else "Its replica's part of the batch"
        return RowProof(None, f"{whose} has no rows.")
    oracle = RowOracle(runner, step, suspect, rows, rows.size, positions)
    try:
        return _prove(oracle, list(candidates(suspect, rows)))
    except RowBudgetSpentError:
        return RowProof(None, f"Not decided within {_BUDGET} replays.")
    except StepRaisesError as error:
        return RowProof(None, f"Not decided: with other rows in their place, {error}.")


def candidates(suspect: Suspect, rows: BatchRows) -> Iterator[Rows]:
    """Yield sets of rows that the places of the bad elements suggest; all need proof.

    Besides axes of the batch's size, an axis 0 of a multiple of it is taken for rows times
    something: with 4 rows and an axis of 12, element 7 suggests row 2.
    """
    size = rows.size or 1
    for mask in suspect.masks.values():
        for axis, length in enumerate(mask.shape):
            other_axes = tuple(other for other in range(mask.ndim) if other != axis)
            marked = np.flatnonzero(mask.any(axis=other_axes))
            for numbers in rows.row_numbers(length):
                yield frozenset(int(row) for row in numbers[marked])
            if axis == 0 and length and length != size and length % size == 0:
                yield frozenset(int(position) // (length // size) for position in marked)


# The proof: a search for a small set of rows, in which the oracle's answers are replays.


def _prove(oracle: RowOracle, suggested: list[Rows]) -> RowProof:
    proof = _proof(oracle, suggested)
    if proof is None and oracle.suspect.kind in ("made", "turned") and oracle.name_sinks():
        proof = _proof(oracle, suggested)
    if proof is None:
        return RowProof(
            None,
            "Does not depend on single rows: "
            "it happens with every other row that was tried in their place.",
        )
    if proof.rows and oracle.fails_without(frozenset(proof.rows)):
        return RowProof(
            None,
            "Not decided: other rows in their place prevent it, but it happens as well "
            "where these rows are left out.",
        )
    return proof


def _proof(oracle: RowOracle, suggested: list[Rows]) -> RowProof | None:
    """What is proved; None where the op is bad with every donor."""
    for rows in dict.fromkeys(suggested):
        donor = _harmless_donor(oracle, rows)
        if donor is not None and oracle.fails(rows, donor):
            return _narrowed(oracle, rows, donor)
    donor = _harmless_donor(oracle, oracle.all_rows)
    if donor is None:
        return None
    if _needs_all(oracle, donor):
        return RowProof(
            None, "Needs the whole batch: with any one row replaced it does not happen."
        )
    return _narrowed(oracle, _delta_debug(oracle, donor), donor)


def _harmless_donor(oracle: RowOracle, rows: Rows) -> int | None:
    """Return a donor with which the op stays good once `rows` are replaced.

    A row of the batch itself comes first where it leaves others to replace; an earlier batch
    where it would not.
    """
    others = sorted(oracle.all_rows - rows)
    picked = dict.fromkeys([others[0], others[-1]] if others else [0, oracle.size - 1])
    own: list[Callable[[], int | None]] = [partial(oracle.donate_row, row) for row in picked]
    raised: StepRaisesError | None = None
    for donate in [*own, oracle.donate_batch] if len(others) > 1 else [oracle.donate_batch, *own]:
        donor = donate()
        try:
            if donor is not None and not oracle.fails(oracle.all_rows - rows, donor):
                return donor
        except StepRaisesError as error:  # another donor may do
            raised = error
    if raised is not None:
        raise raised
    return None


def _needs_all(oracle: RowOracle, donor: int) -> bool:
    """Whether each of a few rows, replaced alone, already makes the op good."""
    size = oracle.size
    tried = sorted({0, size // 3, size // 2, size - 1})
    return size > 1 and not any(oracle.fails(oracle.all_rows - {row}, donor) for row in tried)


def _narrowed(oracle: RowOracle, rows: Rows, donor: int) -> RowProof:
    """Prove rows one by one: each alone, or only together."""
    if len(rows) > _SINGLES:
        how = "these rows reproduce it, and without them it does not happen."
        return _together(oracle, rows, donor, how)
    single = rows
    if len(rows) > 1:
        single = frozenset(row for row in rows if oracle.fails(frozenset({row}), donor))
    if not single and rows == oracle.all_rows:
        return RowProof(None, "Needs the whole batch: no row alone reproduces it.")
    if not single or (single < rows and oracle.fails(oracle.all_rows - single, donor)):
        how = "these rows together reproduce it, and without them it does not happen."
        return _together(oracle, rows, donor, how)
    if len(single) == 1:
        return _proved(single, "this row alone reproduces it, and without it it does not happen.")
    return _proved(single, "each of these rows reproduces it, and without them it does not happen.")


def _together(oracle: RowOracle, rows: Rows, donor: int, how: str) -> RowProof:
    """Prove rows of which none does it alone.

    Where a batch fails for what it lacks (no sample of a class), the rows in the places where the
    donor has such samples look guilty. With the donor's rows in other places they no longer do.
    """
    rolled = oracle.donate_rolled(donor)
    if not oracle.fails(frozenset(), rolled) and not oracle.fails(rows, rolled):
        return RowProof(None, "Needs the whole batch: it happens for what no row of it has.")
    return _proved(rows, how)


def _proved(rows: Rows, how: str) -> RowProof:
    return RowProof(tuple(sorted(rows)), f"Proved by replay: {how}")


def _delta_debug(oracle: RowOracle, donor: int) -> Rows:
    """Return rows without which the op stays good; all of them reproduce it.

    Each round finds a smallest failing set among the rows not yet blamed, until the rest is good.
    """
    blamed: Rows = frozenset()
    while oracle.fails(oracle.all_rows - blamed, donor) and blamed != oracle.all_rows:
        blamed |= _smallest(oracle, oracle.all_rows - blamed, donor)
    return blamed


def _smallest(oracle: RowOracle, rows: Rows, donor: int) -> Rows:
    """Return a part of `rows` that still fails and of which nothing more can be left out."""
    return frozenset(ddmin(sorted(rows), lambda kept: oracle.fails(frozenset(kept), donor)))


# The oracle: one replay for each question, whether the op goes bad with these rows.


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
    left: int = _BUDGET
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

    def donate_batch(self) -> int | None:
        """Return the number of the donor that is an earlier batch of these shapes.

        None when there is none.
        """
        earlier = [step for step in reversed(self.runner.steps) if step < self.step]
        for step in earlier[:_EARLIER_BATCHES]:
            arrays = self.runner.batch(step).arrays
            other = [as_array(arrays[p]) for p in self.positions if p < len(arrays)]
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

    def watched(self) -> list[str]:
        """Losses and gradients of the step: those that the recorder triggered on, else all."""
        signature, incident = self.runner.signature(self.step), self.runner.incident
        gradients = [spec.tensor for spec in signature.gradients]
        everything = list(dict.fromkeys([*signature.losses, *gradients]))
        if incident.step != self.step or incident.trigger.what not in ("loss", "gradient"):
            return everything
        if incident.trigger.what == "loss":
            return list(dict.fromkeys(signature.losses)) or everything
        paths = {
            spec.tensor: self.runner.variables[spec.variable].path for spec in signature.gradients
        }
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
