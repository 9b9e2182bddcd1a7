"""One incident as the rules of `rules/` see it: everything they may ask, computed when asked.

A rule takes a `Case`. Its facts of the origin are there whenever an origin was found. Tensors and
the graph of the step are there only where the step fails op by op, not where only the compiled
step does. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect import Bisection
from nanreplay.bisect.growth import Growth, find_growth
from nanreplay.bisect.index_arrays import index_arrays
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.origin_facts import name_of
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import Mask, is_float, is_opaque
from nanreplay.bisect.upstream import (
    Element,
    LostInfinity,
    kept_upstream,
    lost_infinity,
    source_of_operand,
)
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.diagnose.outliers import Outlier, find_outliers
from nanreplay.errors import few_digits
from nanreplay.findings import OperandFacts, Origin, OutputFacts, Verdict
from nanreplay.records import OpInfo, Timeline
from nanreplay.replay.provenance import OpEvent, ValueId

Values = NDArray[Any]
HALF = ("float16", "half")
"""What TensorFlow and NumPy call half precision."""
_LARGEST: Mapping[str, float] = {
    **dict.fromkeys(HALF, float(np.finfo(np.float16).max)),
    "bfloat16": 255 * 2.0**120,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
_DT_HALF, _DT_FLOAT = 19, 1
"""Numbers of the types in TensorFlow's enum."""
_LAYERLESS = {"loss": " in the loss", "optimizer": " in the optimizer", "input": " in the input"}


@dataclass
class Case:
    """One incident, with the questions that rules ask of it."""

    replay: StepRunner
    bisection: Bisection
    verdict: Verdict
    timeline: Timeline

    # The origin

    @property
    def origin(self) -> Origin | None:
        """Where the first non-finite value was born."""
        return self.bisection.findings.origin

    @property
    def step(self) -> int:
        """Step of the origin, of the incident where there is none."""
        return self.replay.incident.step if self.origin is None else self.origin.step

    @property
    def op(self) -> str:
        """Type of the origin's op, "" where there is none."""
        return (self.origin.op_type if self.origin is not None else None) or ""

    @cached_property
    def info(self) -> OpInfo | None:
        """What the program's table says of the origin's op."""
        if self.fact is not None:
            return self.replay.ops(self.step).get(self.fact.key)
        name = self.origin.op_name if self.origin is not None else None
        return None if name is None else self.replay.ops(self.step).get(("", name))

    @cached_property
    def forward(self) -> str:
        """Type of the forward op whose gradient the origin computes, "" where it computes none."""
        if self.info is None or not self.info.forward:
            return ""
        key = (self.info.forward_function, self.info.forward)
        forward_info = self.replay.ops(self.step).get(key)
        return forward_info.type if forward_info is not None else ""

    @property
    def is_backward(self) -> bool:
        """Whether the origin belongs to the backward pass."""
        return self.origin is not None and self.origin.phase == "backward"

    @property
    def fact(self) -> Fact | None:
        """The origin's execution.

        None for an array of the batch or where only the compiled step fails.
        """
        return self.bisection.suspect.fact if self.bisection.suspect is not None else None

    @property
    def event(self) -> OpEvent | None:
        """The origin's execution with its tensors."""
        return self.fact.event if self.fact is not None else None

    @property
    def kind(self) -> str:
        """How the origin made it: `made`, `turned`, `used`, `raised` or `input`.

        "" where nothing ran op by op.
        """
        return self.bisection.suspect.kind if self.bisection.suspect is not None else ""

    @cached_property
    def graph(self) -> FailureGraph | None:
        """The origin's step as a graph; None where only the compiled step fails."""
        return FailureGraph(self.bisection.scene) if self.bisection.scene is not None else None

    @property
    def output(self) -> OutputFacts | None:
        """The first bad output of the origin."""
        outputs = self.origin.outputs if self.origin is not None else ()
        return outputs[0] if outputs else None

    @property
    def value(self) -> float:
        """The first bad element; NaN where it is not known."""
        element = self.output.value if self.output is not None else None
        return float(element) if isinstance(element, (int, float)) else float("nan")

    @property
    def dtype(self) -> str:
        """Type of the bad output, "" where it is not known."""
        return self.output.dtype if self.output is not None else ""

    @property
    def is_infinite(self) -> bool:
        """Whether the first bad element is an infinity, not NaN."""
        return bool(np.isinf(self.value))

    @property
    def code(self) -> str:
        """The line of user code, "" where it is not known."""
        source = self.origin.source if self.origin is not None else None
        return (source.code if source is not None else None) or ""

    # Operands

    @cached_property
    def mask(self) -> Mask | None:
        """Which elements of its first bad output the origin made bad."""
        suspect = self.bisection.suspect
        return next(iter(suspect.masks.values()), None) if suspect is not None else None

    @property
    def leaves_weights_finite(self) -> bool:
        """Whether only losses failed in the step: no gradient and no variable."""
        scene = self.bisection.scene
        return scene is not None and all(target.what == "loss" for target in scene.targets)

    @property
    def operands(self) -> Sequence[OperandFacts]:
        """Facts of the origin's inputs, empty without an origin."""
        return self.origin.operands if self.origin is not None else ()

    def operand(self, i: int) -> Values:
        """Return an input at the failing elements; empty when unknown.

        All of it where elements cannot be told apart. Where only the compiled step fails, the one
        element that the facts of the origin hold.
        """
        if self.event is None:
            element = self.operands[i].value if i < len(self.operands) else None
            is_number = isinstance(element, (int, float))
            return np.array([element], np.float64) if is_number else np.zeros(0)
        if i >= len(self.event.inputs) or not is_float(self.event.inputs[i]):
            return np.zeros(0)
        array = _float64(self.event.inputs[i])
        if self.mask is None:
            return array.reshape(-1)
        try:
            return as_array(np.broadcast_to(array, self.mask.shape)[self.mask])
        except ValueError:  # not an element-wise op: the shapes do not fit
            return array.reshape(-1)

    def told(self, i: int) -> Values:
        """Return an input at the one element that sentences tell, the first that failed.

        As `operand` where elements cannot be told apart.
        """
        values = self.operand(i)
        is_by_element = self.mask is not None and values.shape == (int(self.mask.sum()),)
        return values[:1] if is_by_element else values

    def input_id(self, i: int) -> ValueId | None:
        """Return the identity of an input, None where nothing ran op by op."""
        if self.fact is None or i >= len(self.fact.input_ids):
            return None
        return self.fact.input_ids[i]

    # In words

    @property
    def place(self) -> str:
        """Where the first bad element is: ` at [5, 0]`, "" for a scalar."""
        indices = self.output.indices if self.output is not None else ()
        return f" at {list(indices[0])}" if indices and indices[0] else ""

    @property
    def count(self) -> str:
        """How many elements: "1 of 96 elements".

        Some may be left out by a mask: "13 of 96 elements (1 of them on the way to what failed)".
        """
        if self.output is None:
            return "all elements"
        count = f"{self.output.nonfinite} of {self.output.size} elements"
        failing = self.output.nonfinite if self.mask is None else int(self.mask.sum())
        if 0 < failing < self.output.nonfinite:
            count += f" ({failing} of them on the way to what failed)"
        return count

    def subject(self, i: int) -> str:
        """Name an operand: an array of the batch, a variable, else the output of its op."""
        name = self.operands[i].name if i < len(self.operands) else ""
        if not name or ":" not in name:
            return f"`{name}`" if name else "the operand"
        scene, source = self.bisection.scene, self.source(i)
        if scene is None or source is None:
            return f"`{name}`"
        maker = scene.trace.facts.get(source.value.serial)
        if maker is not None and maker.type not in ("Const", "ReadVariableOp"):
            return f"the output of `{maker.type}`"
        return f"`{name_of(scene.trace, source.value)}`"

    def subject_at(self, i: int) -> str:
        """Name an operand with the place in it of the first element that failed."""
        source = self.source(i)
        index = None if source is None else source.index
        if index is None:
            return f"{self.subject(i)}{self.place}"
        return f"{self.subject(i)}{f' at {list(index)}' if index else ''}"

    def lost_infinity(self, i: int) -> LostInfinity | None:
        """Return the infinity that an operand's first failing element, a number, was made of."""
        scene, suspect = self.bisection.scene, self.bisection.suspect
        if scene is None or suspect is None:
            return None
        return lost_infinity(scene, suspect, i, self.kept)

    def source(self, i: int) -> Element | None:
        """Return what an operand's first failing element was made as; None where nothing ran."""
        scene, suspect = self.bisection.scene, self.bisection.suspect
        if scene is None or suspect is None:
            return None
        return source_of_operand(scene, suspect, i, self.kept)

    @property
    def where(self) -> str:
        """Layer or part of the step: " in layer `norm`", " in the loss"."""
        if self.origin is None:
            return ""
        if self.origin.layer_path:
            return f" in layer `{self.origin.layer_path}`"
        return _LAYERLESS.get(self.origin.where, "")

    # Executions

    @property
    def kept(self) -> Mapping[int, OpEvent]:
        """Executions upstream of the origin, with their tensors, by serial."""
        return self.bisection.kept

    def input_of(self, fact: Fact, i: int) -> Values | None:
        """Return what an op of the step got, for which the step is run once more.

        None where nothing ran op by op, and for constants of the program.
        """
        scene, value = self.bisection.scene, fact.input_ids[i]
        if scene is None:
            return None
        if value.serial < 0:
            fed = scene.trace.value(value)
            return None if fed is None or is_opaque(fed) else as_array(fed)
        event = kept_upstream(scene, fact).get(value.serial)
        return None if event is None else as_array(event.outputs[value.output])

    def forward_input(self, i: int) -> Values | None:
        """Return what the forward op got whose gradient the origin computes.

        At the element that is told, where the shapes are those of the origin; all of it elsewhere.
        None where it is not known, or where the forward op ran several times.
        """
        runs = [] if self.graph is None or self.fact is None else self.graph.forward_of(self.fact)
        if len(runs) != 1 or i >= len(runs[0].input_ids):
            return None
        values = self.input_of(runs[0], i)
        if values is None or self.mask is None or values.shape != self.mask.shape:
            return None if values is None else values.reshape(-1)
        return as_array(values[self.mask][:1])

    def told_of(self, fact: Fact) -> Values | None:
        """Return what an op upstream gave, at the element that is told; None where it is not known.

        All that it gave, where its elements are not those of the origin.
        """
        event = self.kept.get(fact.serial)
        if event is None:
            return None
        values = as_array(event.outputs[0])
        if self.mask is not None and self.mask.any():
            with contextlib.suppress(ValueError):  # the shapes do not fit
                return as_array(np.broadcast_to(values, self.mask.shape)[self.mask][:1])
        return values.reshape(-1)

    def in_float32(self, event: OpEvent) -> Sequence[Values] | None:
        """Run the kernel of a half-precision op on its operands widened to float32.

        None when it cannot be run so.
        """
        if event.type == "Cast":
            return [as_array(event.inputs[0])]
        attrs = dict(event.attrs)
        for name, value in event.attrs.items():
            if getattr(value, "type", 0) == _DT_HALF:
                attrs[name] = type(value)(type=_DT_FLOAT)
        widened = []
        for value in event.inputs:
            widened.append(_float32(value) if is_float(value) else value)
        try:
            outputs = self.replay.execute(dataclasses.replace(event, attrs=attrs), widened)
            return list(map(as_array, outputs))
        except Exception:  # the kernel does not take float32 here
            return None

    # The window

    @cached_property
    def growth(self) -> Growth | None:
        """What grew before the origin, None when nothing did."""
        return find_growth(self.timeline, self.step, [info.path for info in self.replay.variables])

    @cached_property
    def outliers(self) -> tuple[Outlier, ...]:
        """Values of the failing batch far out of the range of other rows, the farthest first.

        Of the proven rows only, where they are known.
        """
        if self.origin is None:
            return find_outliers(self.replay, self.step)
        scene = self.bisection.scene
        indices = {} if scene is None else index_arrays(scene.trace)
        return find_outliers(
            self.replay,
            self.step,
            self.origin.recorded_rows,
            self.origin.batch_prefix,
            indices,
        )


def _float64(value: Any) -> Values:
    """Return an array to compute with; a complex one as it is."""
    array = as_array(value)
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def _float32(value: Any) -> Values:
    return as_array(value).astype(np.float32)


def largest_number(dtype: str) -> float | None:
    """Return the largest finite number of a type; None of a type that is not a real float."""
    return _LARGEST.get(dtype)


def shown(value: float) -> str:
    """Return a number as sentences show it: 0.0, not 0."""
    is_whole = np.isfinite(value) and value == int(value)
    return f"{value:.1f}" if is_whole and abs(value) < 1e6 else few_digits(value)


def capital(text: str) -> str:
    """Return a text with a capital first letter, unless it begins with a name in backticks."""
    return text[:1].upper() + text[1:]
