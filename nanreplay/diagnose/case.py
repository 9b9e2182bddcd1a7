"""Everything that the rules of `rules/` may look at, asked for when it is needed. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect import Bisection
from nanreplay.bisect.growth import Growth, find_growth
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import Mask, is_float
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.failure_graph import Graph
from nanreplay.diagnose.outliers import Outlier, find_outliers
from nanreplay.findings import Origin, Verdict
from nanreplay.records import OpInfo, Timeline
from nanreplay.replay.provenance import OpEvent, ValueId

# --- diagnose.case

Values = NDArray[Any]
_HALF, _FLOAT32 = 19, 1
"""Numbers of DT_HALF and DT_FLOAT in TensorFlow's enum of types."""
_UPSTREAM = 8
"""How many ops back the values of finite tensors are kept in the second run."""


class _Seen(Exception):
    """The origin has run; nothing after it is wanted."""


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
        found = self.replay.ops(self.step).get((self.info.forward_function, self.info.forward))
        return found.type if found is not None else ""

    @property
    def is_backward(self) -> bool:
        """Whether the origin belongs to the backward pass."""
        return self.origin is not None and self.origin.phase == "backward"

    @property
    def fact(self) -> Fact | None:
        """The origin's execution, None for an array of the batch or where only the compiled step fails."""
        return self.bisection.suspect.fact if self.bisection.suspect is not None else None

    @property
    def event(self) -> OpEvent | None:
        """The origin's execution with its tensors."""
        return self.fact.event if self.fact is not None else None

    @property
    def kind(self) -> str:
        """How the origin made it: `made`, `turned`, `used`, `raised`, `input`, or "" where nothing ran op by op."""
        return self.bisection.suspect.kind if self.bisection.suspect is not None else ""

    @cached_property
    def graph(self) -> Graph | None:
        """The origin's step as a graph; None where only the compiled step fails."""
        return Graph(self.bisection.scene) if self.bisection.scene is not None else None

    @property
    def value(self) -> float:
        """The first bad element."""
        outputs = self.origin.outputs if self.origin is not None else ()
        found = outputs[0].value if outputs else None
        return float(found) if isinstance(found, (int, float)) else float("nan")

    @property
    def dtype(self) -> str:
        """Type of the bad output, "" where it is not known."""
        outputs = self.origin.outputs if self.origin is not None else ()
        return outputs[0].dtype if outputs else ""

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
        return (
            next(iter(self.bisection.suspect.masks.values()), None)
            if self.bisection.suspect is not None
            else None
        )

    def operand(self, i: int) -> Values:
        """Return an input at the failing elements (all of it where elements cannot be told apart); empty when unknown."""
        if self.event is not None:
            if i >= len(self.event.inputs) or not is_float(self.event.inputs[i]):
                return np.zeros(0)
            array = _float64(self.event.inputs[i])
            if self.mask is None:
                return array.reshape(-1)
            try:
                return as_array(np.broadcast_to(array, self.mask.shape)[self.mask])
            except ValueError:
                return array.reshape(-1)
        operands = self.origin.operands if self.origin is not None else ()
        value = operands[i].value if i < len(operands) else None
        return np.array([value], np.float64) if isinstance(value, (int, float)) else np.zeros(0)

    @property
    def n_inputs(self) -> int:
        """How many inputs the origin has."""
        return (
            len(self.event.inputs)
            if self.event is not None
            else len(self.origin.operands if self.origin is not None else ())
        )

    def input_id(self, i: int) -> ValueId | None:
        """Return the identity of an input, None where nothing ran op by op."""
        return (
            self.fact.input_ids[i]
            if self.fact is not None and i < len(self.fact.input_ids)
            else None
        )

    # In words

    @property
    def place(self) -> str:
        """Where the first bad element is: ` at [5, 0]`, "" for a scalar."""
        outputs = self.origin.outputs if self.origin is not None else ()
        index = outputs[0].indices[0] if outputs and outputs[0].indices else ()
        return f" at {list(index)}" if index else ""

    @property
    def count(self) -> str:
        """How many elements: "1 of 96 elements"."""
        outputs = self.origin.outputs if self.origin is not None else ()
        if not outputs:
            return "its output"
        return f"{outputs[0].nonfinite} of {outputs[0].size} elements"

    def subject(self, i: int) -> str:
        """Name an operand: an array of the batch, a variable, else the output of the op that made it."""
        operands = self.origin.operands if self.origin is not None else ()
        name = operands[i].name if i < len(operands) else ""
        if not name or ":" not in name:
            return f"`{name}`" if name else "the operand"
        value = self.input_id(i)
        maker = self.graph.maker(value) if self.graph is not None and value is not None else None
        return f"the output of `{maker.type}`" if maker is not None else f"`{name}`"

    @property
    def where(self) -> str:
        """Layer or part of the step: " in layer `norm`", " in the loss"."""
        if self.origin is None:
            return ""
        if self.origin.layer_path:
            return f" in layer `{self.origin.layer_path}`"
        return {
            "loss": " in the loss",
            "optimizer": " in the optimizer",
            "input": " in the input",
        }.get(self.origin.where, "")

    # The second run

    @cached_property
    def kept(self) -> Mapping[int, OpEvent]:
        """Executions upstream of the origin, with their tensors, by serial of the first run."""
        fact, graph = self.fact, self.graph
        if fact is None or graph is None:
            return {}
        wanted = {
            (each.key, each.calls): each.serial
            for value in fact.input_ids
            for each in graph.upstream(value, _UPSTREAM)
        }
        found: dict[int, OpEvent] = {}

        def keep(event: OpEvent) -> None:
            key = ((event.function, event.name), event.calls)
            if key in wanted:
                found[wanted[key]] = event
            if key == (fact.key, fact.calls):
                raise _Seen

        try:
            self.replay.run(self.step, keep)
        except (
            Exception
        ):  # `_Seen`, or a kernel that raises op by op: what has run until then is kept
            return found
        return found

    def in_float32(self, event: OpEvent) -> Sequence[Values] | None:
        """Run the kernel of a half-precision op on its operands widened to float32; None when it cannot be run so."""
        attrs = {
            name: type(value)(type=_FLOAT32) if getattr(value, "type", 0) == _HALF else value
            for name, value in event.attrs.items()
        }
        if event.type == "Cast":
            return [as_array(event.inputs[0])]
        wide = [
            as_array(each).astype(np.float32) if is_float(each) else each for each in event.inputs
        ]
        try:
            return [
                as_array(made)
                for made in self.replay.execute(dataclasses.replace(event, attrs=attrs), wide)
            ]
        except Exception:  # the kernel does not take float32 here
            return None

    # The window

    @cached_property
    def growth(self) -> Growth | None:
        """What grew before the origin, None when nothing did."""
        return find_growth(self.timeline, self.step, [info.path for info in self.replay.variables])

    @cached_property
    def outliers(self) -> tuple[Outlier, ...]:
        """Values of the failing batch far out of the range of other rows, the farthest first; proven rows only, where known."""
        rows = self.origin.rows if self.origin is not None else None
        return find_outliers(
            self.replay,
            self.step,
            rows,
            self.origin.batch_prefix if self.origin is not None else "",
        )


def _float64(value: Any) -> Values:
    array = as_array(value)
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def shown(value: float) -> str:
    """Return a number as sentences show it: 0.0, not 0."""
    return (
        f"{value:.1f}"
        if value == int(value if np.isfinite(value) else 0) and abs(value) < 1e6
        else f"{value:.6g}"
    )


def capital(text: str) -> str:
    """Return a text with a capital first letter, unless it begins with a name in backticks."""
    return text[:1].upper() + text[1:]
