"""Editing a program: the graph that comes out computes what was asked, in the main graph and in
functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.errors import ReplayError
from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.records import ProgramRecord, Signature
from nanreplay.replay.interpreter import Interpreter


def traced(function: Any, *specs: Any) -> tuple[ProgramRecord, list[str], str]:
    """A program, its inputs and its output."""
    concrete = tf.function(function).get_concrete_function(*specs)
    graph = concrete.graph
    signature = Signature("graph", (), ())
    record = ProgramRecord("p0", graph.as_graph_def().SerializeToString(), signature)
    return record, [tensor.name for tensor in graph.inputs], graph.outputs[0].name


def run(record: ProgramRecord, inputs: list[str], output: str, *values: Any) -> Any:
    return (
        Interpreter(record.graph).run(dict(zip(inputs, values, strict=True)), [output])[0].numpy()
    )


def only(editor: ProgramEditor, op_type: str) -> tuple[str, str]:
    (key,) = editor.ops({op_type})
    return key


VECTOR = tf.TensorSpec([3], tf.float32)
X = np.array([0.0, 1.0, 4.0], np.float32)


def test_an_op_gets_another_operand_and_the_record_stays_as_it_was() -> None:
    record, inputs, output = traced(lambda x: tf.math.log(x), VECTOR)
    editor = ProgramEditor(record)
    key = only(editor, "Log")
    (new,) = editor.add("", lambda x: x + 1.0, editor.data_inputs(key)[:1])
    editor.set_input(key, 0, new)
    np.testing.assert_allclose(run(editor.edited(), inputs, output, X), np.log(X + 1))
    assert np.isinf(run(record, inputs, output, X)[0])


def test_all_users_of_a_value_get_another_one_but_for_ops_that_were_added() -> None:
    record, inputs, output = traced(lambda x: tf.math.log(x) + 1.0 / x, VECTOR)
    editor = ProgramEditor(record)
    (value,) = {editor.data_inputs(only(editor, "Log"))[0]}
    (new,) = editor.add("", lambda x: x + 1.0, [value])
    assert editor.reroute("", value, new) == 2
    np.testing.assert_allclose(
        run(editor.edited(), inputs, output, X), np.log(X + 1) + 1 / (X + 1), rtol=1e-6
    )


def test_an_op_inside_of_a_loop_is_edited_in_its_function() -> None:
    def looped(x: Any) -> Any:
        return tf.while_loop(
            lambda i, y: i < 2, lambda i, y: (i + 1, tf.sqrt(y)), (tf.constant(0), x)
        )[1]

    record, inputs, output = traced(looped, VECTOR)
    editor = ProgramEditor(record)
    key = only(editor, "Sqrt")
    assert key[0] != ""
    (new,) = editor.add(key[0], lambda y: tf.maximum(y, 0.25), editor.data_inputs(key))
    editor.set_input(key, 0, new)
    np.testing.assert_allclose(
        run(editor.edited(), inputs, output, X), np.sqrt(np.sqrt(np.maximum(X, 0.25))), rtol=1e-6
    )


def test_an_edited_program_runs_compiled() -> None:
    record, _, _ = traced(lambda x: tf.math.log(x), VECTOR)
    editor = ProgramEditor(record)
    key = only(editor, "Log")
    editor.set_input(
        key, 0, editor.add("", lambda x: tf.clip_by_norm(x, 1.0), editor.data_inputs(key)[:1])[0]
    )
    graph = tf.compat.v1.GraphDef.FromString(editor.edited().graph)
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    pruned = wrapped.prune(
        [wrapped.graph.get_tensor_by_name("x:0")],
        [f"{key[1]}:0"],
    )
    np.testing.assert_allclose(
        pruned(tf.constant([3.0, 4.0, 0.0]))[0][:2], np.log([0.6, 0.8]), rtol=1e-6
    )


def test_an_op_that_is_not_there_is_an_error() -> None:
    record, _, _ = traced(lambda x: tf.math.log(x), VECTOR)
    with pytest.raises(ReplayError, match="no op 'nope'"):
        ProgramEditor(record).node(("", "nope"))
    with pytest.raises(ReplayError, match="no op 'nope'"):
        ProgramEditor(record).locate(("body_12", "nope"))
