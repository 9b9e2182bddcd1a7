"""Custom training loops: plain eager steps, tf.functions, and no Keras at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, STEPS, assert_same_bits, data, replayed

from nanreplay import AttachError, Capture, NonFiniteError, Recorder


def batches(bad_step: int | None = 3) -> list[Any]:
    x, y = data(bad_step)
    return [(x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH]) for i in range(STEPS)]


def make(*, is_built: bool = True) -> tuple[Any, Any, Any]:
    """A model, its optimizer and a step; unless `is_built` the first step makes Adam's variables.

    Such a step is traced twice.
    """
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    optimizer: Any = keras.optimizers.Adam(0.01)
    if is_built:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        optimizer.build(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return model, optimizer, step


def run(step: Any, given: list[Any]) -> int | None:
    try:
        for batch in given:
            step(*batch)
    except NonFiniteError as error:
        return error.step
    return None


def as_eager(step: Any) -> Any:
    return step


def as_function(step: Any) -> Any:
    return tf.function(step)


def as_xla(step: Any) -> Any:
    return tf.function(step, jit_compile=True)


def as_signature(step: Any) -> Any:
    return tf.function(step, input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1])])


KINDS = [as_eager, as_function, as_xla, as_signature]
SLOW = [(kind, tf.constant) for kind in KINDS if kind is not as_function]


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        pytest.param(convert, kind, marks=pytest.mark.slow if (kind, convert) in SLOW else ())
        for convert in (np.asarray, tf.constant)
        for kind in KINDS
    ],
)
def test_a_loop_is_recorded_and_replays_bit_for_bit(
    tmp_path: Path, kind: Any, convert: Any
) -> None:
    model, optimizer, step = make()
    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(kind(step), model=model, optimizer=optimizer)
    assert run(recorded, [tuple(map(convert, batch)) for batch in batches()]) == 3
    results = replayed(path)
    assert [result.step for result in results] == ([3] if kind is as_eager else [0, 1, 2, 3])
    assert all(result.bit_exact for result in results)
    assert not results[-1].finite
    with Capture(path) as capture:
        assert capture.incident.bit_exact
        names = [info.path for info in capture.variables_info]
        assert any(name.endswith("hidden/kernel") for name in names)
        assert any(info.role == "optimizer" for info in capture.variables_info)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in (as_xla, as_signature) else ())
        for kind in KINDS
    ],
)
def test_a_loop_trains_the_same_bits_with_and_without_the_recorder(
    tmp_path: Path, kind: Any
) -> None:
    found = []
    for wrapped in (False, True):
        model, optimizer, step = make()
        step = kind(step)
        run(Recorder(tmp_path / "run.h5").wrap(step) if wrapped else step, batches(None) * 2)
        found.append(
            [np.asarray(variable) for variable in [*model.variables, *optimizer.variables]]
        )
    assert_same_bits(*found)


def test_variables_are_found_when_nobody_names_them(tmp_path: Path) -> None:
    _, _, step = make()
    path = tmp_path / "run.h5"
    assert run(Recorder(path).wrap(step), batches()) == 3
    assert replayed(path)[0].bit_exact


@pytest.mark.parametrize("kind", [as_eager, as_function])
def test_a_module_without_keras(tmp_path: Path, kind: Any) -> None:
    class Linear(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.ones([3, 1]), name="kernel")
            self.seen = tf.Variable(0, trainable=False, name="seen")

        def step(self, x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ self.kernel - y))
            self.kernel.assign_sub(0.1 * tape.gradient(loss, self.kernel))
            self.seen.assign_add(1)
            return {"loss": loss, "seen": self.seen.read_value()}

    path = tmp_path / "run.h5"
    assert run(Recorder(path).wrap(kind(Linear().step)), batches()) == 3
    assert all(result.bit_exact for result in replayed(path))
    with Capture(path) as capture:
        assert {info.path for info in capture.variables_info} >= {"kernel"}


def test_a_step_that_reads_numbers_runs_as_it_is(tmp_path: Path) -> None:
    model, optimizer, step = make()
    seen: list[float] = []

    def chatty(batch: Any) -> Any:
        x, y = tf.constant(batch[0]), tf.constant(batch[1])
        loss = step(x, y)
        seen.append(float(loss.numpy()))
        return loss

    path = tmp_path / "run.h5"
    assert (
        run(
            Recorder(path).wrap(chatty, model=model, optimizer=optimizer),
            [(batch,) for batch in batches()],
        )
        == 3
    )
    assert replayed(path)[0].bit_exact
    assert len(seen) >= 4


def test_check_numerics_in_the_step_is_an_incident_and_its_error_goes_on(tmp_path: Path) -> None:
    model, optimizer, _ = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        gradients = [tf.debugging.check_numerics(gradient, "gradient") for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    for kind in (as_eager, as_function):
        path = tmp_path / f"{kind.__name__}.h5"
        recorder = Recorder(path)
        with (
            pytest.warns(UserWarning, match="raised InvalidArgumentError"),
            pytest.raises(tf.errors.InvalidArgumentError),
        ):
            run(recorder.wrap(kind(step), model=model, optimizer=optimizer), batches())
        assert recorder.path == path
        with Capture(path) as capture:
            assert capture.incident.trigger.what == "exception"
            assert capture.batch(3).program


@pytest.mark.slow
def test_a_step_under_tensorflows_own_numerics_check_is_replayed_without_trust(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.h5"
    tf.debugging.enable_check_numerics()
    try:
        model, optimizer, step = make()
        recorded = Recorder(path).wrap(tf.function(step), model=model, optimizer=optimizer)
        with (
            pytest.warns(UserWarning, match="raised InvalidArgumentError"),
            pytest.raises(tf.errors.InvalidArgumentError),
        ):
            run(recorded, batches())
    finally:
        tf.debugging.disable_check_numerics()
    assert replayed(path)


def test_what_a_step_prints_into_a_file_is_not_printed_by_a_replay(tmp_path: Path) -> None:
    model, optimizer, step = make()
    path, log = tmp_path / "run.h5", tmp_path / "log.txt"

    @tf.function
    def printing(x: Any, y: Any) -> Any:
        loss = step(x, y)
        tf.print("loss", loss, output_stream=f"file://{log}")
        return loss

    assert run(Recorder(path).wrap(printing, model=model, optimizer=optimizer), batches()) == 3
    log.unlink()
    assert all(result.bit_exact for result in replayed(path))
    assert not log.exists()


def test_variables_of_keras_may_be_given_to_an_eager_step_and_returned(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    model, optimizer, step = make()
    rate = keras.Variable(0.02)

    def with_rate(x: Any, y: Any, rate: Any) -> Any:
        optimizer.learning_rate.assign(rate)
        return step(x, y), optimizer.learning_rate

    recorded = Recorder(path).wrap(with_rate, model=model, optimizer=optimizer)
    assert run(lambda x, y: recorded(x, y, rate), batches()) == 3
    assert replayed(path)[0].bit_exact


def test_a_loop_may_reuse_the_buffer_of_its_batch(tmp_path: Path) -> None:
    for kind in (as_eager, as_function):
        model, optimizer, step = make()
        x, y = np.zeros((BATCH, 3), "float32"), np.zeros((BATCH, 1), "float32")
        path = tmp_path / f"{kind.__name__}.h5"
        recorded = Recorder(path, on_nan="stop").wrap(kind(step), model=model, optimizer=optimizer)

        def reuse(one: Any, other: Any, recorded: Any = recorded, x: Any = x, y: Any = y) -> None:
            x[:], y[:] = one, other
            recorded(x, y)

        with pytest.warns(UserWarning, match="step 3"):
            run(reuse, batches())
        with Capture(path) as capture:
            np.testing.assert_array_equal(capture.batch(2).leaves[0], batches()[2][0])


def test_keyword_arguments_are_part_of_the_batch(tmp_path: Path) -> None:
    for kind in (as_eager, as_function):
        model, optimizer, step = make()
        path = tmp_path / f"{kind.__name__}.h5"
        recorded = Recorder(path).wrap(kind(step), model=model, optimizer=optimizer)
        assert run(lambda x, y, recorded=recorded: recorded(x=x, y=y), batches()) == 3
        assert replayed(path)[-1].bit_exact


def test_batches_of_several_shapes_are_several_programs(tmp_path: Path) -> None:
    model, optimizer, step = make()
    path = tmp_path / "run.h5"
    given = batches()
    given[1] = tuple(part[:2] for part in given[1])
    recorded = Recorder(path).wrap(tf.function(step), model=model, optimizer=optimizer)
    assert run(recorded, given) == 3
    assert all(result.bit_exact for result in replayed(path))
    with Capture(path) as capture:
        assert len({capture.batch(step).program for step in capture.steps}) >= 2


def test_dump_writes_a_healthy_window(tmp_path: Path) -> None:
    model, optimizer, step = make(is_built=False)
    with Recorder(tmp_path / "run.h5") as recorder:
        recorded = recorder.wrap(tf.function(step), model=model, optimizer=optimizer)
        run(recorded, batches(None))
        path = recorder.dump("a look")
    assert path is not None
    assert all(result.finite and result.bit_exact for result in replayed(path))
    with Capture(path) as capture:
        assert capture.incident.trigger.what == "manual"


def test_an_unhandled_exception_of_the_step_is_dumped_and_goes_on(tmp_path: Path) -> None:
    model, optimizer, step = make()

    @tf.function
    def checked(x: Any, y: Any) -> Any:
        tf.debugging.assert_less(tf.reduce_max(tf.abs(x)), 100.0, "too large")
        return step(x, y)

    path = tmp_path / "run.h5"
    recorder = Recorder(path)
    recorded = recorder.wrap(checked, model=model, optimizer=optimizer)
    x, y = batches(None)[0]
    recorded(x, y)
    with (
        pytest.warns(UserWarning, match="raised InvalidArgumentError"),
        pytest.raises(tf.errors.InvalidArgumentError),
    ):
        recorded(x * 1000, y)
    with Capture(path) as capture:
        assert capture.incident.step == 1
        assert capture.incident.trigger.what == "exception"


def test_a_step_that_cannot_be_traced_raises_its_own_error(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, optimizer, step = make()
    recorded = Recorder(tmp_path / "run.h5").wrap(
        tf.function(step), model=model, optimizer=optimizer
    )
    recorded(*batches(None)[0])
    with pytest.raises(ValueError, match="Dimensions must be equal"):
        recorded(np.ones((4, 3), "float32"), np.ones((3, 1), "float32"))
    assert run(recorded, batches()) == 4
    assert not recwarn.list


def test_the_end_of_the_data_is_no_incident(tmp_path: Path) -> None:
    source = iter(tf.data.Dataset.range(3))
    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(lambda: tf.cast(next(source), tf.float32))
    with pytest.raises((StopIteration, tf.errors.OutOfRangeError)):
        run(recorded, [()] * 9)
    assert not path.exists()


def test_wrapping_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="Expected a function"):
        Recorder(tmp_path / "run.h5").wrap("train_step")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("shape", [None, [None, 3]], ids=str)
def test_a_variable_without_a_fixed_shape_is_told_of_at_the_first_step(
    tmp_path: Path, shape: Any, is_compiled: bool, recwarn: pytest.WarningsRecorder
) -> None:
    weight, memory = (
        tf.Variable(2.0),
        tf.Variable(tf.zeros([0, 3]), shape=tf.TensorShape(shape), trainable=False),
    )

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = weight * tf.reduce_sum(tf.concat([memory.read_value(), x], 0))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        memory.assign(x)
        return loss

    with Recorder(tmp_path / "run.h5") as recorder:
        recorded = recorder.wrap(tf.function(step) if is_compiled else step)
        for _ in range(3):
            recorded(tf.ones([2, 3]))
        told = [str(each.message) for each in recwarn.list if "nanreplay" in str(each.message)]
        assert len(told) == 1
        assert "cannot be replayed" in told[0]
        path = recorder.dump()
    assert path is not None
    with Capture(path) as capture:
        assert any("no fixed shape" in note for note in capture.incident.notes)
