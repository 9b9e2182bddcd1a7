"""Running one leaf op of a plan with an eager kernel, and the few ops that need something else.

The interpreter runs leaf ops through `LeafRunner`; `run_kernel` runs one op on any inputs, for
those who ask what an op would give on others.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsupportedOpError
from nanreplay.program.graph_nodes import count_outputs, rename_mentions
from nanreplay.program.lowered_graph import LoweredFunction, lowered_function
from nanreplay.program.nondeterministic_ops import NEVER_RUN, WRITES_OUTSIDE
from nanreplay.program.nonfinite_values import share_reads
from nanreplay.program.safety import PYTHON_OPS
from nanreplay.replay.interpreter_plan import Library, Step, decode_attributes, decode_constant
from nanreplay.tensorflow_internals import tf_eager, tf_functions

SILENT = frozenset("NoOp ControlTrigger PrintV2".split()) | NEVER_RUN
"""Ops that have no output and only talk to the outside: a replay leaves them out."""
RANDOM = frozenset(
    "StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomUniformInt "
    "StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 "
    "StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal "
    "StatelessTruncatedNormalV2 StatelessMultinomial StatelessRandomGetKeyCounter "
    "StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg "
    "StatelessParameterizedTruncatedNormal StatelessShuffle "
    "RandomUniform RandomStandardNormal RandomUniformInt TruncatedNormal RandomShuffle "
    "Multinomial StatefulUniform StatefulUniformInt StatefulUniformFullInt "
    "StatefulStandardNormalV2 StatefulTruncatedNormal RngReadAndSkip RngSkip "
    "XlaRngBitGenerator".split()
)
"""Ops that draw other numbers under XLA."""
_serials = itertools.count()


def asks_for_determinism(error: BaseException) -> bool:
    """Whether a kernel raised because op determinism is on, and it has no deterministic kernel."""
    # TensorFlow has no error class for this; all messages of such kernels hold the word
    return "determinis" in str(error).lower()


def run_kernel(op_type: str, attrs: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """Run an eager kernel on tensors or arrays.

    Args:
        op_type: Type of the op.
        attrs: Its attributes by name (AttrValue protos).
        inputs: Tensors, or arrays that become tensors of their own dtype.

    Raises:
        UnsupportedOpError: This TensorFlow has no such op.
    """
    definition = tf_eager.op_definition(op_type)
    if definition is None:
        raise UnsupportedOpError(op_type, op_type, "this TensorFlow has no such op")
    node = tf.compat.v1.NodeDef(op=op_type)
    for name, value in attrs.items():
        node.attr[name].CopyFrom(value)
    n_outputs = sum(count_outputs(argument, node) for argument in definition.output_arg)
    tensors = []
    for value in inputs:
        if isinstance(value, tf.Tensor):
            tensors.append(value)
        else:
            tensors.append(tf.convert_to_tensor(value))
    if op_type == "ReadVariableOp":
        share_reads(tensors[0])
    lowered = lowered_function(op_type, op_type, node.attr)
    if lowered is not None:
        return tf_functions.run_function(lowered.name, n_outputs, tensors)
    return tf_eager.run_op(op_type, n_outputs, tensors, decode_attributes(node, definition, {}))


class LeafRunner:
    """Runs leaf ops; knows the graph's library for kernels that call functions themselves."""

    def __init__(self, library: Library) -> None:
        """Functions of `library` are registered when the first kernel needs one."""
        self._library = library
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def run(self, step: Step, inputs: list[Any], compiled: bool) -> Sequence[Any]:
        """Return the outputs of one leaf op.

        Args:
            step: The op.
            inputs: Its input tensors.
            compiled: Whether the recorded program ran it under XLA.
        """
        if compiled and step.type in RANDOM:
            return self._run_compiled(step, inputs)
        special = _SPECIAL.get(step.type)
        if special is not None:
            return special(step, inputs)
        if step.needs_library:
            self._prepare(step)
        lowered = self._lowered(step)
        if lowered is not None:
            return tf_functions.run_function(lowered.name, step.n_outputs, inputs)
        return tf_eager.run_op(step.type, step.n_outputs, inputs, step.attrs)

    def _lowered(self, step: Step) -> LoweredFunction | None:
        """What runs in the place of an op that only a GPU runs, asked once for each."""
        if not step.lowered:
            step.lowered.append(lowered_function(step.type, step.name, step.node.attr))
        lowered: LoweredFunction | None = step.lowered[0]
        return lowered

    def _run_compiled(self, step: Step, inputs: list[Any]) -> Sequence[Any]:
        key = (step.type, step.node.SerializeToString())
        if key not in self._compiled:
            self._compiled[key] = _compile(step)
        outputs: Sequence[Any] = self._compiled[key](*inputs)
        return outputs

    def run_function(self, step: Step, inputs: list[Any]) -> Sequence[Any]:
        """Run a whole function of the library, compiled, as an eager step ran it."""
        if not self._library.registered:
            self._register()
        name = self._library.registered[step.callees[0]]
        return tf_functions.run_function(name, step.n_outputs, inputs)

    def _prepare(self, step: Step) -> None:
        """Let a step's attributes name the library's functions as they are registered."""
        if not self._library.registered:
            self._register()
        definition = self._library.definition(step.node)
        step.attrs = decode_attributes(step.node, definition, self._library.registered)
        step.needs_library = False

    def _register(self) -> None:
        """Register the library's functions with TensorFlow under names of their own.

        TensorFlow has one table of functions for a process, and a live training in it may have
        other functions of these names.
        """
        prefix = f"__nanreplay_{next(_serials)}_"
        renamed = {name: prefix + name for name in self._library.functions}
        for function in self._library.functions.values():
            tf_functions.register_function(_renamed(function, renamed))
        self._library.registered.update(renamed)
        weakref.finalize(self, _unregister, list(renamed.values()))


def _unregister(names: list[str]) -> None:
    for name in names:
        tf_functions.unregister_function(name)


def _renamed(function: Any, names: dict[str, str]) -> Any:
    copy = type(function)()
    copy.CopyFrom(function)
    copy.signature.name = names[function.signature.name]
    rename_mentions(copy.node_def, names)
    for node in copy.node_def:
        node.device = ""  # the machine that recorded it may have had other devices
    return copy


def _compile(step: Step) -> Any:
    """A function of one op, compiled by XLA."""

    def call(*inputs: Any) -> list[Any]:
        # `create_op` takes any op type with the node's own attributes; Python wrappers of ops do
        # not exist for all of them
        graph = tf.compat.v1.get_default_graph()
        attrs = {}
        for name, attr in step.node.attr.items():
            if not name.startswith("_"):
                attrs[name] = attr
        types = [tf.dtypes.as_dtype(kind) for kind in step.output_kinds]
        op = graph.create_op(step.type, list(inputs), types, attrs=attrs)
        return list(op.outputs)

    return tf_functions.xla_function(call)


def _unfed(step: Step, inputs: list[Any]) -> Sequence[Any]:
    # A program may hold one that nobody feeds; TensorFlow raises this when it runs the op.
    raise tf.errors.InvalidArgumentError(
        None, None, f"You must feed a value for placeholder tensor '{step.name}'"
    )


def _read(step: Step, inputs: list[Any]) -> Sequence[Any]:
    share_reads(inputs[0])
    outputs: Sequence[Any] = tf_eager.run_op(step.type, step.n_outputs, inputs, step.attrs)
    return outputs


def _python(step: Step, inputs: list[Any]) -> Sequence[Any]:
    raise UnsupportedOpError(step.type, step.name, "its Python function is not in the capture")


def _constant(step: Step, inputs: list[Any]) -> Sequence[Any]:
    if not step.constant:
        step.constant.append(decode_constant(step.node))
    return step.constant


def _nothing(step: Step, inputs: list[Any]) -> Sequence[Any]:
    return ()


def _first(step: Step, inputs: list[Any]) -> Sequence[Any]:
    return inputs[:1]


_SPECIAL: dict[str, Callable[[Step, list[Any]], Sequence[Any]]] = {
    "Const": _constant,
    "HostConst": _constant,
    "Placeholder": _unfed,
    "PlaceholderV2": _unfed,
    "Print": _first,
    "ReadVariableOp": _read,
    **dict.fromkeys(PYTHON_OPS, _python),
    **dict.fromkeys(SILENT, _nothing),
    **dict.fromkeys(WRITES_OUTSIDE, _nothing),
}
