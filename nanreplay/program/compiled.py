"""Calling a recorded program as it ran in training: compiled, with or without XLA, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.program.functions import avoid_known_functions
from nanreplay.program.safety import parse_graph, python_ops
from nanreplay.records import CaptureSpec, Signature

_PROBE = "nanreplay_probe:0"


class CompiledProgram:
    """A recorded program, imported once and callable many times.

    The fetches are those of the recorded step, and its assignments run, so that the graph optimizer sees the same
    graph as in training and fuses the same ops. More fetches may change the fusion and with it the last bit.

    Args:
        graph: A GraphDef, or its serialized bytes.
        signature: How it is called.
        jit: Compile with XLA, as a step recorded with `jit_compile=True` was.
        extra_fetches: More tensor names to return. `signature.watch` is fetched anyway, so asking for it changes nothing.
        extra_feeds: Tensor names to feed as well, such as recorded outputs of Python ops.
        probe: Tensor names whose NaN and infinities `probe_result` tells of after a call, measured inside the program.

    Raises:
        ReplayError: The graph cannot be imported, or lacks a tensor that the signature names.
        UnsupportedOpError: An op that calls Python is left to run.
    """

    def __init__(
        self,
        graph: Any,
        signature: Signature,
        *,
        jit: bool,
        extra_fetches: Sequence[str] = (),
        extra_feeds: Sequence[str] = (),
        probe: Sequence[str] = (),
    ) -> None:
        """Import `graph` and prune it to what the step returned and assigned."""
        self._signature = signature
        self._extra_fetches = tuple(extra_fetches)
        watch = (signature.watch,) if signature.watch else ()
        self._probe = tuple(probe)
        self.probe_result: dict[str, tuple[bool, bool]] = {}
        """(holds a NaN, holds an infinity) of each probed tensor in the last call."""
        self._fetched = tuple(dict.fromkeys((*signature.outputs, *watch, *extra_fetches, *((_PROBE,) if probe else ()))))
        feeds = [*(spec.tensor for spec in signature.inputs), *(spec.tensor for spec in signature.captures), *extra_feeds]
        self._pruned = _imported(graph, feeds, self._fetched, signature, probe)
        left = python_ops(self._pruned.graph.as_graph_def())
        if left:
            raise UnsupportedOpError("PyFunc", left[0], "its Python function is not in the capture")
        self._call = tf.function(self._pruned, jit_compile=True, autograph=False) if jit else self._pruned

    def __call__(
        self, batch: Sequence[Any], variables: Sequence[Any], constants: Sequence[Any] = (), extra: Sequence[Any] = ()
    ) -> tuple[list[Any], list[Any]]:
        """Run one step.

        Args:
            batch: Flattened arrays of the batch, by `InputSpec.leaf`.
            variables: `tf.Variable`s by index; the program reads and assigns them.
            constants: Captured tensors, by `CaptureSpec.constant`.
            extra: Values of `extra_feeds`.

        Returns:
            Tensors of `signature.outputs`, and tensors of `extra_fetches`.
        """
        fed = [_typed(batch[spec.leaf], spec.dtype) for spec in self._signature.inputs]
        fed += [capture_feed(spec, variables, constants) for spec in self._signature.captures]
        found = dict(zip(self._fetched, self._call(*fed, *map(tf.convert_to_tensor, extra)), strict=True))
        if self._probe:
            self.probe_result = {name: (bool(nan), bool(inf)) for name, (nan, inf) in zip(self._probe, found[_PROBE].numpy(), strict=True)}
        return [found[name] for name in self._signature.outputs], [found[name] for name in self._extra_fetches]


def capture_feed(spec: CaptureSpec, variables: Sequence[Any], constants: Sequence[Any]) -> Any:
    """Return what is fed to one capture: the handle of a variable, or a constant.

    Raises:
        ReplayError: The capture file holds neither.
    """
    if spec.variable is not None:
        return variable_handle(variables[spec.variable])
    if spec.constant is not None:
        return tf.convert_to_tensor(constants[spec.constant])
    raise ReplayError(f"The program uses the resource {spec.tensor!r} (a lookup table, an iterator), which the capture does not hold.")


def variable_handle(variable: Any) -> Any:
    """Return the resource handle of a `tf.Variable` or a Keras variable."""
    return variable.handle if hasattr(variable, "handle") else variable.value.handle


def _typed(value: Any, dtype: Any) -> Any:
    return value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value, dtype)


def _imported(graph: Any, feeds: Sequence[str], fetches: Sequence[str], signature: Signature, probe: Sequence[str]) -> Any:
    """Import a graph, add the probe and prune it to a ConcreteFunction."""
    parsed = tf.compat.v1.GraphDef()
    parsed.CopyFrom(parse_graph(graph))
    _clear_devices(parsed)
    avoid_known_functions(parsed)

    def build() -> None:
        tf.graph_util.import_graph_def(parsed, name="")
        if probe:
            tensors = [tf.compat.v1.get_default_graph().get_tensor_by_name(name) for name in probe]
            flags = [[tf.reduce_any(tf.math.is_nan(each)), tf.reduce_any(tf.math.is_inf(each))] for each in tensors]
            tf.stack([tf.stack(pair) for pair in flags], name=_PROBE.partition(":")[0])

    try:
        wrapped = tf.compat.v1.wrap_function(build, [])
        inside = wrapped.graph
        sources = [inside.get_tensor_by_name(name) for name in feeds]
        wanted: list[Any] = [inside.get_tensor_by_name(name) for name in fetches]
        wanted += [inside.get_operation_by_name(name) for name in signature.control_outputs]
        pruned = wrapped.prune(sources, wanted)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ReplayError(f"The recorded program cannot be imported: {error}") from error
    return _WithoutOps(pruned, len(fetches))


class _WithoutOps:
    """A pruned function that returns its tensors only, not the Nones of the ops among the fetches."""

    def __init__(self, pruned: Any, n_tensors: int) -> None:
        self.graph = pruned.graph
        self._pruned = pruned
        self._n_tensors = n_tensors

    def __call__(self, *inputs: Any) -> list[Any]:
        return list(self._pruned(*inputs)[: self._n_tensors])


def _clear_devices(graph: Any) -> None:
    for node in graph.node:
        node.device = ""
    for function in graph.library.function:
        for node in function.node_def:
            node.device = ""
