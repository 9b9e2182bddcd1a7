"""The fewest rows of the batch: found with the others made neutral, then taken out where the program lets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanreplay.bisect.rows import batch_size
from nanreplay.program.resize import resized, takes_any_size
from nanreplay.records import BatchRecord, CaptureContents
from nanreplay.share.bench import CANNOT, Bench
from nanreplay.share.cut import with_batch
from nanreplay.share.ddmin import BudgetSpentError, ddmin


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What became of the rows of a batch."""

    recorded: int | None
    """How many there were; None when the arrays have no axis in common."""
    kept: tuple[int, ...]
    """Rows that are still there, by their places in the recorded batch."""
    is_shrunk: bool = False
    """Whether the others were taken out; else they are neutral."""
    is_repeated: bool = False
    """Whether the others are copies of the one that is kept."""
    is_resized: bool = False
    """Whether constants of the program were changed for it."""


def keep_rows(bench: Bench, proved: Sequence[int] | None, folder: Path, *, trust: bool) -> tuple[CaptureContents, Rows]:
    """Return the draft with the fewest rows that still give the origin.

    Args:
        bench: The draft as it is.
        proved: Rows that bisecting proved, or None.
        folder: Where drafts go.
        trust: Let ops that touch files, the network or processes run.
    """
    leaves = [np.asarray(leaf) for leaf in bench.batch.leaves]
    size = batch_size(leaves)
    if size is None or size < 2:
        return bench.contents, Rows(size, tuple(range(size or 0)))
    table = _Table(bench.batch, size)
    for fewer in _sizes(proved or ()):
        shrunk = _shrunk(bench, table, fewer, folder, trust=trust)
        if shrunk is not None:
            return shrunk
    donor, kept = _needed_rows(bench, table, proved or ())
    found = () if kept == tuple(proved or ()) else _sizes(kept or (donor,))
    for fewer in (*found, *_with_donor(kept, donor, size)):
        shrunk = _shrunk(bench, table, fewer, folder, trust=trust)
        if shrunk is not None:
            return shrunk
    if len(kept) == size:
        return bench.contents, Rows(size, kept)
    return with_batch(bench.contents, bench.step, table.neutral(kept, donor)), Rows(size, kept or (donor,), is_repeated=not kept)


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    """A batch and its rows."""

    batch: BatchRecord
    size: int

    def taken(self, rows: Sequence[int]) -> BatchRecord:
        """The batch with these rows, in this order, and what ops gave for them."""
        leaves, given = (tuple(self._rows(leaf, rows) for leaf in each) for each in (self.batch.leaves, self.batch.fed))
        return dataclasses.replace(self.batch, leaves=leaves, fed=given)

    def _rows(self, leaf: Any, rows: Sequence[int]) -> Any:
        array = np.asarray(leaf)
        return array[list(rows)] if array.ndim and array.shape[0] == self.size else array

    def neutral(self, kept: Sequence[int], donor: int) -> BatchRecord:
        """The batch with all rows but the kept ones replaced by one other row."""
        rows = np.full(self.size, donor)
        rows[list(kept)] = list(kept)
        return self.taken(rows.tolist())


def _needed_rows(bench: Bench, table: _Table, proved: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Return a row that is harmless where one is found, and the rows that are needed besides."""
    others = [row for row in range(table.size) if row not in proved]
    picked = list(dict.fromkeys([others[0], others[-1], others[len(others) // 2]])) if others else [0]
    everything = tuple(range(table.size))
    try:
        donor = next((row for row in picked if not bench.holds(table.neutral((), row))), None)
        if donor is None:  # every row that was tried does it alone
            return picked[0], ()
        units = tuple(proved) if proved and bench.holds(table.neutral(proved, donor)) else everything
        return donor, ddmin(units, lambda rows: bench.holds(table.neutral(rows, donor)))
    except BudgetSpentError:
        return picked[0], everything


def _sizes(kept: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the first row alone, the first two, four, ..., all."""
    if not kept:
        return
    size = 1
    while size < len(kept):
        yield kept[:size]
        size *= 2
    yield kept


def _with_donor(kept: Sequence[int], donor: int, size: int) -> Iterator[Sequence[int]]:
    """Yield the rows that are needed and one of the others: a batch of equal rows has no variance."""
    if 0 < len(kept) < size - 1:
        yield sorted({donor, *kept})


def _shrunk(bench: Bench, table: _Table, rows: Sequence[int], folder: Path, *, trust: bool) -> tuple[CaptureContents, Rows] | None:
    """Return the draft with these rows alone, None when it does not run so or has another origin."""
    batch = table.taken(rows)
    draft = with_batch(bench.contents, bench.step, batch)
    program = next(each for each in draft.programs if each.id == batch.program)
    change = not takes_any_size(program.signature.inputs)
    try:
        if change and len({each.program for each in draft.batches.values()}) < len(draft.batches):
            return None  # another step runs this program with its own batch
        if change:
            program = resized(program, table.size, len(rows), draft.variables)
            draft = dataclasses.replace(draft, programs=[program if each.id == program.id else each for each in draft.programs])
        with Bench(draft, folder, bench.wanted, bench.budget, trust=trust) as smaller:
            holds = smaller.holds() and smaller.runs_as_trained()
        return (draft, Rows(table.size, tuple(rows), is_shrunk=True, is_resized=change)) if holds else None
    except (BudgetSpentError, *CANNOT):
        return None
