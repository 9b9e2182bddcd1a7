"""An upgrade of TensorFlow that moves a private name fails here, with the name."""

from __future__ import annotations

import importlib

import pytest
import tensorflow as tf

NEEDED = [
    ("tensorflow.python.eager.context", "context"),
    ("tensorflow.python.eager.execute", "quick_execute"),
    ("tensorflow.python.framework.op_def_registry", "get"),
    ("tensorflow.python.eager.wrap_function", "WrappedFunction"),
    ("tensorflow.python.framework.ops", "gradient_registry"),
]


@pytest.mark.parametrize(("module", "name"), NEEDED)
def test_tensorflow_still_has_the_private_name(module: str, name: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(
            f"TensorFlow {tf.__version__} has no module {module} any more; adapt nanreplay/tensorflow_internals ({error})."
        )
    assert hasattr(found, name), (
        f"TensorFlow {tf.__version__} has no {module}.{name} any more; adapt nanreplay/tensorflow_internals."
    )


def test_run_op_runs_one_kernel() -> None:
    from nanreplay.tensorflow_internals import tf_eager

    (total,) = tf_eager.run_op(
        "AddV2", 1, [tf.constant(1.0), tf.constant(2.0)], ("T", tf.float32.as_datatype_enum)
    )
    assert total == 3.0


def test_op_definition_knows_ops_and_only_ops() -> None:
    from nanreplay.tensorflow_internals import tf_eager

    assert [argument.name for argument in tf_eager.op_definition("MatMul").input_arg] == ["a", "b"]
    assert tf_eager.op_definition("NoSuchOp") is None


def test_a_function_is_known_until_it_is_unregistered() -> None:
    from nanreplay.tensorflow_internals import tf_eager, tf_functions

    function = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec([])).function_def
    function.signature.name = "nanreplay_test_function"
    tf_functions.register_function(function)
    kind = tf.float32.as_datatype_enum
    attrs = ("Tin", [kind], "Tout", [kind], "f", "nanreplay_test_function")
    (found,) = tf_eager.run_op("PartitionedCall", 1, [tf.constant(1.0)], attrs)
    assert found == 2.0
    tf_functions.unregister_function("nanreplay_test_function")
    tf_functions.unregister_function("nanreplay_test_function")


def test_a_graph_runs_as_a_function_with_its_effects() -> None:
    from nanreplay.tensorflow_internals import tf_functions

    def build() -> None:
        place = tf.compat.v1.placeholder(tf.float32, [], name="x")
        handle = tf.compat.v1.placeholder(tf.resource, [], name="handle")
        tf.raw_ops.AssignVariableOp(resource=handle, value=place * 3.0, name="assign")
        tf.identity(place + 1.0, name="result")

    wrapped = tf.compat.v1.wrap_function(build, [])
    inputs = [wrapped.graph.get_tensor_by_name(name) for name in ("x:0", "handle:0")]
    outputs, effects = (
        [wrapped.graph.get_tensor_by_name("result:0")],
        [wrapped.graph.get_operation_by_name("assign")],
    )
    variable = tf.Variable(0.0)
    (found,) = tf_functions.function_of_graph(wrapped, inputs, outputs, effects)(
        tf.constant(2.0), variable.handle
    )
    assert (float(found), float(variable)) == (3.0, 6.0)
