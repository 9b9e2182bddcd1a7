"""Which rows of the batch make an op go bad, proved by replay.

Rows are proved when they alone do it, and when it does not happen without them: `RowOracle`
replays the step with harmless rows in their places. A row is a sample (see `batch_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nanreplay.bisect.batch_rows import BatchRows, Rows, own_leaves, read_rows
from nanreplay.bisect.delta_debugging import ddmin
from nanreplay.bisect.index_arrays import IndexUse
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.row_oracle import (
    BUDGET,
    RowBudgetSpentError,
    RowOracle,
    StepRaisesError,
)
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.capture.arrays import as_array

_SINGLES = 8
"""How many rows are proved one by one."""
_BAD_BELOW_ZERO = frozenset({"Log", "Rsqrt", "Sqrt"})
_ROUNDED = 16
"""Roundings of the largest element of a tensor that an element of 0 may be off."""


@dataclass(frozen=True, slots=True)
class RowProof:
    """What was proved."""

    rows: tuple[int, ...] | None
    reason: str
    """How the rows were proved, or why there are none."""


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
    used = {}
    for place, use in (indices or {}).items():
        if place in positions:
            used[positions.index(place)] = use
    if not prefix:  # `arrays` holds the recorded outputs of ops too: draws of a row go with it
        positions = list(range(len(record.arrays)))
    leaves = []
    for position in positions:
        leaves.append(as_array(record.arrays[position]))
    rows = read_rows(paths, leaves, used)
    if rows.size is None:
        return RowProof(None, f"Rows were not tried. {rows.reason}")
    if not rows.size:
        whose = "The batch" if not prefix else "Its replica's part of the batch"
        return RowProof(None, f"{whose} has no rows.")
    if _is_rounded_zero(suspect, rows):
        return RowProof(
            None,
            "Not decided: the number is 0 but for rounding, and made of the whole batch, so that "
            "any other row may change its sign.",
        )
    oracle = RowOracle(runner, step, suspect, rows, rows.size, positions)
    try:
        return _prove(oracle, list(candidates(suspect, rows)))
    except RowBudgetSpentError:
        return RowProof(None, f"Not decided within {BUDGET} replays.")
    except StepRaisesError as error:
        return RowProof(None, f"Not decided: with other rows in their place, {error}.")


def _is_rounded_zero(suspect: Suspect, rows: BatchRows) -> bool:
    """Whether an op got negative numbers that are roundings of 0, in a tensor without samples.

    So are eigenvalues of a covariance. Which rows make them negative hangs on last bits, and is
    another answer on another machine.
    """
    fact = suspect.fact
    if fact is None or fact.event is None or fact.type not in _BAD_BELOW_ZERO:
        return False
    operand, mask = as_array(fact.event.inputs[0]), suspect.masks.get(0)
    if mask is None or mask.shape != operand.shape or operand.dtype.kind != "f":
        return False
    if any(True for length in operand.shape for _ in rows.row_numbers(length)):
        return False
    sizes = np.abs(operand)
    limit = _ROUNDED * float(np.finfo(operand.dtype).eps) * float(np.max(sizes, initial=0.0))
    return bool(np.all(operand[mask] < 0) and np.all(sizes[mask] <= limit))


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
                yield frozenset(map(int, numbers[marked]))
            if axis == 0 and length and length != size and length % size == 0:
                yield frozenset(int(position) // (length // size) for position in marked)


# The proof: a search for a small set of rows, in which the oracle's answers are replays.


def _prove(oracle: RowOracle, suggested: list[Rows]) -> RowProof:
    proof = _proof(oracle, suggested)
    # The op may go bad with any rows and do no harm, as a mask of -inf does. Then the question is
    # with which rows losses and gradients go bad.
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
    if proof.rows and oracle.step_fails_without(frozenset(proof.rows)):
        # where values grew in all samples, the others fail a moment later
        return replace(proof, reason=f"{proof.reason[:-1]} at this op; another one fails then.")
    return proof


def _proof(oracle: RowOracle, suggested: list[Rows]) -> RowProof | None:
    """What is proved; None where the op is bad with every donor."""
    # Rows that the places of bad elements suggest are tried first: mostly they are right, which
    # takes two replays, where delta debugging takes many. A replay with harmless rows in their
    # place has to go well and one with them alone has to fail; either alone proves nothing, as a
    # batch may fail for what all of its rows have.
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
    # Few rows tell: delta debugging would spend its replays on a batch of which no part suffices.
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
    if single and _differ_alone(oracle, single, donor):
        return RowProof(
            None,
            "Does not depend on single rows: each row that was tried does it beside another one, "
            "and none beside copies of itself.",
        )
    if not single or (single < rows and oracle.fails(oracle.all_rows - single, donor)):
        how = "these rows together reproduce it, and without them it does not happen."
        return _together(oracle, rows, donor, how)
    if len(single) == 1:
        return _proved(single, "this row alone reproduces it, and without it it does not happen.")
    return _proved(single, "each of these rows reproduces it, and without them it does not happen.")


def _differ_alone(oracle: RowOracle, single: Rows, donor: int) -> bool:
    """Whether the rows that were proved one by one are guilty of differing from the donor alone.

    Then all rows but the donor look guilty, such as those of a distance of each row to each other
    one. With one of them in all places it does not happen either, and the donor looks guilty.
    """
    donated = oracle.donated_row(donor)
    if donated is None or single != oracle.all_rows - {donated}:
        return False
    guilty = oracle.donate_row(min(single))
    return not oracle.fails(frozenset(), guilty) and oracle.fails(frozenset({donated}), guilty)


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
