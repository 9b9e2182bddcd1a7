"""Drafts of a smaller capture: the step alone, then fewer rows, fewer features, fewer variables, and a short timeline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanreplay.bisect import locate
from nanreplay.bisect.row_proof import batch_size
from nanreplay.capture import Capture
from nanreplay.errors import ReplayError
from nanreplay.export.cuts import (
    cut_to_steps,
    with_batch,
    with_notes,
    zero_features,
    zero_variables,
)
from nanreplay.export.trials import (
    CANNOT,
    Budget,
    FailureTrials,
    TrialBudgetSpentError,
    ddmin,
    place_of,
)
from nanreplay.findings import Origin
from nanreplay.program.resize import resized, takes_any_size
from nanreplay.records import BatchRecord, CaptureContents, Timeline
from nanreplay.replay import Replay
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list, readable_steps

# The fewest rows of the batch: found with the others made neutral, then taken out where the
# program lets it.


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


def keep_rows(
    bench: FailureTrials, proved: Sequence[int] | None, folder: Path, *, trust: bool
) -> tuple[CaptureContents, Rows]:
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
    return with_batch(bench.contents, bench.step, table.neutral(kept, donor)), Rows(
        size, kept or (donor,), is_repeated=not kept
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    """A batch and its rows."""

    batch: BatchRecord
    size: int

    def taken(self, rows: Sequence[int]) -> BatchRecord:
        """The batch with these rows, in this order, and what ops gave for them."""
        leaves, given = (
            tuple(self._rows(leaf, rows) for leaf in each)
            for each in (self.batch.leaves, self.batch.fed)
        )
        return dataclasses.replace(self.batch, leaves=leaves, fed=given)

    def _rows(self, leaf: Any, rows: Sequence[int]) -> Any:
        array = np.asarray(leaf)
        return array[list(rows)] if array.ndim and array.shape[0] == self.size else array

    def neutral(self, kept: Sequence[int], donor: int) -> BatchRecord:
        """The batch with all rows but the kept ones replaced by one other row."""
        rows = np.full(self.size, donor)
        rows[list(kept)] = list(kept)
        return self.taken(rows.tolist())


def _needed_rows(
    bench: FailureTrials, table: _Table, proved: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Return a row that is harmless where one is found, and the rows that are needed besides."""
    others = [row for row in range(table.size) if row not in proved]
    picked = (
        list(dict.fromkeys([others[0], others[-1], others[len(others) // 2]])) if others else [0]
    )
    everything = tuple(range(table.size))
    try:
        donor = next((row for row in picked if not bench.holds(table.neutral((), row))), None)
        if donor is None:  # every row that was tried does it alone
            return picked[0], ()
        units = (
            tuple(proved) if proved and bench.holds(table.neutral(proved, donor)) else everything
        )
        return donor, ddmin(units, lambda rows: bench.holds(table.neutral(rows, donor)))
    except TrialBudgetSpentError:
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


def _shrunk(
    bench: FailureTrials, table: _Table, rows: Sequence[int], folder: Path, *, trust: bool
) -> tuple[CaptureContents, Rows] | None:
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
            draft = dataclasses.replace(
                draft,
                programs=[program if each.id == program.id else each for each in draft.programs],
            )
        with FailureTrials(draft, folder, bench.wanted, bench.budget, trust=trust) as smaller:
            holds = smaller.holds() and smaller.runs_as_trained()
        return (
            (draft, Rows(table.size, tuple(rows), is_shrunk=True, is_resized=change))
            if holds
            else None
        )
    except (TrialBudgetSpentError, *CANNOT):
        return None


# --- share.drafts


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A candidate, and what is to be said of it."""

    contents: CaptureContents
    rows: Rows = dataclasses.field(default_factory=lambda: Rows(None, ()))
    features: tuple[int, int] | None = None
    """How many numbers of a row are not zero, and how many were not; None when that was not tried."""
    zeroed: tuple[str, ...] = ()
    """Paths of variables that are zero."""
    short: bool = False
    """Whether the timeline is cut to the steps that are left."""

    @property
    def is_changed(self) -> bool:
        """Whether the step computes other numbers than the recorded one."""
        left_out = self.rows.recorded is not None and len(self.rows.kept) < self.rows.recorded
        return (
            left_out
            or bool(self.zeroed)
            or (self.features is not None and self.features[0] < self.features[1])
        )


def drafts_of(
    path: str | os.PathLike[str],
    origin: Origin,
    folder: Path,
    budget: Budget,
    say: Callable[[str], None],
    *,
    trust: bool,
) -> Iterator[Draft]:
    """Yield smaller and smaller drafts, each with the origin of the one before by `bench.holds`.

    Args:
        path: The capture.
        origin: Its origin.
        folder: Where drafts are written.
        budget: How many replays the search may take.
        say: Called with a line before each part of the work.
        trust: Let ops that touch files, the network or processes run.

    Raises:
        ReplayError: Another replay gives another origin.
    """
    say("making a keyframe just before the step")
    with Capture(path) as capture, Replay(capture, trust=trust) as replay:
        wanted = locate(replay)
        if not wanted or place_of(wanted[0]) != place_of(origin):
            raise ReplayError(f"{path}: the origin is not the same in every replay.")
        wanted = (dataclasses.replace(wanted[0], rows=origin.rows), *wanted[1:])
        draft = Draft(cut_to_steps(replay, origin.step))
    yield draft

    def bench() -> FailureTrials:
        return FailureTrials(draft.contents, folder, wanted, budget, trust=trust)

    say("leaving out rows of the batch")
    with bench() as trials:
        contents, rows = keep_rows(trials, origin.rows, folder, trust=trust)
    draft = dataclasses.replace(draft, contents=contents, rows=rows)
    yield draft
    say("leaving out features")
    with bench() as trials:
        contents, *features = zero_features(trials)
    draft = dataclasses.replace(draft, contents=contents, features=(features[0], features[1]))
    yield draft
    say("leaving out variables")
    with bench() as trials:
        contents, gone = zero_variables(trials)
    draft = dataclasses.replace(
        draft, contents=contents, zeroed=tuple(contents.variables[index].path for index in gone)
    )
    yield draft
    yield dataclasses.replace(draft, short=True)


def finished(
    draft: Draft, before: Report, folder: Path, *, trust: bool
) -> tuple[CaptureContents, tuple[str, ...]]:
    """Return the contents that are written, and what they say of themselves."""
    contents, notes = draft.contents, tuple(_notes(draft, before))
    if draft.is_changed:
        with FailureTrials(contents, folder, (), Budget(0, 0.0), trust=trust) as bench:
            contents = bench.with_fingerprints()
    if draft.short:
        contents = dataclasses.replace(
            contents, timeline=_short(contents.timeline, tuple(contents.batches))
        )
    return with_notes(contents, notes), notes


def _short(timeline: Timeline, steps: Sequence[int]) -> Timeline:
    """The rows of a timeline that belong to these steps."""
    rows = np.flatnonzero(np.isin(np.asarray(timeline.columns["step"]), steps))
    columns = {name: np.asarray(column)[rows] for name, column in timeline.columns.items()}
    return Timeline(
        columns,
        {name: np.asarray(matrix)[rows] for name, matrix in timeline.matrices.items()},
        timeline.variables,
    )


def _notes(draft: Draft, before: Report) -> Iterator[str]:
    steps, (first, last) = tuple(draft.contents.batches), before.steps
    yield f"Cut to {readable_steps(steps)} from a capture of {readable_steps(range(first, last + 1))}; the keyframe was made by replay."
    yield from _row_notes(draft.rows, before.findings.origin)
    if draft.features is not None and draft.features[0] < draft.features[1]:
        yield f"{draft.features[0]} of {draft.features[1]} features are left; the others are 0."
    given = sum(len(batch.fed) for batch in draft.contents.batches.values())
    if given and draft.is_changed:
        yield f"Recorded outputs of ops ({given} arrays) are fed as they were; they do not follow from what is left of the batch."
    if draft.zeroed:
        yield f"Set to 0, since the origin does not need their values: {_variables(draft)}."
    if draft.is_changed:
        yield "Fingerprints are those of a replay, since the step is no longer the recorded one."
    if draft.short:
        yield "The timeline holds only the steps that are left."


def _row_notes(rows: Rows, origin: Origin | None) -> Iterator[str]:
    reason = origin.rows_reason if origin is not None else None
    batch = (
        "batch of each replica" if origin is not None and origin.replica is not None else "batch"
    )
    if rows.recorded is not None and len(rows.kept) < rows.recorded:
        how = (
            "holds"
            if rows.is_shrunk
            else "repeats"
            if rows.is_repeated
            else "repeats one row but for"
        )
        which = "row" if len(rows.kept) == 1 else "rows"
        yield f"The {batch} {how} {which} {readable_list(rows.kept, limit=20)} of the {rows.recorded} that were recorded."
        if reason and (origin is None or origin.rows is None or len(origin.rows) > 1):
            yield f"Of the batch as it was recorded: {reason}"
    elif rows.recorded is not None and rows.recorded > 1:
        yield f"All {rows.recorded} rows of the {batch} are left. {reason or ''}".rstrip()
    if rows.is_resized:
        yield "The program was traced for more rows: its shapes were changed; numbers that were worked out from them were not."


def _variables(draft: Draft) -> str:
    """Names of the variables that are zero, the optimizer's as a number."""
    roles = {info.path: info.role for info in draft.contents.variables}
    named = [f"`{path}`" for path in draft.zeroed if roles[path] != "optimizer"]
    slots = len(draft.zeroed) - len(named)
    return readable_list([*named, *([f"{slots} of the optimizer"] if slots else [])], limit=20)
