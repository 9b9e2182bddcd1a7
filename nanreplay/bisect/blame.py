"""Which input elements are to blame for an op's failing elements, and which the op made bad itself.

A NaN is explained by NaN among the inputs, else by infinities (which the op turned into NaN); an
infinity by infinities, else by NaN. What is left over, the op made itself. So of a Sum over
[1, inf, NaN], which is NaN, only the NaN is followed. `walk` asks this of every op on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.influence import (
    ROWWISE,
    Copies,
    Everything,
    Execute,
    Influence,
    influence_of,
)
from nanreplay.bisect.tensor_stats import (
    Mask,
    both,
    either,
    inf_mask,
    is_float,
    is_opaque,
    is_some,
    nan_mask,
    none_of,
    nonfinite,
    without,
)
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent


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


def assign_blame(
    event: OpEvent,
    failing: Mapping[int, Mask],
    execute: Execute,
    influence: Influence | None = None,
) -> Blame:
    """Return who is to blame for failing elements.

    Args:
        event: The execution, with its tensors.
        failing: By output: the failing elements.
        execute: Runs the event's kernel on other inputs.
        influence: How the execution's elements depend on each other, where that is known already.
    """
    influence = influence or influence_of(event, execute)
    floats = []
    for i, value in enumerate(event.inputs):
        if not is_opaque(value) and is_float(value):
            floats.append(i)
    blame = Blame(influence)
    # For an op without a rule, "which elements" cannot be told, but "which inputs" can.
    if isinstance(influence, Everything):
        failing, floats = _by_intervention(event, failing, floats, execute, blame)
    # Of each output the failing elements are parted in three, and each part is handed back to the
    # inputs before the next is looked at: NaN that a NaN explains; of what is left, NaN that
    # infinities explain (the op turned them); infinities that infinities, or else NaN, explain.
    # What no bad input explains, the op made. The parts never overlap, so that an element has one
    # explanation.
    nans = {i: nan_mask(event.inputs[i]) for i in floats}
    infs: Mapping[int, Mask] = {}
    for k, mask in failing.items():
        is_nan = both(mask, nan_mask(event.outputs[k]))
        others = without(mask, is_nan)
        is_inf = both(others, inf_mask(event.outputs[k])) if is_some(others) else others
        unexplained = _pass_on(blame, k, is_nan, nans, blame.follow)
        # Searching large inputs for infinities is dear, and most failing elements are NaN from NaN.
        if not infs and (is_some(unexplained) or is_some(is_inf)):
            infs = {i: inf_mask(event.inputs[i]) for i in floats}
        if event.type in ROWWISE and is_some(unexplained):
            infs = _fatal_of_row(event, infs)
        made = _pass_on(blame, k, unexplained, infs, blame.turned_from)
        _mark(blame.turned, k, without(unexplained, made))
        _mark(blame.made, k, made)
        unexplained = _pass_on(blame, k, is_inf, infs, blame.follow)
        _mark(blame.made, k, _pass_on(blame, k, unexplained, nans, blame.follow))
    return blame


def reaching(influence: Influence, k: int, masks: Mapping[int, Mask]) -> Mapping[int, Mask]:
    """Return those of some inputs' masks whose input may influence output k.

    An op that hands on the gradients of all weights has hundreds of inputs and as many outputs:
    to ask each output about each input would take longer than all the other ops together.
    """
    if not isinstance(influence, Copies):
        return masks
    return {k: masks[k]} if k in masks else {}


def _mark(masks: dict[int, Mask], i: int, mask: Mask) -> None:
    """Mark more elements of one input or output."""
    if is_some(mask):
        masks[i] = either(masks[i], mask) if i in masks else mask


def _pass_on(
    blame: Blame, k: int, wanted: Mask, bad: Mapping[int, Mask], into: dict[int, Mask]
) -> Mask:
    """Mark the bad input elements that influence the wanted ones.

    Args:
        blame: What is known of the execution.
        k: The output that `wanted` is of.
        wanted: Output elements to explain.
        bad: By input: the bad elements.
        into: By input: where to mark them.

    Returns:
        The wanted elements that no bad element influences.
    """
    if not is_some(wanted):
        return wanted
    inputs = {}
    for i, mask in reaching(blame.influence, k, bad).items():
        if is_some(mask):
            inputs[i] = mask
    reached = none_of(wanted.shape)
    for i, mask in inputs.items():
        reached = either(reached, blame.influence.forth(i, k, mask))
    explained = both(wanted, reached)
    if is_some(explained):
        for i, mask in inputs.items():
            _mark(into, i, both(blame.influence.back(i, k, explained), mask))
    return without(wanted, reached)


def _fatal_of_row(event: OpEvent, infs: Mapping[int, Mask]) -> dict[int, Mask]:
    """Return the infinities that spoil a softmax.

    +inf does whatever else its row holds; -inf, which masks an element out, only when it fills
    the row.
    """
    values = as_array(event.inputs[0])
    is_positive = infs[0] & (values > 0)
    row_has_positive = is_positive.any(axis=-1, keepdims=True)
    return {**infs, 0: infs[0] & (is_positive | ~row_has_positive)}


def _by_intervention(
    event: OpEvent, failing: Mapping[int, Mask], floats: list[int], execute: Execute, blame: Blame
) -> tuple[Mapping[int, Mask], list[int]]:
    """For an op without a rule: run it again with bad input elements replaced by 1.

    What is non-finite all the same, the op made. Of several bad inputs, those are to blame that
    spoil the output alone.

    Returns:
        The failing elements that inputs explain, and the inputs to blame for them.
    """
    bad = []
    for i in floats:
        if nonfinite(event.inputs[i]).any():
            bad.append(i)
    has_handles = any(map(is_opaque, (*event.inputs, *event.outputs)))
    if event.error is not None or not bad or has_handles:
        return failing, floats
    clean = {i: _cleaned(event.inputs[i]) for i in bad}
    try:
        healthy = execute(event, [clean.get(i, value) for i, value in enumerate(event.inputs)])
        is_own = {k: nonfinite(healthy[k]) for k in failing}
        explained = {k: mask & ~is_own[k] for k, mask in failing.items()}
        guilty = bad
        if len(bad) > 1:
            guilty = [i for i in bad if _suffices(event, i, clean, explained, execute)] or bad
    except Exception:  # the kernel does not take the replacement: every bad input stays suspected
        return failing, floats
    # Noted only now: where a run failed, nothing is known of what the op made itself.
    for k, mask in failing.items():
        _mark(blame.made, k, mask & is_own[k])
    return {k: mask for k, mask in explained.items() if mask.any()}, guilty


def _suffices(
    event: OpEvent, i: int, clean: Mapping[int, Any], failing: Mapping[int, Mask], execute: Execute
) -> bool:
    """Return whether input i alone, all others cleaned, makes the elements fail."""
    inputs = []
    for j, value in enumerate(event.inputs):
        inputs.append(value if j == i else clean.get(j, value))
    outputs = execute(event, inputs)
    return any(bool((nonfinite(outputs[k]) & mask).any()) for k, mask in failing.items())


def _cleaned(value: Any) -> Any:
    array = as_array(value).copy()
    array[~np.isfinite(array)] = 1
    return array
