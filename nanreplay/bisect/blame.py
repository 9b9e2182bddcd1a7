"""Which input elements are to blame for an op's failing elements, and which elements the op made bad itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.arrays import Mask, inf_mask, is_float, is_opaque, nan_mask, nonfinite
from nanreplay.bisect.influence import Everything, Influence
from nanreplay.bisect.rules import ROWWISE, Execute, influence_of
from nanreplay.replay.events import OpEvent
from nanreplay.tensors import as_array


@dataclass(slots=True)
class Blame:
    """How the failing elements of one execution came about."""

    influence: Influence
    follow: dict[int, Mask] = field(default_factory=dict)
    """By input: bad elements that were passed on."""
    turned_from: dict[int, Mask] = field(default_factory=dict)
    """By input: infinities that this op turned into NaN."""
    made: dict[int, Mask] = field(default_factory=dict)
    """By output: bad elements from finite ones."""
    turned: dict[int, Mask] = field(default_factory=dict)
    """By output: NaN from infinities."""

    def add(self, where: dict[int, Mask], i: int, mask: Mask) -> None:
        """Mark more elements."""
        if mask.any():
            where[i] = where[i] | mask if i in where else mask


def assign_blame(event: OpEvent, failing: Mapping[int, Mask], execute: Execute) -> Blame:
    """Return who is to blame for failing elements.

    Args:
        event: The execution, with its tensors.
        failing: By output: the failing elements.
        execute: Runs the event's kernel on other inputs.
    """
    influence = influence_of(event, execute)
    floats = [i for i, value in enumerate(event.inputs) if not is_opaque(value) and is_float(value)]
    blame = Blame(influence)
    if isinstance(influence, Everything):
        failing, floats = _by_intervention(event, failing, floats, execute, blame)
    nans = {i: nan_mask(event.inputs[i]) for i in floats}
    infs = {i: inf_mask(event.inputs[i]) for i in floats}
    for k, mask in failing.items():
        out = as_array(event.outputs[k])
        is_nan, is_inf = mask & np.isnan(out), mask & ~np.isnan(out) & np.isinf(out)
        rest = _pass_on(blame, k, is_nan, nans, blame.follow)
        if event.type in ROWWISE and rest.any():
            infs = _fatal_of_row(event, infs)
        made = _pass_on(blame, k, rest, infs, blame.turned_from)
        blame.add(blame.turned, k, rest & ~made)
        blame.add(blame.made, k, made)
        rest = _pass_on(blame, k, is_inf, infs, blame.follow)
        blame.add(blame.made, k, _pass_on(blame, k, rest, nans, blame.follow))
    return blame


def _pass_on(blame: Blame, k: int, wanted: Mask, bad: Mapping[int, Mask], into: dict[int, Mask]) -> Mask:
    """Mark the bad input elements that influence the wanted ones; return the wanted ones that none influences."""
    if not wanted.any():
        return wanted
    reached = np.zeros(wanted.shape, bool)
    for i, mask in bad.items():
        if mask.any():
            reached |= blame.influence.forth(i, k, mask)
    explained = wanted & reached
    if explained.any():
        for i, mask in bad.items():
            if mask.any():
                blame.add(into, i, blame.influence.back(i, k, explained) & mask)
    return wanted & ~reached


def _fatal_of_row(event: OpEvent, infs: Mapping[int, Mask]) -> dict[int, Mask]:
    """+inf spoils a softmax whatever else the row holds; -inf only when it fills the row."""
    values = as_array(event.inputs[0])
    high = infs[0] & (values > 0)
    return {**infs, 0: infs[0] & (high | ~high.any(axis=-1, keepdims=True))}


def _by_intervention(
    event: OpEvent, failing: Mapping[int, Mask], floats: list[int], execute: Execute, blame: Blame
) -> tuple[Mapping[int, Mask], list[int]]:
    """For an op without a rule: run it again with bad input elements replaced by 1, to see which inputs matter.

    Returns the failing elements that inputs explain, and the inputs to blame for them.
    """
    bad = [i for i in floats if nonfinite(event.inputs[i]).any()]
    if event.error is not None or not bad or any(is_opaque(value) for value in (*event.inputs, *event.outputs)):
        return failing, floats
    clean = {i: _cleaned(event.inputs[i]) for i in bad}
    try:
        healthy = execute(event, [clean.get(i, value) for i, value in enumerate(event.inputs)])
        explained: dict[int, Mask] = {}
        for k, mask in failing.items():
            own = mask & nonfinite(healthy[k])
            blame.add(blame.made, k, own)
            if (mask & ~own).any():
                explained[k] = mask & ~own
        return explained, [i for i in bad if len(bad) == 1 or _suffices(event, i, clean, explained, execute)] or bad
    except Exception:  # the kernel does not take the replacement: every bad input stays under suspicion
        return failing, floats


def _suffices(event: OpEvent, i: int, clean: Mapping[int, Any], failing: Mapping[int, Mask], execute: Execute) -> bool:
    """Return whether input i alone, all others cleaned, makes the elements fail."""
    inputs = [value if j == i else clean.get(j, value) for j, value in enumerate(event.inputs)]
    outputs = execute(event, inputs)
    return any(bool((nonfinite(outputs[k]) & mask).any()) for k, mask in failing.items())


def _cleaned(value: Any) -> Any:
    array = np.array(value)
    array[~np.isfinite(array)] = 1
    return array
