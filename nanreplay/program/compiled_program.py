"""Calling a recorded program as it ran in training: compiled, with or without XLA, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.program.graph_editor import needed_part
from nanreplay.program.graph_nodes import avoid_known_functions
from nanreplay.program.nondeterministic_ops import cut_recorded_ops, fed_ops
from nanreplay.program.safety import parse_graph, python_ops
from nanreplay.records import CaptureSpec, ProgramRecord, Signature
from nanreplay.tensorflow_internals import tf_functions

# Hashes of tensors, the same in a compiled program and in numpy: what two runs of one program
# computed otherwise.

_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}
_HASHES = "nanreplay_hashes"


class BitHash(NamedTuple):
    """What is kept of one float tensor."""

    nonfinite: int
    """How many elements are NaN or infinite."""
    bits: int
    """Sum of the elements' bits as integers, modulo 2^64; zeros of both signs and all NaNs count alike."""
    places: int
    """The same sum with every element's bits multiplied by an odd number of its place."""


def hash_array(value: Any) -> BitHash:
    """Hash a float tensor or array."""
    array = np.asarray(value).reshape(-1)
    bits = array.view(f"i{array.dtype.itemsize}").astype(np.int64)
    bits = np.where((array == 0) | np.isnan(array), np.where(np.isnan(array), 1, 0), bits)
    with np.errstate(over="ignore"):
        places = 2 * np.arange(array.size, dtype=np.int64) + 1
        return BitHash(
            int((~np.isfinite(array)).sum()), int(bits.sum()), int((bits * places).sum())
        )


def compiled_hashes(
    record: ProgramRecord, names: Sequence[str], *, batch: Sequence[Any], variables: Sequence[Any]
) -> dict[str, BitHash]:
    """Run a program compiled as it was trained, and return the hashes of tensors of its main graph by name.

    Hashing is part of the program then, and may change how XLA fuses the ops around it.

    Args:
        record: The program.
        names: Float tensors.
        batch: Leaves of the batch.
        variables: `tf.Variable`s by index; the step changes them.
    """
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(parse_graph(record.graph), name="")
        hashes = [_hashed(graph.get_tensor_by_name(name)) for name in names]
        fetched = tf.stack(hashes, name=_HASHES).name
    jit = record.signature.compilation == "xla"
    program = CompiledProgram(
        graph.as_graph_def(), record.signature, jit=jit, extra_fetches=[fetched]
    )
    _, (found,) = program(batch, variables, record.constants)
    return {name: BitHash(*map(int, row)) for name, row in zip(names, found.numpy(), strict=True)}


def _hashed(tensor: Any) -> Any:
    flat = tf.reshape(tensor, [-1])
    bits = tf.cast(tf.bitcast(flat, _INTEGERS[tensor.dtype.size]), tf.int64)
    nan = tf.math.is_nan(flat)
    bits = tf.where(nan, tf.ones_like(bits), tf.where(tf.equal(flat, 0), tf.zeros_like(bits), bits))
    places = 2 * tf.range(tf.size(flat, tf.int64), dtype=tf.int64) + 1
    nonfinite = tf.reduce_sum(tf.cast(~tf.math.is_finite(flat), tf.int64))
    return tf.stack([nonfinite, tf.reduce_sum(bits), tf.reduce_sum(bits * places)])


# --- program.compiled

_PROBE = "nanreplay_probe:0"


class CompiledProgram:
    """A recorded program, imported once and callable many times.

    The fetches are those of the recorded step, and its assignments run, so that the graph optimizer sees the same
    graph as in training and fuses the same ops. More fetches may change the fusion and with it the last bit. Ops whose
    outputs were recorded do not run; what they gave is fed.

    Args:
        graph: A GraphDef, or its serialized bytes.
        signature: How it is called.
        jit: Compile with XLA, as a step recorded with `jit_compile=True` was.
        extra_fetches: More tensor names to return. `signature.watch` is fetched anyway, so asking for it changes nothing.
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
        probe: Sequence[str] = (),
    ) -> None:
        """Import `graph` and prune it to what the step returned and assigned."""
        self._signature = signature
        self._stand_in: Any = None
        """What is fed for a resource that is handed on and that nothing uses."""
        self._extra_fetches = tuple(extra_fetches)
        watch = (signature.watch,) if signature.watch else ()
        self._probe = tuple(probe)
        self.probe_result: dict[str, tuple[bool, bool]] = {}
        """(holds a NaN, holds an infinity) of each probed tensor in the last call."""
        self._fetched = tuple(
            dict.fromkeys(
                (*signature.outputs, *watch, *extra_fetches, *((_PROBE,) if probe else ()))
            )
        )
        graph, places, stand_ins, idle, self._unused, taken = cut_recorded_ops(parse_graph(graph), signature)
        self._inputs = [*signature.inputs, *signature.fed]
        self._captures = [spec for spec in signature.captures if spec.tensor not in idle]
        feeds = [*(spec.tensor for spec in self._inputs), *(spec.tensor for spec in self._captures)]
        effects = [name for name in signature.control_outputs if name not in fed_ops(signature)]
        if signature.control_outputs:
            effects += [name for name in taken if name not in effects]
        feeds = [places.get(name, name) for name in feeds]
        fetched, probe = (
            [stand_ins.get(name, name) for name in names] for names in (self._fetched, probe)
        )
        self._function = _imported(graph, feeds, fetched, probe, effects)
        left = python_ops(self._function.graph.as_graph_def())
        if left:
            raise UnsupportedOpError("PyFunc", left[0], "its Python function is not in the capture")
        self._call = (
            tf.function(self._function, jit_compile=True, autograph=False)
            if jit
            else self._function
        )

    def __call__(
        self, batch: Sequence[Any], variables: Sequence[Any], constants: Sequence[Any] = ()
    ) -> tuple[list[Any], list[Any]]:
        """Run one step.

        Args:
            batch: Flattened arrays of the batch and recorded outputs of ops, by `InputSpec.leaf`.
            variables: `tf.Variable`s by index; the program reads and assigns them.
            constants: Captured tensors, by `CaptureSpec.constant`.

        Returns:
            Tensors of `signature.outputs`, and tensors of `extra_fetches`.
        """
        kinds = [tensor.dtype for tensor in self._function.inputs]
        fed = [
            _typed(batch[spec.leaf], kind) for spec, kind in zip(self._inputs, kinds, strict=False)
        ]
        fed += [self._capture(spec, variables, constants) for spec in self._captures]
        found = dict(zip(self._fetched, self._call(*fed), strict=True))
        if self._probe:
            self.probe_result = {
                name: (bool(nan), bool(inf))
                for name, (nan, inf) in zip(self._probe, found[_PROBE].numpy(), strict=True)
            }
        return [found[name] for name in self._signature.outputs], [
            found[name] for name in self._extra_fetches
        ]

    def _capture(
        self, spec: CaptureSpec, variables: Sequence[Any], constants: Sequence[Any]
    ) -> Any:
        if spec.tensor not in self._unused:
            return capture_feed(spec, variables, constants)
        if self._stand_in is None:
            self._stand_in = tf.Variable(0.0, trainable=False)
        return self._stand_in.handle


def capture_feed(spec: CaptureSpec, variables: Sequence[Any], constants: Sequence[Any]) -> Any:
    """Return what is fed to one capture: the handle of a variable, or a constant.

    Raises:
        ReplayError: The capture file holds neither.
    """
    if spec.variable is not None:
        return variable_handle(variables[spec.variable])
    if spec.constant is not None:
        return tf.convert_to_tensor(constants[spec.constant])
    raise ReplayError(
        f"The program uses the resource {spec.tensor!r} (a lookup table, an iterator), which the capture does not hold."
    )


def variable_handle(variable: Any) -> Any:
    """Return the resource handle of a `tf.Variable` or a Keras variable."""
    return variable.handle if hasattr(variable, "handle") else variable.value.handle


def _typed(value: Any, dtype: Any) -> Any:
    if not isinstance(value, tf.Tensor):
        return tf.convert_to_tensor(value, dtype)
    return value if value.dtype == dtype else tf.cast(value, dtype)


def _imported(
    graph: Any,
    feeds: Sequence[str],
    fetches: Sequence[str],
    probe: Sequence[str],
    effects: Sequence[str],
) -> Any:
    """Import what the fetches and the assignments need of a graph, add the probe, and make a ConcreteFunction of it."""
    wanted = [*feeds, *(name for name in fetches if name != _PROBE), *probe, *effects]
    try:
        needed = needed_part(graph, [name.partition(":")[0] for name in wanted])
        _clear_devices(needed)
        avoid_known_functions(needed)
        wrapped = tf.compat.v1.wrap_function(lambda: _build(needed, probe), [])
        inside = wrapped.graph
        sources = [inside.get_tensor_by_name(name) for name in feeds]
        results = [inside.get_tensor_by_name(name) for name in fetches]
        return tf_functions.function_of_graph(
            wrapped, sources, results, [inside.get_operation_by_name(name) for name in effects]
        )
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ReplayError(f"The recorded program cannot be imported: {error}") from error


def _build(graph: Any, probe: Sequence[str]) -> None:
    tf.graph_util.import_graph_def(graph, name="")
    if probe:
        tensors = [tf.compat.v1.get_default_graph().get_tensor_by_name(name) for name in probe]
        flags = [
            [tf.reduce_any(tf.math.is_nan(each)), tf.reduce_any(tf.math.is_inf(each))]
            for each in tensors
        ]
        tf.stack([tf.stack(pair) for pair in flags], name=_PROBE.partition(":")[0])


def _clear_devices(graph: Any) -> None:
    for node in graph.node:
        node.device = ""
    for function in graph.library.function:
        for node in function.node_def:
            node.device = ""
