"""Calling a recorded program as it ran in training: compiled, with or without XLA, bit for bit.

Replays, the bisection's comparison of runs and the what-if trials call `CompiledProgram`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.limits import give_back_freed
from nanreplay.program.graph_editor import needed_part
from nanreplay.program.graph_nodes import (
    VARIABLE_READS,
    avoid_known_functions,
    data_inputs,
    op_name,
)
from nanreplay.program.lowered_graph import lower_graph
from nanreplay.program.nondeterministic_ops import cut_recorded_ops, fed_ops
from nanreplay.program.optimized_graph import loadable, optimized_graph
from nanreplay.program.safety import all_nodes, parse_graph, python_ops
from nanreplay.records import CaptureSpec, OptimizedGraph, Signature
from nanreplay.tensorflow_internals import tf_functions, tf_loading

_PROBE = "nanreplay_probe:0"


class CompiledProgram:
    """A recorded program, imported once and callable many times.

    The fetches are those of the recorded step, and its assignments run, so that the graph
    optimizer sees the same graph as in training and fuses the same ops. More fetches may change
    the fusion and with it the last bit. Ops whose outputs were recorded do not run; what they gave
    is fed.

    Args:
        graph: A GraphDef, or its serialized bytes.
        signature: How it is called.
        jit: Compile with XLA, as a step recorded with `jit_compile=True` was.
        extra_fetches: More tensor names to return. `signature.watch` is fetched anyway, so asking
            for it changes nothing.
        checks_feeds: Whether feeds are compared with what the graph takes; those that this process
            has recorded itself need none.
        probe: Tensor names whose NaN and infinities `probe_result` tells of after a call. They are
            measured inside of the program.
        optimized: What the graph optimizers made of it, which runs in place of `graph`.
        keeps_optimized: Keep what they make of it at the first call as `optimized`.

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
        checks_feeds: bool = True,
        probe: Sequence[str] = (),
        optimized: OptimizedGraph | None = None,
        keeps_optimized: bool = False,
    ) -> None:
        """Import `graph` and prune it to what the step returned and assigned."""
        self._signature = signature
        self._stand_in: Any = None
        """What is fed for a resource that is handed on and that nothing uses."""
        self._extra_fetches = tuple(extra_fetches)
        self._probe = tuple(probe)
        self.probe_result: dict[str, tuple[bool, bool]] = {}
        """(holds a NaN, holds an infinity) of each probed tensor in the last call."""
        self._has_run = False
        self._fetched = self._all_fetches()
        cut = cut_recorded_ops(parse_graph(graph), signature)
        self._unused = cut.unused
        self._inputs = [*signature.inputs, *signature.fed]
        self._captures = [spec for spec in signature.captures if spec.tensor not in cut.idle]
        feeds = [spec.tensor for spec in self._inputs] + [spec.tensor for spec in self._captures]
        effects = [name for name in signature.control_outputs if name not in fed_ops(signature)]
        if signature.control_outputs:
            effects = list(dict.fromkeys((*effects, *cut.taken)))
        fed = [cut.feeds.get(name, name) for name in feeds]
        fetched = [cut.places.get(name, name) for name in self._fetched]
        self.optimized = optimized
        self._to_keep = (fed, fetched) if keeps_optimized and not jit else None
        if optimized is not None:
            imported = _imported_optimized(optimized, fed, fetched)
        else:
            imported = _imported(
                cut.graph,
                feeds=fed,
                fetches=fetched,
                probe=[cut.places.get(name, name) for name in probe],
                effects=effects,
                jit=jit,
            )
        self.written = self._written(imported.takers)
        """Indices of the captured variables that a call may write, in ascending order."""
        self._feed_types = imported.feed_types
        self._checks_feeds = checks_feeds
        self._call = imported.call

    def _all_fetches(self) -> tuple[str, ...]:
        """What a call computes, each tensor once: outputs, fingerprint, extra fetches, probe."""
        names = [*self._signature.outputs]
        if self._signature.watch:
            names.append(self._signature.watch)
        names += self._extra_fetches
        if self._probe:
            names.append(_PROBE)
        return tuple(dict.fromkeys(names))

    def _written(self, takers: Sequence[Set[str]]) -> tuple[int, ...]:
        """The variables whose handles go to an op that may do more than read them."""
        written = set()
        for spec, types in zip(self._captures, takers[len(self._inputs) :], strict=True):
            if spec.variable is not None and not types <= VARIABLE_READS:
                written.add(spec.variable)
        return tuple(sorted(written))

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
        # Not strict: the batch comes first among the inputs, captures follow.
        inputs = zip(self._inputs, self._feed_types, strict=False)
        feeds = [_typed(batch[spec.leaf], kind) for spec, (kind, _) in inputs]
        for spec in self._captures:
            feeds.append(self._capture(spec, variables, constants))
        if self._checks_feeds:
            self._check(feeds)
        # once, as a call that raised has been optimized too
        to_keep, self._to_keep = self._to_keep, None
        if to_keep is not None:
            with tf_functions.optimized_graphs() as graphs:
                returned = self._call(*feeds)
            self.optimized = optimized_graph(graphs, *to_keep)
        else:
            returned = self._call(*feeds)
        results = dict(zip(self._fetched, returned, strict=True))
        if not self._has_run:  # TensorFlow's graph optimizers took several copies of the graph
            self._has_run = True
            give_back_freed()
        if self._probe:
            flags = zip(self._probe, results[_PROBE].numpy(), strict=True)
            self.probe_result = {name: (bool(nan), bool(inf)) for name, (nan, inf) in flags}
        outputs = [results[name] for name in self._signature.outputs]
        return outputs, [results[name] for name in self._extra_fetches]

    def _check(self, feeds: Sequence[Any]) -> None:
        """Refuse tensors that the graph does not take; the runtime looks at none."""
        specs: list[Any] = [*self._inputs, *self._captures]
        for spec, feed, (kind, shape) in zip(specs, feeds, self._feed_types, strict=True):
            is_taken = feed.dtype == kind and (
                kind == tf.resource or shape.is_compatible_with(feed.shape)
            )
            if not is_taken:
                raise ReplayError(
                    f"The program takes {kind.name} {shape} at {spec.tensor!r}. "
                    f"Received: {feed.dtype.name} {feed.shape}"
                )

    def _capture(
        self, spec: CaptureSpec, variables: Sequence[Any], constants: Sequence[Any]
    ) -> Any:
        """What is fed to one captured input.

        A resource that is handed on and that nothing uses (a lookup table whose outputs were
        recorded) is not in the file. Any resource may stand for it; a variable does.
        """
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
        f"The program uses the resource {spec.tensor!r} (a lookup table, an iterator, a variable "
        "without a fixed shape), which the capture does not hold."
    )


def variable_handle(variable: Any) -> Any:
    """Return the resource handle of a `tf.Variable` or a Keras variable."""
    return variable.handle if hasattr(variable, "handle") else variable.value.handle


def _typed(value: Any, dtype: Any) -> Any:
    if not isinstance(value, tf.Tensor):
        return tf.convert_to_tensor(value, dtype)
    return value if value.dtype == dtype else tf.cast(value, dtype)


class _Imported(NamedTuple):
    """A graph that was imported."""

    call: Callable[..., Any]
    """Takes flat tensors and returns flat tensors."""
    feed_types: Sequence[tuple[Any, Any]]
    """Dtype and shape of each tensor that is fed."""
    takers: Sequence[Set[str]]
    """Types of the ops that take each of them."""


def _imported(
    graph: Any,
    *,
    feeds: Sequence[str],
    fetches: Sequence[str],
    probe: Sequence[str],
    effects: Sequence[str],
    jit: bool,
) -> _Imported:
    """Import what the fetches and the assignments need of a graph.

    Args:
        graph: A GraphDef.
        feeds: Names of the tensors that are fed.
        fetches: Names of the tensors to return, `_PROBE` among them where there is a probe.
        probe: Names of the tensors that it measures.
        effects: Names of the ops that run for their effect.
        jit: Whether XLA is to compile it.
    """
    recorded = [name for name in fetches if name != _PROBE]
    try:
        needed = needed_part(graph, list(map(op_name, (*feeds, *recorded, *probe, *effects))))
        _check_python(needed)
        for _, node in all_nodes(needed):
            node.device = ""  # that of the training may not be here
        if not jit:  # XLA has a form of each op for each device
            lower_graph(needed)
        avoid_known_functions(needed)
        takers = _takers(needed, feeds)
        if not (jit or probe) and _is_plain(needed, feeds):
            call: Callable[..., Any] = tf_loading.load_graph(needed, feeds, fetches, effects)
            return _Imported(call, _fed_types(needed, feeds), takers)
        function = tf_functions.function_of_graph(
            lambda: _build(needed, probe), inputs=feeds, outputs=fetches, effects=effects
        )
        feed_types = [(tensor.dtype, tensor.shape) for tensor in function.inputs]
        call = tf_functions.xla_function(function) if jit else tf_loading.loaded_function(function)
        return _Imported(call, feed_types, takers)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ReplayError(f"The recorded program cannot be imported: {error}") from error


def _imported_optimized(
    optimized: OptimizedGraph, feeds: Sequence[str], fetches: Sequence[str]
) -> _Imported:
    """Import what the graph optimizers made of a program; arguments as for `_imported`."""
    try:
        graph, inputs, outputs, effects = loadable(optimized, feeds, fetches)
        call = tf_loading.load_graph(graph, inputs, outputs, effects)
        return _Imported(call, _fed_types(graph, inputs), _takers(graph, inputs))
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ReplayError(f"The optimized graph cannot be imported: {error}") from error


def _takers(graph: Any, feeds: Sequence[str]) -> list[Set[str]]:
    """Types of the ops of the main graph that take each tensor that is fed."""
    takers: dict[str, set[str]] = {op_name(tensor): set() for tensor in feeds}
    for node in graph.node:
        for source in data_inputs(node):
            name = op_name(source)
            if name in takers:
                takers[name].add(node.op)
    return [takers[op_name(tensor)] for tensor in feeds]


_FED_OPS = ("Placeholder", "Const")
"""Ops that tell the type of what is fed in their place; large constants are fed."""


def _is_plain(graph: Any, feeds: Sequence[str]) -> bool:
    """Whether a graph stays as it is, and its own ops tell the types of what it is fed."""
    fed = set(map(op_name, feeds))
    n_known = 0
    for node in graph.node:
        if _asks_for_shape(node):
            return False
        n_known += node.name in fed and node.op in _FED_OPS
    return n_known == len(fed)


def _fed_types(graph: Any, feeds: Sequence[str]) -> list[tuple[Any, Any]]:
    """Dtype and shape of what is fed, by the names of its tensors."""
    nodes = {node.name: node for node in graph.node if node.op in _FED_OPS}
    types = []
    for tensor in feeds:
        attrs = nodes[op_name(tensor)].attr
        shape = attrs["shape"].shape if "shape" in attrs else None
        if "value" in attrs:
            shape = attrs["value"].tensor.tensor_shape
        types.append((tf.dtypes.as_dtype(attrs["dtype"].type), tf.TensorShape(shape)))
    return types


def _check_python(graph: Any) -> None:
    """Refuse a graph that is left with ops that call Python, before it is imported."""
    left = python_ops(graph)
    if left:
        raise UnsupportedOpError("PyFunc", left[0], "its Python function is not in the capture")


def _build(graph: Any, probe: Sequence[str]) -> dict[str, str]:
    """Import a graph into the one that is being made, and add the probe.

    Returns:
        Names of tensors that have another name there, to that name.
    """
    moved = import_graph(graph)
    if not probe:
        return moved
    flags = []
    for name in probe:
        tensor = tf.compat.v1.get_default_graph().get_tensor_by_name(name)
        has_nan = tf.reduce_any(tf.math.is_nan(tensor))
        has_infinity = tf.reduce_any(tf.math.is_inf(tensor))
        flags.append([has_nan, has_infinity])
    tf.stack([tf.stack(pair) for pair in flags], name=op_name(_PROBE))
    return moved


def import_graph(graph: Any) -> dict[str, str]:
    """Import a GraphDef into the graph that is being made, and change it meanwhile.

    A placeholder of a GraphDef has forgotten what variable it is the handle of. Most ops take any
    handle. `ResourceGatherNd` and its like take the handle's own shape, that of a scalar, for the
    variable's, and are refused: for them it is made again, with the type of the variable.

    Returns:
        Names of these handles in the GraphDef, to names in the graph.
    """
    nodes = {node.name: node for node in graph.node}
    handles: dict[str, Any] = {}
    for node in list(graph.node):
        if not _asks_for_shape(node):
            continue
        source = nodes[op_name(node.input[0])]
        tensor = f"{source.name}:0"
        if source.op == "Placeholder" and tensor not in handles:
            kind = node.attr["T" if "T" in node.attr else "dtype"].type
            handles[tensor] = tf_functions.handle_placeholder(tf.dtypes.as_dtype(kind))
            graph.node.remove(source)
    tf.graph_util.import_graph_def(graph, input_map=handles, name="")
    return {name: handle.name for name, handle in handles.items()}


def _asks_for_shape(node: Any) -> bool:
    """Whether an op is not imported with a handle of a variable of unknown type."""
    asks = node.op in ("ResourceGatherNd", "ResourceCountUpTo")
    return asks or node.op.startswith("ResourceScatterNd")
