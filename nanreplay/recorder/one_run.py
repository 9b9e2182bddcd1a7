"""Whether the steps of a window can run once for all that is wanted of them.

A second reader of a gradient may change what TensorFlow's graph optimizers make of a step. What
the first step leaves behind, with that reader and without it, tells whether it does. `reexecution`
asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.program.nonfinite_values import read_variable
from nanreplay.records import BatchRecord, VariableInfo

LEAST_SAVED_S = 1.0
"""Steps that take no longer run a second time: to find out whether they must takes another program,
which TensorFlow has to optimize."""
_NO_NUMBERS = ("string", "variant", "resource")


@dataclass(frozen=True, slots=True)
class FirstState:
    """What a re-execution begins with, to be read again from where it takes no memory."""

    read: Callable[[], Iterable[tuple[int, Any]]]
    """Gives index and value of every variable, one after the other."""
    step_s: float
    """What a step takes."""


class OneRun:
    """What is known of the programs of a window.

    Args:
        first: What its first step begins with; None where that cannot be had again.
        base: The first step.
        count: How many steps are to give more than what they leave behind.
        infos: Infos of all variables.
    """

    def __init__(
        self, first: FirstState | None, base: int, count: int, infos: Sequence[VariableInfo]
    ) -> None:
        self._first, self._base = first, base
        self._is_comparable = all(info.dtype not in _NO_NUMBERS for info in infos)
        self.saved_s = 0.0 if first is None else count * first.step_s
        """What the second runs of these steps would take."""
        self.leaves_same_bits: dict[str, bool] = {}
        """By program: whether a step that gives its gradients besides leaves the same bits."""

    def is_worth_trying(self, step: int) -> bool:
        """Whether to find it out at a step: at the first one, where that can pay."""
        return step == self._base and self._is_comparable and self.saved_s >= LEAST_SAVED_S

    def put_back(self, batch: BatchRecord, variables: Sequence[Any]) -> None:
        """Set the variables to what the first step began with."""
        assert self._first is not None
        for index, value in self._first.read():
            variables[index].assign(value)
        for index, value in batch.overrides.items():
            variables[index].assign(value)


def bits_of(outputs: Sequence[Any], variables: Sequence[Any]) -> list[bytes]:
    """A digest of each number that a step returned, and of each variable as it is now."""
    left = (read_variable(variable.handle) for variable in variables)
    return [*map(_digest, outputs), *map(_digest, left)]


def _digest(value: Any) -> bytes:
    array: Any = np.ascontiguousarray(np.asarray(value)).reshape(-1)
    return hashlib.blake2b(array.view(np.uint8), digest_size=16).digest()
