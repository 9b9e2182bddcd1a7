"""An upgrade of TensorFlow that moves a private name fails here, with the name."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from nanreplay import tensorflow_internals
from nanreplay.program.op_facts import is_user_file
from nanreplay.tensorflow_internals import tf_datasets, tf_eager, tf_functions, tf_variables

PRIVATE_PACKAGES = ("tensorflow.python", "tensorflow.core", "keras.src")


def private_names(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file imports of private packages and reads of what it imported.

    `from a import b as _b` gives (a, b); where the file reads `_b.c`, also (a.b, c).
    """
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PRIVATE_PACKAGES):
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield str(node.module), alias.name
    for node in ast.walk(tree):
        owner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in imported:
            yield imported[owner.id], node.attr


FILES = sorted(Path(tensorflow_internals.__file__).parent.glob("*.py"))
NEEDED = sorted({pair for file in FILES for pair in private_names(file.read_text("utf-8"))})


def resolve(path: str) -> object:
    """A module, or what stands under a name in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_the_list_is_that_of_the_imports() -> None:
    assert ("tensorflow.python.eager", "context") in NEEDED
    assert ("tensorflow.python.eager.execute", "quick_execute") in NEEDED
    assert ("tensorflow.python.eager.wrap_function", "WrappedFunction") in NEEDED
    assert ("tensorflow.python.framework.op_def_registry", "get") in NEEDED
    assert ("keras.src.backend.tensorflow.trainer", "reduce_per_replica") in NEEDED


@pytest.mark.parametrize(("module", "name"), NEEDED)
def test_tensorflow_still_has_the_private_name(module: str, name: str) -> None:
    moved = (
        f"TensorFlow {tf.__version__} has no {module}.{name} any more; "
        "adapt nanreplay/tensorflow_internals"
    )
    try:
        owner = resolve(module)
        if not hasattr(owner, name):
            importlib.import_module(f"{module}.{name}")  # a submodule that nobody imported yet
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{moved} ({error}).")


def test_tensorflow_still_has_the_functions_that_are_replaced() -> None:
    for functions in (
        tf_datasets.fetch_functions(),
        tf_variables.assignment_functions(),
        tf_variables.random_functions(),
        tf_eager.replaced_gradient_functions(),
    ):
        assert functions
        assert [name for module, name in functions if not hasattr(module, name)] == []


def test_run_op_runs_one_kernel() -> None:

    (total,) = tf_eager.run_op(
        "AddV2", 1, [tf.constant(1.0), tf.constant(2.0)], ("T", tf.float32.as_datatype_enum)
    )
    assert total == 3.0


def test_op_definition_knows_ops_and_only_ops() -> None:

    assert [argument.name for argument in tf_eager.op_definition("MatMul").input_arg] == ["a", "b"]
    assert tf_eager.op_definition("NoSuchOp") is None


def test_a_function_is_known_until_it_is_unregistered() -> None:

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

    def build() -> dict[str, str]:
        place = tf.compat.v1.placeholder(tf.float32, [], name="x")
        handle = tf.compat.v1.placeholder(tf.resource, [], name="handle")
        tf.raw_ops.AssignVariableOp(resource=handle, value=place * 3.0, name="assign")
        tf.identity(place + 1.0, name="result")
        return {"y:0": "x:0"}

    variable = tf.Variable(0.0)
    function = tf_functions.function_of_graph(
        build, inputs=["y:0", "handle:0"], outputs=["result:0"], effects=["assign"]
    )
    (found,) = function(tf.constant(2.0), variable.handle)
    assert (float(found), float(variable)) == (3.0, 6.0)


def test_a_function_that_xla_compiles_anew_each_time_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.get_logger(), "propagate", True)  # as pytest reads it
    for _ in range(6):
        tf_functions.xla_function(lambda x: x + 1.0)(1.0)
    assert "retracing" not in caplog.text


@pytest.mark.parametrize(
    ("file", "function", "is_users"),
    [
        ("/home/me/train.py", "__init__", True),
        ("<ipython-input-2-0123456789ab>", "<module>", True),
        ("<timed exec>", "<module>", True),  # a cell that begins with %%time
        ("<command-2130>", "call", True),  # a cell of Databricks
        ("<stdin>", "<module>", True),
        ("<string>", "<module>", True),  # python -c
        ("<string>", "call", True),
        ("<string>", "__init__", False),  # of a dataclass
        ("<attrs generated init train.Step>", "__init__", False),
        ("<frozen importlib._bootstrap>", "_find_and_load", False),
    ],
)
def test_what_was_typed_is_the_users_and_generated_code_is_not(
    file: str, function: str, is_users: bool
) -> None:
    assert is_user_file(file, function) == is_users
