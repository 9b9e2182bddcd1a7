"""Ops of functions that a step calls: their names, lines, layers, and whose gradient they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder
from nanreplay.program.graph_nodes import mentioned_functions
from nanreplay.records import Frame, OpInfo

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
ONES = np.ones((2, 3), np.float32)


@tf.function
def shares(x: Any) -> Any:
    truediv = x / tf.reduce_sum(x, -1, keepdims=True)  # the line of the quotient
    return truediv


@tf.custom_gradient
def halved(x: Any) -> Any:
    def grad(upstream: Any) -> Any:
        return upstream * tf.math.rsqrt(x)  # the line of the gradient

    return x / 2.0, grad


class Halved(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return halved(x)


def direct(x: Any) -> Any:
    return tf.reduce_mean(shares(x))


def in_cond(x: Any) -> Any:
    return tf.cond(tf.reduce_sum(x) > 0, lambda: direct(x), lambda: tf.reduce_mean(x))


def in_while(x: Any) -> Any:
    start = (tf.constant(0), tf.constant(0.0))
    return tf.while_loop(lambda i, _: i < 2, lambda i, s: (i + 1, s + direct(x)), start)[1]


Table = tuple[dict[tuple[str, str], OpInfo], Any, dict[int, Frame]]


def recorded(folder: Path, loss_of: Callable[[Any], Any], *, compiled: bool = True) -> Table:
    """The table of ops of one step, its GraphDef, and the innermost frame of each stack."""
    weights = tf.Variable([1.0, 2.0, 3.0])

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(x * weights)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        return loss

    with Recorder(str(folder / "run.h5"), on_nan="stop") as recorder:
        run = recorder.wrap(tf.function(step) if compiled else step)
        run(tf.constant(ONES))
        run(tf.constant(ONES * np.nan))
    with Capture(folder / "run.h5") as capture:
        (name,) = capture.programs
        record = capture.program(name)
        stacks = capture.stacks
        frames = {number: capture.frames[ids[-1]] for number, ids in enumerate(stacks)}
    graph = tf.compat.v1.GraphDef.FromString(record.graph)
    return {(op.function, op.name): op for op in record.ops}, graph, frames


def code_of(op: OpInfo, frames: dict[int, Frame]) -> str:
    return frames[op.stack].code or ""


@pytest.mark.parametrize(
    ("loss_of", "compiled"),
    [(direct, True), (in_cond, True), (in_while, True), (direct, False)],
    ids=["direct", "cond", "while", "eager"],
)
def test_every_node_of_a_called_function_is_in_the_table(
    tmp_path: Path, loss_of: Callable[[Any], Any], compiled: bool
) -> None:
    ops, graph, frames = recorded(tmp_path, loss_of, compiled=compiled)
    library = {function.signature.name: function for function in graph.library.function}
    pending, called = list(mentioned_functions(graph.node)), set()
    while pending:
        name = pending.pop()
        if name in library and name not in called:
            called.add(name)
            pending += mentioned_functions(library[name].node_def)
    nodes = {(name, node.name): node.op for name in called for node in library[name].node_def}
    assert {key: ops[key].type for key in nodes} == nodes
    quotients = [key for key, kind in nodes.items() if kind == "RealDiv" and not ops[key].forward]
    lines = [code_of(ops[key], frames) for key in quotients]
    assert any("the line of the quotient" in line for line in lines)
    # Gradients are of an op that runs: of the function that TensorFlow made for the gradient.
    gradients = [ops[key] for key in nodes if ops[key].forward]
    assert gradients
    assert {(op.forward_function, op.forward) for op in gradients} <= {
        *nodes,
        *(("", node.name) for node in graph.node),
    }


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_a_gradient_that_the_user_wrote_has_its_own_line_and_the_layer(
    tmp_path: Path, compiled: bool
) -> None:
    layer = Halved(name="halved")
    ops, _, frames = recorded(tmp_path, lambda x: tf.reduce_mean(layer(x)), compiled=compiled)
    (root,) = [op for op in ops.values() if op.type == "Rsqrt"]
    assert (root.phase, root.where, root.layer_path, root.forward) == (
        "backward",
        "layer",
        "halved",
        "",
    )
    assert "the line of the gradient" in code_of(root, frames)


def test_a_module_below_a_folder_that_is_named_as_tensorflows_own_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tensorflow" / "python" / "losses_of_a_fork.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import tensorflow as tf\n\n"
        "def power(x):\n    return tf.exp(x)\n\n"
        "def loss_of(x):\n    return power(x)\n"
    )
    monkeypatch.syspath_prepend(str(file.parent))
    loss_of = import_module(file.stem).loss_of
    recorded(tmp_path, tf.autograph.experimental.do_not_convert(loss_of))
    with Capture(tmp_path / "run.h5") as capture:
        lines = {frame.code for frame in capture.frames if frame.file == str(file)}
    assert lines == {"return tf.exp(x)", "return power(x)"}
    del sys.modules[file.stem]


@tf.function
def through(first: Any, second: Any, x: Any) -> Any:
    return second(first(x)) + first(x)


def test_layers_that_a_called_function_calls_in_turn_keep_their_ops(tmp_path: Path) -> None:
    def layer(name: str, function: Any) -> Any:
        return keras.layers.Lambda(function, name=name)

    first, second = layer("first", tf.math.exp), layer("second", tf.math.sigmoid)
    ops, _, _ = recorded(tmp_path, lambda x: tf.reduce_mean(through(first, second, x)))
    layers: dict[str, set[str]] = {}
    for op in ops.values():
        if op.type in ("Exp", "Sigmoid") and op.function:
            layers.setdefault(op.type, set()).add(op.layer_path)
    assert layers == {"Exp": {"first"}, "Sigmoid": {"second"}}
