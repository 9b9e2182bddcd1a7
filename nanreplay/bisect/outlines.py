"""Outlines of executions: large tensors of which only the elements that are not finite are kept.

Behind a NaN nearly all tensors of a step are NaN: gradients, updates, optimizer slots, many times
the size of the model. The walk back asks of an op that only handed NaN on which elements are not
finite, and nothing else. `outlined` keeps just that of such an execution. Pure NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.influence import COPIES, ELEMENTWISE, REDUCTIONS, Execute, influence_of
from nanreplay.bisect.tensor_stats import (
    Mask,
    Outline,
    TensorStat,
    dtype_name,
    either,
    is_float,
    is_opaque,
    is_some,
    none_of,
    nonfinite,
    nonfinite_outputs,
    repeated,
    without,
)
from nanreplay.replay.provenance import OpEvent

_BY_ELEMENT = (ELEMENTWISE | COPIES | REDUCTIONS) - {"IdentityN"}
"""Ops of which each output element depends on an element, at least, of each float input."""
LEAST_BYTES = 1 << 12
"""A smaller tensor stays as it is."""


def size_in_bytes(value: Any) -> int:
    """Return about how many bytes a tensor takes."""
    # complex128 apart, no element has more than 8 bytes; a bound will do
    return 0 if is_opaque(value) else int(np.prod(value.shape, dtype=np.int64)) * 8


def outlined(
    event: OpEvent, stats: Mapping[int, TensorStat], execute: Execute, *, is_update: bool
) -> OpEvent | None:
    """Return an execution with outlines in place of its large float tensors.

    None where its tensors are needed: the op made a bad element itself or turned an infinity into
    NaN, or how its elements depend on each other is not known.

    Args:
        event: The execution; an update with the variables that it left as its outputs.
        stats: Facts of its inputs and outputs, by Python's `id` of the tensor.
        execute: Runs its kernel on other inputs.
        is_update: Whether the op computes a variable's new value by itself.
    """
    tensors = (*event.inputs, *event.outputs)
    if event.error is not None or any("complex" in dtype_name(value) for value in tensors):
        return None
    known: dict[int, Any] = {}
    """Outlines by Python's `id` of the tensor."""

    def outline(value: Any, *, is_told: bool = False) -> Any:
        if is_opaque(value) or not is_float(value) or size_in_bytes(value) < LEAST_BYTES:
            return value
        stat = stats.get(id(value))
        is_plain = stat is not None and (stat.is_nan or not stat.nonfinite)
        if is_told and not is_plain:
            return value
        if id(value) not in known:
            known[id(value)] = Outline(
                value,
                all_nan=stat is not None and stat.is_nan,
                all_finite=stat is not None and not stat.nonfinite,
            )
        return known[id(value)]

    hands_nan_on = event.type in _BY_ELEMENT and any(
        id(value) in stats and stats[id(value)].is_nan for value in event.inputs
    )
    if not hands_nan_on:
        # Whoever is asked for blame looks at an outline in no time; of a tensor that is neither
        # finite nor all NaN it takes the tensor itself.
        told = dataclasses.replace(
            event,
            inputs=tuple(outline(value, is_told=True) for value in event.inputs),
            outputs=tuple(outline(value, is_told=True) for value in event.outputs),
        )
        if not _is_handed_on(told, nonfinite_outputs(told.outputs), execute, is_update=is_update):
            return None
    return dataclasses.replace(
        event,
        inputs=tuple(map(outline, event.inputs)),
        outputs=tuple(map(outline, event.outputs)),
    )


def _is_handed_on(
    event: OpEvent, failing: dict[int, Mask], execute: Execute, *, is_update: bool
) -> bool:
    """Whether all bad elements of an execution come from bad elements that it got."""
    if is_update:
        return _is_update_of_bad(event, failing)
    floats = [value for value in event.inputs if not is_opaque(value) and is_float(value)]
    if event.via or not floats:
        return bool(event.via)
    influence = influence_of(event, execute)
    if not influence.exact:
        return False
    blame = assign_blame(event, failing, execute, influence)
    return not blame.made and not blame.turned


def _is_update_of_bad(event: OpEvent, failing: dict[int, Mask]) -> bool:
    """Whether what an update was given explains all bad elements that it left."""
    bad = []
    for value in event.inputs:
        if not is_opaque(value) and is_float(value):
            bad.append(nonfinite(value))
    for mask in failing.values():
        explained = none_of(mask.shape)
        for given in bad:
            same = given.shape == mask.shape
            explained = either(explained, given if same else repeated(is_some(given), mask.shape))
        if is_some(without(mask, explained)):
            return False
    return True
