"""Which rows of the batch make an op go bad, proved by replay.

Rows are proved when they alone do it, and when it does not happen without them. Rows keep their
places in the batch, because random draws and batch statistics depend on them: a row that is left
out is replaced by a harmless one, another row of the batch or the row of an earlier batch in the
same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.delta_debugging import ddmin
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, is_update, with_updated
from nanreplay.bisect.step_runner import StepRunner, repaired
from nanreplay.bisect.tensor_stats import is_float, nonfinite, nonfinite_outputs
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent

Rows = frozenset[int]
Leaves = Sequence[Any]
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


def prove_rows(runner: StepRunner, step: int, suspect: Suspect, prefix: str = "") -> RowProof:
    """Return the rows of the batch that make an op go bad.

    Args:
        runner: Replays the step.
        step: The origin's step.
        suspect: The origin, an op.
        prefix: How the paths of its replica's part of the batch begin.
    """
    assert suspect.fact is not None
    record = runner.batch(step)
    if not prefix and any(info.replica >= 0 for info in runner.ops(step).values()):
        return RowProof(None, "It serves all replicas; rows of single ones were not tried.")
    positions = own_leaves(record.paths, prefix)
    size = batch_size([as_array(record.leaves[position]) for position in positions])
    if size is None:
        return RowProof(None, "The arrays of the batch have no axis in common.")
    if not prefix:  # `arrays` holds the recorded outputs of ops too: draws of a row go with it
        positions = list(range(len(record.arrays)))
    leaves = [as_array(record.arrays[position]) for position in positions]
    oracle = RowOracle(runner, step, suspect, leaves, size, positions)
    try:
        return _prove(oracle, list(candidates(suspect, size)))
    except RowBudgetSpentError:
        return RowProof(None, f"Not decided within {_BUDGET} replays.")


def own_leaves(paths: Sequence[str], prefix: str) -> list[int]:
    """Return which arrays of a batch belong to a replica; all when the prefix is empty.

    Args:
        paths: Paths of the arrays.
        prefix: How those of the replica begin (see `Origin.batch_prefix`).
    """
    return [position for position, path in enumerate(paths) if f"{path}/".startswith(prefix)]


def batch_size(leaves: Leaves) -> int | None:
    """Return the size of the batch axis.

    That is the leading dimension that most arrays share, in doubt that of the first array; None
    when no array has an axis.
    """
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    return max(sizes, key=lambda size: (sizes.count(size), -sizes.index(size)), default=None)


def candidates(suspect: Suspect, size: int) -> Iterator[Rows]:
    """Yield sets of rows that the places of the bad elements suggest; all need proof.

    Besides axes of the batch's size, an axis 0 of a multiple of it is taken for rows times
    something: with 4 rows and an axis of 12, element 7 suggests row 2.
    """
    for mask in suspect.masks.values():
        for axis, length in enumerate(mask.shape):
            if not length:
                continue
            if length == size or (axis == 0 and length % size == 0):
                other_axes = tuple(other for other in range(mask.ndim) if other != axis)
                marked = np.flatnonzero(mask.any(axis=other_axes))
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
    for donate in [*own, oracle.donate_batch] if len(others) > 1 else [oracle.donate_batch, *own]:
        donor = donate()
        if donor is not None and not oracle.fails(oracle.all_rows - rows, donor):
            return donor
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
    leaves: Leaves
    size: int
    positions: Sequence[int]
    """Where `leaves` are in the batch; the others belong to other replicas."""
    sinks: Sequence[str] = ()
    """Losses and gradients that were not finite.

    Where some are named, one of them must fail too: an op may be bad in every batch, at elements
    that nothing uses.
    """
    left: int = _BUDGET
    """How many more replays there may be."""
    known: dict[tuple[Rows, int], bool] = field(default_factory=dict)
    """Answers, by kept rows and donor."""
    donors: list[Leaves] = field(default_factory=list)
    """Batches that rows are replaced from; a donor's number is its index."""

    @property
    def all_rows(self) -> Rows:
        """Every row."""
        return frozenset(range(self.size))

    def donate_row(self, row: int) -> int:
        """Return the number of the donor that has one row of this batch in all places."""
        places = np.full(self.size, row)
        self.donors.append([leaf[places] if self.has_rows(leaf) else leaf for leaf in self.leaves])
        return len(self.donors) - 1

    def donate_batch(self) -> int | None:
        """Return the number of the donor that is an earlier batch of these shapes.

        None when there is none.
        """
        earlier = [step for step in reversed(self.runner.steps) if step < self.step]
        own_shapes = [(leaf.shape, leaf.dtype) for leaf in self.leaves]
        for step in earlier[:_EARLIER_BATCHES]:
            arrays = self.runner.batch(step).arrays
            other = [as_array(arrays[p]) for p in self.positions if p < len(arrays)]
            if [(leaf.shape, leaf.dtype) for leaf in other] == own_shapes:
                pairs = zip(self.leaves, other, strict=True)
                self.donors.append([new if self.has_rows(leaf) else leaf for leaf, new in pairs])
                return len(self.donors) - 1
        return None

    def donate_rolled(self, donor: int) -> int:
        """Return the number of the donor that has the rows of another, each one place further."""
        leaves = self.donors[donor]
        self.donors.append(
            [np.roll(leaf, 1, axis=0) if self.has_rows(leaf) else leaf for leaf in leaves]
        )
        return len(self.donors) - 1

    def has_rows(self, leaf: Any) -> bool:
        """Whether an array has the batch axis."""
        return bool(leaf.ndim) and leaf.shape[0] == self.size

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

    def name_sinks(self) -> bool:
        """Ask for losses and gradients from now on; return whether any was not finite."""
        signature = self.runner.signature(self.step)
        gradients = [spec.tensor for spec in signature.gradients]
        fetches = list(dict.fromkeys([*signature.losses, *gradients]))
        observer = self.observer(stops=False)
        try:
            fetched = self.runner.run(
                self.step, observer.see, on_error=observer.repair, fetches=fetches, update=False
            )
        except _StopRunError:
            return False
        self.sinks = [name for name in fetches if _is_bad(fetched[name])]
        self.known.clear()  # the question is another one now
        return bool(self.sinks)

    def mixed(self, kept: Rows, donor: int) -> Leaves:
        """Return the batch with all rows but the kept ones replaced."""
        is_kept = np.zeros(self.size, bool)
        is_kept[list(kept)] = True
        batch = []
        for leaf, new in zip(self.leaves, self.donors[donor], strict=True):
            if self.has_rows(leaf):
                row_mask = is_kept.reshape(-1, *[1] * (leaf.ndim - 1))
                batch.append(np.where(row_mask, leaf, new).astype(leaf.dtype))
            else:
                batch.append(leaf)
        return batch

    def run(self, leaves: Leaves) -> bool:
        """Run the step as far as the op, and return whether it went bad."""
        batch = list(self.runner.batch(self.step).arrays)
        for position, leaf in zip(self.positions, leaves, strict=True):
            batch[position] = leaf
        return self.run_to_sinks(batch) if self.sinks else self.run_to_op(batch)

    def run_to_sinks(self, batch: Leaves) -> bool:
        """Run all that losses and gradients need."""
        observer = self.observer(stops=False)
        fetched = self.runner.run(
            self.step,
            observer.see,
            batch=batch,
            on_error=observer.repair,
            fetches=self.sinks,
            update=False,
        )
        return observer.is_bad and any(_is_bad(fetched[name]) for name in self.sinks)

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
        """Return an observer of the suspect's op."""
        assert self.suspect.fact is not None
        return _OpObserver(self.runner, self.suspect.fact, self.suspect.kind, stops)


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
            self.is_bad = True
        elif failing:
            blame = assign_blame(event, failing, self.runner.execute)
            self.is_bad = bool(blame.turned if self.kind == "turned" else blame.made)
        if self.stops:
            raise _StopRunError

    def repair(self, event: OpEvent) -> Sequence[Any]:
        """Look at an op that raised; give what stands for the outputs of any other."""
        if self.is_observed(event):
            self.is_bad = self.kind == "raised"
            raise _StopRunError
        outputs = repaired(event, self.runner.execute)
        if outputs is None:
            raise _StopRunError
        return outputs

    def is_observed(self, event: OpEvent) -> bool:
        """Whether an event is the execution: the op, in the same iterations."""
        identity = (event.name, event.function, event.calls)
        return identity == (self.fact.name, self.fact.function, self.fact.calls)


def _is_bad(value: Any) -> bool:
    return bool(is_float(value) and nonfinite(value).any())
