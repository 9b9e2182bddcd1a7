"""Generators of random numbers that a program made for itself, in Python or NumPy.

The loop body that draws from `np.random.default_rng(0)` draws on when it runs once more, unless
that generator is as it was before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_KINDS = (np.random.Generator, np.random.RandomState, random.Random)


class HostGenerators:
    """The generators among some values, and the states that they are in now.

    Args:
        values: The values of a namespace.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        """Remember the states."""
        generators = {}
        for value in values:
            # By the type itself: what stands for a value may run code of its own when it is asked.
            if issubclass(type(value), _KINDS):
                generators[id(value)] = value
        self._generators = list(generators.values())
        self._states = list(map(_state, self._generators))

    @contextlib.contextmanager
    def as_remembered(self) -> Iterator[None]:
        """Within, they give once more what they gave since; afterwards they go on."""
        states_now = list(map(_state, self._generators))
        self._set(self._states)
        try:
            yield
        finally:
            self._set(states_now)

    def _set(self, states: Iterable[Any]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            elif isinstance(generator, np.random.RandomState):
                generator.set_state(state)
            else:
                generator.setstate(state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.getstate()
