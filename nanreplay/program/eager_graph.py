"""The GraphDef of a flat program: one node for each op that ran eagerly, in order.

Tensors that no op of the step made become placeholders (arrays of the batch, handles, large
constants) or constants. `eager_program` builds programs of eager steps with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.program.graph_nodes import VARIABLE_READS, mentioned_functions
from nanreplay.program.observation import Region, layer_path
from nanreplay.records import MADE_BEFORE, MADE_OUTSIDE, CaptureSpec, InputSpec
from nanreplay.tensorflow_internals import tf_eager, tf_functions

_MAX_INLINE_BYTES = 4096
"""Constants of at most this size are written into the graph."""
_MAX_SEARCHED_BYTES = 2**24
"""Arrays of the batch of at most this size are searched for parts of them."""
_LEAST_BITS = 16
"""What a value must hold to be taken for a part of the batch: about 1 in 65,536 is so by chance."""
_FRACTION_BITS = 20
"""What one number that is no integer tells: two floats are hardly ever equal by chance."""
_NUMBER_KINDS = "biuf"
"""NumPy kinds of arrays of numbers: booleans, integers of both sorts, floats."""


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


class BatchPart(NamedTuple):
    """A part of an array of the batch."""

    leaf: int
    axis: int
    indices: Any
    """Index, or indices, on the axis."""


def _is_same(left: Any, right: Any) -> bool:
    """Whether `left`, converted, is `right` bit for bit."""
    with np.errstate(all="ignore"):
        converted = np.ascontiguousarray(left).astype(right.dtype)
    return bool(converted.tobytes() == right.tobytes())


def _information_bits(value: Any) -> float:
    """About how many bits tell an array from others like it: zeros and ones are met everywhere.

    The entropy of its elements, and `_FRACTION_BITS` for each distinct number that is no integer.
    So [0, 0, 0, 0] tells 0 bits, [0, 1, 1, 0] tells 4, and [0.31, 0.31] tells 20.
    """
    numbers, counts = np.unique(np.asarray(value, np.float64), return_counts=True)
    shares = counts / counts.sum()
    entropy = -float(np.sum(counts * np.log2(shares)))
    return entropy + _FRACTION_BITS * int(np.count_nonzero(numbers != np.trunc(numbers)))


def _find_part(leaf: Any, value: Any, axis: int) -> Any:
    """Index or range of indices on `axis` at which `leaf` holds `value`, None when nowhere.

    A value with a dimension less may be one element on the axis (`x[:, 2]`), one of the same rank a
    shorter range of it (`x[4:8]`).
    """
    size = leaf.shape[axis]
    around = leaf.shape[:axis], leaf.shape[axis + 1 :]
    if value.shape == around[0] + around[1]:
        for k in range(size):
            if _is_same(np.take(leaf, k, axis), value):
                return k
        return None
    length = value.shape[axis] if value.ndim == leaf.ndim else size
    if length >= size or value.shape != (*around[0], length, *around[1]):
        return None
    for start in range(size - length + 1):
        span = range(start, start + length)
        if _is_same(np.take(leaf, span, axis), value):
            return list(span)
    return None


def _proto(tensor: Any) -> Any:
    """A tensor as a proto; `make_tensor_proto` itself refuses a bfloat16 scalar of TensorFlow."""
    return tf.make_tensor_proto(tensor if tensor.dtype == tf.string else as_array(tensor))


class FlatGraph:
    """A GraphDef in the making: adds nodes for ops, and for the tensors that come from outside.

    Args:
        variable_index: Index in the table of variables, by id of the handle.
        leaves: Arrays of the batch.
        paths: A readable path for each.
        functions: FunctionDefs by name, of functions that TensorFlow may have forgotten.
        first_tensor: Number of a tensor that is older than those that the step made.
    """

    def __init__(
        self,
        variable_index: Mapping[int, int],
        leaves: Sequence[Any],
        paths: Sequence[str],
        functions: Mapping[str, Any] | None = None,
        first_tensor: int = 0,
    ) -> None:
        self._first_tensor = first_tensor
        self.graph = tf.compat.v1.GraphDef()
        default_versions = tf.compat.v1.get_default_graph().graph_def_versions
        self.graph.versions.producer = default_versions.producer or 2000
        self.inputs: list[InputSpec] = []
        self.captures: list[CaptureSpec] = []
        self.constants: list[Any] = []
        self.effects: list[str] = []
        self.has_arrays_of_python = False
        """Whether ops were given floats that are neither the batch nor variables: more than one."""
        self.names: list[str] = []
        """Node name of each op that was added."""
        self.made: dict[int, str] = {}
        """Tensor name by id of the EagerTensor."""
        self._kept: list[Any] = []
        """Tensors that are kept alive, so that no other one gets their id."""
        self._variable_index = variable_index
        self.leaves = list(map(as_array, leaves))
        """Arrays of the batch; what came from outside of TensorFlow with NaN in it is added."""
        self.paths = list(paths)
        self._tensor_leaves = {index for index, leaf in enumerate(leaves) if tf.is_tensor(leaf)}
        self._leaf_ids = {id(leaf): index for index, leaf in enumerate(leaves)}
        self._leaf_placeholders: dict[tuple[str, int], str] = {}
        """Tensor name by (dtype, leaf)."""
        self._uses: dict[int, tuple[list[str], list[str]]] = {}
        """By id of a resource: the last op that wrote it, and those that have read it since."""
        self._name_counts: dict[str, int] = {}
        self._functions: set[str] = set()
        """Names of the functions in the library of the graph."""
        self._held_functions = functions or {}

    def add(self, op: ExecutedOp) -> None:
        """Add one executed op."""
        names = list(map(self.tensor, op.inputs))
        scope = layer_path(op.stack)
        if any(region.kind == "backward" for region in op.stack):
            scope = "gradient_tape" + (f"/{scope}" if scope else "")
        name = f"{scope}/{op.type}" if scope else op.type
        node = self.graph.node.add(name=self._unique(name), op=op.type)
        node.input.extend(names)
        self._set_attrs(node, op)
        if op.type == "ReadVariableOp":  # the handle's placeholder does not tell it at import
            node.attr["_output_shapes"].list.shape.add().CopyFrom(op.outputs[0].shape.as_proto())
        if op.type in self._held_functions:  # a function, called as an op of its name
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
        """The name of a tensor that no op of the step made.

        In order of preference: a handle, an array of the batch, a part of one, data with NaN in it
        (which becomes an array of the batch), a constant.
        """
        if tensor.dtype in (tf.resource, tf.variant):
            name = self._placeholder("resource", tensor.dtype, tensor.shape)
            self.captures.append(CaptureSpec(name, variable=self._variable_index.get(id(tensor))))
            return name
        leaf = self._leaf_of(tensor)
        if leaf is None:
            part = self._part_of(tensor)
            if part is not None:
                return self._gathered(part, tensor)
            if tensor.dtype.is_floating and tensor.shape.num_elements() > 1:
                self.has_arrays_of_python = True
            leaf = self._outside_data(tensor)
        if leaf is not None:
            return self._leaf(leaf, tensor.dtype)
        if tensor.dtype == tf.string or tensor.numpy().nbytes <= _MAX_INLINE_BYTES:
            return self._const(tensor)
        name = self._placeholder("constant", tensor.dtype, tensor.shape)
        self.captures.append(CaptureSpec(name, constant=len(self.constants)))
        self.constants.append(tensor)
        return name

    def _leaf(self, leaf: int, dtype: Any) -> str:
        """The placeholder of an array of the batch, converted to `dtype`."""
        key = (dtype.name, leaf)
        if key not in self._leaf_placeholders:
            shape = tf.TensorShape(self.leaves[leaf].shape)
            name = self._placeholder("batch", dtype, shape)
            self._leaf_placeholders[key] = name
            self.inputs.append(InputSpec(name, leaf, self.paths[leaf], dtype.name, tuple(shape)))
        return self._leaf_placeholders[key]

    def _const(self, tensor: Any) -> str:
        node = self.graph.node.add(name=self._unique("Const"), op="Const")
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(_proto(tensor))
        return f"{node.name}:0"

    def _leaf_of(self, tensor: Any) -> int | None:
        """Index of the batch's array that `tensor` is, or that it was converted from."""
        if id(tensor) in self._leaf_ids:
            return self._leaf_ids[id(tensor)]
        if tensor.dtype == tf.string:
            return None
        value = tensor.numpy()
        if value.size <= 1:  # a single number may be equal by chance
            return None
        for index, leaf in enumerate(self.leaves):
            is_alike = leaf.shape == value.shape and leaf.dtype.kind in _NUMBER_KINDS
            if is_alike and _is_same(leaf, value) and not self._is_chance(index, value):
                return index
        return None

    def _is_chance(self, leaf: int, value: Any) -> bool:
        """Whether a value that equals an array of the batch may be another one, such as ones.

        A tensor of the batch goes into ops itself. An array of NumPy becomes a new tensor each time
        that TensorFlow is given it.
        """
        return leaf in self._tensor_leaves and _information_bits(value) < _LEAST_BITS

    def _part_of(self, tensor: Any) -> BatchPart | None:
        """The part of an array of the batch that NumPy made `tensor` from: `x[:, 2]`, `x[4:8]`."""
        if tensor.dtype == tf.string or tensor.shape.num_elements() < 2:
            return None
        value = tensor.numpy()
        if _information_bits(value) < _LEAST_BITS:
            return None
        for index, leaf in enumerate(self.leaves):
            if leaf.dtype.kind not in _NUMBER_KINDS or leaf.nbytes > _MAX_SEARCHED_BYTES:
                continue
            for axis in range(leaf.ndim):
                indices = _find_part(leaf, value, axis)
                if indices is not None:
                    return BatchPart(index, axis, indices)
        return None

    def _gathered(self, part: BatchPart, tensor: Any) -> str:
        """A GatherV2 that takes a part of an array of the batch."""
        source = self._leaf(part.leaf, tensor.dtype)
        indices = self._const(tf.constant(part.indices, tf.int32))
        axis = self._const(tf.constant(part.axis, tf.int32))
        node = self.graph.node.add(name=self._unique("part_of_batch"), op="GatherV2")
        node.input.extend([source, indices, axis])
        node.attr["Tparams"].type = tensor.dtype.as_datatype_enum
        node.attr["Tindices"].type = node.attr["Taxis"].type = tf.int32.as_datatype_enum
        node.attr["batch_dims"].i = 0
        return f"{node.name}:0"

    def _outside_data(self, tensor: Any) -> int | None:
        """Index of a new array of the batch, for data with NaN or infinities; None for other data.

        An array that the step's Python code made outside of TensorFlow may be the batch in another
        form. With such values in it, it is where the trouble came from, and no constant. A tensor
        that is older than the step may be what an earlier one left.
        """
        if not tensor.shape.rank or not tensor.dtype.is_floating:
            return None
        if np.isfinite(tensor.numpy().astype(np.float64)).all():
            return None
        self.leaves.append(tensor.numpy())
        is_older = tf_eager.number_of(tensor) < self._first_tensor
        made = MADE_BEFORE if is_older else MADE_OUTSIDE
        self.paths.append(f"{made} {len(self.leaves) - 1}")
        return len(self.leaves) - 1

    def _placeholder(self, kind: str, dtype: Any, shape: Any) -> str:
        node = self.graph.node.add(name=self._unique(kind), op="Placeholder")
        node.attr["dtype"].type = dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(shape.as_proto())
        return f"{node.name}:0"

    def _unique(self, name: str) -> str:
        count = self._name_counts.get(name, 0)
        self._name_counts[name] = count + 1
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
            for function in (value.func, *value.list.func):
                if function.name:
                    self._add_function(function.name)

    def _add_function(self, name: str) -> None:
        """Add a function that TensorFlow knows, with all that it calls."""
        if name in self._functions:
            return
        for function in tf_functions.function_library(name):
            if function.signature.name not in self._functions:
                self._functions.add(function.signature.name)
                self.graph.library.function.add().CopyFrom(function)

    def _add_held(self, name: str) -> None:
        """Add a function that TensorFlow may have forgotten, with all that it calls."""
        if name in self._functions:
            return
        function = self._held_functions[name]
        self._functions.add(name)
        self.graph.library.function.add().CopyFrom(function)
        for node in function.node_def:
            op_type, *in_attributes = mentioned_functions([node])
            for called in (*in_attributes, op_type):
                if called in self._held_functions:
                    self._add_held(called)

    def _order(self, node: Any, op: ExecutedOp) -> None:
        """Let ops on one resource keep the order in which they ran, by control dependencies.

        A read waits for the last write; a write waits for the last write and for all reads since.
        """
        handles = []
        for tensor in op.inputs:
            if tensor.dtype == tf.resource:
                handles.append(tensor)
        is_read = op.type in VARIABLE_READS
        for handle in handles:
            last_write, reads_since = self._uses.setdefault(id(handle), ([], []))
            for name in last_write if is_read else [*last_write, *reads_since]:
                if f"^{name}" not in node.input:
                    node.input.append(f"^{name}")
            if is_read:
                reads_since.append(node.name)
            else:
                self._uses[id(handle)] = ([node.name], [])
        if handles and not is_read:
            self.effects.append(node.name)
