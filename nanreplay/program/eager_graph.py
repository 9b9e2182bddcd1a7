"""The GraphDef of a flat program: one node for each executed op, placeholders for what came from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from nanreplay.program.observation import Region
from nanreplay.records import CaptureSpec, InputSpec
from nanreplay.tensorflow_internals import tf_eager, tf_functions

_SMALL = 4096
"""Constants of at most this many bytes are written into the graph."""
_SEARCHED = 2**24
"""Arrays of the batch of at most this many bytes are searched for parts of them."""
_NUMBERS = "biuf"
_READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"})


class ExecutedOp(Protocol):
    """What is needed of an op that ran."""

    @property
    def type(self) -> str:
        """Op type."""
        ...

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Its input tensors."""
        ...

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes as the eager op was called with them."""
        ...

    @property
    def outputs(self) -> tuple[Any, ...]:
        """Its output tensors."""
        ...

    @property
    def stack(self) -> tuple[Region, ...]:
        """What was running."""
        ...


class Part(NamedTuple):
    """A part of an array of the batch."""

    leaf: int
    axis: int
    indices: Any
    """Index, or indices, on the axis."""


def _same(left: Any, right: Any) -> bool:
    """Whether `left`, converted, is `right` bit for bit."""
    with np.errstate(all="ignore"):
        return bool(np.ascontiguousarray(left).astype(right.dtype).tobytes() == right.tobytes())


def _find_part(leaf: Any, value: Any, axis: int) -> Any:
    """Index or range of indices on `axis` at which `leaf` holds `value`, None when nowhere."""
    size = leaf.shape[axis]
    if value.shape == leaf.shape[:axis] + leaf.shape[axis + 1 :]:
        return next((k for k in range(size) if _same(np.take(leaf, k, axis), value)), None)
    length = value.shape[axis] if value.ndim == leaf.ndim else size
    if length >= size or value.shape != (*leaf.shape[:axis], length, *leaf.shape[axis + 1 :]):
        return None
    starts = (
        k
        for k in range(size - length + 1)
        if _same(np.take(leaf, range(k, k + length), axis), value)
    )
    return next((list(range(k, k + length)) for k in starts), None)


class FlatGraph:
    """A GraphDef in the making: adds nodes for ops, and for the tensors that come from outside."""

    def __init__(
        self,
        variable_index: Mapping[int, int],
        leaves: Sequence[Any],
        paths: Sequence[str],
        functions: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph = tf.compat.v1.GraphDef()
        self.graph.versions.producer = (
            tf.compat.v1.get_default_graph().graph_def_versions.producer or 2000
        )
        self.inputs: list[InputSpec] = []
        self.captures: list[CaptureSpec] = []
        self.constants: list[Any] = []
        self.effects: list[str] = []
        self.names: list[str] = []
        """Node name of each op that was added."""
        self.made: dict[int, str] = {}
        """Tensor name by id of the EagerTensor."""
        self._kept: list[Any] = []
        self._variable_index = variable_index
        self.leaves = [np.asarray(leaf) for leaf in leaves]
        """Arrays of the batch; what came from outside of TensorFlow with NaN in it is added."""
        self.paths = list(paths)
        self._ids = {id(leaf): index for index, leaf in enumerate(leaves)}
        self._fed: dict[tuple[str, int], str] = {}
        self._uses: dict[int, tuple[list[str], list[str]]] = {}
        """By id of a resource: the last op that wrote it, and those that have read it since."""
        self._used: dict[str, int] = {}
        self._functions: set[str] = set()
        self._held_functions = functions or {}
        """FunctionDefs that TensorFlow may have forgotten."""

    def add(self, op: ExecutedOp) -> None:
        """Add one executed op."""
        names = [self.tensor(tensor) for tensor in op.inputs]
        scope = "/".join(region.name for region in op.stack if region.kind == "layer")
        if any(region.kind == "backward" for region in op.stack):
            scope = "gradient_tape" + (f"/{scope}" if scope else "")
        node = self.graph.node.add(
            name=self._unique(f"{scope}/{op.type}" if scope else op.type), op=op.type
        )
        node.input.extend(names)
        self._set_attrs(node, op)
        if op.type in self._held_functions:  # a function, called by its name
            self._add_held(op.type)
        self._order(node, op)
        for index, output in enumerate(op.outputs):
            self.made[id(output)] = f"{node.name}:{index}"
        self._kept.append(op.outputs)
        self.names.append(node.name)

    def tensor(self, tensor: Any) -> str:
        """Name of a tensor; one that no op made becomes a placeholder or a constant."""
        if id(tensor) not in self.made:
            self._kept.append(tensor)
            self.made[id(tensor)] = self._outside(tensor)
        return self.made[id(tensor)]

    def _outside(self, tensor: Any) -> str:
        if tensor.dtype in (tf.resource, tf.variant):
            name = self._placeholder("resource", tensor.dtype, tensor.shape)
            self.captures.append(CaptureSpec(name, variable=self._variable_index.get(id(tensor))))
            return name
        leaf = self._leaf_of(tensor)
        if leaf is None:
            part = self._part_of(tensor)
            if part is not None:
                return self._gathered(part, tensor)
            leaf = self._outside_data(tensor)
        if leaf is not None:
            return self._leaf(leaf, tensor.dtype)
        if tensor.dtype == tf.string or tensor.numpy().nbytes <= _SMALL:
            return self._const(tensor)
        name = self._placeholder("constant", tensor.dtype, tensor.shape)
        self.captures.append(CaptureSpec(name, constant=len(self.constants)))
        self.constants.append(tensor)
        return name

    def _leaf(self, leaf: int, dtype: Any) -> str:
        """The placeholder of an array of the batch, converted to `dtype`."""
        key = (dtype.name, leaf)
        if key not in self._fed:
            shape = tf.TensorShape(self.leaves[leaf].shape)
            self._fed[key] = self._placeholder("batch", dtype, shape)
            self.inputs.append(
                InputSpec(self._fed[key], leaf, self.paths[leaf], dtype.name, tuple(shape))
            )
        return self._fed[key]

    def _const(self, tensor: Any) -> str:
        node = self.graph.node.add(name=self._unique("Const"), op="Const")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(tensor))
        return f"{node.name}:0"

    def _leaf_of(self, tensor: Any) -> int | None:
        """Index of the batch's array that `tensor` is, or that it was converted from."""
        if id(tensor) in self._ids:
            return self._ids[id(tensor)]
        if tensor.dtype == tf.string:
            return None
        value = tensor.numpy()
        for index, leaf in enumerate(self.leaves):
            if (
                leaf.shape == value.shape
                and value.size > 1
                and leaf.dtype.kind in _NUMBERS
                and _same(leaf, value)
            ):
                return index
        return None

    def _part_of(self, tensor: Any) -> Part | None:
        """The part of an array of the batch that `tensor` was made from outside of TensorFlow: `x[:, 2]`, `x[4:8]`."""
        if tensor.dtype == tf.string or tensor.shape.num_elements() < 2:
            return None
        value = tensor.numpy()
        for index, leaf in enumerate(self.leaves):
            if leaf.dtype.kind not in _NUMBERS or leaf.nbytes > _SEARCHED:
                continue
            for axis in range(leaf.ndim):
                found = _find_part(leaf, value, axis)
                if found is not None:
                    return Part(index, axis, found)
        return None

    def _gathered(self, part: Part, tensor: Any) -> str:
        """A GatherV2 that takes a part of an array of the batch."""
        source = self._leaf(part.leaf, tensor.dtype)
        indices, axis = (
            self._const(tf.constant(part.indices, tf.int32)),
            self._const(tf.constant(part.axis, tf.int32)),
        )
        node = self.graph.node.add(name=self._unique("part_of_batch"), op="GatherV2")
        node.input.extend([source, indices, axis])
        node.attr["Tparams"].type = tensor.dtype.as_datatype_enum
        node.attr["Tindices"].type = node.attr["Taxis"].type = tf.int32.as_datatype_enum
        node.attr["batch_dims"].i = 0
        return f"{node.name}:0"

    def _outside_data(self, tensor: Any) -> int | None:
        """An array with NaN or infinities that came from outside of TensorFlow is data, whatever the step made it from."""
        if (
            not tensor.shape.rank
            or not tensor.dtype.is_floating
            or np.isfinite(tensor.numpy().astype(np.float64)).all()
        ):
            return None
        self.leaves.append(tensor.numpy())
        self.paths.append(f"made outside TensorFlow {len(self.leaves) - 1}")
        return len(self.leaves) - 1

    def _placeholder(self, kind: str, dtype: Any, shape: Any) -> str:
        node = self.graph.node.add(name=self._unique(kind), op="Placeholder")
        node.attr["dtype"].type = dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(shape.as_proto())
        return f"{node.name}:0"

    def _unique(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return f"{name}_{count}" if count else name

    def _set_attrs(self, node: Any, op: ExecutedOp) -> None:
        definition = tf_eager.op_definition(op.type)
        if definition is None:
            self._add_function(op.type)
            return
        kinds = {attr.name: attr.type for attr in definition.attr}
        for name, value in op.attrs.items():
            if name in kinds and value is not None:
                node.attr[name].CopyFrom(tf_eager.attr_value(value, kinds[name], name))
        for attr in definition.attr:
            if attr.name not in node.attr and attr.HasField("default_value"):
                node.attr[attr.name].CopyFrom(attr.default_value)
        for value in node.attr.values():
            for function in (value.func.name, *(each.name for each in value.list.func)):
                if function:
                    self._add_function(function)

    def _add_function(self, name: str) -> None:
        if name not in self._functions:
            for function in tf_functions.function_library(name):
                if function.signature.name not in self._functions:
                    self._functions.add(function.signature.name)
                    self.graph.library.function.add().CopyFrom(function)

    def _add_held(self, name: str) -> None:
        if name in self._functions:
            return
        function = self._held_functions[name]
        self._functions.add(name)
        self.graph.library.function.add().CopyFrom(function)
        for node in function.node_def:
            mentioned = [
                each.name
                for value in node.attr.values()
                for each in [*([value.func] if value.HasField("func") else ()), *value.list.func]
            ]
            for each in (*mentioned, node.op):
                if each in self._held_functions:
                    self._add_held(each)

    def _order(self, node: Any, op: ExecutedOp) -> None:
        """Ops on one resource keep the order in which they ran."""
        handles = [tensor for tensor in op.inputs if tensor.dtype == tf.resource]
        reads = op.type in _READS
        for handle in handles:
            written, read_since = self._uses.setdefault(id(handle), ([], []))
            node.input.extend(
                f"^{name}"
                for name in (written if reads else [*written, *read_since])
                if f"^{name}" not in node.input
            )
            if reads:
                read_since.append(node.name)
            else:
                self._uses[id(handle)] = ([node.name], [])
        if handles and not reads:
            self.effects.append(node.name)
