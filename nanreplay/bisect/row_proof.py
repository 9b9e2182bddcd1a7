"""Which rows of the batch make an op go bad, proved by replay: they alone do it, and without them it does not happen.

Rows keep their places in the batch, because random draws and batch statistics depend on them: a row that is left out is
replaced by a harmless one, another row of the batch or the row of an earlier batch in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, is_update, with_updated
from nanreplay.bisect.step_runner import StepRunner, repaired
from nanreplay.bisect.tensor_stats import is_float, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent

Rows = frozenset[int]
Leaves = Sequence[Any]
_BUDGET = 40
"""How many replays one proof may take."""
_SINGLES = 8
"""How many rows are proved one by one."""


@dataclass(frozen=True, slots=True)
class RowProof:
    """What was proved."""

    rows: tuple[int, ...] | None
    reason: str
    """How the rows were proved, or why there are none."""


class RowBudgetSpentError(Exception):
    """Too many replays."""


def prove_rows(runner: StepRunner, step: int, suspect: Suspect, prefix: str = "") -> RowProof:
    """Return the rows of the batch that make an op go bad; of the part whose paths begin with `prefix`."""
    assert suspect.fact is not None
    record = runner.batch(step)
    if not prefix and any(each.replica >= 0 for each in runner.ops(step).values()):
        return RowProof(None, "It serves all replicas; rows of single ones were not tried.")
    places = own_leaves(record.paths, prefix)
    size = batch_size([as_array(record.leaves[place]) for place in places])
    if size is None:
        return RowProof(None, "The arrays of the batch have no axis in common.")
    places = (
        places if prefix else list(range(len(record.arrays)))
    )  # with the recorded outputs of ops
    bench = RowOracle(
        runner, step, suspect, [as_array(record.arrays[place]) for place in places], size, places
    )
    try:
        return _prove(bench, list(candidates(suspect, size)))
    except RowBudgetSpentError:
        return RowProof(None, f"Not decided within {_BUDGET} replays.")


def own_leaves(paths: Sequence[str], prefix: str) -> list[int]:
    """Return which arrays of a batch belong to the replica of a prefix (see `findings.batch_prefix`); all when it is empty."""
    return [place for place, path in enumerate(paths) if f"{path}/".startswith(prefix)]


def batch_size(leaves: Leaves) -> int | None:
    """Return the size of the batch axis: the leading dimension that most arrays share, the first one's when in doubt."""
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    return max(sizes, key=lambda size: (sizes.count(size), -sizes.index(size)), default=None)


def candidates(suspect: Suspect, size: int) -> Iterator[Rows]:
    """Yield sets of rows that the places of the bad elements suggest; all need proof."""
    for mask in suspect.masks.values():
        for axis, length in enumerate(mask.shape):
            if length and (length == size or (axis == 0 and length % size == 0)):
                marked = np.flatnonzero(
                    mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
                )
                yield frozenset(int(row) // (length // size) for row in marked)


@dataclass(slots=True)
class RowOracle:
    """Replays a step with some rows replaced, and says whether the op goes bad again."""

    runner: StepRunner
    step: int
    suspect: Suspect
    leaves: Leaves
    size: int
    places: Sequence[int]
    """Where `leaves` are in the batch; the others belong to other replicas."""
    sinks: Sequence[str] = ()
    """Losses and gradients that were not finite. Where some are named, one of them must fail too: an op may be bad in every batch,
    at elements that nothing uses."""
    left: int = _BUDGET
    known: dict[tuple[Rows, int], bool] = field(default_factory=dict)
    donors: list[Leaves] = field(default_factory=list)

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
        """Return the number of the donor that is an earlier batch of these shapes, None when there is none."""
        for step in [step for step in reversed(self.runner.steps) if step < self.step][:3]:
            whole = self.runner.batch(step).arrays
            other = [as_array(whole[place]) for place in self.places if place < len(whole)]
            if [(leaf.shape, leaf.dtype) for leaf in other] == [
                (leaf.shape, leaf.dtype) for leaf in self.leaves
            ]:
                self.donors.append(
                    [
                        new if self.has_rows(leaf) else leaf
                        for leaf, new in zip(self.leaves, other, strict=True)
                    ]
                )
                return len(self.donors) - 1
        return None

    def donate_rolled(self, donor: int) -> int:
        """Return the number of the donor that has the rows of another one, each one place further."""
        leaves = self.donors[donor]
        self.donors.append(
            [np.roll(leaf, 1, axis=0) if self.has_rows(leaf) else leaf for leaf in leaves]
        )
        return len(self.donors) - 1

    def has_rows(self, leaf: Any) -> bool:
        """Whether an array has the batch axis."""
        return bool(leaf.ndim) and leaf.shape[0] == self.size

    def fails(self, kept: Rows, donor: int) -> bool:
        """Return whether the op goes bad when only the kept rows are the batch's own."""
        if kept == self.all_rows:
            return True
        if (kept, donor) not in self.known:
            if not self.left:
                raise RowBudgetSpentError
            self.left -= 1
            self.known[kept, donor] = self.run(self.mixed(kept, donor))
        return self.known[kept, donor]

    def name_sinks(self) -> bool:
        """Ask for losses and gradients from now on; returns whether any was not finite."""
        signature = self.runner.signature(self.step)
        names = list(
            dict.fromkeys([*signature.losses, *(spec.tensor for spec in signature.gradients)])
        )
        assert self.suspect.fact is not None
        watch = _Watch(self.runner, self.suspect.fact, self.suspect.kind, stops=False)
        try:
            found = self.runner.run(
                self.step, watch.see, on_error=watch.repair, fetches=names, update=False
            )
        except _Reached:
            return False
        self.sinks = [name for name in names if _is_bad(found[name])]
        self.known.clear()
        return bool(self.sinks)

    def mixed(self, kept: Rows, donor: int) -> Leaves:
        """Return the batch with all rows but the kept ones replaced."""
        own = np.zeros(self.size, bool)
        own[list(kept)] = True
        batch = []
        for leaf, new in zip(self.leaves, self.donors[donor], strict=True):
            if self.has_rows(leaf):
                leaf = np.where(own.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, new).astype(
                    leaf.dtype
                )
            batch.append(leaf)
        return batch

    def run(self, batch: Leaves) -> bool:
        """Run the step as far as the op."""
        assert self.suspect.fact is not None
        fact = self.suspect.fact
        whole_batch = list(self.runner.batch(self.step).arrays)
        for place, leaf in zip(self.places, batch, strict=True):
            whole_batch[place] = leaf
        watch = _Watch(self.runner, fact, self.suspect.kind, stops=not self.sinks)
        if self.sinks:
            found = self.runner.run(
                self.step,
                watch.see,
                batch=whole_batch,
                on_error=watch.repair,
                fetches=self.sinks,
                update=False,
            )
            return watch.is_bad and any(_is_bad(found[name]) for name in self.sinks)
        fetch = f"{fact.calls[0].op if fact.calls else fact.name}:0"
        whole = is_update(fact.type) or not fact.outputs
        try:
            self.runner.run(
                self.step,
                watch.see,
                batch=whole_batch,
                on_error=watch.repair,
                fetches=None if whole else [fetch],
                update=whole,
            )
        except _Reached:
            return watch.is_bad
        return False


class _Reached(Exception):
    """The op ran, or the run cannot go on."""


@dataclass(slots=True)
class _Watch:
    """Looks out for one execution of an op."""

    runner: StepRunner
    fact: Fact
    kind: str
    stops: bool = True
    """Whether the run ends there."""
    is_bad: bool = False

    def see(self, event: OpEvent) -> None:
        if not self.is_it(event):
            return
        if is_update(event.type):
            event = with_updated(self.runner, event)
        failing = {
            k: mask
            for k, out in enumerate(event.outputs)
            if is_float(out) and (mask := nonfinite(out)).any()
        }
        if failing and self.kind == "used":
            self.is_bad = True
        elif failing:
            blame = assign_blame(event, failing, self.runner.execute)
            self.is_bad = bool(blame.turned if self.kind == "turned" else blame.made)
        if self.stops:
            raise _Reached

    def repair(self, event: OpEvent) -> Sequence[Any]:
        if self.is_it(event):
            self.is_bad = self.kind == "raised"
            raise _Reached
        outputs = repaired(event, self.runner.execute)
        if outputs is None:
            raise _Reached
        return outputs

    def is_it(self, event: OpEvent) -> bool:
        return (
            event.name == self.fact.name
            and event.function == self.fact.function
            and event.calls == self.fact.calls
        )


def _is_bad(value: Any) -> bool:
    return bool(is_float(value) and nonfinite(value).any())


def _prove(bench: RowOracle, suggested: list[Rows]) -> RowProof:
    proof = _proof(bench, suggested)
    if proof is None and bench.suspect.kind in ("made", "turned") and bench.name_sinks():
        proof = _proof(bench, suggested)
    return proof or RowProof(
        None,
        "Does not depend on single rows: it happens with every other row that was tried in their place.",
    )


def _proof(bench: RowOracle, suggested: list[Rows]) -> RowProof | None:
    """What is proved; None where the op is bad with every donor."""
    for rows in dict.fromkeys(suggested):
        donor = _harmless_donor(bench, rows)
        if donor is not None and bench.fails(rows, donor):
            return _narrowed(bench, rows, donor)
    donor = _harmless_donor(bench, bench.all_rows)
    if donor is None:
        return None
    if _needs_all(bench, donor):
        return RowProof(
            None, "Needs the whole batch: with any one row replaced it does not happen."
        )
    return _narrowed(bench, _delta_debug(bench, donor), donor)


def _harmless_donor(bench: RowOracle, rows: Rows) -> int | None:
    """Return a donor with which the op stays good once `rows` are replaced.

    A row of the batch itself comes first where it leaves others to replace; an earlier batch where it would not.
    """
    others = sorted(bench.all_rows - rows)
    picked = dict.fromkeys([others[0], others[-1]] if others else [0, bench.size - 1])
    own: list[Callable[[], int | None]] = [partial(bench.donate_row, row) for row in picked]
    for donate in [*own, bench.donate_batch] if len(others) > 1 else [bench.donate_batch, *own]:
        donor = donate()
        if donor is not None and not bench.fails(bench.all_rows - rows, donor):
            return donor
    return None


def _needs_all(bench: RowOracle, donor: int) -> bool:
    """Whether each of a few rows, replaced alone, already makes the op good."""
    tried = sorted({0, bench.size // 3, bench.size // 2, bench.size - 1})
    return bench.size > 1 and not any(bench.fails(bench.all_rows - {row}, donor) for row in tried)


def _narrowed(bench: RowOracle, rows: Rows, donor: int) -> RowProof:
    """Prove rows one by one: each alone, or only together."""
    if len(rows) > _SINGLES:
        return _together(
            bench, rows, donor, "these rows reproduce it, and without them it does not happen."
        )
    single = (
        rows
        if len(rows) == 1
        else frozenset(row for row in rows if bench.fails(frozenset({row}), donor))
    )
    if not single and rows == bench.all_rows:
        return RowProof(None, "Needs the whole batch: no row alone reproduces it.")
    if not single or (single < rows and bench.fails(bench.all_rows - single, donor)):
        return _together(
            bench,
            rows,
            donor,
            "these rows together reproduce it, and without them it does not happen.",
        )
    if len(single) == 1:
        return _proved(single, "this row alone reproduces it, and without it it does not happen.")
    return _proved(single, "each of these rows reproduces it, and without them it does not happen.")


def _together(bench: RowOracle, rows: Rows, donor: int, how: str) -> RowProof:
    """Rows of which none does it alone, unless it only seems so because of the places of the donor's rows.

    Where a batch fails for what it lacks (no sample of a class), the rows in the places where the donor has such samples
    look guilty. With the donor's rows in other places they no longer do.
    """
    rolled = bench.donate_rolled(donor)
    if not bench.fails(frozenset(), rolled) and not bench.fails(rows, rolled):
        return RowProof(None, "Needs the whole batch: it happens for what no row of it has.")
    return _proved(rows, how)


def _proved(rows: Rows, how: str) -> RowProof:
    return RowProof(tuple(sorted(rows)), f"Proved by replay: {how}")


def _delta_debug(bench: RowOracle, donor: int) -> Rows:
    """Return rows without which the op stays good, found by halving; all of them reproduce it."""
    found: Rows = frozenset()
    while bench.fails(bench.all_rows - found, donor) and found != bench.all_rows:
        found |= _smallest(bench, bench.all_rows - found, donor)
    return found


def _smallest(bench: RowOracle, rows: Rows, donor: int) -> Rows:
    """Return a part of `rows` that still fails and of which nothing more can be left out (delta debugging)."""
    parts = 2
    while len(rows) > 1:
        ordered = sorted(rows)
        chunks = [frozenset(ordered[i::parts]) for i in range(parts)]
        smaller = next((chunk for chunk in chunks if bench.fails(chunk, donor)), None)
        if smaller is None and parts > 2:
            smaller = next(
                (rows - chunk for chunk in chunks if bench.fails(rows - chunk, donor)), None
            )
            parts = max(parts - 1, 2) if smaller is not None else parts
        elif smaller is not None:
            parts = 2
        if smaller is not None:
            rows = smaller
        elif parts >= len(rows):
            break
        else:
            parts = min(parts * 2, len(rows))
    return rows
