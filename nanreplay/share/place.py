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

    Args:
        found: The origins of a candidate, the first one first.
        wanted: Those of the recording.
    """
    if not found or place_of(found[0]) != place_of(wanted[0]):
        return False
    return {place_of(origin)[:6] for origin in found} <= {place_of(origin)[:6] for origin in wanted}
