"""What a program of a stranger may not do: reach beyond tensors, never end, take all memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from nanreplay import limits
from nanreplay.errors import MemoryLimitError, ReplayError, UnsafeProgramError
from nanreplay.program.safety import PYTHON_OPS, check_graph, harmless_ops, reach_of
from nanreplay.replay.interpreter import Interpreter
from nanreplay.tensorflow_internals.tf_eager import registered_ops


def graph_of(build: Callable[[], Any]) -> Any:
    with tf.Graph().as_default() as graph:
        build()
    return graph.as_graph_def()


def calling_graph(calls: dict[str, list[str]]) -> Any:
    """Functions that do nothing but call others."""
    graph = tf.compat.v1.GraphDef()
    for name, callees in calls.items():
        function = graph.library.function.add()
        function.signature.name = name
        for index, callee in enumerate(callees):
            node = function.node_def.add(name=f"call_{index}", op="PartitionedCall")
            node.attr["f"].func.name = callee
    graph.node.add(name="start", op="PartitionedCall").attr["f"].func.name = next(iter(calls))
    return graph


def test_every_op_that_tensorflow_registers_is_classified() -> None:
    unknown = [name for name in registered_ops() if reach_of(name) == "unknown"]
    assert not unknown, (
        f"look at what these ops reach, and put them into program/safety.py or "
        f"harmless_ops.txt: {unknown}"
    )


def test_what_tensorflows_own_numerics_check_adds_is_harmless() -> None:
    assert reach_of("DebugNumericSummaryV2") is None
    assert reach_of("DebugNumericSummary") == "network"
    assert reach_of("DebugIdentityV2") == "network"


def test_no_op_is_both_harmless_and_refused() -> None:
    assert not {name for name in harmless_ops() if reach_of(name) is not None}
    assert not harmless_ops() & PYTHON_OPS


@pytest.mark.parametrize(
    ("op", "reach"),
    [("ReadFile", "files"), ("DTensorRestoreV2", "files"), ("DebugIdentityV3", "network"),
    ("RpcCall", "network"), ("Abort", "the process"),
     ("MlirPassthroughOp", "code"), ("DatasetFromGraph", "code"),
     ("ExecuteTPUEmbeddingPartitioner", "devices"),
     ("_MklMatMul", "what only")],
)  # fmt: skip
def test_ops_are_refused_with_what_they_reach(op: str, reach: str) -> None:
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="bad", op=op)
    with pytest.raises(UnsafeProgramError, match=rf"{op} 'bad' \({reach}"):
        check_graph(graph)
    check_graph(graph, trust=True)


@pytest.mark.parametrize(
    "op", ["_FusedConv2D", "_FusedMatMul", "_FusedDepthwiseConv2dNative", "_FusedBatchNormEx"]
)
def test_an_op_that_only_a_rewritten_graph_has_is_refused_with_what_to_do(op: str) -> None:
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="fused", op=op)
    with pytest.raises(UnsafeProgramError, match=rf"{op} 'fused'.*record the training step itself"):
        check_graph(graph)


def test_an_op_inside_a_function_that_nobody_calls_is_seen() -> None:
    graph = calling_graph({"outer": [], "unused": []})
    graph.library.function[1].node_def.add(name="read", op="ReadFile")
    with pytest.raises(UnsafeProgramError, match="ReadFile 'read' in function 'unused'"):
        check_graph(graph)


def test_a_function_cannot_hide_an_op_behind_its_name() -> None:
    graph = calling_graph({"WriteFile": []})
    graph.node.add(name="write", op="WriteFile")
    with pytest.raises(UnsafeProgramError, match="has the name of an op"):
        check_graph(graph)


def test_functions_that_call_themselves_are_refused_even_with_trust() -> None:
    with pytest.raises(UnsafeProgramError, match="calls itself"):
        check_graph(calling_graph({"a": ["b"], "b": ["c"], "c": ["a"]}), trust=True)


def test_calls_that_double_and_double_again_are_refused() -> None:
    calls = {f"f{i}": [f"f{i + 1}", f"f{i + 1}"] for i in range(60)} | {"f60": []}
    with pytest.raises(UnsafeProgramError, match="written out"):
        check_graph(calling_graph(calls))


def test_very_deep_calls_are_refused_without_exhausting_the_stack() -> None:
    calls = {f"f{i}": [f"f{i + 1}"] for i in range(3000)} | {"f3000": []}
    with pytest.raises(UnsafeProgramError, match="deep"):
        check_graph(calling_graph(calls))


HUGE = [
    lambda: tf.fill([200_000, 200_000], 1.0),
    lambda: tf.tile(tf.ones([4]), tf.constant([10_000_000_000])),
    lambda: tf.broadcast_to(tf.ones([1]), [200_000, 200_000]),
    lambda: tf.range(0, 40_000_000_000, 1, dtype=tf.int64),
    lambda: tf.raw_ops.LinSpace(start=0.0, stop=1.0, num=tf.constant(40_000_000_000)),
    lambda: tf.random.uniform([200_000, 200_000], seed=1),
    lambda: tf.random.stateless_normal([200_000, 200_000], [1, 2]),
    lambda: tf.pad(tf.ones([2, 2]), [[0, 200_000], [0, 200_000]]),
    lambda: tf.scatter_nd(tf.constant([[0]], tf.int64), [1.0], tf.constant([40_000_000_000])),
    lambda: tf.one_hot([1, 2, 3, 4], 2_000_000_000),
    lambda: tf.image.resize(tf.ones([1, 2, 2, 1]), [200_000, 200_000]),
]


@pytest.mark.parametrize("build", HUGE)
def test_a_tensor_that_is_sure_to_be_huge_is_refused_before_anything_runs(
    build: Callable[[], Any],
) -> None:
    with pytest.raises(
        MemoryLimitError, match=r"is refused: its tensor would take [\d.]+ [GT]iB; .* may be taken"
    ) as raised:
        check_graph(graph_of(build))
    assert "--max-memory" in str(raised.value.hint)


def test_a_huge_tensor_inside_a_function_is_refused() -> None:
    function = tf.function(lambda: tf.fill([200_000, 200_000], 1.0)).get_concrete_function()
    with pytest.raises(MemoryLimitError, match=r"149\.0 GiB"):
        check_graph(graph_of(function))


def test_a_constant_that_claims_more_than_it_holds_is_refused() -> None:
    graph = graph_of(lambda: tf.constant(1.0, shape=[2, 2], name="it"))
    for size in graph.node[0].attr["value"].tensor.tensor_shape.dim:
        size.size = 10**6
    with pytest.raises(MemoryLimitError, match="Const 'it'"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("shape", "make"),
    [([2], lambda x: tf.fill(x * 100_000, 1.0)), ([1], lambda x: tf.tile(tf.ones([1000]),
    x * 20_000_000)),
     ([], lambda x: tf.range(0, x * 10_000_000_000, 1)), ([], lambda x: tf.one_hot([1, 2, 3, 4],
     tf.cast(x, tf.int32) * 1_000_000_000)),
     ([], lambda x: tf.math.unsorted_segment_sum(tf.ones([2, 10]), [0, 1], x * 2_000_000_000))],
)  # fmt: skip
def test_op_by_op_a_size_that_a_batch_decides_is_refused_before_the_kernel_runs(
    shape: list[int], make: Callable[[Any], Any]
) -> None:
    def build() -> None:
        tf.identity(make(tf.compat.v1.placeholder(tf.int64, shape, name="x")), name="out")

    graph = graph_of(build)
    check_graph(graph)
    with pytest.raises(MemoryLimitError, match="would take"):
        Interpreter(graph).run({"x:0": tf.fill(shape, tf.constant(2, tf.int64))}, ["out:0"])


def test_two_vectors_that_broadcast_to_a_huge_matrix_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(limits.VARIABLE, "1MiB")

    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [1000], name="x")
        tf.identity(x[:, None] + x[None, :], name="out")

    with pytest.raises(
        MemoryLimitError,
        match=r"AddV2 'add' is refused: its tensor would take 3\.8 MiB; 1\.0 MiB may be taken",
    ):
        Interpreter(graph_of(build)).run({"x:0": tf.ones([1000])}, ["out:0"])


def test_more_memory_is_taken_when_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(HUGE[0])
    monkeypatch.setenv(limits.VARIABLE, "1TiB")
    check_graph(graph)


def test_what_broken_graphs_hold_is_one_error() -> None:
    for data in (b"\xff" * 64, b"\x0a" * 100_000, b"\x12\x02" * 100_000):
        with pytest.raises((UnsafeProgramError, ReplayError)):
            check_graph(data)
