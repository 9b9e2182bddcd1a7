"""Plain Python steps that take their batches, or a state, from Python itself; steps in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import replayed

from nanreplay import Capture, NonFiniteError, Recorder, explain

BAD, ROW, STEPS = 3, 2, 5


def make() -> tuple[Any, Any]:
    """A model, and a step that trains it; the logarithm of the bad batch is infinite."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer: Any = keras.optimizers.SGD(0.01)
    optimizer.build(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(tf.math.log(x)) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return model, step


def arrays(bad: int | None = BAD) -> tuple[Any, Any]:
    draw = np.random.RandomState(1)
    x = draw.uniform(0.5, 1.5, (STEPS, 4, 3)).astype("float32")
    if bad is not None:
        x[bad, ROW, 1] = 0.0
    return x, draw.rand(STEPS, 4, 1).astype("float32")


def run(step: Callable[..., Any], batches: Iterable[Any]) -> int | None:
    """Call a step with each batch until it fails; returns in which call it did."""
    try:
        for batch in batches:
            step(*batch)
    except NonFiniteError as error:
        return error.step
    return None


def generated() -> Iterator[Any]:
    yield from zip(*arrays(), strict=True)


@pytest.mark.parametrize("iterator", [generated, lambda: zip(*arrays(), strict=True)])
def test_what_a_step_takes_from_an_iterator_of_python_is_its_batch(
    iterator: Callable[[], Any], tmp_path: Path
) -> None:
    model, train = make()
    path = tmp_path / "run.h5"
    recorded = Recorder(path, on_nan="stop").wrap(lambda given: train(*next(given)), model=model)
    given = iterator()
    with pytest.warns(UserWarning, match="step 3"):
        run(recorded, [(given,)] * STEPS)
    np.testing.assert_array_equal(next(given, None), None, "the loop has taken all that there was")
    report = explain(path, fixes="none")
    assert report.findings.origin is not None, report.sentence
    assert report.findings.origin.op_type == "Log"
    assert report.findings.origin.rows == (ROW,)
    assert replayed(path)[0].bit_exact


def test_a_whole_epoch_in_python_is_one_step(tmp_path: Path) -> None:
    model, train = make()
    path = tmp_path / "run.h5"

    def epoch(dataset: Any) -> float:
        return sum(float(train(x, y)) for x, y in dataset)

    recorded = Recorder(path).wrap(epoch, model=model)
    recorded(tf.data.Dataset.from_tensor_slices(arrays(None)))
    with pytest.raises(NonFiniteError):
        recorded(tf.data.Dataset.from_tensor_slices(arrays()))
    report = explain(path, fixes="none")
    assert report.findings.origin is not None, report.sentence
    assert (report.incident_step, report.findings.origin.op_type) == (1, "Log")
    assert replayed(path)[0].bit_exact


def test_a_step_whose_state_is_pythons_own_is_not_explained_by_another_run(tmp_path: Path) -> None:
    weights = np.ones((3, 1), "float32")

    def of_numpy(x: Any, y: Any) -> float:
        nonlocal weights
        held = tf.constant(weights)
        with tf.GradientTape() as tape:
            tape.watch(held)
            loss = tf.reduce_mean(tf.square(tf.math.log(x) @ held - y))
        weights = weights - 0.01 * tape.gradient(loss, held).numpy()
        return float(loss)

    train = make()[1]
    given = generated()

    def of_closure() -> Any:
        return train(*given.__next__())

    for name, step, each in (
        ("numpy", of_numpy, zip(*arrays(), strict=True)),
        ("closure", of_closure, [()] * STEPS),
    ):
        path = tmp_path / f"{name}.h5"
        recorded = Recorder(path).wrap(step)
        assert run(recorded, each) == BAD
        report = explain(path, fixes="none")
        assert report.verdict.kind == "inconclusive", report.sentence
        assert report.findings.origin is None
        with Capture(path) as capture:
            assert any("took other numbers from Python" in note for note in capture.incident.notes)


@pytest.mark.parametrize("convert", [tf.function, lambda step: step])
def test_a_recorded_step_that_calls_another_one_counts_once(convert: Any, tmp_path: Path) -> None:
    model, train = make()
    recorder = Recorder(tmp_path / "run.h5")
    inner = recorder.wrap(convert(train), model=model)
    outer = recorder.wrap(lambda x, y: {"loss": float(inner(x, y))})
    assert run(outer, zip(*arrays(), strict=True)) == BAD
    assert replayed(tmp_path / "run.h5")[0].bit_exact


def test_a_step_within_a_tape_of_its_caller_is_recorded(tmp_path: Path) -> None:
    model, train = make()
    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(tf.function(train), model=model)
    gradients = []

    def within_tape(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = recorded(x, y)
        gradients.append(tape.gradient(loss, x))

    assert run(within_tape, zip(*map(tf.constant, arrays()), strict=True)) == BAD
    assert len(gradients) == BAD
    assert all(gradient is not None for gradient in gradients)
    assert replayed(path)[0].bit_exact


def test_a_step_that_draws_within_a_tape_is_said_not_to_be_recorded(tmp_path: Path) -> None:
    model, train = make()

    @tf.function
    def drawing(x: Any, y: Any) -> Any:
        return train(x + tf.random.uniform(x.shape), y)

    recorded = Recorder(tmp_path / "run.h5").wrap(drawing, model=model)

    def within_tape(x: Any, y: Any) -> None:
        with tf.GradientTape():
            recorded(x, y)

    with pytest.warns(UserWarning, match="within a GradientTape") as told:
        run(within_tape, zip(*map(tf.constant, arrays(None)), strict=True))
    assert len(told) == 1


def test_a_compiled_function_between_steps_may_set_what_they_use(tmp_path: Path) -> None:
    model, train = make()
    target = keras.models.clone_model(model)
    path = tmp_path / "run.h5"

    @tf.function
    def step(x: Any, y: Any) -> Any:
        return train(x, y + target(x))

    @tf.function
    def follow(followers: Any, leaders: Any) -> None:
        for follower, leader in zip(followers, leaders, strict=True):
            follower.assign(0.5 * follower + 0.5 * leader)

    recorded = Recorder(path).wrap(step, model=[model, target])

    def both(x: Any, y: Any) -> None:
        recorded(x, y)
        values = [[each.value for each in one.variables] for one in (target, model)]
        follow(*values)

    assert run(both, zip(*arrays(), strict=True)) == BAD
    assert all(result.bit_exact for result in replayed(path))
