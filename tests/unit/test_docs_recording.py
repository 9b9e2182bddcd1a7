"""Each line of the table "your program, and the line to add" in docs/recording.md is run by a
test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "tests/integration"
SHAPES = f"{TESTS}/loop_shapes"
TESTED_BY = {
    "any script, unchanged": f"{TESTS}/test_run.py::test_each_training_of_a_process_has_a_file",
    "any block of code": "tests/integration/test_put_back.py::train_in_a_block",
    "`model.fit` of Keras 3": f"{TESTS}/test_record_fit.py::test_every_input_of_fit_is_recorded",
    "a `tf.function` called in a loop": f"{SHAPES}/callables.py::input_signature",
    "a plain function, a lambda": f"{SHAPES}/callables.py::partial_of_a_compiled_function",
    "a trainer class": f"{SHAPES}/callables.py::method_that_is_put_back",
    "`model.train_on_batch`": f"{SHAPES}/several_steps.py::train_on_batch",
    "a plain eager function": f"{SHAPES}/gradients.py::compiled_gradient_and_eager_update",
    "a step that fetches its batch": f"{SHAPES}/iterators.py::iterator_argument",
    "several updates in one call": f"{SHAPES}/iterators.py::several_updates_in_a_loop_of_the_graph",
    "a step that a `tf.function` of yours calls": f"{SHAPES}/callables.py::inner_step",
    "several steps that take turns": f"{SHAPES}/several_steps.py::adversaries_wrapped_one_by_one",
    "`strategy.run` in a `tf.function`": (
        f"{SHAPES}/distribution.py::strategy_in_a_compiled_function"
    ),
    "a callback of keras-tuner": (
        f"{TESTS}/test_copies.py::test_copies_of_a_recorder_have_files_of_their_own"
    ),
}
"""Begin of the first column, to the function that runs it."""


def table() -> list[str]:
    text = (ROOT / "docs/recording.md").read_text()
    section = text.split("## Your program, and the line to add")[1].split("\n## ")[0]
    return [
        row.split(" | ")[0].removeprefix("| ") for row in re.findall(r"^\| .*\|$", section, re.M)
    ][1:]


def test_each_line_of_the_table_is_run_by_a_test() -> None:
    rows = table()
    assert len(rows) == len(TESTED_BY)
    for row in rows:
        found = [test for begin, test in TESTED_BY.items() if row.startswith(begin)]
        assert len(found) == 1, row
        file, _, name = found[0].partition("::")
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, found[0]
