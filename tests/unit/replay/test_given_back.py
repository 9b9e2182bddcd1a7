"""What a replay does not need any more goes back to the system, though TensorFlow's allocator keeps
what is freed; nothing that is held is touched."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.limits import _status_bytes, give_up_pages
from nanreplay.records import VariableInfo
from nanreplay.replay.replay_state import LiveState
from nanreplay.tensorflow_internals.tf_functions import (
    function_of_graph,
    known_function,
    register_function,
    unregister_function,
)
from nanreplay.tensorflow_internals.tf_loading import load_graph, loaded_function

SHAPE, COUNT = (1024, 4096), 6
STATE_BYTES = COUNT * 4 * SHAPE[0] * SHAPE[1]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux takes advice")


def test_a_loaded_function_keeps_no_graph_in_python() -> None:
    def build() -> dict[str, str]:
        tf.identity(2 * tf.compat.v1.placeholder(tf.float32, [2], name="x"), name="y")
        return {}

    function = function_of_graph(build, ["x:0"], ["y:0"], [])
    graph = weakref.ref(function.graph)
    gc.disable()
    try:
        loaded = loaded_function(function)
        del function
        assert graph() is None
    finally:
        gc.enable()
    (doubled,) = loaded(tf.constant([1.0, 2.0]))
    assert doubled.numpy().tolist() == [2.0, 4.0]


def test_a_graph_that_is_loaded_without_objects_of_its_ops_is_the_same_function() -> None:
    @tf.function(autograph=False)
    def step(handle: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        before = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        tf.raw_ops.AssignVariableOp(resource=handle, value=before + x)
        return tf.split(x, 2)[1] * tf.math.log(before[:1])

    variable = tf.Variable([1.0, np.e])
    handle_type = tf.TensorSpec((), tf.resource)
    traced = step.get_concrete_function(handle_type, tf.TensorSpec((2,), tf.float32))
    graph = traced.graph.as_graph_def()
    names = [tensor.name for tensor in traced.graph.inputs], [traced.graph.outputs[0].name]
    effects = [op.name for op in traced.graph.control_outputs]

    def build() -> dict[str, str]:
        tf.graph_util.import_graph_def(graph, name="")
        return {}

    loaded, usual = load_graph(graph, *names, effects), function_of_graph(build, *names, effects)
    name = loaded._atomic.name.decode()
    definition, expected = known_function(name), usual.function_def
    assert definition.signature.name != expected.signature.name
    definition.signature.name = expected.signature.name
    assert definition == expected
    (result,) = loaded(variable.handle, tf.constant([1.0, 2.0]))
    assert result.numpy().tolist() == [0.0]
    assert variable.numpy().tolist() == [2.0, np.float32(np.e) + np.float32(2)]
    del loaded
    assert known_function(name) is None


def test_a_function_that_somebody_made_known_stays_when_a_loaded_graph_goes() -> None:
    """As `wrap_function` makes those known that its graph calls."""

    @tf.function(autograph=False)
    def halved(x: tf.Tensor) -> tf.Tensor:
        return x / 2

    @tf.function(autograph=False)
    def step(x: tf.Tensor) -> tf.Tensor:
        return halved(x)

    graph = step.get_concrete_function(tf.TensorSpec((), tf.float32)).graph.as_graph_def()
    (definition,) = graph.library.function
    definition.signature.name = "nanreplay_test_made_known"
    graph.node[1].attr["f"].func.name = definition.signature.name
    register_function(definition)
    try:
        loaded = load_graph(graph, ["x:0"], [f"{graph.node[1].name}:0"], [])
        assert loaded(tf.constant(3.0))[0].numpy() == 1.5
        del loaded
        assert known_function(definition.signature.name) is not None
    finally:
        unregister_function(definition.signature.name)


def test_a_loaded_graph_brings_its_functions_and_they_go_with_it() -> None:
    @tf.function(autograph=False)
    def halved(x: tf.Tensor) -> tf.Tensor:
        return x / 2

    @tf.function(autograph=False)
    def step(x: tf.Tensor) -> tf.Tensor:
        return halved(x) + tf.constant([1.0, 2.0], name="large")

    traced = step.get_concrete_function(tf.TensorSpec((2,), tf.float32))
    graph, output = traced.graph.as_graph_def(), traced.graph.outputs[0].name
    (function,) = graph.library.function
    function.signature.name = "nanreplay_test_halved"
    for node in graph.node:
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            node.attr["f"].func.name = "nanreplay_test_halved"
    loaded, again = (
        load_graph(graph, [traced.inputs[0].name, "large:0"], [output], []) for _ in range(2)
    )
    del loaded
    (result,) = again(tf.constant([4.0, 6.0]), tf.constant([10.0, 20.0]))
    assert result.numpy().tolist() == [12.0, 23.0]  # the constant is fed
    assert known_function("nanreplay_test_halved") is not None
    del again
    assert known_function("nanreplay_test_halved") is None


@linux
def test_the_memory_of_a_state_goes_back_and_what_was_read_of_it_stays() -> None:
    infos = [VariableInfo(f"weight_{i}", SHAPE, "float32", "other") for i in range(COUNT)]
    live = LiveState(infos)
    live.assign({i: np.full(SHAPE, i, "float32") for i in range(COUNT)})
    held = live.read()
    live.assign({index: value + 1 for index, value in held.items()})
    before = _status_bytes("VmRSS")
    live.assign(held)
    live.give_back()
    assert before - _status_bytes("VmRSS") > STATE_BYTES / 2
    for index, value in held.items():
        assert (np.asarray(value) == index).all()


@linux
def test_pages_that_are_not_all_within_a_buffer_stay() -> None:
    size = 3 * mmap.PAGESIZE
    buffer = np.ones(size + mmap.PAGESIZE, np.uint8)
    start = -buffer.ctypes.data % mmap.PAGESIZE  # where its first whole page begins
    give_up_pages(buffer.ctypes.data + start + 1, 2 * mmap.PAGESIZE)
    kept = np.ones(size, bool)
    kept[mmap.PAGESIZE : 2 * mmap.PAGESIZE] = False
    assert ((buffer[start : start + size] == 1) == kept).all()
    give_up_pages(ctypes.addressof(ctypes.c_char()), 1)
