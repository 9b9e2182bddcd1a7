"""What must stay the same of an origin when a failure is made smaller or is shared. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from nanreplay.findings import Origin
from nanreplay.report.numbers import jsonable
from nanreplay.report.sentence import bad_output

Place: TypeAlias = tuple[object, ...]
"""Step, phase, layer, op, loop iterations, and whether it gave NaN, inf or -inf."""


def place_of(origin: Origin) -> Place:
    """Return what identifies an origin."""
    output = bad_output(origin)
    value = None if output is None else jsonable(output.value)
    loops = tuple((loop.op, loop.iteration) for loop in origin.loop)
    named = origin.op_name if origin.op_type is not None or not origin.operands else origin.operands[0].name
    return (
        origin.step,
        origin.phase,
        origin.layer_path,
        origin.op_type,
        named,
        loops,
        origin.kind,
        value if isinstance(value, str) else None,
    )


def is_same(found: Sequence[Origin], wanted: Sequence[Origin]) -> bool:
    """Whether the first origin is the same, and no other has come in that was not there before.

    Where no rows of the batch do it alone, it must not have spread either: with one row in all places of a batch every feature
    is constant, and divides by a variance of zero.

    Args:
        found: The origins of a candidate, the first one first.
        wanted: Those of the recording; the first one with its rows.
    """
    if not found or place_of(found[0]) != place_of(wanted[0]):
        return False
    if wanted[0].rows is None and has_spread(found[0], wanted[0]):
        return False
    return {place_of(origin)[:6] for origin in found} <= {place_of(origin)[:6] for origin in wanted}


def has_spread(found: Origin, wanted: Origin) -> bool:
    """Whether an op makes elements bad that are good in the recording; axes whose length has changed do not count."""
    own, other = bad_output(wanted), bad_output(found)
    if own is None or other is None or len(own.shape) != len(other.shape):
        return False
    if own.shape == other.shape and other.nonfinite > own.nonfinite:
        return True
    axes = [axis for axis, (one, two) in enumerate(zip(own.shape, other.shape, strict=True)) if one == two]
    before, after = ({tuple(index[axis] for axis in axes) for index in each.indices} for each in (own, other))
    return len(own.indices) == own.nonfinite and not after <= before  # else the list of the recording's elements has an end
