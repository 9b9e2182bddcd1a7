"""However a recording ends, every function of TensorFlow and Keras that it replaced is the original
again."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, data, mlp

from nanreplay import NonFiniteError, Recorder
from nanreplay.program import listening, observe, python_effects
from nanreplay.tensorflow_internals import tf_datasets, tf_eager, tf_variables

Places = dict[tuple[Any, str], Any]


def replaced_places() -> list[tuple[Any, str]]:
    """Owner and name of every function that a recording may replace."""
    release = observe.install()
    places = list(observe.PATCHED)
    release()
    modules = [
        *tf_variables.random_functions(),
        *tf_datasets.fetch_functions(),
        *tf_variables.assignment_functions(),
    ]
    return [*places, *modules, *tf_eager.replaced_gradient_functions()]


@pytest.fixture(autouse=True)
def all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.collect()
    observe._users.clear()  # recorders that other tests of this process still hold
    observe._uninstall()
    python_effects._trackers.clear()
    python_effects._put_back_after_last()
    places = replaced_places()
    before = [getattr(owner, name) for owner, name in places]
    yield
    gc.collect()
    assert len(places) > 30
    changed = [
        name
        for (owner, name), held in zip(places, before, strict=True)
        if getattr(owner, name) is not held
    ]
    assert not changed
    assert not observe.PATCHED
    assert not listening.ambient
    assert listening.is_unheard()


def fit(recorder: Recorder, bad_step: int | None = 3, **compiled: Any) -> Any:
    model = mlp(**compiled)
    x, y = data(bad_step)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder])
    return model


def loop(
    recorder: Recorder,
    bad_step: int | None = 3,
    *,
    compiled: bool,
    raises: type[BaseException] | None = None,
) -> None:
    model = mlp()
    x, y = data(bad_step)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        model.optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    recorded = recorder.wrap(
        tf.function(step) if compiled else step, model=model, optimizer=model.optimizer
    )
    for number, start in enumerate(range(0, len(x), BATCH)):
        if raises is not None and number == 2:
            raise raises
        recorded(tf.constant(x[start : start + BATCH]), tf.constant(y[start : start + BATCH]))
        if recorder.stopped:
            break


def fit_that_ends_well(path: Path) -> None:
    fit(Recorder(path), None)


def fit_that_raises(path: Path) -> None:
    with pytest.raises(NonFiniteError):
        fit(Recorder(path))


def fit_that_stops(path: Path) -> None:
    with pytest.warns(UserWarning, match="step 3"):
        fit(Recorder(path, on_nan="stop"))


def fit_that_goes_on(path: Path) -> None:
    with pytest.warns(UserWarning, match="step 3"):
        fit(Recorder(path, on_nan="continue", max_incidents=1))


def eager_fit(path: Path) -> None:
    with pytest.raises(NonFiniteError):
        fit(Recorder(path), run_eagerly=True)


def fit_with_several_steps_a_call(path: Path) -> None:
    with pytest.raises(NonFiniteError):
        fit(Recorder(path), steps_per_execution=3)


def fit_that_another_callback_ends(path: Path) -> None:
    import keras

    class Ends(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise ZeroDivisionError

    model = mlp()
    x, y = data(None)
    with pytest.raises(ZeroDivisionError):
        model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[Recorder(path), Ends()])


def compiled_loop_that_is_closed(path: Path) -> None:
    recorder = Recorder(path)
    loop(recorder, None, compiled=True)
    recorder.close()


def eager_loop_that_is_closed(path: Path) -> None:
    recorder = Recorder(path)
    loop(recorder, None, compiled=False)
    recorder.close()


def loop_that_raises_and_is_forgotten(path: Path) -> None:
    with contextlib.suppress(NonFiniteError):
        loop(Recorder(path), compiled=True)


def loop_that_is_forgotten(path: Path) -> None:
    loop(Recorder(path), None, compiled=True)


def loop_that_is_interrupted(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Recorder(path) as recorder:
        loop(recorder, None, compiled=False, raises=KeyboardInterrupt)


def block_that_ends_well(path: Path) -> None:
    with Recorder(path):
        model = mlp()
        x, y = data(None)
        model.fit(x, y, batch_size=BATCH, verbose=0)
        model.train_on_batch(x[:4], y[:4])


def block_that_raises(path: Path) -> None:
    model = mlp()
    x, y = data(3)
    with pytest.raises(NonFiniteError):
        train_in_a_block(model, x, y, path)


def train_in_a_block(model: Any, x: Any, y: Any, path: Path) -> None:
    with Recorder(path):
        for start in range(0, len(x), BATCH):
            model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])


def recorder_that_fails(path: Path) -> None:
    recorder = Recorder(path)
    recorder._recording.keeper.begin = broken  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="detached itself"):
        fit(recorder, None)


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a bug")


ENDS: list[Callable[[Path], None]] = [
    fit_that_ends_well, fit_that_raises, fit_that_stops, fit_that_goes_on, eager_fit,
    fit_with_several_steps_a_call,
    fit_that_another_callback_ends, compiled_loop_that_is_closed, eager_loop_that_is_closed,
    loop_that_raises_and_is_forgotten,
    loop_that_is_forgotten, loop_that_is_interrupted, block_that_ends_well, block_that_raises,
    recorder_that_fails,
]  # fmt: skip


QUICK = (
    fit_that_ends_well, fit_that_raises, eager_fit, compiled_loop_that_is_closed,
    loop_that_is_forgotten, loop_that_is_interrupted, block_that_raises, recorder_that_fails,
)  # fmt: skip
"""An end of each kind; those of the slow tests are like one of them."""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(end, id=end.__name__, marks=[pytest.mark.slow] * (end not in QUICK))
        for end in ENDS
    ],
)
def test_all_is_put_back(end: Callable[[Path], None], tmp_path: Path) -> None:
    end(tmp_path / "run.h5")


def test_a_tape_outlives_the_last_recording(tmp_path: Path) -> None:
    """Between the forward and the backward pass the recorder of another training goes: no gradient
    may notice."""
    recorder = Recorder(tmp_path / "run.h5")
    loop(recorder, None, compiled=True)
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape, observe.EagerObserver():
        tape.watch(x)
        y = tf.square(x)
    recorder.close()

    @tf.function(autograph=False)  # which would convert `install` and all that it calls
    def gradient(x: Any) -> Any:
        with tf.GradientTape() as inner:
            inner.watch(x)
            release = observe.install()
            value = tf.square(tf.nn.dropout(x, 0.0) * x)
            release()
        return inner.gradient(value, x)

    np.testing.assert_array_equal(tape.gradient(y, x), [2.0, 4.0])
    np.testing.assert_array_equal(gradient(x), [4.0, 32.0])


@pytest.mark.parametrize("line", range(1, 6))
def test_a_recorder_that_is_collected_as_another_begins_takes_nothing_away(line: int) -> None:
    """Garbage is collected at any moment, in the same thread: also between any two lines of
    `install`."""
    collected, lines = observe.install(), itertools.count(1)

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code is not observe.install.__code__:
            return None
        if event == "line" and next(lines) == line:
            collected()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        release = observe.install()
    finally:
        sys.settrace(before)
    assert observe.PATCHED
    release()
    assert not observe.PATCHED
