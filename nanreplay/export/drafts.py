"""Smaller and smaller drafts of a failure, and what is said of the one that is written.

The order is that of their effect: the failing steps alone, fewer rows of the batch, fewer features,
fewer variables, a short timeline. `minimizer` takes the last draft that still tells the same cause.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanreplay.bisect import locate
from nanreplay.bisect.batch_rows import batch_size
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
    place_of,
    smallest_part,
)
from nanreplay.findings import Origin
from nanreplay.program.resize import resized, takes_any_size
from nanreplay.records import BatchRecord, CaptureContents, Timeline
from nanreplay.replay import Replay
from nanreplay.report.contents import Report
from nanreplay.report.numbers import readable_list, readable_steps


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What became of the rows of a batch."""

    recorded: int | None
    """How many there were; None when no array has rows."""
    kept: tuple[int, ...]
    """Rows that are still there, by their places in the recorded batch."""
    is_shrunk: bool = False
    """Whether the others were taken out; else they are neutral."""
    is_repeated: bool = False
    """Whether the others are copies of the one that is kept."""
    is_resized: bool = False
    """Whether constants of the program were changed for it."""

    @property
    def are_fewer(self) -> bool:
        """Whether rows of the recorded batch are missing."""
        return self.recorded is not None and len(self.kept) < self.recorded


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A candidate, and what is to be said of it."""

    contents: CaptureContents
    rows: Rows = dataclasses.field(default_factory=lambda: Rows(None, ()))
    features: tuple[int, int] | None = None
    """How many numbers of a row are not zero, and how many were not; None when not tried."""
    zeroed: tuple[str, ...] = ()
    """Paths of variables that are zero."""
    short: bool = False
    """Whether the timeline is cut to the steps that are left."""

    @property
    def has_fewer_features(self) -> bool:
        """Whether features of the recorded batch are zero now."""
        return self.features is not None and self.features[0] < self.features[1]

    @property
    def is_changed(self) -> bool:
        """Whether the step computes other numbers than the recorded one."""
        return self.rows.are_fewer or bool(self.zeroed) or self.has_fewer_features


def drafts_of(
    path: str | os.PathLike[str],
    origin: Origin,
    folder: Path,
    budget: Budget,
    say: Callable[[str], None],
    *,
    trust: bool,
) -> Iterator[Draft]:
    """Yield smaller and smaller drafts, each with the origin of the one before.

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
        # `locate` does not look for rows; those that the report proved belong to the origin too.
        told, in_part = origin.rows, origin.replica_rows
        wanted = (dataclasses.replace(wanted[0], rows=told, replica_rows=in_part), *wanted[1:])
        draft = Draft(cut_to_steps(replay, origin.step))
    yield draft

    def trials_of(draft: Draft) -> FailureTrials:
        return FailureTrials(draft.contents, folder, wanted, budget, trust=trust)

    say("leaving out rows of the batch")
    with trials_of(draft) as trials:
        contents, rows = keep_rows(trials, origin.recorded_rows, folder, trust=trust)
    draft = dataclasses.replace(draft, contents=contents, rows=rows)
    yield draft
    say("leaving out features")
    with trials_of(draft) as trials:
        contents, left, recorded = zero_features(trials)
    draft = dataclasses.replace(draft, contents=contents, features=(left, recorded))
    yield draft
    say("leaving out variables")
    with trials_of(draft) as trials:
        contents, zeroed = zero_variables(trials)
    paths = tuple(contents.variables[index].path for index in zeroed)
    draft = dataclasses.replace(draft, contents=contents, zeroed=paths)
    yield draft
    yield dataclasses.replace(draft, short=True)


# The fewest rows of the batch. Two things can be done to a row that is not needed: it is taken out,
# where the program runs with fewer rows, or it is made neutral, as a copy of a harmless row (the
# donor). Which rows are needed is searched with neutral rows, because these never change a shape.
# Of a batch [a, b, BAD, d] with the donor a, [a, a, BAD, a] must still fail; then [BAD] alone and
# [a, BAD] are tried.


def keep_rows(
    trials: FailureTrials, proved: Sequence[int] | None, folder: Path, *, trust: bool
) -> tuple[CaptureContents, Rows]:
    """Return the draft with the fewest rows that still give the origin.

    Args:
        trials: Trials of the draft as it is.
        proved: Rows that bisecting proved, or None.
        folder: Where drafts go.
        trust: Let ops that touch files, the network or processes run.
    """
    leaves = list(map(np.asarray, trials.batch.leaves))
    size = batch_size(leaves)
    if size is None or size < 2:
        return trials.contents, Rows(size, tuple(range(size or 0)))
    proved = tuple(proved or ())
    table = _BatchRows(trials.batch, size)
    shrunk = _first_shrunk(trials, table, _doubling_prefixes(proved), folder, trust=trust)
    if shrunk is not None:
        return shrunk
    donor, needed = _needed_rows(trials, table, proved)
    selections: list[Sequence[int]] = []
    if needed != proved:
        selections += _doubling_prefixes(needed or (donor,))
    # A batch of equal rows has no variance, so one of the others is tried beside those needed.
    if 0 < len(needed) < size - 1:
        selections.append(sorted({donor, *needed}))
    shrunk = _first_shrunk(trials, table, selections, folder, trust=trust)
    if shrunk is not None:
        return shrunk
    if len(needed) == size:
        return trials.contents, Rows(size, needed)
    neutral = with_batch(trials.contents, trials.step, table.neutral(needed, donor))
    return neutral, Rows(size, needed or (donor,), is_repeated=not needed)


@dataclasses.dataclass(frozen=True, slots=True)
class _BatchRows:
    """A batch and how many rows it has."""

    batch: BatchRecord
    size: int

    def taken(self, rows: Sequence[int]) -> BatchRecord:
        """The batch with these rows, in this order, and the fed outputs of ops for them."""
        return dataclasses.replace(
            self.batch,
            leaves=tuple(self._rows_of(leaf, rows) for leaf in self.batch.leaves),
            fed=tuple(self._rows_of(output, rows) for output in self.batch.fed),
        )

    def _rows_of(self, leaf: Any, rows: Sequence[int]) -> Any:
        array = np.asarray(leaf)
        return array[list(rows)] if array.ndim and array.shape[0] == self.size else array

    def neutral(self, kept: Sequence[int], donor: int) -> BatchRecord:
        """The batch with all rows but the kept ones replaced by one other row."""
        rows = np.full(self.size, donor)
        rows[list(kept)] = list(kept)
        return self.taken(rows.tolist())


def _needed_rows(
    trials: FailureTrials, table: _BatchRows, proved: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Return a row that is harmless where one is found, and the rows that are needed besides."""
    others = []
    for row in range(table.size):
        if row not in proved:
            others.append(row)
    possible_donors = [0]
    if others:
        possible_donors = list(dict.fromkeys([others[0], others[-1], others[len(others) // 2]]))
    everything = tuple(range(table.size))

    def fails_with(kept: Sequence[int], donor: int) -> bool:
        return trials.holds(table.neutral(kept, donor))

    try:
        donor = next((row for row in possible_donors if not fails_with((), row)), None)
        if donor is None:  # every row that was tried does it alone
            return possible_donors[0], ()
        proof_holds = bool(proved) and fails_with(proved, donor)
        rows = tuple(proved) if proof_holds else everything
        return donor, smallest_part(rows, lambda kept: fails_with(kept, donor))
    except TrialBudgetSpentError:
        return possible_donors[0], everything


def _doubling_prefixes(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the first row alone, the first two, four, ..., all."""
    if not rows:
        return
    size = 1
    while size < len(rows):
        yield rows[:size]
        size *= 2
    yield rows


def _first_shrunk(
    trials: FailureTrials,
    table: _BatchRows,
    selections: Iterator[Sequence[int]] | Sequence[Sequence[int]],
    folder: Path,
    *,
    trust: bool,
) -> tuple[CaptureContents, Rows] | None:
    """Return the draft of the first selection of rows that still fails alone, None without one."""
    for rows in selections:
        shrunk = _shrunk(trials, table, rows, folder, trust=trust)
        if shrunk is not None:
            return shrunk
    return None


def _shrunk(
    trials: FailureTrials, table: _BatchRows, rows: Sequence[int], folder: Path, *, trust: bool
) -> tuple[CaptureContents, Rows] | None:
    """Return the draft with these rows alone, None when it does not run or has another origin."""
    batch = table.taken(rows)
    draft = with_batch(trials.contents, trials.step, batch)
    program = next(record for record in draft.programs if record.id == batch.program)
    has_fixed_size = not takes_any_size(program.signature.inputs)
    try:
        if has_fixed_size:
            if _is_program_shared(draft):
                return None  # another step runs this program with its own batch
            program = resized(program, table.size, len(rows), draft.variables)
            programs = []
            for record in draft.programs:
                programs.append(program if record.id == program.id else record)
            draft = dataclasses.replace(draft, programs=programs)
        with FailureTrials(draft, folder, trials.wanted, trials.budget, trust=trust) as smaller:
            if not (smaller.holds() and smaller.runs_as_trained()):
                return None
        return draft, Rows(table.size, tuple(rows), is_shrunk=True, is_resized=has_fixed_size)
    except (TrialBudgetSpentError, *CANNOT):
        return None


def _is_program_shared(draft: CaptureContents) -> bool:
    """Whether two steps run one program."""
    return len({batch.program for batch in draft.batches.values()}) < len(draft.batches)


# The draft that is written, with the notes that it carries.


def finished(
    draft: Draft, before: Report, folder: Path, *, trust: bool
) -> tuple[CaptureContents, tuple[str, ...]]:
    """Return the contents that are written, and what they say of themselves."""
    contents, notes = draft.contents, tuple(_notes(draft, before))
    if draft.is_changed:
        with FailureTrials(contents, folder, (), Budget(0, 0.0), trust=trust) as trials:
            contents = trials.with_fingerprints()
    if draft.short:
        timeline = _short_timeline(contents.timeline, tuple(contents.batches))
        contents = dataclasses.replace(contents, timeline=timeline)
    return with_notes(contents, notes), notes


def _short_timeline(timeline: Timeline, steps: Sequence[int]) -> Timeline:
    """The rows of a timeline that belong to these steps."""
    rows = np.flatnonzero(np.isin(np.asarray(timeline.columns["step"]), steps))
    columns = {}
    for name, column in timeline.columns.items():
        columns[name] = np.asarray(column)[rows]
    matrices = {}
    for name, matrix in timeline.matrices.items():
        matrices[name] = np.asarray(matrix)[rows]
    return Timeline(columns, matrices, timeline.variables)


def _notes(draft: Draft, before: Report) -> Iterator[str]:
    steps, (first, last) = tuple(draft.contents.batches), before.steps
    yield (
        f"Cut to {readable_steps(steps)} from a capture of "
        f"{readable_steps(range(first, last + 1))}; the keyframe was made by replay."
    )
    yield from _row_notes(draft.rows, before.findings.origin)
    if draft.features is not None and draft.has_fewer_features:
        left, recorded = draft.features
        yield f"{left} of {recorded} features are left; the others are 0."
    fed_arrays = sum(len(batch.fed) for batch in draft.contents.batches.values())
    if fed_arrays and draft.is_changed:
        yield (
            f"Recorded outputs of ops ({fed_arrays} arrays) are fed as they were; "
            "they do not follow from what is left of the batch."
        )
    if draft.zeroed:
        yield f"Set to 0, since the origin does not need their values: {_zeroed_names(draft)}."
    if draft.is_changed:
        yield "Fingerprints are those of a replay, since the step is no longer the recorded one."
    if draft.short:
        yield "The timeline holds only the steps that are left."


def _row_notes(rows: Rows, origin: Origin | None) -> Iterator[str]:
    reason = origin.rows_reason if origin is not None else None
    is_replicated = origin is not None and origin.replica is not None
    batch = "batch of each replica" if is_replicated else "batch"
    if rows.are_fewer:
        if rows.is_shrunk:
            verb = "holds"
        elif rows.is_repeated:
            verb = "repeats"
        else:
            verb = "repeats one row but for"
        noun = "row" if len(rows.kept) == 1 else "rows"
        yield (
            f"The {batch} {verb} {noun} {readable_list(rows.kept, limit=20)} "
            f"of the {rows.recorded} that were recorded."
        )
        if reason and (origin is None or origin.rows is None or len(origin.rows) > 1):
            yield f"Of the batch as it was recorded: {reason}"
    elif rows.recorded is not None and rows.recorded > 1:
        yield f"All {rows.recorded} rows of the {batch} are left. {reason or ''}".rstrip()
    if rows.is_resized:
        yield (
            "The program was traced for more rows: its shapes were changed; "
            "numbers that were worked out from them were not."
        )


def _zeroed_names(draft: Draft) -> str:
    """Names of the variables that are zero, the optimizer's as a number."""
    roles = {info.path: info.role for info in draft.contents.variables}
    names = []
    for path in draft.zeroed:
        if roles[path] != "optimizer":
            names.append(f"`{path}`")
    slots = len(draft.zeroed) - len(names)
    if slots:
        names.append(f"{slots} of the optimizer")
    return readable_list(names, limit=20)
