"""A recorded program in other float types: what it would have computed with more precision.

Every tensor of a narrow float type gets the wide one: constants, placeholders, variables, tensor
lists, function bodies. Ops that cannot follow keep their type between two casts: those that have no
kernel for the wide type, and those whose meaning is their type (a random draw takes other numbers
from the same seed in another type). Nothing is run here; diagnoses and what-if trials do that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError
from nanreplay.program.graph_nodes import constant_array
from nanreplay.program.lowerings import LOWERINGS
from nanreplay.program.safety import copied_graph
from nanreplay.records import ArrayLike, OpInfo, ProgramRecord, VariableInfo, ops_by_key
from nanreplay.tensorflow_internals import tf_eager
from nanreplay.tensorflow_internals.tf_kernels import has_kernel

TO_FLOAT64: Mapping[str, str] = {
    **dict.fromkeys(("half", "bfloat16", "float", "float8_e5m2", "float8_e4m3fn"), "double"),
    "complex64": "complex128",
}
"""Every float as float64."""
TO_FLOAT32: Mapping[str, str] = dict.fromkeys(("half", "bfloat16"), "float")
"""Half precision as float32."""
_BOUND_TO_TYPE = re.compile(
    r".*(Random|Multinomial|TruncatedNormal|StandardNormal|StatefulUniform|RngBitGenerator).*"
    r"|.*CandidateSampler.*"
    r"|Bitcast|Decode.*|ParseTensor|SerializeTensor|AsString|.*Quantize.*|Fingerprint|NextAfter"
)
"""Ops whose outcome is bound to the type: they stay as they are."""
_Types: TypeAlias = dict[int, int]
"""DataType enum of each narrow type to that of its wide one."""


class Widened(NamedTuple):
    """A program in other float types."""

    record: ProgramRecord
    narrow_ops: tuple[str, ...]
    """Types of ops that stayed narrow because there is no kernel for the wide type, sorted."""


def widen(record: ProgramRecord, types: Mapping[str, str] = TO_FLOAT64) -> Widened:
    """Do what `widened` does, and say which types of ops could not follow."""
    work = _Widening.of(record, types)
    return Widened(work.record(), tuple(sorted(work.without_kernel)))


def widened(record: ProgramRecord, types: Mapping[str, str] = TO_FLOAT64) -> ProgramRecord:
    """Return a program that computes in other float types and is called as before.

    Names of ops and tensors stay. A batch is fed in the types of the new signature; the variables
    it runs on must have the types that `widened_variables` gives. Ops that keep their type stand
    between ops of type `Cast`, named after them.

    ```python
    in_float32 = widened(record, {"half": "float", "bfloat16": "float"})
    ```

    Args:
        record: A program.
        types: Narrow type to wide type, by the names that `tf.dtypes.as_dtype` takes.
            `float: double` should come with `complex64: complex128`.

    Raises:
        ReplayError: The graph is broken.
    """
    return widen(record, types).record


def widened_variables(
    infos: Iterable[VariableInfo], types: Mapping[str, str] = TO_FLOAT64
) -> tuple[VariableInfo, ...]:
    """Return the table of variables that a widened program runs on."""
    numbers = _numbers(types)
    return tuple(replace(info, dtype=_renamed(info.dtype, numbers)) for info in infos)


def _numbers(types: Mapping[str, str]) -> _Types:
    numbers = {}
    for narrow, wide in types.items():
        numbers[_number(narrow)] = _number(wide)
    return numbers


def _number(dtype: str) -> int:
    return int(tf.dtypes.as_dtype(dtype).as_datatype_enum)


def _renamed(dtype: str, types: _Types) -> str:
    number = tf.dtypes.as_dtype(dtype).as_datatype_enum
    return tf.dtypes.as_dtype(types[number]).name if number in types else dtype


@dataclass(slots=True)
class _Widening:
    """The work on one program; `graph` is a copy of its own."""

    source: ProgramRecord
    graph: Any
    types: _Types
    functions: frozenset[str]
    without_kernel: set[str] = field(default_factory=set)
    casts: list[tuple[str, str, str]] = field(default_factory=list)
    """(function, op that kept its type, name of the Cast) of each cast."""
    known: dict[tuple[Any, ...], tuple[bool, bool]] = field(default_factory=dict)
    """What was decided, by op type and types."""

    @staticmethod
    def of(record: ProgramRecord, types: Mapping[str, str]) -> _Widening:
        """Widen a copy of the program's graph."""
        graph = copied_graph(record.graph)
        functions = frozenset(function.signature.name for function in graph.library.function)
        work = _Widening(record, graph, _numbers(types), functions)
        try:
            work._body("", graph.node)
            for function in graph.library.function:
                work._function(function)
        except (ValueError, KeyError, IndexError) as error:
            raise ReplayError(
                f"The program is broken and has no version in other types: {error}"
            ) from error
        return work

    def record(self) -> ProgramRecord:
        signature = self.source.signature
        inputs = tuple(
            replace(spec, dtype=_renamed(spec.dtype, self.types)) for spec in signature.inputs
        )
        return replace(
            self.source,
            graph=self.graph.SerializeToString(),
            signature=replace(signature, inputs=inputs),
            ops=(*self.source.ops, *self._cast_infos()),
            constants=tuple(map(self._constant, self.source.constants)),
        )

    def _cast_infos(self) -> Iterator[OpInfo]:
        """A cast belongs to the layer and phase of the op that it serves."""
        known = ops_by_key(self.source.ops) if self.casts else {}
        for function, op, name in self.casts:
            if (function, op) in known:
                yield replace(known[function, op], name=name, type="Cast")

    def _constant(self, value: ArrayLike) -> ArrayLike:
        kind = tf.dtypes.as_dtype(value.dtype)
        wide = self.types.get(kind.as_datatype_enum)
        if wide is None:
            return value
        return as_array(value).astype(tf.dtypes.as_dtype(wide).as_numpy_dtype)

    def _function(self, function: Any) -> None:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = self.types.get(argument.type, argument.type)
            # It repeats the types, and would contradict them now.
            argument.ClearField("experimental_full_type")
            for part in argument.handle_data:
                part.dtype = self.types.get(part.dtype, part.dtype)
        for attributes in function.arg_attr.values():
            self._attributes(attributes.attr)
        moved = self._body(function.signature.name, function.node_def)
        for name, tensor in function.ret.items():
            function.ret[name] = moved.get(tensor, tensor)

    def _body(self, function: str, nodes: Any) -> Mapping[str, str]:
        """Widen the nodes of one graph.

        Returns the names of narrow outputs, and of the tensors that stand for them now.
        """
        moved: dict[str, str] = {}
        casts: list[Any] = []
        for node in nodes:
            if node.op not in self.functions:
                casts += self._node(function, node, moved)
        # Most bodies need none: their ops have kernels for the wide type.
        if not casts:
            return moved
        for node in nodes:
            _rename_inputs(node, moved)
        # A cast in front of an op may take the output of an op that was kept narrow: it takes what
        # stands for it. The cast behind an op takes the narrow output itself.
        for node in casts:
            if not node.name.rpartition("/")[2].startswith("wide_"):
                _rename_inputs(node, moved)
        nodes.extend(casts)
        return moved

    def _node(self, function: str, node: Any, moved: dict[str, str]) -> list[Any]:
        """Widen one node; returns the casts that it needs, and notes them in `moved`."""
        definition = tf_eager.op_definition(node.op)
        if definition is None:
            return []
        stays, has_casts = self._decided(node, definition)
        if not has_casts:
            if not stays:
                self._widen_types(node)
            return []
        recorded_in = _kinds(definition.input_arg, node, definition)
        recorded_out = _kinds(definition.output_arg, node, definition)
        if not stays:
            self._widen_types(node)
        before = self._casts_before(function, node, definition, recorded_in)
        after = self._casts_after(function, node, definition, recorded_out, len(before), moved)
        if (before or after) and not _BOUND_TO_TYPE.fullmatch(node.op):
            self.without_kernel.add(node.op)
        return [*before, *after]

    def _widen_types(self, node: Any) -> None:
        self._attributes(node.attr)
        node.ClearField("experimental_type")

    def _casts_before(
        self, function: str, node: Any, definition: Any, recorded: Sequence[int]
    ) -> list[Any]:
        """Casts of the inputs that a node takes in another type than it is given now."""
        taken = _kinds(definition.input_arg, node, definition)
        positions = []
        for i, name in enumerate(node.input):
            if not name.startswith("^"):
                positions.append(i)
        casts = []
        for i, old, new in zip(positions, recorded, taken, strict=True):
            wide = self.types.get(old, old)
            if wide != new:
                cast = self._cast(function, node, f"narrow_{i}", node.input[i], wide, new)
                node.input[i] = f"{cast.name}:y:0" if function else cast.name
                casts.append(cast)
        return casts

    def _casts_after(
        self,
        function: str,
        node: Any,
        definition: Any,
        recorded: Sequence[int],
        n_before: int,
        moved: dict[str, str],
    ) -> list[Any]:
        """Casts of the outputs that a node gives in another type than is expected now.

        Args:
            function: The function that holds the node.
            node: The NodeDef.
            definition: Its OpDef.
            recorded: The types of its outputs in the recorded program.
            n_before: How many casts stand before it; the others are numbered from there.
            moved: Gets the names under which the narrow outputs were used.
        """
        made = _kinds(definition.output_arg, node, definition)
        outputs = _outputs(definition, node, function)
        casts: list[Any] = []
        for (names, tensor), old, new in zip(outputs, recorded, made, strict=True):
            wide = self.types.get(old, old)
            if wide != new:
                suffix = f"wide_{n_before + len(casts)}"
                cast = self._cast(function, node, suffix, tensor, new, wide)
                result = f"{cast.name}:y:0" if function else f"{cast.name}:0"
                moved.update(dict.fromkeys(names, result))
                casts.append(cast)
        return casts

    def _decided(self, node: Any, definition: Any) -> tuple[bool, bool]:
        """Whether a node keeps its types, and whether it needs casts.

        It needs some to keep a narrow type, or for a tensor whose type the op fixes.
        """
        declared = _declared_types(definition, node)
        key = node.op, tuple(declared.values())
        # A program has thousands of nodes and some dozen kinds of them.
        if key not in self.known:
            stays = self._stays(node.op, definition, declared)
            arguments = (*definition.input_arg, *definition.output_arg)
            is_fixed = any(argument.type in self.types for argument in arguments)
            is_narrow = not self.types.keys().isdisjoint(itertools.chain(*declared.values()))
            self.known[key] = stays, is_fixed or (stays and is_narrow)
        return self.known[key]

    def _stays(self, op: str, definition: Any, declared: Mapping[str, Sequence[int]]) -> bool:
        if _BOUND_TO_TYPE.fullmatch(op):
            return True
        wanted: dict[str, Sequence[int]] = {}
        for name, kinds in declared.items():
            wanted[name] = tuple(self.types.get(kind, kind) for kind in kinds)
        if wanted == declared:
            return False
        for attribute in definition.attr:
            allowed = attribute.allowed_values.list.type
            if allowed and not set(wanted.get(attribute.name, ())) <= set(allowed):
                return True
        return not (has_kernel(op, wanted) or op in LOWERINGS)

    def _attributes(self, attributes: Any) -> None:
        for value in attributes.values():
            if value.HasField("type"):
                value.type = self.types.get(value.type, value.type)
            elif value.HasField("list") and value.list.type:
                value.list.type[:] = [self.types.get(kind, kind) for kind in value.list.type]
            elif value.HasField("tensor") and value.tensor.dtype in self.types:
                value.tensor.CopyFrom(_converted(value.tensor, self.types[value.tensor.dtype]))

    def _cast(
        self, function: str, node: Any, suffix: str, tensor: str, source: int, target: int
    ) -> Any:
        name = f"{node.name}/{suffix}"
        self.casts.append((function, node.name, name))
        cast = tf.compat.v1.NodeDef(name=name, op="Cast", input=[tensor], device=node.device)
        cast.attr["SrcT"].type = source
        cast.attr["DstT"].type = target
        cast.attr["Truncate"].b = False
        return cast


def _rename_inputs(node: Any, moved: Mapping[str, str]) -> None:
    for i, name in enumerate(node.input):
        if name in moved:
            node.input[i] = moved[name]


def _is_type(attribute: Any) -> bool:
    return attribute.type in ("type", "list(type)")


def _declared(attribute: Any, node: Any) -> Sequence[int]:
    """The types that a node gives for one attribute of its OpDef, or the default ones."""
    value = node.attr.get(attribute.name, attribute.default_value)
    return tuple(value.list.type) if attribute.type == "list(type)" else (value.type,)


def _declared_types(definition: Any, node: Any) -> dict[str, Sequence[int]]:
    """The types that a node gives, by attribute of its OpDef."""
    attributes = []
    for attribute in definition.attr:
        if _is_type(attribute):
            attributes.append(attribute)
    return {attribute.name: _declared(attribute, node) for attribute in attributes}


def _kinds(arguments: Any, node: Any, definition: Any) -> list[int]:
    """DataType enum of each tensor that the inputs or outputs of an OpDef stand for."""
    declared = _declared_types(definition, node)
    kinds: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            kinds += declared[argument.type_list_attr]
        else:
            kind = argument.type or declared[argument.type_attr][0]
            kinds += [kind] * (node.attr[argument.number_attr].i if argument.number_attr else 1)
    return kinds


def _outputs(definition: Any, node: Any, function: str) -> Iterator[tuple[list[str], str]]:
    """Each output of a node: the names under which it may be used, and the one to use."""
    total = 0
    for argument in definition.output_arg:
        for i in range(len(_kinds([argument], node, definition))):
            name = f"{node.name}:{argument.name}:{i}" if function else f"{node.name}:{total}"
            yield [name] if function or total else [name, node.name], name
            total += 1


def _converted(tensor: Any, kind: int) -> Any:
    """A TensorProto in another type; one value that stands for all stays one."""
    wide = tf.dtypes.as_dtype(kind)
    values = constant_array(tensor).astype(wide.as_numpy_dtype)
    if values.size > 1 and (values == values.flat[0]).all():
        single = tf.make_tensor_proto(values.flat[0], wide)
        single.tensor_shape.CopyFrom(tensor.tensor_shape)
        return single
    return tf.make_tensor_proto(values, wide)
