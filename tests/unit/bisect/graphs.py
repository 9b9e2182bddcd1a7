"""A step in numpy: a list of ops that runs as a replay would, without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nanreplay.records import (
    BatchRecord,
    Frame,
    GradientSpec,
    Incident,
    InputSpec,
    OpInfo,
    Signature,
    Trigger,
    VariableInfo,
)
from nanreplay.replay.matrix_changes import MatrixChange, change_between
from nanreplay.replay.provenance import OpEvent, ValueId

KERNELS: dict[str, Callable[..., Any]] = {
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "MatMul": np.matmul,
    "Neg": np.negative,
    "Tanh": np.tanh,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Reciprocal": np.reciprocal,
    "Pow": np.power,
    "Identity": lambda x: x,
    "Relu": lambda x: np.where(x > 0, x, np.where(np.isnan(x), x, 0)).astype(x.dtype),
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "RsqrtGrad": lambda y, dy: -0.5 * dy * y * y * y,
    "SqrtGrad": lambda y, dy: 0.5 * dy / y,
    "GatherNd": lambda x, indices: x[tuple(np.moveaxis(indices, -1, 0))],
    "MatrixDeterminant": np.linalg.det,
    "MatrixInverse": np.linalg.inv,
    "Cholesky": lambda x: np.where(np.linalg.eigvalsh(x)[..., :1, None] > 0, x, np.nan),
    "MatrixTriangularSolve": np.linalg.solve,
    "Acos": np.arccos,
    "Lgamma": lambda x: np.where((x == np.floor(x)) & (x <= 0) | (x > 1e37), np.inf, x),
    "UnsortedSegmentMax": lambda x, ids, count: np.array(
        [x[ids == i].max(initial=np.finfo(x.dtype).min) for i in range(int(count))], x.dtype
    ),
    "Prod": lambda x, axis: np.asarray(x.prod(tuple(np.atleast_1d(axis)))),
    "Transpose": np.transpose,
    "Where": np.argwhere,
    "StridedSlice": lambda x, begin: x[int(begin) :],
    "Atan2": np.arctan2,
    "Svd": lambda x: np.full(x.shape[:-1], np.inf, x.dtype),  # as of numbers near the largest one
    "FusedBatchNormV3": lambda x: (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0)),
    "FusedBatchNormV2": lambda x: (
        (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0) + x.dtype.type(1e-3))
    ),
    "Mean": lambda x, axis: np.asarray(
        x.mean(tuple(np.atleast_1d(axis))) if x.size else np.float32(np.nan)
    ),
    "ExpandDims": np.expand_dims,
    "Softmax": lambda x: (
        np.exp(x - x.max(-1, keepdims=True))
        / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    "Sum": lambda x, axis: np.asarray(x.sum(tuple(np.atleast_1d(axis)))),
    "Max": lambda x, axis: np.asarray(x.max(tuple(np.atleast_1d(axis)))),
    "SelectV2": lambda c, a, b: np.where(c, a, b),
    "Greater": np.greater,
    "ReadVariableOp": lambda x: x,
    "AssignVariableOp": lambda handle, x: None,
}
"""What each op type computes; a constant is an op type `Const`."""


class Handle(np.ndarray):
    """A variable's value that passes for a handle."""

    @property
    def dtype(self) -> Any:
        return _RESOURCE


class _Resource:
    name = "resource"


_RESOURCE = _Resource()


class Graph:
    """A step: ops are added by calling it, and run in this order.

    `phase` is what the ops that follow belong to.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, str, tuple[ValueId, ...], Any]] = []
        self.infos: dict[tuple[str, str], OpInfo] = {}
        self.leaves: list[Any] = []
        self.state: dict[int, Any] = {}
        self.feeds: list[tuple[str, int]] = []
        self.phase = "forward"
        self.layer = ""

    def batch(self, array: Any) -> ValueId:
        """Add an array of the batch."""
        self.leaves.append(np.asarray(array))
        self.feeds.append(("batch", len(self.leaves) - 1))
        return ValueId(-len(self.feeds), 0)

    def variable(self, array: Any) -> ValueId:
        """Add a variable's handle."""
        self.state[len(self.state)] = np.asarray(array)
        self.feeds.append(("variable", len(self.state) - 1))
        return ValueId(-len(self.feeds), 0)

    def const(self, array: Any) -> ValueId:
        """Add a constant."""
        return self("Const", constant=np.asarray(array))

    def __call__(
        self, op_type: str, *inputs: ValueId, constant: Any = None, forward: ValueId | None = None
    ) -> ValueId:
        """Add an op and return its output; `forward` is what it computes the gradient of."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append((name, op_type, inputs, constant))
        self.infos["", name] = OpInfo(
            "",
            name,
            op_type,
            self.layer,
            self.phase,
            "layer" if self.layer else "",
            -1,
            "" if forward is None else self.nodes[forward.serial][0],
            "",
        )
        return ValueId(len(self.nodes) - 1, 0)

    def name(self, value: ValueId) -> str:
        """Name of the tensor."""
        return f"{self.nodes[value.serial][0]}:0"


class GraphRunner:
    """Runs graphs as the steps of a window."""

    def __init__(
        self,
        graph: Graph,
        *,
        loss: ValueId | None = None,
        gradients: Sequence[ValueId] = (),
        trigger: Trigger | None = None,
        batches: Sequence[Sequence[Any]] = (),
        states: Sequence[Mapping[int, Any]] = (),
    ) -> None:
        self.graph = graph
        self.batches = [*batches, graph.leaves]
        self.states = [*states, graph.state] if states else [graph.state] * len(self.batches)
        self.steps = tuple(range(len(self.batches)))
        self.incident = Incident(self.steps[-1], trigger or Trigger("loss", "loss", "nan"))
        self.variables = [
            VariableInfo(f"v{i}", value.shape, "float32", "trainable")
            for i, value in graph.state.items()
        ]
        self.runs = 0
        inputs = tuple(
            InputSpec(f"x{i}:0", i, f"x{i}", leaf.dtype.name, leaf.shape)
            for i, leaf in enumerate(graph.leaves)
        )
        losses = () if loss is None else (graph.name(loss),)
        self._signature = Signature(
            "graph",
            inputs,
            (),
            losses=losses,
            gradients=tuple(GradientSpec(i, graph.name(g)) for i, g in enumerate(gradients)),
        )

    def compiled_event(self, step: int, op: str, *, one_by_one: bool = False) -> None:
        """Nothing is compiled here."""

    def signature(self, step: int) -> Signature:
        return self._signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        return self.graph.infos

    def batch(self, step: int) -> BatchRecord:
        return BatchRecord(
            "p0", self.batches[step], [f"x{i}" for i in range(len(self.batches[step]))]
        )

    def constants(self, step: int) -> Any:
        return ()

    def feed_names(self, step: int) -> Any:
        return self.graph.feeds

    def state(self, step: int) -> Mapping[int, Any]:
        return self.states[step]

    def change(self, step: int) -> MatrixChange:
        return change_between(self.variables, self.states[step], self.states[step + 1])

    def source(self, stack: int) -> Frame | None:
        return None

    def probe(self, step: int) -> dict[str, tuple[bool, bool]]:
        """The compiled step is as finite as the ops are."""
        return {}

    def inputs_of(self, step: int) -> dict[str, list[str]]:
        return {}

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        with np.errstate(all="ignore"):
            return [np.asarray(KERNELS[event.type](*(np.asarray(value) for value in inputs)))]

    def run(
        self,
        step: int,
        observer: Any,
        *,
        batch: Any = None,
        on_error: Any = None,
        fetches: Sequence[str] | None = None,
        update: bool = True,
    ) -> Mapping[str, Any]:
        self.runs += 1
        leaves = self.batches[step] if batch is None else batch
        sources = {
            "batch": leaves,
            "variable": {i: value.view(Handle) for i, value in self.states[step].items()},
        }
        values: dict[ValueId, Any] = {
            ValueId(-1 - i, 0): sources[kind][index]
            for i, (kind, index) in enumerate(self.graph.feeds)
        }
        found: dict[str, Any] = {}
        written: dict[ValueId, ValueId] = {}
        needed = None if update else self._needed(fetches or ())
        for serial, (name, op_type, inputs, constant) in enumerate(self.graph.nodes):
            if needed is not None and serial not in needed:
                continue
            arrays = tuple(values[value] for value in inputs)
            via: tuple[ValueId, ...] = ()
            if op_type == "AssignVariableOp":
                written[inputs[0]] = inputs[1]
            if op_type == "ReadVariableOp" and inputs[0] in written:
                via = (written[inputs[0]],)
                made: Any = values[via[0]]
            elif op_type == "Const":
                made = constant
            else:
                with np.errstate(all="ignore"):
                    made = KERNELS[op_type](*(array.view(np.ndarray) for array in arrays))
            outputs = () if made is None else (np.asarray(made),)
            observer(OpEvent(serial, "", name, op_type, (), arrays, inputs, outputs, {}, via))
            if outputs:
                values[ValueId(serial, 0)] = found[f"{name}:0"] = outputs[0]
        return {name: found[name] for name in fetches or () if name in found}

    def _needed(self, fetches: Sequence[str]) -> set[int]:
        """Serials of the ops that lead to some tensors."""
        nodes = list(self.graph.nodes)
        waiting = [i for i, node in enumerate(nodes) if f"{node[0]}:0" in fetches]
        needed: set[int] = set()
        while waiting:
            serial = waiting.pop()
            needed.add(serial)
            waiting += [value.serial for value in nodes[serial][2] if value.serial >= 0]
        return needed
