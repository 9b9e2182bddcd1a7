"""From a watch vector to a verdict: is this step an incident? Called only when an element is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanreplay.program.watch import has_nonfinite, read_variable
from nanreplay.recorder.variables import VariableTable
from nanreplay.records import Trigger


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a watch's elements, taken apart once."""

    names: tuple[str, ...]
    losses: tuple[tuple[int, int], ...]
    """(element, loss) pairs."""
    gradients: tuple[tuple[int, int, int], ...]
    """(element of the sum, element of the maximum, variable) triples."""
    variables: tuple[tuple[int, int], ...]
    """(element, variable) pairs."""
    scaled: bool
    """Whether loss scaling may skip the update."""

    @staticmethod
    def parse(names: Sequence[str]) -> Layout:
        """Take the names apart."""
        split = [(index, *name.partition(":")[::2]) for index, name in enumerate(names)]
        maxima = {subject: index for index, kind, subject in split if kind == "gradient_max"}
        return Layout(
            tuple(names),
            tuple((index, int(subject)) for index, kind, subject in split if kind == "loss"),
            tuple((index, maxima[subject], int(subject)) for index, kind, subject in split if kind == "gradient_sum"),
            tuple((index, int(subject)) for index, kind, subject in split if kind == "variable_sum"),
            any(kind == "loss_scale" for _, kind, _ in split),
        )


def find_trigger(layout: Layout, values: Any, variables: VariableTable) -> tuple[Trigger | None, bool]:
    """What is non-finite, and whether loss scaling skipped this update.

    A sum of squares that is NaN holds a non-finite element. One that is infinite may have overflowed by itself: the
    largest absolute gradient decides, a variable is read and looked at.
    """
    for element, loss in layout.losses:
        if not math.isfinite(values[element]):
            return Trigger("loss", "loss" if loss == 0 else f"loss {loss}", _kind(values[element])), False
    bad = [(total, variable) for total, largest, variable in layout.gradients if _is_nonfinite(values[total], values[largest])]
    if bad and not layout.scaled:
        total, variable = bad[0]
        return Trigger("gradient", _path(variables, variable), _kind(values[total])), False
    for element, variable in layout.variables:
        if variable in variables.born_nonfinite:
            continue
        if math.isnan(values[element]) or (math.isinf(values[element]) and has_nonfinite(read_variable(variables.handles[variable]))):
            return Trigger("variable", _path(variables, variable), _kind(values[element])), False
    return None, bool(bad)


def _is_nonfinite(total: float, largest: float) -> bool:
    return math.isnan(total) or (math.isinf(total) and not math.isfinite(largest))


def _path(variables: VariableTable, index: int) -> str:
    return variables.infos[index].path if 0 <= index < len(variables.infos) else "gradient"


def _kind(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
