"""Where ops, and their gradients, are finite, and what stands for operands that lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from nanreplay.whatif.edits import CannotTryError
from nanreplay.whatif.source_operands import DIVISIONS


@dataclass(frozen=True, slots=True)
class Domain:
    """Operands of which an op and its gradient are finite."""

    holds: Callable[[Any], Any]
    """Operand -> whether each element lies in it."""
    condition: str
    """The same in code; `{0}` stands for the operand."""
    stand_in: float
    """A value within it, at which most ops are 0 or 1."""

    @property
    def template(self) -> str:
        """The guarded operand in code."""
        return f"tf.where({self.condition}, {{0}}, {self.stand_in})"

    def guarded(self, x: Any) -> Any:
        """Return the operand with the stand-in where it lies outside."""
        return tf.where(self.holds(x), x, tf.cast(self.stand_in, x.dtype))


_NOT_ZERO = Domain(lambda x: tf.not_equal(x, 0), "{0} != 0", 1.0)
_POSITIVE = Domain(lambda x: x > 0, "{0} > 0", 1.0)
_ABOVE_MINUS_ONE = Domain(lambda x: x > -1, "{0} > -1", 0.0)
_WITHIN_ONE = Domain(lambda x: tf.abs(x) < 1, "tf.abs({0}) < 1", 0.0)
_NO_POLE_OF_GAMMA = Domain(
    lambda x: (x > 0) | tf.not_equal(x, tf.floor(x)), "({0} > 0) | ({0} != tf.floor({0}))", 1.0
)
_DOMAINS: Mapping[str, Domain] = {
    **dict.fromkeys((*DIVISIONS, "Reciprocal", "Inv"), _NOT_ZERO),
    **dict.fromkeys(("Log", "Sqrt", "Rsqrt", "Xlogy"), _POSITIVE),
    **dict.fromkeys(("Log1p", "Xlog1py"), _ABOVE_MINUS_ONE),
    **dict.fromkeys(("Acos", "Asin", "Atanh", "Erfinv"), _WITHIN_ONE),
    **dict.fromkeys(("Lgamma", "Digamma"), _NO_POLE_OF_GAMMA),
    "Acosh": Domain(lambda x: x > 1, "{0} > 1", 2.0),
    "Ndtri": Domain(lambda x: (x > 0) & (x < 1), "({0} > 0) & ({0} < 1)", 0.5),
}
"""By the type of the op, for the operand that has the pole."""


def domain_of(op_type: str, exponent: float | None = None) -> Domain:
    """Return where an op and its gradient are finite.

    Args:
        op_type: Its type.
        exponent: Of a power, where it is one constant.

    Raises:
        CannotTryError: There is no pole that one operand could be kept from.
    """
    if op_type == "Pow":
        if exponent is None or not exponent.is_integer():
            return _POSITIVE
        if exponent < 0:
            return _NOT_ZERO
        raise CannotTryError("A power with a whole exponent above 0 has no pole.")
    if op_type not in _DOMAINS:
        raise CannotTryError(f"`{op_type}` has no pole that a `where` could leave out.")
    return _DOMAINS[op_type]


ATAN2_TEMPLATE = "tf.math.atan2({0}, tf.where(({0} != 0) | ({1} != 0), {1}, 1.0))"
"""atan2(0, 0) and atan2(0, 1) are both 0, and only the second one has a finite gradient."""


def guarded_atan2(y: Any, x: Any) -> Any:
    """Return the second operand of `atan2` with 1 where both are 0."""
    is_outside_pole = tf.not_equal(y, 0) | tf.not_equal(x, 0)
    return tf.where(is_outside_pole, x, tf.ones_like(x))
