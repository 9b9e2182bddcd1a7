"""Poles and domains of special functions: gamma, zeta and beta functions, inverse error functions.

They have no kind of their own: the cause is `other`, and its sentence says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nanreplay.diagnose.case import Case, Values, capital, shown
from nanreplay.findings import Cause

Fault = Callable[[Values], Values]
"""Says of each value of an operand whether the function is not finite there."""
_AT_GAMMA_POLE = "0 and the negative whole numbers are poles of the gamma function"


def _is_gamma_pole(x: Values) -> Values:
    return np.asarray((x <= 0) & (x == np.floor(x)))


def _is_negative(x: Values) -> Values:
    return np.asarray(x < 0)


def _is_not_positive(x: Values) -> Values:
    return np.asarray(x <= 0)


def _is_outside_of_unit(x: Values) -> Values:
    return np.asarray((x < 0) | (x > 1))


def _at_border_of_1(x: Values) -> Values:
    return np.asarray(np.abs(x) >= 1)


def _at_border_of_unit(x: Values) -> Values:
    return np.asarray((x <= 0) | (x >= 1))


_FAULTS: Mapping[str, Sequence[tuple[int, Fault, str]]] = {
    "Lgamma": ((0, _is_gamma_pole, _AT_GAMMA_POLE),),
    "Digamma": ((0, _is_gamma_pole, _AT_GAMMA_POLE),),
    "Polygamma": (
        (1, _is_gamma_pole, _AT_GAMMA_POLE),
        (0, _is_negative, "its order must not be negative"),
    ),
    "Zeta": (
        (0, lambda x: np.asarray(x == 1), "the zeta function has a pole at 1"),
        (0, lambda x: np.asarray(x < 1), "the zeta function is defined above 1"),
        (1, _is_gamma_pole, "its second argument must not be 0 or a negative whole number"),
    ),
    **dict.fromkeys(
        ("Igamma", "Igammac"),
        (
            (0, _is_not_positive, "the incomplete gamma function takes a shape above 0"),
            (1, _is_negative, "the incomplete gamma function takes no number below 0"),
        ),
    ),
    "Betainc": (
        (0, _is_not_positive, "the incomplete beta function takes a first parameter above 0"),
        (1, _is_not_positive, "the incomplete beta function takes a second parameter above 0"),
        (2, _is_outside_of_unit, "the incomplete beta function takes numbers from 0 to 1"),
    ),
    "Erfinv": ((0, _at_border_of_1, "the inverse error function is finite between -1 and 1"),),
    "Ndtri": ((0, _at_border_of_unit, "the normal quantile function is finite between 0 and 1"),),
    **dict.fromkeys(
        ("BesselK0", "BesselK0e", "BesselK1", "BesselK1e", "BesselY0", "BesselY1"),
        ((0, _is_not_positive, "this Bessel function is finite above 0"),),
    ),
}
"""By op type: (operand, where it is at fault, why)."""


def special_function(case: Case) -> Cause | None:
    """A special function at a pole or outside of its domain, or the gradient of one."""
    for operand, is_at_fault, why in _FAULTS.get(case.op, ()):
        values = case.told(operand)
        at_fault = values[is_at_fault(values)] if values.size else values
        if at_fault.size:
            sentence = (
                f"{capital(case.subject_at(operand))} is {shown(float(at_fault[0]))}, and "
                f"{why}: `{case.op}`{case.where} is {_result(case)} there."
            )
            return Cause("other", 0.9, sentence, _evidence(case))
    # A function that is finite may have a gradient that is not, at the end of its domain.
    if case.is_backward and case.forward in _FAULTS:
        sentence = f"The gradient of `{case.forward}`{case.where} is {_result(case)}{case.place}."
        return Cause("other", 0.6, sentence, _evidence(case))
    return None


def _result(case: Case) -> str:
    return "infinite" if case.is_infinite else "NaN"


def _evidence(case: Case) -> tuple[str, ...]:
    became = f"`{case.op}`{case.where}: {case.count} became non-finite."
    if case.is_backward and case.forward:
        return (became, f"It computes the gradient of `{case.forward}`.")
    return (became,)
