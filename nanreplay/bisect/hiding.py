"""Finite values that depend on a NaN: ops that hide one, and where what they gave goes.

`MaxPool` gives -3.4e38 for a window of NaN, `Cast` to an integer -2147483648, `Greater` False. What
is then made of that value (an overflow, a lookup that fails, a logarithm of 0) is a consequence,
though all that the op got was finite. `HiddenValues` follows such elements forward as a step runs;
the walk back goes through the op that hid the NaN to where the NaN came from. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.bisect.blame import reaching
from nanreplay.bisect.influence import (
    COMPARISONS,
    ELEMENTWISE,
    LOGICAL,
    Execute,
    influence_of,
)
from nanreplay.bisect.nan_behaviour import outcomes
from nanreplay.bisect.tensor_stats import (
    FLOATS,
    Mask,
    compact,
    dtype_name,
    is_float,
    is_opaque,
    nan_mask,
    nonfinite,
    words,
)
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent, ValueId

_LEAVES_OUT = words(
    "Assert CheckNumerics CheckNumericsV2 DivNoNan IsFinite IsInf IsNan MulNoNan OnesLike Rank "
    "Shape ShapeN Size Xdivy Xlog1py Xlogy ZerosLike"
)
"""Ops that are there to tell a NaN, or to leave one out, or that do not look at values."""
_TAKES_GRADIENT_FIRST = words("EluGrad LeakyReluGrad Relu6Grad ReluGrad SeluGrad")
"""Ops that drop an incoming gradient where the forward pass was flat: they hide nothing by it."""
_CHOOSERS = words("Select SelectV2")
_BY_ELEMENT = ELEMENTWISE | COMPARISONS | LOGICAL | _CHOOSERS
_UPDATES = ("Assign", "ResourceApply", "ResourceSparseApply")
"""How the types of ops begin that compute a variable's new value element by element."""
_LOOKUPS = words("Gather GatherV2 ResourceGather")


@dataclass(frozen=True, slots=True)
class Hidden:
    """Elements of a value that depend on a NaN which an op has hidden."""

    mask: Mask
    hiders: frozenset[int]
    """Serials of the ops that hid it."""


@dataclass(slots=True)
class HiddenValues:
    """What a step's run showed of hidden NaN, value by value."""

    execute: Execute
    known: dict[ValueId, Hidden] = field(default_factory=dict)
    hiders: dict[int, dict[int, Mask]] = field(default_factory=dict)
    """By serial of an op that hid a NaN: the elements that it hid, by input."""

    def see(self, event: OpEvent, nonfinite_inputs: Mapping[int, bool]) -> bool:
        """Follow hidden NaN through an op; returns whether the op itself hides one.

        Args:
            event: The op as it ran, with its outputs.
            nonfinite_inputs: Inputs that hold a NaN or an infinity, and whether a NaN is among it.
        """
        hidden = self._hidden_by(event, nonfinite_inputs)
        is_carrier = any(value in self.known for value in (*event.input_ids, *event.via))
        if hidden is None and not is_carrier:
            return False
        shapes = [_shape(output) for output in event.outputs]
        for k in range(len(shapes)):
            mask = np.zeros(shapes[k], bool)
            hiders: set[int] = set()
            for part in self._carried(event, k):
                mask = mask | part.mask
                hiders |= part.hiders
            if hidden is not None and hidden[k].any():
                mask = mask | hidden[k]
                hiders.add(event.serial)
            if hiders and mask.any():
                self.known[ValueId(event.serial, k)] = Hidden(compact(mask), frozenset(hiders))
        return event.serial in self.hiders

    def see_raised(self, event: OpEvent) -> None:
        """Note an op that raised: what it got is all that can be told of what it would have given.

        Its number stands for its outputs.
        """
        reached = []
        for value in event.input_ids:
            if value in self.known:
                reached.append(self.known[value])
        hiders: frozenset[int] = frozenset().union(*(part.hiders for part in reached))
        if hiders:
            shapes = [_shape(output) for output in event.outputs] or [()]
            for k, shape in enumerate(shapes):
                self.known[ValueId(event.serial, k)] = Hidden(_all(shape), hiders)

    def behind(self, serial: int) -> frozenset[int]:
        """Return the ops whose hidden NaN the outputs of an op depend on."""
        # An op may have several outputs, each behind other ops that hid a NaN.
        hiders = [part.hiders for value, part in self.known.items() if value.serial == serial]
        return frozenset().union(*hiders)

    def _hidden_by(self, event: OpEvent, nonfinite_inputs: Mapping[int, bool]) -> list[Mask] | None:
        """Return, by output, the finite elements that a NaN among the inputs influences."""
        sources = {}
        for i, has_nan in nonfinite_inputs.items():
            hideable = _hideable(event, i) if _may_hide(event, i, has_nan) else None
            if hideable is not None and hideable.any():
                sources[i] = hideable
        if not sources or all(map(is_opaque, event.outputs)):
            return None
        influence = influence_of(event, self.execute)
        is_whole = not influence.exact and any(
            is_float(output) and nonfinite(output).any() for output in event.outputs
        )
        if is_whole:  # which elements went on cannot be told, but that it went on can
            return None
        masks: list[Mask] = []
        for k, output in enumerate(event.outputs):
            reached = np.zeros(_shape(output), bool)
            for i, mask in reaching(influence, k, sources).items():
                reached = reached | influence.forth(i, k, mask)
            masks.append(reached & ~nonfinite(output) if is_float(output) else reached)
        if not any(mask.any() for mask in masks):
            return None
        self.hiders[event.serial] = sources
        return masks

    def _carried(self, event: OpEvent, k: int) -> Iterator[Hidden]:
        """Yield what of output k depends on hidden NaN among the inputs, or in storage."""
        shape = _shape(event.outputs[k])
        for value in event.via:
            part = self.known.get(value)
            if part is not None:
                same = part.mask.shape == shape
                yield Hidden(part.mask if same else _all(shape), part.hiders)
        carrying = []
        for i, value in enumerate(event.input_ids):
            if value in self.known:
                carrying.append(i)
        if not carrying or event.type in _LEAVES_OUT or event.type == "ReadVariableOp":
            return
        influence = influence_of(event, self.execute)
        for i in carrying:
            part = self.known[event.input_ids[i]]
            if part.mask.shape != _shape(event.inputs[i]):
                mask = _all(shape)
            elif event.type.startswith(_UPDATES) and part.mask.shape == shape:
                mask = part.mask
            elif influence.exact and (is_float(event.inputs[i]) or _labels_all(event.type)):
                mask = influence.forth(i, k, part.mask)
            else:
                mask = _chosen(event, i, part.mask, shape)
            if mask.any():
                yield Hidden(mask, part.hiders)


def _may_hide(event: OpEvent, i: int, has_nan: bool) -> bool:
    """Whether an op may give a finite element for a NaN (an infinity) in input i."""
    if event.type in _LEAVES_OUT or (i == 0 and event.type in _TAKES_GRADIENT_FIRST):
        return False
    if event.type in ("Equal", "NotEqual") and len(set(event.input_ids)) == 1:
        return False  # `x == x` asks whether x is NaN
    if event.type == "Cast":
        return dtype_name(event.outputs[0]) not in FLOATS
    letters = outcomes(event.type, i, "nan", "eager")
    return has_nan and (letters is None or "f" in letters)


def _hideable(event: OpEvent, i: int) -> Mask:
    """Return the elements of an input that may be hidden: NaN, and what no integer can hold."""
    value = event.inputs[i]
    if is_opaque(value) or not is_float(value):
        return np.zeros(_shape(value), bool)
    return nonfinite(value) if event.type == "Cast" else nan_mask(value)


def _labels_all(op_type: str) -> bool:
    """Whether the rule of an op type holds for inputs that are no floats, too."""
    return op_type in _BY_ELEMENT - _CHOOSERS or op_type in ("All", "Any", "Identity", "Reshape")


def _chosen(event: OpEvent, i: int, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return the output elements that an index or a condition decides; all where none is known."""
    if event.type == "SelectV2":
        return np.broadcast_to(mask, shape)
    if event.type == "Select":
        return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
    if event.type in _LOOKUPS and i == 1:
        axis = int(as_array(event.inputs[2])) if len(event.inputs) > 2 else 0
        batch = event.attrs["batch_dims"].i if "batch_dims" in event.attrs else 0
        axis = axis % max(len(shape) - mask.ndim + 1, 1)
        trailing = len(shape) - axis - mask.ndim
        if not batch and trailing >= 0:
            return np.broadcast_to(mask.reshape(mask.shape + (1,) * trailing), shape)
    if event.type == "OneHot" and i == 0:
        axis = int(event.attrs["axis"].i) if "axis" in event.attrs else -1
        return np.broadcast_to(np.expand_dims(mask, axis), shape)
    return _all(shape)


def _shape(value: Any) -> tuple[int, ...]:
    return () if is_opaque(value) else tuple(map(int, value.shape))


def _all(shape: tuple[int, ...]) -> Mask:
    """Return a mask of ones that takes no memory."""
    return np.broadcast_to(np.True_, shape)
