"""What an op was given and what it gave, in words that stand below its line of code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from nanreplay.findings import OperandFacts, Origin
from nanreplay.report.numbers import index_words, readable_number
from nanreplay.report.sentence import bad_output

_MOST_OPERANDS = 4


class LineValue(NamedTuple):
    """One value."""

    kind: Literal["operand", "output"]
    value: str
    """Such as `0.0`, or `-inf at [18, 0]`."""
    of: str
    """What it is the value of: `dense/Softmax`, or `Log, 1 of 96 non-finite`."""


def line_values(origin: Origin) -> Iterator[LineValue]:
    """Yield the operands at the failing element, then what the op made of them.

    Args:
        origin: The op that made the first non-finite value.
    """
    for operand in origin.operands[:_MOST_OPERANDS]:
        # People know the last two parts of the name, and few ops have an output beside the first.
        name = "/".join(operand.name.split("/")[-2:]).removesuffix(":0")
        yield LineValue("operand", _operand_value(operand), name)
    output = bad_output(origin)
    if output is None or origin.op_type is None:
        return
    value = readable_number(output.value) if output.value is not None else "non-finite"
    at = f" at {index_words(output.indices[0])}" if output.indices and output.indices[0] else ""
    count = f", {output.nonfinite} of {output.size} non-finite" if output.size > 1 else ""
    yield LineValue("output", f"{value}{at}", f"{origin.op_type}{count}")


def _operand_value(operand: OperandFacts) -> str:
    if operand.value is not None:
        return readable_number(operand.value)
    if operand.min is None or operand.max is None:
        return f"{operand.dtype}{index_words(operand.shape)}"
    return f"{_four_digits(operand.min)} to {_four_digits(operand.max)}"


def _four_digits(value: float | str) -> str:
    return readable_number(value if isinstance(value, str) else float(f"{value:.4g}"))
