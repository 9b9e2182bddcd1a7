"""What a fix says of a capture that it does not apply to, or whose code is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder, Replay, explain
from nanreplay.bisect import bisect
from nanreplay.findings import FixResult
from nanreplay.whatif.trial import what_if

pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),  # what `on_nan="stop"` says
    pytest.mark.xdist_group("fix_notes"),
]


def trained(
    path: Path,
    loss_of: Callable[[Any, Any], Any],
    batches: list[Any],
    *,
    signature: Any = None,
    sources: str = "lines",
) -> Path:
    """Train a vector on some batches, until a step fails."""
    weights, optimizer = tf.Variable([1.0, 0.5]), keras.optimizers.SGD(0.01)

    @tf.function(autograph=False, input_signature=signature)
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, weights)
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    with Recorder(path, on_nan="stop", sources=sources) as recorder:  # type: ignore[arg-type]
        recorded = recorder.wrap(step, optimizer=optimizer)
        for batch in batches:
            try:
                recorded(tf.constant(batch))
            except tf.errors.InvalidArgumentError:
                break
    return path


def rows(last: Any, steps: int = 3) -> list[Any]:
    """Batches of four rows of two numbers; the last one begins with the rows that are given."""
    random = np.random.default_rng(0)
    batches = [random.uniform(0.5, 0.9, (4, 2)).astype("float32") for _ in range(steps)]
    batches[-1][: len(last)] = last
    return batches


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A capture of one step, a logarithm of 0, without lines of code."""
    path = tmp_path_factory.mktemp("fix_notes") / "run.h5"
    yield trained(
        path,
        lambda batch, w: tf.reduce_mean(tf.math.log(batch * w)),
        [np.float32([[1, 2], [3, 0]])],
        sources="none",
    )
    keras.backend.clear_session(free_memory=False)


def tried(path: Path, fix: str) -> FixResult:
    with Capture(path) as capture, Replay(capture) as replay:
        bisection = bisect(replay, capture.timeline_record())
        return what_if(replay, bisection, (), [fix]).results[0]


@pytest.mark.parametrize(
    ("fix", "note"),
    [
        ("clip_data", "The capture holds no other batch that tells a usual range."),
        ("clip_data=5", "The batch of step 0 lies within -5 to 5."),
        ("clean_data=nan_to_num", "The batch of step 0 is finite."),
        ("stable_op", "No op is known that computes what `Log` does here and stays finite."),
        ("init=he", "The model has no kernel to draw anew."),
        (
            "lr=0.1",
            "The capture holds no step before step 0, so a learning rate has nothing to change.",
        ),
    ],
)
def test_a_fix_that_does_not_apply_says_what_is_so(one_step: Path, fix: str, note: str) -> None:
    result = tried(one_step, fix)
    assert (result.prevents, result.note) == (None, note)


def test_a_line_whose_code_was_not_recorded_is_named(one_step: Path) -> None:
    result = tried(one_step, "epsilon")
    assert result.prevents is True
    line = result.source.line if result.source is not None else 0
    place = f"in line {line} of test_fix_notes.py, whose code the capture does not hold"
    assert result.code == f"# Add 1e-7 to the operand of `Log`, {place}"


def test_a_column_without_numbers_is_not_cut_to_0(tmp_path: Path) -> None:
    batches = rows([[0.5, 1e30]])
    batches[-1][:, 0] = 0.7
    for batch in batches[:-1]:
        batch[:, 1] = np.nan

    def loss_of(batch: Any, w: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.where(tf.math.is_nan(batch), 0.0, batch) * w))

    result = tried(trained(tmp_path / "run.h5", loss_of, batches), "clip_data")
    assert (result.prevents, result.code) == (None, None)
    assert (
        result.note
        == "The batch of step 2 lies within the range of the others, where these tell one."
    )


def half(x: Any) -> Any:
    """A function of a name that a type has as well."""
    return tf.cast(x, tf.float16)


def test_16_bits_within_a_step_are_found_and_functions_keep_their_names(tmp_path: Path) -> None:
    def loss_of(batch: Any, w: Any) -> Any:
        small = tf.cast(half(batch) * half(batch * 1e-3), tf.float32)
        return -tf.reduce_mean(tf.math.log(small) * w)

    path = trained(tmp_path / "run.h5", loss_of, rows([[1e-3, 0.5]]))
    result = tried(path, "float32")
    assert result.prevents is True
    assert (result.code or "").startswith("return tf.cast(x, tf.float32)  # line ")
    assert "float32(batch" not in (result.code or "")


def test_a_fix_of_a_step_that_raises_is_told_by_what_it_raises(tmp_path: Path) -> None:
    def loss_of(batch: Any, w: Any) -> Any:
        return tf.reduce_mean(tf.linalg.inv(tf.linalg.diag(batch * w)))

    path = trained(tmp_path / "run.h5", loss_of, rows([[0, 0.5]]))
    result = tried(path, "clipnorm=1")
    assert (result.prevents, result.outcome, result.nonfinite_step) == (False, "fails", 2)
    assert result.nonfinite is not None
    assert result.nonfinite.value == "Input is not invertible."
    assert tried(path, "epsilon=0.1").outcome == "prevents"


def test_rows_are_left_out_where_a_step_takes_any_number_of_them(tmp_path: Path) -> None:
    path = trained(
        tmp_path / "run.h5",
        lambda batch, w: tf.reduce_mean(tf.math.log(batch * w)),
        rows([[1, 0.5], [0, 0.5]]),
        signature=[tf.TensorSpec([None, 2])],
    )
    result = tried(path, "clean_data=drop_rows")
    assert (result.prevents, result.note) == (True, None)
    assert result.code == (
        "batch = tf.nest.map_structure(lambda part: np.delete(part, [1], axis=0), batch)"
        "  # of step 2"
    )


@pytest.mark.parametrize("fix", ["lr=0.1", "init"])
def test_steps_of_other_python_code_are_not_said_to_be_missing(fix: str, tmp_path: Path) -> None:
    weights, optimizer = tf.Variable([1.0, 0.5]), keras.optimizers.SGD(0.01)
    done: list[Any] = []

    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.log(batch * weights))
            loss *= 1 + len(done)  # each step computes with another number of Python
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        done.append(float(loss))
        return loss

    path = tmp_path / "run.h5"
    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        for batch in rows([[0, 0.5]]):
            recorded(tf.constant(batch))
    with Capture(path) as capture:
        assert capture.steps == (0, 1, 2)
    note = tried(path, fix).note or ""
    assert note.startswith("No step before step 2 is shown to run the program that is recorded, so")


LINES: dict[str, tuple[str, Any, Callable[[Any, Any], Any], str]] = {
    "the second quotient of a line": (
        "epsilon=0.1",
        [[0.5, 0]],
        lambda x, w: tf.reduce_mean(w[0] / x[:, 0] + w[1] / x[:, 1]),
        "w[0] / x[:, 0] + w[1] / (x[:, 1] + 0.1)",
    ),
    "an arc": (
        "epsilon",
        [[1.1, 0]],
        lambda x, w: tf.reduce_mean(tf.acos(x * w)),
        "tf.acos(tf.clip_by_value(x * w, -0.999999, 0.999999))",
    ),
    "an angle": (
        "double_where",
        [[0, 0]],
        lambda x, w: tf.reduce_mean(tf.atan2(w[0] * x[:, 0], x[:, 1])),
        "tf.math.atan2(w[0] * x[:, 0], "
        "tf.where((w[0] * x[:, 0] != 0) | (x[:, 1] != 0), x[:, 1], 1.0))",
    ),
    "a whole power": (
        "double_where",
        [[0, 1]],
        lambda x, w: tf.reduce_mean((x * w) ** -2.0),
        "(tf.where(x * w != 0, x * w, 1.0)) ** -2.0",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_the_very_operand_of_a_line_is_changed(name: str, tmp_path: Path) -> None:
    fix, row, loss_of, code = LINES[name]
    result = tried(trained(tmp_path / "run.h5", loss_of, rows(row)), fix)
    assert result.prevents is True
    assert result.code == f"lambda x, w: tf.reduce_mean({code}),"


def test_weights_are_not_said_to_be_ruined_where_another_op_fails_after_the_window(
    tmp_path: Path,
) -> None:
    """Of the two logarithms of a cross-entropy by hand, the fix saves the first alone."""
    weight = tf.Variable(-60.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            p = tf.sigmoid(2 * weight * x)
            first = tf.math.log(p)
            loss = -tf.reduce_mean(first + 0.0 * tf.math.log(1 - p))
        tape.gradient(loss, weight)
        weight.assign(60.0)
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorder.wrap(step)(tf.ones(4))
    fix = tried(tmp_path / "run.h5", "epsilon")
    assert fix.outcome == "unhealthy"
    assert "`Log` (" not in str(fix.note)
    assert str(fix.note).startswith(
        "All values are finite, but a step after the window is not: there `Log` in the loss (test_"
    )


def test_without_an_optimizer_gradients_are_clipped_in_code(tmp_path: Path) -> None:
    weight = tf.Variable(0.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.sqrt(weight * x)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorder.wrap(step)(1.0)
    codes = [tried(tmp_path / "run.h5", f"{name}=2").code for name in ("clipvalue", "clipnorm")]
    assert [str(code).partition("  #")[0] for code in codes] == [
        "gradients = [tf.clip_by_value(one, -2, 2) for one in gradients]",
        "gradients = [tf.clip_by_norm(one, 2) for one in gradients]",
    ]


def test_a_line_of_a_text_that_exec_runs_is_the_users(tmp_path: Path) -> None:
    names: dict[str, Any] = {"tf": tf}
    cell = "def loss_of(batch, w):\n    return tf.reduce_mean(tf.math.log(batch * w))"
    exec(compile(cell, "<cell 1>", "exec"), names)
    path = trained(tmp_path / "run.h5", names["loss_of"], [np.float32([[1, 2], [3, 0]])])
    assert "in line 2 of <cell 1>, whose code" in str(tried(path, "epsilon").code)


def test_a_fix_is_not_tried_on_a_step_that_cannot_run(tmp_path: Path) -> None:
    """A lookup table is no part of a capture; the step raised for its labels."""
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)
    path = trained(
        tmp_path / "run.h5",
        lambda batch, w: tf.reduce_mean(
            tf.gather(w, tf.cast(batch, tf.int32)) * table.lookup(tf.constant("a"))
        ),
        [np.float32([0, 1, 7])],
    )
    fixes = explain(path).fixes
    assert {fix.prevents for fix in fixes} == {None}
