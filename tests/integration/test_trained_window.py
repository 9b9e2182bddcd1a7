"""The window as it was trained: a part of the graph optimizers where it gives the recorded bits,
else all of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from nanreplay import Capture, NonFiniteError, Recorder, Replay
from nanreplay.diagnose import judge, trained_window
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.replay import replay_programs
from nanreplay.replay.beside import beside
from nanreplay.replay.interpreter_plan import Library
from nanreplay.tensorflow_internals.tf_functions import Optimizers, optimized_by


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


def test_few_optimizers_count_where_they_give_the_bits_of_two_rounds(capture_path: Path) -> None:
    """In one round TensorFlow fuses fewer ops of this model, which gives other bits."""
    with Capture(capture_path) as capture, Replay(capture) as replay:
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert replay.program(capture.incident.step).optimizers is Optimizers.DECIDING
        of_few = replay.state_after(capture.incident.step - 1)
        replay.program(capture.incident.step).optimizers = Optimizers.ALL
        of_all = replay.state_after(capture.incident.step - 1)
        for index, value in of_all.items():
            np.testing.assert_array_equal(of_few[index], value)


def test_weights_so_large_that_memory_is_planned_take_all_optimizers_at_once(
    capture_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_window, "_PLANNED_BYTES", 0)
    with Capture(capture_path) as capture, Replay(capture) as replay:
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
    capture_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = calls = 0
    call = CompiledProgram.__call__

    def counted_call(self: CompiledProgram, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(self, *args)

    monkeypatch.setattr(CompiledProgram, "__call__", counted_call)
    with Capture(capture_path) as capture, Replay(capture) as replay:

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
