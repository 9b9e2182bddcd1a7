"""The window as it was trained: the graph that the file has optimized, or a part of the graph
optimizers, where that gives the recorded bits, else all of them."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from nanreplay import Capture, NonFiniteError, Recorder, Replay
from nanreplay.capture.arrays import write_array
from nanreplay.capture.writer import lazy_contents, write_capture
from nanreplay.diagnose import judge, trained_window
from nanreplay.errors import ReplayError
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.records import InputSpec, Signature
from nanreplay.replay import replay_programs
from nanreplay.replay.beside import beside
from nanreplay.replay.interpreter_plan import Library
from nanreplay.tensorflow_internals.tf_functions import (
    Optimizers,
    optimized_by,
    optimized_graphs,
)


@pytest.fixture(scope="module")
def capture_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that takes a logarithm of 0 in its third step."""
    path = tmp_path_factory.mktemp("window") / "run.h5"
    keras.utils.set_random_seed(1)
    x, feature = keras.Input((8, 8, 3)), keras.Input((1,))
    hidden = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    hidden = keras.layers.Activation("swish")(keras.layers.BatchNormalization()(hidden))
    pooled = keras.layers.GlobalAveragePooling2D()(hidden)
    weights = keras.layers.Dense(4, activation="sigmoid")(
        keras.layers.Dense(2, activation="swish")(pooled)
    )
    hidden = keras.layers.Conv2D(4, 1)(hidden * keras.layers.Reshape((1, 1, 4))(weights))
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    model = keras.Model([x, feature], keras.layers.Dense(1)(hidden * keras.ops.log(feature)))
    model.compile("sgd", "mse", jit_compile=False)
    random = np.random.default_rng(1)
    features = np.full((12, 1), 2.0, "float32")
    features[9] = 0.0
    with pytest.raises(NonFiniteError):
        model.fit(
            [random.random((12, 8, 8, 3), "float32"), features],
            random.random((12, 1), "float32"),
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[Recorder(path)],
        )
    return path


@pytest.fixture(scope="module")
def plain_path(capture_path: Path) -> Path:
    """The same without what the graph optimizers made of its program."""
    path = capture_path.with_name("plain.h5")
    with Capture(capture_path) as capture:
        write_capture(path, lazy_contents(capture))
    return path


def with_optimized(path: Path, graph: Any) -> None:
    """Put another optimized graph in a capture."""
    with h5py.File(path, "r+") as file:
        group = file["program/p0/optimized"]
        del group["graph"]
        write_array(group, "graph", np.frombuffer(graph.SerializeToString(), np.uint8))


def test_a_graph_that_was_optimized_at_the_dump_is_not_optimized_again(
    capture_path: Path, plain_path: Path
) -> None:
    with Capture(plain_path) as capture:
        assert capture.optimized_graph("p0") is None
    with Capture(capture_path) as capture, Replay(capture) as replay:
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        program = replay.program(capture.incident.step)
        assert program.optimizers is Optimizers.NONE
        of_none = replay.state_after(capture.incident.step - 1)
        program.optimizers = Optimizers.ALL
        of_all = replay.state_after(capture.incident.step - 1)
        for index, value in of_all.items():
            np.testing.assert_array_equal(of_none[index], value)


@pytest.mark.parametrize(
    "what", ["writes a file", "other bits", "no result", "an empty result", "not readable"]
)
def test_an_optimized_graph_that_is_not_the_programs_is_left(
    what: str, capture_path: Path, tmp_path: Path
) -> None:
    """It may come from anybody; the program itself is in the file as well."""
    path = tmp_path / "run.h5"
    shutil.copy(capture_path, path)
    with Capture(path) as capture:
        optimized = capture.optimized_graph("p0")
        assert optimized is not None
        graph = tf.compat.v1.GraphDef.FromString(optimized.graph)
    results = [node for node in graph.node if node.op == "_Retval"]
    if what == "writes a file":
        for name, text in (("name", str(tmp_path / "written")), ("contents", "x")):
            node = graph.node.add(name=f"nanreplay_test_{name}", op="Const")
            node.attr["dtype"].type = tf.string.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
        inputs = ["nanreplay_test_name", "nanreplay_test_contents"]
        graph.node.add(name="nanreplay_test_write", op="WriteFile", input=inputs)
    elif what == "other bits":
        for node in graph.node:
            node.op = "Maximum" if node.op == "Mul" else node.op
    elif what == "no result":
        graph.node.remove(results[0])
    elif what == "an empty result":
        del results[0].input[:]
    else:
        graph.node[0].name = "a name that is not one"
    with_optimized(path, graph)
    with Capture(path) as capture, Replay(capture) as replay:
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert replay.program(capture.incident.step).optimizers is not Optimizers.NONE
    assert not (tmp_path / "written").exists()


def test_an_optimized_graph_takes_batches_of_its_shape_alone(capture_path: Path) -> None:
    """The optimizers put numbers in the place of what is known of shapes."""
    with Capture(capture_path) as capture, Replay(capture) as replay:
        judge(replay)
        last = capture.incident.step
        assert replay.program(last).optimizers is Optimizers.NONE
        batch = replay.batch(last)
        cut = replace(batch, leaves=tuple(leaf[:2] for leaf in batch.leaves))
        replay.replace_batch(last, cut)
        with pytest.raises(ReplayError, match="The program takes"):
            replay.fingerprint(last)


def test_graphs_that_the_user_collects_stay_the_users() -> None:
    function = tf.function(lambda x: x + 1)
    tf.summary.trace_on(graph=True)
    try:
        with optimized_graphs() as graphs:
            function(tf.constant(1.0))
        assert not graphs
        assert context.export_run_metadata().function_graphs
    finally:
        tf.summary.trace_off()


def test_graphs_that_the_user_begins_to_collect_meanwhile_stay_the_users() -> None:
    function, other = tf.function(lambda x: x + 1), tf.function(lambda x: x + 2)
    try:
        with optimized_graphs() as graphs:
            tf.summary.trace_on(graph=True)  # another thread may
            function(tf.constant(1.0))
        other(tf.constant(1.0))
        assert not graphs
        assert len(context.export_run_metadata().function_graphs) == 2
    finally:
        tf.summary.trace_off()


def test_no_other_graph_is_kept_where_the_first_call_raised() -> None:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (), name="x")
        tf.debugging.check_numerics(x, "x", name="y")
    fed = InputSpec(tensor="x:0", leaf=0, path="x", dtype="float32", shape=())
    signature = Signature("graph", inputs=(fed,), captures=(), outputs=("y:0",))
    program = CompiledProgram(graph.as_graph_def(), signature, jit=False, keeps_optimized=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        program([np.float32("nan")], [])
    other = tf.function(lambda x: x + 1)

    def called_meanwhile(value: Any) -> Any:
        other(tf.constant(1.0))  # as another thread may
        return loaded(value)

    loaded, program._call = program._call, called_meanwhile
    program([np.float32(1)], [])
    assert program.optimized is None


def test_few_optimizers_count_where_they_give_the_bits_of_two_rounds(plain_path: Path) -> None:
    """In one round TensorFlow fuses fewer ops of this model, which gives other bits."""
    with Capture(plain_path) as capture, Replay(capture) as replay:
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert replay.program(capture.incident.step).optimizers is Optimizers.DECIDING
        of_few = replay.state_after(capture.incident.step - 1)
        replay.program(capture.incident.step).optimizers = Optimizers.ALL
        of_all = replay.state_after(capture.incident.step - 1)
        for index, value in of_all.items():
            np.testing.assert_array_equal(of_few[index], value)


def test_weights_so_large_that_memory_is_planned_take_all_optimizers_at_once(
    plain_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_window, "_PLANNED_BYTES", 0)
    with Capture(plain_path) as capture, Replay(capture) as replay:
        chosen = []

        @contextlib.contextmanager
        def noted(optimizers: Optimizers) -> Iterator[None]:
            chosen.append(optimizers)
            with optimized_by(optimizers):
                yield

        monkeypatch.setattr(replay_programs, "optimized_by", noted)
        assert judge(replay).bit_exact is True
        assert set(chosen) == {Optimizers.ALL}


@pytest.mark.parametrize("why", ["other bits", "other machine"])
def test_all_optimizers_run_where_few_may_not_count(
    plain_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = calls = 0
    call = CompiledProgram.__call__

    def counted_call(self: CompiledProgram, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(self, *args)

    monkeypatch.setattr(CompiledProgram, "__call__", counted_call)
    with Capture(plain_path) as capture, Replay(capture) as replay:

        @contextlib.contextmanager
        def with_other_bits(optimizers: Optimizers) -> Iterator[None]:
            nonlocal attempts
            yield
            if optimizers is not Optimizers.ALL:
                attempts += 1
                kernel = replay._live.read([0])[0]
                replay._live.assign({0: kernel * 1.001})

        monkeypatch.setattr(replay_programs, "optimized_by", with_other_bits)
        if why == "other machine":
            monkeypatch.setattr(trained_window, "is_same_machine", lambda replay: False)
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert bool(attempts) == (why == "other bits")
        n_steps = len(replay.window(None, None))
        assert n_steps > 2
        # The attempt ends at the first step with other bits.
        assert calls == n_steps if why == "other machine" else n_steps < calls < n_steps + 3
        assert replay.program(capture.incident.step).optimizers is Optimizers.ALL


def test_the_run_op_by_op_is_planned_while_the_first_step_compiles(
    capture_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    plan = Library._plan

    def noted_plan(self: Library, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return plan(self, *args)

    monkeypatch.setattr(Library, "_plan", noted_plan)
    with Capture(capture_path) as capture, Replay(capture) as replay:
        judge(replay)
    # the step, and its losses in float64; neither is planned a second time
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_work_beside_a_block_is_done_after_it_whatever_it_raises() -> None:
    done = []

    def fail() -> None:
        done.append(True)
        raise ValueError("asked again later")

    with beside(fail):
        pass
    assert done == [True]
    with beside(None):
        pass
